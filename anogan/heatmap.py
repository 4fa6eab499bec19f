"""Stage `heatmap`: maps of where the anomalies are, averaged over overlapping patches.

A pixel's residual is the mean of |x - rebuilt|, or of what the method has instead (`heat`), over
all patches that cover it, its score the mean of their scores. The maps lie in the geometry of the
flat volume; `overlay` brings them back to the B-scans.
"""

import argparse

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from anogan.maps.file import VolumeMaps, write_maps
from anogan.model import check_preprocessing
from anogan.scoring import (
    ReadyMethod,
    Scorer,
    add_method_arguments,
    patch_keys,
    ready_method,
    score_batches,
)
from preprocessing.errors import InputError
from preprocessing.geometry import Geometry, geometry_path, height_px, read_geometry
from preprocessing.patch_file import shared_settings
from preprocessing.patch_grid import grid_corners
from preprocessing.patches import (
    EYE_LABELS,
    add_volume_arguments,
    counted,
    cut,
    lesion_mask,
    usable_inputs,
    usable_volumes,
)
from preprocessing.volume import Volume


class MeanMap:
    """The mean, per pixel of a volume of `shape`, over all the windows that were added."""

    def __init__(self, shape: tuple[int, int, int], size: int) -> None:
        self._sum = np.zeros(shape, np.float32)
        self._count = np.zeros(shape, np.uint16)
        self._size = size

    def add(self, corners: np.ndarray, values: np.ndarray) -> None:
        """Add `values` (n, size, size), or one for all of a window (n, 1, 1), at `corners`."""
        for (b, z, x), window in zip(corners, values, strict=True):
            place = b, slice(z, z + self._size), slice(x, x + self._size)
            self._sum[place] += window
            self._count[place] += 1

    def mean(self) -> np.ndarray:
        """Return float32 (b, r, c), NaN where nothing was added."""
        with np.errstate(invalid="ignore"):
            return self._sum / self._count


def map_volume(
    volume: Volume,
    geometry: Geometry,
    corners: np.ndarray,
    size: int,
    method: ReadyMethod,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the maps of score and residual (b, r, c) of the patches at `corners` (n, 3).

    Patches are scored as those of a patch file at the same places. The residual is None where
    nothing was rebuilt.
    """
    gray = volume.data.astype(np.float16)
    places = dict(zip(("bscan", "z", "x"), corners.T, strict=True))
    keys = patch_keys(pd.DataFrame({"volume": volume.volume, **places}))
    score, residual = (MeanMap(gray.shape, size) for _ in range(2))
    heights, rebuilds = height_px(geometry.bm, corners[:, 1]), False
    for rows, x, scores, rebuilt in score_batches(
        lambda rows: cut(gray, corners[rows], size),
        keys,
        heights,
        method.scorer,
        batch_size,
        method.device,
    ):
        score.add(corners[rows], scores[:, :1, None])
        rebuilds = rebuilt is not None
        if rebuilds:
            residual.add(corners[rows], heat(method.scorer, x, rebuilt, heights[rows]))
    return score.mean(), residual.mean() if rebuilds else None


def heat(scorer: Scorer, x: np.ndarray, rebuilt: Tensor, height_px: np.ndarray) -> np.ndarray:
    """Return what a map shows of patches x (n, h, w), rebuilt as (n, 1, h, w), at `height_px` (n,).

    That is |x - rebuilt|, unless the scorer has a `heat` of its own.
    """
    gray, height = (torch.from_numpy(part).to(rebuilt.device) for part in (x, height_px))
    gray, rebuilt = gray.unsqueeze(1), rebuilt.float()
    own = getattr(scorer, "heat", None)
    shown = own(gray, rebuilt, height) if own else (gray - rebuilt).abs()
    return shown[:, 0].cpu().numpy()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    add_volume_arguments(parser)
    parser.add_argument(
        "--split", required=True, choices=["validation", "test", "score"], help="of the volumes"
    )
    parser.add_argument("--stride", type=int, default=32, help="pixels from patch to patch")
    parser.add_argument("--output", required=True, help="HDF5 file")
    add_method_arguments(parser)


def command(args: argparse.Namespace) -> str:
    """Map all volumes into one file, one volume in memory at a time."""
    n_patches, inputs = 0, usable_inputs(args)
    with ready_method(args) as method:
        size = method.model.architecture["patch_size"]
        if not 1 <= args.stride <= size:
            raise InputError(
                f"a stride of {args.stride} pixels leaves gaps between patches of {size}; "
                f"give 1 to {size}"
            )
        with write_maps(args.output, method.name, args.stride, size) as writer:
            for path, label, volume, _ in usable_volumes(inputs, args.leave_out):
                if volume.volume in writer:
                    raise InputError(f"{path}: {volume.volume} is there already; give it once")
                check_preprocessing(path, size, shared_settings(volume.parameters), method.model)
                geometry = read_geometry(geometry_path(path))
                corners = grid_corners(volume, geometry, size, args.stride)
                score, residual = map_volume(
                    volume, geometry, corners, size, method, args.batch_size
                )
                writer.append(
                    VolumeMaps(
                        volume.volume,
                        volume.patient,
                        volume.eye,
                        args.split,
                        EYE_LABELS[label],
                        len(corners),
                        score,
                        residual,
                        lesion_mask(volume.annotation),
                    )
                )
                n_patches += len(corners)
    return f"{args.output}: {n_patches} patches of {counted(args, inputs)} by {method.name}"
