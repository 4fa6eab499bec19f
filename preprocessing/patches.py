"""Stage `patches`: random patches of the flattened retina, with their place and their label."""

import argparse
import json
from dataclasses import dataclass

import numpy as np

from preprocessing import __version__
from preprocessing.errors import InputError
from preprocessing.geometry import Geometry, geometry_path, read_geometry
from preprocessing.patch_file import INDEX_DTYPE, PatchWriter
from preprocessing.seeds import derive_seed
from preprocessing.volume import NOT_EXAMINED, Volume, read_volume

ID_BYTES = 64  # what the index of a patch file holds


@dataclass
class Patches:
    """Patches of one volume: gray values, masks and index rows, each (n, ...)."""

    gray: np.ndarray
    masks: np.ndarray
    index: np.ndarray


def possible_corners(volume: Volume, geometry: Geometry, size: int) -> np.ndarray:
    """Return (n, 3) int: (b, z, x) of the top left pixel of every patch that may be drawn.

    Every pixel of such a patch is valid, and its centre lies in the retina, ILM to BM.
    """
    n_b, n_z, n_x = volume.data.shape
    if n_z < size or n_x < size:
        raise InputError(
            f"{volume.volume}: the flat volume has {n_z} x {n_x} pixels, a patch {size} x {size}; "
            "use smaller patches or keep more with flatten: above_um, below_um"
        )
    invalid = np.zeros((n_b, n_z + 1, n_x + 1), np.int32)
    np.cumsum(~volume.valid, axis=1, out=invalid[:, 1:, 1:])
    np.cumsum(invalid[:, :, 1:], axis=2, out=invalid[:, :, 1:])
    bad = (
        invalid[:, size:, size:]
        - invalid[:, :-size, size:]
        - invalid[:, size:, :-size]
        + invalid[:, :-size, :-size]
    )
    centre = np.arange(n_z - size + 1)[None, :, None] + size // 2
    columns = slice(size // 2, size // 2 + n_x - size + 1)
    in_retina = (centre >= geometry.ilm[:, None, columns]) & (
        centre <= geometry.bm[:, None, columns]
    )
    return np.argwhere((bad == 0) & in_retina)


def draw_patches(
    volume: Volume, geometry: Geometry, count: int, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw at most `count` different random patches; return (corners, gray values, mask fractions).

    Corners are (n, 3) sorted as (b, z, x); gray values and fractions (n, size, size) float32, the
    fraction NaN where nobody examined the scan.
    """
    corners = possible_corners(volume, geometry, size)
    rng = np.random.default_rng(derive_seed(seed, "patches", volume.volume))
    chosen = rng.choice(len(corners), min(count, len(corners)), replace=False)
    corners = corners[np.sort(chosen)]
    b, z, x = corners[:, 0], corners[:, 1], corners[:, 2]
    window = (size, size)
    gray = np.lib.stride_tricks.sliding_window_view(volume.data, window, axis=(1, 2))[b, z, x]
    if volume.annotation is None:
        return corners, gray, np.full(gray.shape, np.nan, np.float32)
    marked = np.lib.stride_tricks.sliding_window_view(volume.annotation, window, axis=(1, 2))
    return corners, gray, marked[b, z, x]


def label_patches(
    marked: np.ndarray, volume_label: str, min_fraction: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (label, label_source, anomalous_fraction), each (n,), of mask fractions (n, h, w).

    Where the patch is annotated, it is anomalous when at least `min_fraction` of its pixels are
    marked, normal when none is, and unknown (-1) in between. Otherwise every patch of a healthy
    eye is normal (source `healthy`), and every patch of a diseased eye carries the eye's label
    (source `eye`), whether or not there is anything to be seen in it.
    """
    fraction = (marked >= 0.5).mean(axis=(1, 2), dtype=np.float32)
    examined = ~np.isnan(marked).any(axis=(1, 2))
    by_eye = {"healthy": 0, "diseased": 1, "unknown": -1}[volume_label]
    by_grader = np.where(fraction == 0, 0, np.where(fraction >= min_fraction, 1, -1))
    label = np.where(examined, by_grader, by_eye).astype(np.int8)
    eye_source = {"healthy": "healthy", "diseased": "eye", "unknown": "none"}[volume_label]
    source = np.where(examined, "annotation", eye_source)
    return label, source, np.where(examined, fraction, np.float32(np.nan))


def cut(
    volume: Volume,
    geometry: Geometry,
    split: str,
    volume_label: str,
    count: int,
    args: argparse.Namespace,
) -> Patches:
    """Draw and label the patches of one volume."""
    corners, gray, marked = draw_patches(volume, geometry, count, args.size, args.seed)
    label, source, fraction = label_patches(marked, volume_label, args.anomalous_fraction)
    index = np.zeros(len(corners), INDEX_DTYPE)
    for name, text in (("volume", volume.volume), ("patient", volume.patient)):
        index[name] = text.encode()
    index["eye"] = volume.eye.encode()
    index["split"] = split.encode()
    index["bscan"], index["z"], index["x"] = corners.T
    index["label"] = label
    index["label_source"] = np.char.encode(source)
    index["anomalous_fraction"] = fraction
    masks = np.where(np.isnan(marked), NOT_EXAMINED, marked >= 0.5).astype(np.uint8)
    return Patches(gray.astype(np.float16), masks, index)


def shares(total: int | None, per_volume: int | None, n_volumes: int) -> list[int]:
    """Return how many patches each of `n_volumes` volumes gives.

    >>> shares(10, None, 3)
    [4, 3, 3]
    """
    if total is None:
        return [per_volume] * n_volumes
    return [total // n_volumes + (i < total % n_volumes) for i in range(n_volumes)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    parser.add_argument("--inputs", nargs="+", required=True, help="flat volumes, .nii.gz")
    parser.add_argument(
        "--labels",
        nargs="+",
        required=True,
        choices=["healthy", "diseased", "unknown"],
        metavar="LABEL",
        help="healthy, diseased or unknown, in the order of the inputs",
    )
    parser.add_argument("--split", required=True, choices=["train", "validation", "test", "score"])
    count = parser.add_mutually_exclusive_group(required=True)
    count.add_argument("--total", type=int, help="patches over all volumes, in equal shares")
    count.add_argument("--per-volume", type=int, help="patches of each volume")
    parser.add_argument("--size", type=int, default=64, help="pixels per side")
    parser.add_argument(
        "--anomalous-fraction",
        type=float,
        default=0.01,
        help="marked pixels that make a patch anomalous; fewer but some: left out of the metrics",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", required=True, help="HDF5 file")


def command(args: argparse.Namespace) -> str:
    """Cut the patches of all volumes into one file, one volume in memory at a time."""
    if len(args.labels) != len(args.inputs):
        raise InputError(f"{len(args.labels)} labels for {len(args.inputs)} inputs; give one each")
    wanted = shares(args.total, args.per_volume, len(args.inputs))
    with PatchWriter(args.output, args.size) as writer:
        for path, volume_label, count in zip(args.inputs, args.labels, wanted, strict=True):
            volume = read_volume(path)
            if len(volume.volume.encode()) > ID_BYTES or len(volume.patient.encode()) > ID_BYTES:
                raise InputError(
                    f"{path}: volume and patient ids may have {ID_BYTES} bytes at most"
                )
            geometry = read_geometry(geometry_path(path))
            patches = cut(volume, geometry, args.split, volume_label, count, args)
            writer.append(patches.gray, patches.masks, patches.index)
            writer.add_geometry(volume.volume, geometry, _facts(volume))
        n = len(writer)
        if n == 0:
            raise InputError(
                f"{args.output}: no place for a patch in {', '.join(args.inputs)}; "
                "look at their layers.png and qc.tsv"
            )
        writer.set_attributes(size=args.size, seed=args.seed, version=__version__)
    short = f" ({sum(wanted) - n} fewer than asked: no more room)" if n < sum(wanted) else ""
    return f"{n} {args.split} patches of {len(args.inputs)} volumes{short}"


def _facts(volume: Volume) -> dict:
    return {
        "native_shape": volume.native_shape,
        "spacing_mm": volume.spacing_mm,
        "mirrored": volume.mirrored,
        "device": volume.device,
        "parameters": json.dumps(volume.parameters),
    }
