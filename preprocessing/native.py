"""Stage `native`: a map of the flat retina goes back to the B-scans it came from.

The map, such as residuals averaged over overlapping patches, comes out with the shape and the
affine of the volume as loaded, so that it opens as an overlay in ITK-SNAP, Slicer or napari.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from preprocessing.errors import InputError
from preprocessing.geometry import Geometry, read_geometry
from preprocessing.volume import companion, read_nifti, read_nifti_header, write_nifti


def to_native_map(
    flat_map: np.ndarray, geometry: Geometry, native_shape: tuple[int, int, int]
) -> np.ndarray:
    """Return float32 (b, z, x) of `native_shape` from values of flat pixels (b, r, c).

    Each native pixel gets the value of the flat pixel that its centre falls into, NaN where there
    is none or the map is NaN.
    """
    n_b, n_z, n_x = native_shape
    n_rows = flat_map.shape[1]
    z, x = np.arange(n_z)[:, None], np.arange(n_x)[None, :]
    native = np.full(native_shape, np.nan, np.float32)
    for b in range(n_b):  # one at a time, as the rows of a whole volume take 100 MB
        _, r, c = geometry.to_flat(b, z, x)
        r = np.floor(r + 0.5)  # pixel r reaches from r - 0.5 to r + 0.5
        found = (r >= 0) & (r < n_rows)  # False where the layers are unknown
        native[b][found] = flat_map[b, r[found].astype(int), np.broadcast_to(c, r.shape)[found]]
    return native


def belong_together(
    flat_shape: tuple[int, int, int], geometry: Geometry, native_shape: tuple[int, int, int]
) -> bool:
    """Tell whether a flat map (b, r, c) and a volume as loaded (b, z, x) fit a geometry."""
    n_b, columns = geometry.z_offset.shape
    native_columns = round(columns * geometry.x_factor)
    return flat_shape[::2] == (n_b, columns) and native_shape[::2] == (n_b, native_columns)


def write_native_map(
    flat_map: np.ndarray, geometry: Geometry, volume_path: str | Path, path: str | Path
) -> np.ndarray:
    """Write `flat_map` (b, r, c) to NIfTI with the shape and affine of the loaded volume.

    `volume_path` is that volume, of which only the header is read. Returns the native map (b, z, x)
    as written; raises InputError when the volume is unreadable or another one.
    """
    header = read_nifti_header(volume_path)
    shape = header.get_data_shape()[::-1]
    if not belong_together(flat_map.shape, geometry, shape):
        raise InputError(
            f"{path}: a map of {flat_map.shape}, a geometry of {geometry.z_offset.shape} and the "
            f"volume {volume_path} of {shape} (b, z, x) do not belong together; "
            "give those of one volume"
        )
    native = to_native_map(flat_map, geometry, shape)
    write_nifti(native, path, header.get_best_affine())
    return native


def _check_origin(flat_map: np.ndarray, geometry: str, like: str) -> None:
    """Refuse a map or a loaded volume that the geometry was not made with, by their companions."""
    if not geometry.endswith(".geometry.npz"):
        return
    flat_path = Path(geometry.removesuffix(".geometry.npz") + ".nii.gz")
    if flat_path.exists():
        rows = read_nifti_header(flat_path).get_data_shape()[1]
        if flat_map.shape[1] != rows:
            raise InputError(
                f"a map of {flat_map.shape[1]} rows, where {flat_path} has {rows}; give a map of "
                "the whole flat volume"
            )
    sidecars = [companion(path, "json") for path in (flat_path, like)]
    if all(sidecar.exists() for sidecar in sidecars):
        mirrored = [json.loads(sidecar.read_text())["mirrored"] for sidecar in sidecars]
        if mirrored[0] != mirrored[1]:
            raise InputError(
                f"{like} and {flat_path}: only one of them is mirrored; load the volume again as "
                "the flat one was made (--mirror-left-eyes)"
            )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    parser.add_argument("--input", required=True, help="map of a flat volume, .nii.gz")
    parser.add_argument("--geometry", required=True, help="its flat.geometry.npz")
    parser.add_argument("--like", required=True, help="the volume as loaded, volume.nii.gz")
    parser.add_argument("--output", required=True, help="map on the native B-scans, .nii.gz")


def command(args: argparse.Namespace) -> str:
    """Bring one map back."""
    flat_map = read_nifti(args.input)
    _check_origin(flat_map, args.geometry, args.like)
    write_native_map(flat_map, read_geometry(args.geometry), args.like, args.output)
    return f"{args.output}: {len(flat_map)} B-scans; NaN outside the flat retina"
