"""What the page says of clusters of anomalous regions, from the folder of the stage markers."""

import json
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pandas as pd

from anogan.page.pictures import sheet
from anogan.page.tables import number
from preprocessing.own_files import read_whole_lines, reading


@dataclass(frozen=True)
class Cluster:
    """A cluster: what is written of it, and its contact sheet as a data URI.

    `rows` are (what was measured, value) pairs of text.
    """

    number: int
    description: str
    frequency: str
    rows: list[tuple[str, str]]
    picture: str


@dataclass(frozen=True)
class Markers:
    """Regions and the clusters they were put in.

    Attributes
    ----------
    method : whose heat maps were searched.
    regions, volumes : how many regions, and in how many volumes they were looked for.
    fitted_per_volume : how many regions of a volume clusters were fitted on, at most.
    rule : what makes a region, in words.
    """

    method: str
    regions: int
    volumes: int
    fitted_per_volume: int
    rule: str
    clusters: list[Cluster]


def read_markers(folder: str) -> Markers:
    """Read what the stage markers wrote; InputError when it is missing or damaged."""
    table, beside = Path(folder) / "clusters.tsv", Path(folder) / "markers.json"
    with reading(beside, "description of markers", "markers"):
        facts = json.loads(beside.read_text(encoding="utf-8"))
        names = ("method", "regions", "volumes", "regions_per_volume")
        found = [*(facts[name] for name in names), _rule(facts)]
    with reading(table, "table of clusters", "markers"):
        text = StringIO(read_whole_lines(table))
        rows = pd.read_csv(text, sep="\t", na_values="n.a.", keep_default_na=False)
        return Markers(*found, [_cluster(row, Path(folder)) for row in rows.to_dict("records")])


def _rule(facts: dict) -> str:
    own = facts["method"] == "r_anogan" and facts["map"] == "residual"
    heat = "residual, in units of what is usual" if own else facts["map"]
    return (
        f"whose {heat}, lightly smoothed, is above what {100 * facts['quantile']:.4g} % of "
        f"the retina's pixels of {facts['from']} stay below, and which are at least "
        f"{facts['smallest_um2']:g} \N{MICRO SIGN}m\N{SUPERSCRIPT TWO} large"
    )


def _cluster(row: dict, folder: Path) -> Cluster:
    k = row["cluster"]
    eyes = ", ".join(f"{row[eye]} in {eye} eyes" for eye in ("diseased", "healthy"))
    unlabelled = f", {row['unknown']} in eyes without a label" if row["unknown"] else ""
    measured = {
        "regions": f"{row['regions']}: {eyes}{unlabelled}",
        "volumes; patients": f"{row['volumes']}; {row['patients']}",
        "width": _quartiles(row, "width_um", " \N{MICRO SIGN}m"),
        "height": _quartiles(row, "height_um", " \N{MICRO SIGN}m"),
        "place between ILM (0) and Bruch\N{RIGHT SINGLE QUOTATION MARK}s membrane (1)": _quartiles(
            row, "depth", "", ".2f"
        ),
        "height above Bruch\N{RIGHT SINGLE QUOTATION MARK}s membrane": _quartiles(
            row, "above_bm_um", " \N{MICRO SIGN}m"
        ),
        "gray value inside; around it (\N{MINUS SIGN}1 to 1)": (
            f"{number(row['gray_inside'], '.2f')}; {number(row['gray_outside'], '.2f')}"
        ),
        "regions per 10 mm of B-scan in diseased; healthy eyes": (
            f"{number(row['per_10mm_diseased'], '.3g')}; {number(row['per_10mm_healthy'], '.3g')}"
        ),
    }
    picture = sheet(folder / f"cluster-{k}.png")
    description = row["description"].replace(" um ", " \N{MICRO SIGN}m ")
    return Cluster(k, description, _frequency(row), [*measured.items()], picture)


def _frequency(row: dict) -> str:
    ratio, why_not = number(row["ratio"], ".3g"), row["why_not"]
    if row["ratio"] != row["ratio"]:
        return f"How much more frequent in diseased eyes: n.a. ({why_not})."
    between = f"{number(row['ratio_low'], '.3g')} to {number(row['ratio_high'], '.3g')}"
    interval = f"no interval: {why_not}" if why_not else f"95 % interval {between}"
    return (
        f"{ratio} times as frequent per mm of B-scan in diseased as in healthy eyes ({interval})."
    )


def _quartiles(row: dict, name: str, unit: str, form: str = ".0f") -> str:
    low, high = number(row[f"{name}_q1"], form), number(row[f"{name}_q3"], form)
    return f"{number(row[name], form)}{unit} (half of them {low} to {high})"
