"""Stage `patches`: random patches of the flattened retina, with their place and their label."""

import argparse
import json

import numpy as np

from preprocessing import __version__
from preprocessing.errors import InputError
from preprocessing.geometry import Geometry, geometry_path, read_geometry
from preprocessing.patch_file import INDEX_DTYPE, PatchWriter
from preprocessing.seeds import derive_seed
from preprocessing.volume import NOT_EXAMINED, Volume, read_volume

EYE_LABELS = {"healthy": 0, "diseased": 1, "unknown": -1}
BLOCK = 1024  # patches in memory at a time
ID_BYTES = 64  # what the index of a patch file holds


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


def draw_corners(
    volume: Volume, geometry: Geometry, count: int, size: int, seed: int
) -> np.ndarray:
    """Draw at most `count` different patches: (n, 3) corners, sorted as (b, z, x)."""
    corners = possible_corners(volume, geometry, size)
    rng = np.random.default_rng(derive_seed(seed, "patches", volume.volume))
    chosen = rng.choice(len(corners), min(count, len(corners)), replace=False)
    return corners[np.sort(chosen)]


def cut(array: np.ndarray, corners: np.ndarray, size: int) -> np.ndarray:
    """Return the windows (n, size, size) of `array` (b, z, x) at `corners` (n, 3)."""
    windows = np.lib.stride_tricks.sliding_window_view(array, (size, size), axis=(1, 2))
    return windows[tuple(corners.T)]


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
    by_eye = EYE_LABELS[volume_label]
    by_grader = np.where(fraction == 0, 0, np.where(fraction >= min_fraction, 1, -1))
    label = np.where(examined, by_grader, by_eye).astype(np.int8)
    eye_source = {"healthy": "healthy", "diseased": "eye", "unknown": "none"}[volume_label]
    source = np.where(examined, "annotation", eye_source)
    return label, source, np.where(examined, fraction, np.float32(np.nan))


def append_patches(
    writer: PatchWriter, volume: Volume, corners: np.ndarray, split: str, eye: str, fraction: float
) -> None:
    """Write the patches of `volume` at `corners`, a block in memory at a time.

    `eye` is the label of the whole eye, `fraction` the least marked share of an anomalous patch.
    """
    for start in range(0, len(corners), BLOCK):
        block = corners[start : start + BLOCK]
        if volume.annotation is None:
            marked = np.broadcast_to(np.float32(np.nan), (len(block), writer.size, writer.size))
        else:
            marked = cut(volume.annotation, block, writer.size)
        index = np.zeros(len(block), INDEX_DTYPE)
        texts = {"volume": volume.volume, "patient": volume.patient, "eye": volume.eye}
        for name, text in {**texts, "split": split}.items():
            index[name] = text.encode()
        index["bscan"], index["z"], index["x"] = block.T
        index["eye_label"] = EYE_LABELS[eye]
        label, source, share = label_patches(marked, eye, fraction)
        index["label"], index["label_source"] = label, np.char.encode(source)
        index["anomalous_fraction"] = share
        masks = (marked >= 0.5).astype(np.uint8)
        masks[np.isnan(marked)] = NOT_EXAMINED
        gray = cut(volume.data, block, writer.size).astype(np.float16)
        writer.append(gray, masks, index)


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
        choices=list(EYE_LABELS),
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
            corners = draw_corners(volume, geometry, count, args.size, args.seed)
            append_patches(
                writer, volume, corners, args.split, volume_label, args.anomalous_fraction
            )
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
