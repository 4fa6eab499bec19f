"""What the page leaves out where it would grow too large, and in which order."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from preprocessing.errors import InputError

SHEETS = {
    "all": "",
    "flagged": "the contact sheets of volumes that passed quality control",
    "none": "all contact sheets",
}
STEPS = (  # each on top of those before it, until the page fits; figures and tables always stay
    {"sheets": "flagged"},
    {"small": True},
    {"every": 2},
    {"volumes": 20},
    {"every": 4},
    {"volumes": 5},
    {"volumes": 1},
    {"clusters": False},
    {"sheets": "none"},
    {"volumes": 0},
)


@dataclass(frozen=True)
class Detail:
    """How many pictures the page holds.

    Attributes
    ----------
    sheets : whose contact sheets of the layers, one of `SHEETS`.
    small : whether the viewer's pictures have half their width and height.
    every : of as many neighbouring B-scans the viewer holds one, the one that scores highest.
    volumes : how many volumes of each group the viewer holds, those that score highest; None: all.
    clusters : whether the contact sheets of clusters of anomalous regions are there.
    """

    sheets: str = "all"
    small: bool = False
    every: int = 1
    volumes: int | None = None
    clusters: bool = True

    def left_out(self) -> list[str]:
        """Return what a page of this detail lacks, in words."""
        said = [SHEETS[self.sheets], "" if self.clusters else "the contact sheets of clusters"]
        if self.volumes == 0:
            return [*filter(None, said), "the B-scan viewer"]
        if self.small:
            said.append("the full resolution of B-scans (half their width and height is shown)")
        if self.every > 1:
            said.append(f"of every {self.every} neighbouring B-scans all but the highest-scoring")
        if self.volumes is not None:
            said.append(f"of each group of volumes all but the {self.volumes} highest-scoring")
        return [*filter(None, said)]


def fit(render: Callable[[Detail], str | None], max_mb: float) -> str:
    """Return the page with as much detail as fits into `max_mb` megabytes.

    `render` makes the page of a detail, or returns None where it is certain not to fit. Raises
    InputError when nothing is left to leave out.
    """
    detail = Detail()
    for changes in ({}, *STEPS):
        detail = replace(detail, **changes)
        page = render(detail)
        size = None if page is None else len(page.encode())
        if size is not None and size <= max_mb * 1e6:
            return page
    raise InputError(
        f"the report is larger than --max-mb {max_mb:g} even without its B-scan viewer and contact "
        f"sheets ({size / 1e6:.2g} MB); raise report: max_mb in the config"
    )
