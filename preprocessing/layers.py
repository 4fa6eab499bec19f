"""The retinal layers of a volume, and their form on disk."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from preprocessing.files import atomic_path
from preprocessing.own_files import reading


@dataclass
class Layers:
    """Three surfaces; each (b, x) float32, z in pixels (whole at pixel centres), NaN unknown.

    `confidence` (b, x) runs from 0 (nothing seen) to 1 (edges as in a clear scan).
    """

    ilm: np.ndarray
    rpe: np.ndarray
    bm: np.ndarray
    confidence: np.ndarray


def write_layers(layers: Layers, path: str | Path) -> None:
    """Write `layers` as a compressed NumPy archive, atomically."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **asdict(layers))


def read_layers(path: str | Path) -> Layers:
    """Read layers written by `write_layers`; raises InputError when they are missing or damaged."""
    with reading(path, "layer file", "prepare"):
        with np.load(path, allow_pickle=False) as archive:
            layers = Layers(*(archive[field.name] for field in fields(Layers)))
        surfaces = asdict(layers).values()
        if any(s.ndim != 2 or s.shape != layers.bm.shape or s.dtype.kind != "f" for s in surfaces):
            raise ValueError("the layers do not fit each other")
    return layers
