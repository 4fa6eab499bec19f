"""Where regions come from: heat maps of volumes, and the rule that healthy eyes give."""

import json
from dataclasses import dataclass

import numpy as np

from anogan.discovery.regions import retinal_heat, some_values
from anogan.maps.file import VolumeMaps, open_maps
from preprocessing.errors import InputError
from preprocessing.geometry import Geometry, geometry_path, read_geometry
from preprocessing.own_files import reading
from preprocessing.skipped import read_note
from preprocessing.volume import companion

SHOWN_SPLITS = ("test", "score")


@dataclass(frozen=True)
class Heat:
    """The heat of a volume in its retina.

    Attributes
    ----------
    pixel_um : height and width of a pixel.
    kind, map : which map is looked at, and its values (b, r, c), as `retinal_heat` returns them.
    n_bscans : how many B-scans hold a patch.
    """

    geometry: Geometry
    pixel_um: tuple[float, float]
    kind: str
    map: np.ndarray
    n_bscans: int


@dataclass(frozen=True)
class Source:
    """A volume: its heat maps, the file `flat` of it when flat and, where given, as loaded."""

    facts: dict
    maps: str
    flat: str
    image: str | None

    @property
    def is_healthy_validation(self) -> bool:
        """Whether the threshold is chosen on it."""
        return (self.facts["split"], self.facts["eye_label"]) == ("validation", 0)

    def heat(self) -> "Heat":
        """Read its maps; InputError when they do not belong to its geometry."""
        with open_maps(self.maps) as file:
            maps = file[self.facts["volume"]]
        geometry = read_geometry(geometry_path(self.flat))
        n_b, _, n_c = maps.score.shape
        if geometry.z_offset.shape != (n_b, n_c):
            raise InputError(
                f"{self.maps}: its maps of {maps.volume} {maps.score.shape} do not fit the "
                f"geometry of {self.flat} {geometry.z_offset.shape}; give those of one volume"
            )
        pixel_um = tuple(1000 * step for step in _sidecar(self.flat)["spacing_mm"][1:])
        return Heat(geometry, pixel_um, *retinal_heat(maps, geometry, pixel_um), _looked_at(maps))


@dataclass(frozen=True)
class Rule:
    """What makes a region: which map, above what, how large, how many of a volume.

    `chosen_on` says of which volumes the threshold is the `quantile`.
    """

    kind: str
    threshold: float
    quantile: float
    chosen_on: str
    smallest_um2: float
    most: int


def _looked_at(maps: VolumeMaps) -> int:
    return int(np.isfinite(maps.score).any(axis=(1, 2)).sum())


def _sidecar(path: str) -> dict:
    beside = companion(path, "json")
    with reading(beside, "sidecar of a volume", "prepare"):
        return json.loads(beside.read_text(encoding="utf-8"))


def find_sources(maps: list[str], flats: list[str], images: list[str]) -> tuple[str, list[Source]]:
    """Return the method of heat maps, and the volumes that have some, sorted by name.

    Raises InputError when the maps are of several methods, or when files of a volume are missing.
    """
    places = {_sidecar(path)["volume"]: path for path in flats if not read_note(path)}
    loaded = {_sidecar(path)["volume"]: path for path in images if not read_note(path)}
    methods, sources = set(), []
    for path in maps:
        with open_maps(path) as file:
            methods.add(file.method)
            for name in file.volumes:
                facts = file.facts(name)
                shown = facts["split"] in SHOWN_SPLITS
                if name not in places or (shown and name not in loaded):
                    lacking = "--images" if name in places else "--flats"
                    raise InputError(f"{path}: holds maps of {name}; name its file with {lacking}")
                sources.append(Source(facts, path, places[name], loaded.get(name)))
    if len(methods) != 1:
        raise InputError(
            f"{', '.join(maps)}: maps of {', '.join(sorted(methods))}; give the files of one method"
        )
    return methods.pop(), sorted(sources, key=lambda source: source.facts["volume"])


def make_rule(sources: list[Source], quantile: float, smallest_um2: float, most: int) -> Rule:
    """Return the rule that healthy validation volumes give, or all volumes where there is none."""
    chosen = [source for source in sources if source.is_healthy_validation]
    chosen_on = "healthy validation volumes" if chosen else "all volumes"
    kind, values = "residual", []
    for source in chosen or sources:
        found = source.heat()
        known = some_values(found.map)
        if known.size:  # a volume without patches has no residual whatever the method
            kind = found.kind
            values.append(known)
    threshold = float(np.quantile(np.concatenate(values), quantile)) if values else np.nan
    return Rule(kind, threshold, quantile, chosen_on, smallest_um2, most)
