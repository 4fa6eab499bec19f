"""Stage `patches`: random patches of the flattened retina, with their place and their label."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from preprocessing import __version__
from preprocessing.errors import InputError
from preprocessing.geometry import Geometry, geometry_path, read_geometry
from preprocessing.patch_file import INDEX_DTYPE, PatchWriter
from preprocessing.qc import read_table
from preprocessing.seeds import derive_seed
from preprocessing.skipped import read_note
from preprocessing.volume import NOT_EXAMINED, Volume, read_volume

EYE_LABELS = {"healthy": 0, "diseased": 1, "unknown": -1}
BLOCK_BYTES = 2**24  # of gray values in memory at a time
ID_BYTES = 64  # what the index of a patch file holds
LEAVE_OUT = {"none": (), "fail": ("fail",), "check": ("fail", "check")}  # flags of the stage qc


def window_sums(mask: np.ndarray, size: int) -> np.ndarray:
    """Return int32 (b, z - size + 1, x - size + 1): the sum of `mask` (b, z, x) in each window.

    The values of `mask` are whole numbers.
    """
    n_b, n_z, n_x = mask.shape
    area = np.zeros((n_b, n_z + 1, n_x + 1), np.int32)
    np.cumsum(mask, axis=1, out=area[:, 1:, 1:])
    np.cumsum(area[:, :, 1:], axis=2, out=area[:, :, 1:])
    return (
        area[:, size:, size:]
        - area[:, :-size, size:]
        - area[:, size:, :-size]
        + area[:, :-size, :-size]
    )


def possible_corners(volume: Volume, geometry: Geometry, size: int) -> np.ndarray:
    """Return (n, 3) int: (b, z, x) of the top left pixel of every patch that may be drawn.

    Every pixel of such a patch is valid, and its centre lies in the retina, ILM to BM.
    """
    _, n_z, n_x = volume.data.shape
    if n_z < size or n_x < size:
        raise InputError(
            f"{volume.volume}: the flat volume has {n_z} x {n_x} pixels, a patch {size} x {size}; "
            "use smaller patches or keep more with flatten: above_um, below_um"
        )
    centre = np.arange(n_z - size + 1)[None, :, None] + size // 2
    columns = slice(size // 2, size // 2 + n_x - size + 1)
    in_retina = (centre >= geometry.ilm[:, None, columns]) & (
        centre <= geometry.bm[:, None, columns]
    )
    return np.argwhere((window_sums(~volume.valid, size) == 0) & in_retina)


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


def marked_fraction(annotation: np.ndarray | None, corners: np.ndarray, size: int) -> np.ndarray:
    """Return (n,) float32: the marked share of each patch, NaN where not all of it was examined."""
    if annotation is None:
        return np.full(len(corners), np.nan, np.float32)
    places = tuple(corners.T)
    marked = window_sums(_percent(annotation), size)[places] / np.float32(100 * size**2)
    unexamined = window_sums(np.isnan(annotation), size)[places]
    return np.where(unexamined == 0, marked, np.float32(np.nan))


def label_patches(
    fraction: np.ndarray, volume_label: str, min_fraction: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return (label, label_source), each (n,), of the patches' marked fractions (n,).

    Where the patch is annotated, it is anomalous when at least `min_fraction` of its pixels are
    marked, normal when none is, and unknown (-1) in between. Otherwise (NaN) every patch of a
    healthy eye is normal (source `healthy`), and every patch of a diseased eye carries the eye's
    label (source `eye`), whether or not there is anything to be seen in it.
    """
    examined = np.isfinite(fraction)
    by_eye = EYE_LABELS[volume_label]
    by_grader = np.where(fraction == 0, 0, np.where(fraction >= min_fraction, 1, -1))
    label = np.where(examined, by_grader, by_eye).astype(np.int8)
    eye_source = {"healthy": "healthy", "diseased": "eye", "unknown": "none"}[volume_label]
    return label, np.where(examined, "annotation", eye_source)


def label_bscans(volume: Volume, volume_label: str, min_px: float) -> np.ndarray:
    """Return (b,) int8: the labels of the B-scans of `volume`, judged by their valid pixels.

    A B-scan is anomalous when at least `min_px` of its pixels are marked, unknown (-1) when some
    but fewer are, normal when all were examined and none is marked. Otherwise it carries the label
    of the eye. Counted as in a patch, so that no anomalous patch lies in a normal B-scan.
    """
    by_eye = EYE_LABELS[volume_label]
    if volume.annotation is None:
        return np.full(len(volume.data), by_eye, np.int8)
    marked_px = (_percent(volume.annotation) * volume.valid).sum(axis=(1, 2)) / 100
    examined = (np.isfinite(volume.annotation) | ~volume.valid).all(axis=(1, 2))
    unmarked = np.where(examined, 0, by_eye)
    partly = np.where(marked_px >= min_px, 1, -1)
    return np.where(marked_px > 0, partly, unmarked).astype(np.int8)


def append_patches(
    writer: PatchWriter, volume: Volume, corners: np.ndarray, split: str, eye: str, fraction: float
) -> None:
    """Write the patches of `volume` at `corners`, a block in memory at a time.

    `eye` is the label of the whole eye, `fraction` the least marked share of an anomalous patch.
    """
    gray = volume.data.astype(np.float16)  # once, as patches overlap manifold
    marked = lesion_mask(volume.annotation)
    shares_marked = marked_fraction(volume.annotation, corners, writer.size)
    labels, sources = label_patches(shares_marked, eye, fraction)
    bscan_labels = label_bscans(volume, eye, fraction * writer.size**2)
    per_block = max(1, BLOCK_BYTES // (gray.itemsize * writer.size**2))
    for start in range(0, len(corners), per_block):
        rows = slice(start, start + per_block)
        block = corners[rows]
        index = np.zeros(len(block), INDEX_DTYPE)
        texts = {"volume": volume.volume, "patient": volume.patient, "eye": volume.eye}
        for name, text in {**texts, "split": split}.items():
            index[name] = text.encode()
        index["bscan"], index["z"], index["x"] = block.T
        index["eye_label"] = EYE_LABELS[eye]
        index["bscan_label"] = bscan_labels[index["bscan"]]
        index["label"], index["label_source"] = labels[rows], sources[rows]
        index["anomalous_fraction"] = shares_marked[rows]
        masks = None if marked is None else cut(marked, block, writer.size)
        writer.append(cut(gray, block, writer.size), masks, index)


def _percent(annotation: np.ndarray) -> np.ndarray:
    """Return int32: the marked per cent of each pixel, whole, so that sums of nothing stay 0."""
    return np.rint(100 * np.nan_to_num(annotation)).astype(np.int32)


def lesion_mask(annotation: np.ndarray | None) -> np.ndarray | None:
    """Return uint8: 1 where at least half of the pixel is marked, 0, or 255 not examined.

    None, where nobody looked, stays None.
    """
    if annotation is None:
        return None
    mask = (annotation >= 0.5).astype(np.uint8)
    mask[np.isnan(annotation)] = NOT_EXAMINED
    return mask


def flagged_bscans(path: str | Path, n_bscans: int, flags: tuple[str, ...]) -> np.ndarray:
    """Return (n_bscans,) bool: which B-scans carry one of `flags` in the table of the stage qc.

    Raises InputError when the table is missing, damaged or of another volume.
    """
    _, rows = read_table(path)
    if len(rows) != n_bscans:
        raise InputError(
            f"{path}: flags of {len(rows)} B-scans where the volume has {n_bscans}; "
            "make it again with the rule prepare"
        )
    return np.array([row["flag"] in flags for row in rows])


def shares(total: int | None, per_volume: int | None, n_volumes: int) -> list[int]:
    """Return how many patches each of `n_volumes` volumes gives.

    >>> shares(10, None, 3)
    [4, 3, 3]
    """
    if total is None:
        return [per_volume] * n_volumes
    return [total // n_volumes + (i < total % n_volumes) for i in range(n_volumes)]


def add_volume_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `usable_volumes` heeds."""
    parser.add_argument("--inputs", nargs="+", required=True, help="flat volumes, .nii.gz")
    parser.add_argument(
        "--labels",
        nargs="+",
        required=True,
        choices=list(EYE_LABELS),
        metavar="LABEL",
        help="healthy, diseased or unknown, in the order of the inputs",
    )
    parser.add_argument(
        "--qc", nargs="+", metavar="TSV", help="quality of the B-scans, in the order of the inputs"
    )
    parser.add_argument(
        "--leave-out",
        choices=list(LEAVE_OUT),
        default="fail",
        help="B-scans that --qc flags so, or worse, give no patches",
    )


def usable_inputs(args: argparse.Namespace) -> list[tuple[str, str, str | None]]:
    """Return (path, label, table of quality or None) of each volume that was not skipped.

    Raises InputError when there is not one label and, where any are given, one table an input.
    """
    for option, values in (("labels", args.labels), ("qc", args.qc)):
        if values and len(values) != len(args.inputs):
            raise InputError(
                f"--{option}: {len(values)} for {len(args.inputs)} inputs; give one each"
            )
    tables = args.qc or [None] * len(args.inputs)
    inputs = zip(args.inputs, args.labels, tables, strict=True)
    return [(path, label, table) for path, label, table in inputs if not read_note(path)]


def usable_volumes(
    inputs: list[tuple[str, str, str | None]], leave_out: str
) -> Iterator[tuple[str, str, Volume, int]]:
    """Yield (path, label, flat volume, number of its B-scans left out), one in memory at a time.

    `inputs` are those of `usable_inputs`; B-scans that are to be left out, a key of `LEAVE_OUT`,
    are invalid in the volume. Raises InputError when a file is missing or damaged.
    """
    for path, label, table in inputs:
        volume = read_volume(path)
        unfit = np.zeros(len(volume.data), bool)
        if table:
            unfit = flagged_bscans(table, len(volume.data), LEAVE_OUT[leave_out])
        volume.valid[unfit] = False
        yield path, label, volume, int(unfit.sum())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    add_volume_arguments(parser)
    parser.add_argument(
        "--split",
        required=True,
        choices=["train", "validation", "test", "score"],
        help="what the patches are for; training takes raster scans only",
    )
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
    parser.add_argument("--seed", type=int, default=1, help="of the places of patches")
    parser.add_argument("--output", required=True, help="HDF5 file")


def command(args: argparse.Namespace) -> str:
    """Cut the patches of all volumes into one file, one volume in memory at a time."""
    inputs = usable_inputs(args)
    if args.split == "train" and not inputs:
        raise InputError(
            f"{args.output}: every volume to train on was skipped, the first as "
            f"{read_note(args.inputs[0]).cause}"
        )
    wanted = shares(args.total, args.per_volume, len(inputs))
    left_out = 0
    with PatchWriter(args.output, args.size) as writer:
        volumes = usable_volumes(inputs, args.leave_out)
        for (path, label, volume, unfit), count in zip(volumes, wanted, strict=True):
            _check(path, volume, args.split)
            left_out += unfit
            geometry = read_geometry(geometry_path(path))
            corners = draw_corners(volume, geometry, count, args.size, args.seed)
            append_patches(writer, volume, corners, args.split, label, args.anomalous_fraction)
            writer.add_geometry(volume.volume, geometry, _facts(volume))
        n = len(writer)
        if n == 0 and args.split == "train":
            raise InputError(
                f"{args.output}: no place for a patch in {', '.join(args.inputs)}; "
                "look at their layers.png and qc.tsv"
            )
        writer.set_attributes(size=args.size, seed=args.seed, version=__version__)
    short = f" ({sum(wanted) - n} fewer than asked: no more room)" if n < sum(wanted) else ""
    unused = f", {left_out} B-scans left out" if left_out else ""
    return f"{n} {args.split} patches of {counted(args, inputs)}{short}{unused}"


def counted(args: argparse.Namespace, inputs: list) -> str:
    """Return how many volumes of `args` there are, and how many are not among the `inputs`."""
    n_skipped = len(args.inputs) - len(inputs)
    skipped = f" ({n_skipped} more skipped)" if n_skipped else ""
    return f"{len(inputs)} volumes{skipped}"


def _check(path: str, volume: Volume, split: str) -> None:
    if len(volume.volume.encode()) > ID_BYTES or len(volume.patient.encode()) > ID_BYTES:
        raise InputError(f"{path}: volume and patient ids may have {ID_BYTES} bytes at most")
    if split == "train" and volume.scan_pattern != "raster":
        raise InputError(
            f"{path}: a {volume.scan_pattern} scan; a model of the healthy retina is trained on "
            "parallel horizontal B-scans: give the volume another split or take it out of the "
            "sample sheet"
        )


def _facts(volume: Volume) -> dict:
    return {
        "native_shape": volume.native_shape,
        "spacing_mm": volume.spacing_mm,
        "mirrored": volume.mirrored,
        "bscans_reversed": volume.bscans_reversed,
        "device": volume.device,
        "parameters": json.dumps(volume.parameters),
    }
