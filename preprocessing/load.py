"""Stage `load`: a file of a vendor becomes a canonical volume."""

import argparse
from pathlib import Path

import numpy as np

from preprocessing.errors import InputError
from preprocessing.readers import images, metaimage, nifti, read_vendor_volume
from preprocessing.skipped import add_skip_option, note_of, write_notes
from preprocessing.validity import find_valid
from preprocessing.volume import Volume, files_of, write_volume

# What a retinal OCT device can have made, in mm: (axis, smallest, largest).
PLAUSIBLE_SPACING_MM = (
    ("B-scan to B-scan (b)", 0.0005, 5),
    ("depth (z)", 0.0005, 0.02),
    ("lateral (x)", 0.0005, 0.2),
)
MIN_SHAPE = (1, 64, 32)
MASK_READERS = (nifti, metaimage, images)  # they offer `read_array`
FLOAT_READERS = (nifti, metaimage)  # of formats that hold any number
ALREADY = ("", "normalised", "flat")  # what was done to a volume before
MAX_DEVICE_LENGTH = 64
MAX_LABELS = 16  # different values in a mask; a gray image has more


def canonical(volume: Volume, mirror_left_eyes: bool) -> Volume:
    """Return `volume` with its invalid pixels found and, if asked, a left eye mirrored along x.

    Only horizontal B-scans run between temple and nose, so only these are mirrored: along a circle
    x is an angle, in a star each B-scan has another direction, and a vertical one runs alike in
    both eyes. The spacing between B-scans that are not parallel, or of a single one, becomes 0.

    Raises InputError when the volume is empty, constant, too small or has no plausible spacing.
    """
    volume = _without_excess(volume)
    _check(volume)
    valid = volume.valid
    if volume.intensity != "normalised":
        valid = valid & find_valid(volume.data, volume.intensity)
    if not valid.any() or np.ptp(volume.data[valid]) == 0:
        raise InputError("every pixel is empty, NaN or the same gray value; export the scan again")
    black = np.float32(-1 if volume.intensity == "normalised" else 0)
    volume = volume.replace(valid=valid, data=np.where(valid, volume.data, black))
    horizontal = volume.scan_pattern in ("raster", "line")
    return mirror(volume) if mirror_left_eyes and volume.eye == "L" and horizontal else volume


def _without_excess(volume: Volume) -> Volume:
    """Return `volume` without a distance where it has no meaning, and with a device of one line."""
    _, step_z, step_x = volume.spacing_mm
    device = "".join(filter(str.isprintable, volume.device))[:MAX_DEVICE_LENGTH]
    spacing = volume.spacing_mm if _has_parallel(volume) else (0.0, step_z, step_x)
    return volume.replace(spacing_mm=spacing, device=device)


def _has_parallel(volume: Volume) -> bool:
    return volume.scan_pattern in ("raster", "vertical") and len(volume.data) > 1


def mirror(volume: Volume) -> Volume:
    """Return `volume` with x reversed; applied twice it is the original."""
    lines = volume.bscan_lines_mm
    return volume.replace(
        data=np.ascontiguousarray(volume.data[:, :, ::-1]),
        valid=np.ascontiguousarray(volume.valid[:, :, ::-1]),
        annotation=None if volume.annotation is None else volume.annotation[:, :, ::-1],
        bscan_lines_mm=None if lines is None else lines[:, [2, 3, 0, 1]],
        vendor_layers={name: layer[:, ::-1] for name, layer in volume.vendor_layers.items()},
        mirrored=not volume.mirrored,
    )


def read_annotation(path: str | Path, volume: Volume) -> np.ndarray:
    """Read the lesion mask of `volume` (not yet mirrored) as float32 (b, z, x), 1 in a lesion.

    The mask is NIfTI, MetaImage or images, of 0 and 1 (or 255) or of labels (0 background), in
    the order of the vendor's file. Raises InputError when it does not fit the volume or is no mask.
    """
    path = Path(path)
    reader = next((reader for reader in MASK_READERS if reader.matches(path)), None)
    if not (path.is_file() or path.is_dir()) or reader is None:
        known = ", ".join(reader.NAME for reader in MASK_READERS)
        raise InputError(f"{path}: no such file or not in a format of masks ({known})")
    mask = reader.read_array(path)
    if mask.shape != volume.data.shape:
        raise InputError(
            f"{path}: annotation of shape {mask.shape} (b, z, x) for a volume of shape "
            f"{volume.data.shape}; draw it on the volume as exported"
        )
    if not _is_mask(mask):
        raise InputError(
            f"{path}: an annotation must be a mask of 0 and 1 (or 255), or of whole-numbered "
            "labels with 0 for background"
        )
    lesion = (mask > 0).astype(np.float32)
    return lesion[::-1] if volume.bscans_reversed else lesion


def as_normalised(volume: Volume, path: str | Path, already: str) -> Volume:
    """Return `volume` with the gray values that its file holds, which lie in [-1, 1]; NaN: invalid.

    `already` is what was done to it besides, one of `ALREADY`; it is kept in
    `parameters["load"]`. Raises InputError for other values and for formats of whole numbers.
    """
    reader = next((reader for reader in FLOAT_READERS if reader.matches(Path(path))), None)
    if reader is None:
        known = ", ".join(reader.NAME for reader in FLOAT_READERS)
        raise InputError(f"a volume that is {already} already must be in one of {known}")
    data = reader.read_array(Path(path))
    data = data[::-1] if volume.bscans_reversed else data
    valid = np.isfinite(data)
    low, high = data.min(where=valid, initial=np.inf), data.max(where=valid, initial=-np.inf)
    if low < -1 or high > 1:
        raise InputError(
            f"gray values from {low:g} to {high:g}, where a volume that is {already} already has "
            "-1 to 1; scale them so, or empty the column 'already' of the sample sheet"
        )
    return volume.replace(
        data=np.where(valid, data, -1).astype(np.float32),
        valid=valid,
        intensity="normalised",
        parameters={**volume.parameters, "load": {"already": already}},
    )


def _is_mask(values: np.ndarray) -> bool:
    if not (values.min() == 0 and values.max() <= np.iinfo(np.uint16).max):  # also when it is NaN
        return False
    labels = values.astype(np.uint16)
    n_labels = np.count_nonzero(np.bincount(labels.ravel()))
    return np.array_equal(labels, values) and n_labels <= MAX_LABELS


def _check(volume: Volume) -> None:
    for size, least, axis in zip(volume.data.shape, MIN_SHAPE, ("B-scan", "z", "x"), strict=True):
        if size < least:
            raise InputError(
                f"only {size} pixels along {axis}, at least {least} are needed; were the axes (in "
                "NIfTI x, z, B-scan) stored in another order?"
            )
    axes = PLAUSIBLE_SPACING_MM if _has_parallel(volume) else PLAUSIBLE_SPACING_MM[1:]
    for step, (axis, low, high) in zip(volume.spacing_mm[-len(axes) :], axes, strict=True):
        if not low <= step <= high:  # also when it is NaN
            said = "is not known" if np.isnan(step) else f"is {step:g} mm, which no OCT device has"
            raise InputError(
                f"{axis} spacing {said}; give the true one in column 'spacing_um' of the sample "
                "sheet or as 'spacing_mm' in a sidecar (docs/formats.md)"
            )


def _settle_eye(in_file: str, in_sheet: str) -> str:
    if in_file and in_sheet and in_file != in_sheet:
        raise InputError(
            f"the file says eye {in_file}, the sample sheet says {in_sheet}; "
            "correct or empty the column 'eye'"
        )
    return in_file or in_sheet


def load(args: argparse.Namespace) -> Volume:
    """Return the canonical volume of the options of `add_options`, and of `args.input`.

    Raises InputError when the file is missing, damaged, or not a usable OCT scan.
    """
    volume = read_vendor_volume(args.input)
    if args.spacing_um:
        step_b, step_z, step_x = (um / 1000 for um in args.spacing_um)
        volume = volume.replace(spacing_mm=(step_b, step_z, step_x))
    if args.annotation:
        volume = volume.replace(annotation=read_annotation(args.annotation, volume))
    try:
        if args.already:
            volume = as_normalised(volume, args.input, args.already)
        volume = volume.replace(eye=_settle_eye(volume.eye, args.eye))
        volume = volume.replace(volume=args.volume, patient=args.patient)
        return canonical(volume, args.mirror_left_eyes)
    except InputError as error:
        raise InputError(f"{args.input}: {error}") from error


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare how a file is read."""
    parser.add_argument("--volume", required=True, help="id from the sample sheet")
    parser.add_argument("--patient", required=True, help="id from the sample sheet")
    parser.add_argument("--eye", default="", choices=["R", "L", ""], help="when the file is silent")
    parser.add_argument(
        "--spacing-um",
        nargs=3,
        type=float,
        metavar=("B", "Z", "X"),
        help="between B-scans (unused where there is one), z and x, instead of what the file says",
    )
    parser.add_argument(
        "--already",
        choices=ALREADY,
        default="",
        help="what was done to the volume: gray values in [-1, 1], or also Bruch's membrane level",
    )
    parser.add_argument("--annotation", help="lesion mask: NIfTI, MetaImage or images")
    parser.add_argument(
        "--mirror-left-eyes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="reverse left eyes along x, so that temporal is left in all",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    parser.add_argument("--input", required=True, help="file or folder of the vendor")
    add_options(parser)
    add_skip_option(parser)
    parser.add_argument("--output", required=True, help="canonical volume, .nii.gz")


def command(args: argparse.Namespace) -> str:
    """Read, check and write one volume."""
    try:
        volume = load(args)
    except InputError as error:
        note = note_of(error, args.volume, args.on_error)
        write_notes(note, files_of(args.output))
        return f"{note.volume}: skipped: {note.cause}"
    write_volume(volume, args.output)
    return (
        f"{args.volume}: {volume.source_format}, {' x '.join(map(str, volume.data.shape))} "
        f"(b, z, x), {1000 * volume.spacing_mm[2]:.2f} um lateral, eye {volume.eye or 'unknown'}"
        f"{' (mirrored)' if volume.mirrored else ''}, {volume.valid.mean():.1%} valid"
    )
