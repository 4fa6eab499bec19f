"""The eyes that detection is measured on, prepared as the pipeline prepares them."""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from scipy.ndimage import zoom

from benchmarks.layers import Case, amd_fluid, dme_fluid
from benchmarks.truths import Eye
from preprocessing.flatten import add_options, flatten_by
from preprocessing.geometry import geometry_path, read_geometry, write_geometry
from preprocessing.load import canonical
from preprocessing.normalise import normalise
from preprocessing.phantom import SHAPE, make_phantom
from preprocessing.readers import read_vendor_volume
from preprocessing.resample import resample
from preprocessing.segment import segment
from preprocessing.volume import Volume, read_volume, write_volume

PERCENTILES, X_UM = (1, 99), 22
AXIAL_MM = 0.00387  # of all other scans: what is coarser is interpolated
PHANTOM_BSCANS = 24


@dataclass(frozen=True)
class Direction:
    """Who learns from which eye and is tested on which.

    Lesions are inserted into `host`, which also has the healthy patches that drusen are compared
    with, unless it has drusen itself; `fluid` names eyes by truth.
    """

    name: str
    trains_on: str
    host: str
    drusen: list[str]
    fluid: dict[str, list[str]] = field(default_factory=dict)

    @property
    def all_eyes(self) -> set[str]:
        """The eyes that are tested on."""
        return {self.host, *self.drusen, *(eye for eyes in self.fluid.values() for eye in eyes)}


def sources() -> tuple[list[Direction], dict[str, Callable[[], Volume]]]:
    """Return the directions and how to get each eye: real ones, or phantoms without the data.

    Methods are chosen by "validation" and "validation-2". Of the eyes that "test" is tested on they
    hold healthy_subject1 alone, which "validation" learns from.
    """
    if "OCT_TEST_DATA" not in os.environ:
        return _phantoms()
    data = Path(os.environ["OCT_TEST_DATA"])
    heyex = data / "heyex_volumes"
    readers = {path.name: partial(read_vendor_volume, path) for path in sorted(heyex.iterdir())}
    marked = {case.name: case for case in [*dme_fluid(data), *amd_fluid(data)]}
    readers |= {name: partial(_with_fluid, case) for name, case in marked.items()}
    neovascular = sorted(case.name for case in marked.values() if case.data_set == "amd_fluid")
    return [
        Direction(
            "validation",
            "healthy_subject1",
            "healthy_subject2",
            ["AMD_patient1"],
            {"fluid, DME": ["subject01", "subject03"]},
        ),
        Direction(
            "validation-2",
            "healthy_subject2",
            "AMD_patient1",
            ["AMD_patient1"],
            {"fluid, DME": ["subject01", "subject03"]},
        ),
        Direction(
            "test",
            "healthy_subject2",
            "healthy_subject1",
            ["AMD_patient2"],
            {"fluid, DME": ["subject02", "subject10"], "fluid, AMD": neovascular},
        ),
    ], readers


def _phantoms() -> tuple[list[Direction], dict[str, Callable[[], Volume]]]:
    shape = (PHANTOM_BSCANS, *SHAPE[1:])
    readers = {
        f"phantom{i}": partial(_phantom, f"phantom{i}", diseased=i > 2, shape=shape)
        for i in range(1, 5)
    }
    found = [
        Direction(name, f"phantom{a}", f"phantom{b}", [ill], {"lesions, phantom": [ill]})
        for name, a, b, ill in (("validation", 1, 2, "phantom3"), ("test", 2, 1, "phantom4"))
    ]
    return found, readers


def _phantom(name: str, diseased: bool, shape: tuple[int, int, int]) -> Volume:
    return make_phantom(name, 1, diseased, shape)[0]


def _with_fluid(case: Case) -> Volume:
    """Return a volume whose annotation is what its first grader marked, at the common spacing."""
    volume = case.volume
    mask = next(iter(case.fluid.values()))
    factor = volume.spacing_mm[1] / AXIAL_MM
    if factor > 1.5:
        step_b, step_z, step_x = volume.spacing_mm
        n_z = round(volume.data.shape[1] * factor)
        scale = (1, n_z / volume.data.shape[1], 1)
        volume = Volume(
            data=zoom(volume.data, scale, order=1),
            spacing_mm=(step_b, step_z / scale[1], step_x),
            valid=zoom(volume.valid, scale, order=0),
            intensity=volume.intensity,
            scan_pattern=volume.scan_pattern,
        )
        mask = zoom(mask, scale, order=0)
    return volume.replace(annotation=mask.astype(np.float32))


def prepare(name: str, read: Callable[[], Volume], work: Path) -> tuple[Path, Eye]:
    """Return the flat volume's path and the eye, made by the stages load to flatten if needed."""
    path = work / "eyes" / name / "flat.nii.gz"
    if not path.exists():
        parser = argparse.ArgumentParser()
        add_options(parser)
        volume = canonical(read(), mirror_left_eyes=True).replace(volume=name, patient=name)
        volume = resample(normalise(volume, PERCENTILES), X_UM)
        flat, geometry = flatten_by(volume, segment(volume), parser.parse_args([]))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_geometry(geometry, geometry_path(path))
        write_volume(flat, path)
    return path, Eye(read_volume(path), read_geometry(geometry_path(path)))
