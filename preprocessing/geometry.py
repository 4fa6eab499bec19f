"""Where a pixel of a flattened volume comes from, so that a finding can be shown on the B-scan."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocessing.files import atomic_path
from preprocessing.own_files import reading
from preprocessing.volume import companion


@dataclass
class Geometry:
    """The way from a flat pixel (b, r, c) back to the volume as loaded, (b, z, x).

    z = z_offset[b, c] + z_scale[b, c] * r and x = (c + 0.5) * x_factor - 0.5.

    Attributes
    ----------
    z_offset, z_scale : (b, x) float32, in z pixels; NaN where the layers are unknown.
    x_factor : columns of the loaded volume per column of the flat one.
    ilm, rpe, bm : (b, x) float32 layers as rows of the flat volume, NaN where unknown.
    """

    z_offset: np.ndarray
    z_scale: np.ndarray
    x_factor: float
    ilm: np.ndarray
    rpe: np.ndarray
    bm: np.ndarray

    def to_native(self, b: np.ndarray, r: np.ndarray, c: np.ndarray) -> tuple:
        """Return (b, z, x) of flat pixels; z and x are float pixel centres of the loaded volume."""
        c_index = np.asarray(c, int)
        z = self.z_offset[b, c_index] + self.z_scale[b, c_index] * np.asarray(r)
        return b, z, (np.asarray(c) + 0.5) * self.x_factor - 0.5

    def to_flat(self, b: np.ndarray, z: np.ndarray, x: np.ndarray) -> tuple:
        """Return (b, r, c) of pixels of the loaded volume; r is float, c the nearest column."""
        columns = self.z_offset.shape[1]
        c = np.floor((np.asarray(x) + 0.5) / self.x_factor).astype(int).clip(0, columns - 1)
        return b, (np.asarray(z) - self.z_offset[b, c]) / self.z_scale[b, c], c


def height_px(bm: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Return float32 (n,): how far above BM (b, x), which is level, rows r of a flat volume lie."""
    return (np.nanmedian(bm) - np.asarray(r)).astype(np.float32)


def vendor_order(
    b: np.ndarray,
    x: np.ndarray,
    native_shape: tuple[int, int, int],
    mirrored: bool,
    bscans_reversed: bool,
) -> tuple:
    """Return (b, x) in the order of the vendor's file of pixels of the volume as loaded.

    It is its own inverse. The arguments are the attributes of the `Volume`, also stored in patch
    files; z is the same in both. For Cirrus raw cubes, which store each B-scan turned by 180
    degrees, the order is that of the B-scans as displayed, upright, in which masks are drawn too.
    """
    n_b, _, n_x = native_shape
    return (
        n_b - 1 - np.asarray(b) if bscans_reversed else b,
        n_x - 1 - np.asarray(x) if mirrored else x,
    )


FIELDS = ("z_offset", "z_scale", "x_factor", "ilm", "rpe", "bm")


def write_geometry(geometry: Geometry, path: str | Path) -> None:
    """Write `geometry` as .npz, atomically."""
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **{name: getattr(geometry, name) for name in FIELDS})


def read_geometry(path: str | Path) -> Geometry:
    """Read what `write_geometry` wrote; InputError when it is missing or damaged."""
    with reading(path, "geometry file", "prepare"), np.load(path, allow_pickle=False) as file:
        fields = {name: file[name] for name in FIELDS}
        return Geometry(**{**fields, "x_factor": float(fields["x_factor"])})


def geometry_path(flat_path: str | Path) -> str:
    """Return where the geometry of a flat volume lies.

    >>> geometry_path("a/flat.nii.gz")
    'a/flat.geometry.npz'
    """
    return str(companion(flat_path, "geometry"))
