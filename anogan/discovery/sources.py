"""Where regions come from: heat maps of volumes, and the rule that healthy eyes give."""

import json
from dataclasses import dataclass

import numpy as np

from anogan.discovery.regions import retinal_heat, some_values
from anogan.maps.file import open_maps
from preprocessing.errors import InputError
from preprocessing.geometry import Geometry, geometry_path, read_geometry
from preprocessing.own_files import reading
from preprocessing.skipped import read_note
from preprocessing.volume import companion, read_nifti_header

SHOWN_SPLITS = ("test", "score")
SAMPLE = 5_000_000  # pixels, of all volumes together, that the threshold is chosen from


@dataclass(frozen=True)
class RetinalHeat:
    """The heat of a volume in its retina.

    Attributes
    ----------
    pixel_um : height and width of a pixel.
    kind, map : which map is looked at, and its values (b, r, c), as `retinal_heat` returns them.
    """

    geometry: Geometry
    pixel_um: tuple[float, float]
    kind: str
    map: np.ndarray

    @property
    def pixel_um2(self) -> np.ndarray:
        """Area (b, c) of a pixel in the eye: in flatten mode `both` columns were stretched."""
        return self.pixel_um[0] * self.pixel_um[1] * self.geometry.z_scale

    @property
    def searched_mm(self) -> float:
        """Length of B-scan that was searched: that of the columns with any heat."""
        return float(np.isfinite(self.map).any(axis=1).sum()) * self.pixel_um[1] / 1000


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

    def heat(self) -> RetinalHeat:
        """Read its maps; InputError when they do not belong to its flat volume and geometry."""
        with open_maps(self.maps) as file:
            maps = file[self.facts["volume"]]
        geometry = read_geometry(geometry_path(self.flat))
        shape = read_nifti_header(self.flat).get_data_shape()[::-1]
        if maps.score.shape != shape or geometry.z_offset.shape != shape[::2]:
            raise InputError(
                f"{self.maps}: its maps of {maps.volume} {maps.score.shape} do not fit {self.flat} "
                f"{shape} and its geometry {geometry.z_offset.shape}; give those of one volume"
            )
        pixel_um = tuple(1000 * step for step in _sidecar(self.flat)["spacing_mm"][1:])
        return RetinalHeat(geometry, pixel_um, *retinal_heat(maps, geometry, pixel_um))


@dataclass(frozen=True)
class Rule:
    """What makes a region: which map, above what, and how large.

    `chosen_on` says of which volumes the threshold is the `quantile`.
    """

    kind: str
    threshold: float
    quantile: float
    chosen_on: str
    smallest_um2: float


def _sidecar(path: str) -> dict:
    beside = companion(path, "json")
    with reading(beside, "sidecar of a volume", "prepare"):
        return json.loads(beside.read_text(encoding="utf-8"))


def _each_once(files: list[tuple[str, str]]) -> dict[str, str]:
    """Return the paths of (volume, path) pairs by volume; InputError where two are of one."""
    places = {}
    for name, path in files:
        if name in places:
            raise InputError(f"{path}: holds {name}, as does {places[name]}; give each volume once")
        places[name] = path
    return places


def _by_volume(paths: list[str]) -> dict[str, str]:
    return _each_once([(_sidecar(path)["volume"], path) for path in paths if not read_note(path)])


def find_sources(
    maps: list[str], flats: list[str], images: list[str], patch_size: int
) -> tuple[str, list[Source]]:
    """Return the method of heat maps, and the volumes that have some, sorted by name.

    Raises InputError when the maps are of several methods or of patches of another size, and when
    files of a volume are missing or given twice.
    """
    places, loaded = _by_volume(flats), _by_volume(images)
    methods, sources = set(), []
    for path in maps:
        with open_maps(path) as file:
            methods.add(file.method)
            if file.size != patch_size:
                raise InputError(
                    f"{path}: maps made with patches of {file.size} pixels, where the GAN has "
                    f"{patch_size}; draw them again with the rule heatmap, or give another GAN"
                )
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
    _each_once([(source.facts["volume"], source.maps) for source in sources])
    return methods.pop(), sorted(sources, key=lambda source: source.facts["volume"])


def make_rule(sources: list[Source], quantile: float, smallest_um2: float) -> Rule:
    """Return the rule that healthy validation volumes give, or all volumes where there is none."""
    chosen = [source for source in sources if source.is_healthy_validation]
    chosen_on = "healthy validation volumes" if chosen else "all volumes"
    kind, values = "residual", []
    for source in chosen or sources:
        found = source.heat()
        known = some_values(found.map, max(1, SAMPLE // len(chosen or sources)))
        if known.size:  # a volume without patches has no residual whatever the method
            kind = found.kind
            values.append(known)
    threshold = float(np.quantile(np.concatenate(values), quantile)) if values else np.nan
    return Rule(kind, threshold, quantile, chosen_on, smallest_um2)
