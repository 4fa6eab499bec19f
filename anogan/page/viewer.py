"""The B-scan viewer's data: what the stage overlay packed for it, as much as the page may hold."""

import base64
import json
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from anogan.page.pictures import shrink
from anogan.page.tables import LABELS, method_name, number
from preprocessing.own_files import reading

PICTURES = ("gray", "residual", "score")
DRAWN = ("layers", "outlines", "max_score")  # of a B-scan, beside its pictures
SHRUNK = 2  # how many times smaller pictures are where they are shrunk
GROUPS = [(split, label) for split in ("score", "test", "validation") for label in (1, -1, 0)]


@dataclass(frozen=True)
class Packed:
    """A volume as packed by the stage overlay in `folder`.

    Attributes
    ----------
    facts : viewer.json without its B-scans, which would fill the memory for many volumes.
    score : the volume's score, by which volumes are ranked; NaN where it has none.
    """

    folder: Path
    facts: dict
    score: float
    _shrunk: dict[str, bytes] = field(default_factory=dict)  # by name: shrinking takes time

    @property
    def volume(self) -> str:
        """The name of the volume."""
        return self.facts["volume"]

    @property
    def group(self) -> str:
        """The heading that the volume is listed under."""
        return f"{self.facts['split']}, {LABELS[self.facts['eye_label']]}"

    @property
    def rank(self) -> tuple:
        """What volumes are sorted by: group, then the highest score first."""
        group = self.facts["split"], self.facts["eye_label"]
        known = self.score == self.score
        place = GROUPS.index(group) if group in GROUPS else len(GROUPS)
        return place, group, -self.score if known else 0.0, self.volume

    @property
    def title(self) -> str:
        """The entry of the volume in the list."""
        return f"{self.volume} (score {number(self.score, '.4g')})"

    def pictures(self, names: list[str], small: bool = False) -> dict[str, bytes]:
        """Read pictures of the volume by their names, shrunk where they are to be `small`."""
        with _open(self.folder) as archive:
            if not small:
                return {name: archive.read(name) for name in names}
            for name in names:
                if name not in self._shrunk:
                    self._shrunk[name] = shrink(archive.read(name), SHRUNK)
            return {name: self._shrunk[name] for name in names}


def read_packed(folder: str, scores: dict[str, float]) -> Packed:
    """Read what a folder of the stage overlay holds for the viewer.

    `scores` are those of the volumes by name. Raises InputError when viewer.zip is missing or
    damaged.
    """
    facts, bscans = _description(Path(folder))
    with _whole(Path(folder)):
        if not bscans or facts["eye_label"] not in LABELS:
            raise ValueError("it lacks B-scans or a known label")
        return Packed(Path(folder), facts, scores.get(facts["volume"], float("nan")))


def ranked(packed: list[Packed], per_group: int | None) -> dict[str, list[Packed]]:
    """Return volumes by group, the highest score first, at most `per_group` of each."""
    groups = {}
    for volume in sorted(packed, key=lambda volume: volume.rank):
        groups.setdefault(volume.group, []).append(volume)
    return {group: volumes[:per_group] for group, volumes in groups.items()}


def thinned(bscans: list[dict], every: int) -> list[int]:
    """Return which B-scans to keep: of each `every` neighbours the one that scores highest."""
    score = pd.to_numeric(pd.Series([b["max_score"] for b in bscans])).fillna(float("-inf"))
    return [
        int(score.iloc[start : start + every].argmax()) + start
        for start in range(0, len(bscans), every)
    ]


def viewer_json(packed: Packed, every: int, small: bool) -> str:
    """Return what the page's script draws a volume from; it may stand in an HTML script element.

    Raises InputError when a picture is missing.
    """
    _, described = _description(packed.folder)
    kept = thinned(described, every)
    names = [described[i][kind] for i in kept for kind in PICTURES if described[i][kind]]
    encoded = _base64(packed.pictures(names, small))
    bscans = [
        described[i] | {"place": i} | {kind: encoded.get(described[i][kind]) for kind in PICTURES}
        for i in kept
    ]
    maps = {kind: name for kind, name in packed.facts["enface"].items() if name}
    fronts = _base64(packed.pictures(list(maps.values())))
    data = {
        **packed.facts,
        "method": method_name(packed.facts["method"]),
        "enface": {kind: fronts[name] for kind, name in maps.items()},
        "bscans": bscans,
    }
    with _whole(packed.folder):
        text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _description(folder: Path) -> tuple[dict, list[dict]]:
    """Return (viewer.json without its B-scans, the B-scans with the names of their pictures)."""
    with _open(folder) as archive:
        facts = json.loads(archive.read("viewer.json"))
        bscans = facts.pop("bscans")
        return facts, [{name: bscan[name] for name in (*PICTURES, *DRAWN)} for bscan in bscans]


def _base64(pictures: dict[str, bytes]) -> dict[str, str]:
    return {name: base64.b64encode(picture).decode() for name, picture in pictures.items()}


@contextmanager
def _open(folder: Path) -> Iterator[zipfile.ZipFile]:
    """Open the viewer.zip of a folder; nothing in it may be larger than the file itself."""
    with _whole(folder), zipfile.ZipFile(folder / "viewer.zip") as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("it is compressed")
        yield archive


def _whole(folder: Path) -> AbstractContextManager:
    return reading(folder / "viewer.zip", "viewer of a volume", "overlay")
