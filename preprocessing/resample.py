"""Stage `resample`: one lateral spacing for every eye, by exact area averaging.

Nearest or linear interpolation would leave more noise in some columns than in others, a texture
that a GAN can learn instead of the retina.
"""

import argparse

import numpy as np

from preprocessing.errors import InputError
from preprocessing.volume import Volume, read_volume, write_volume


def area_weights(n_in: int, n_out: int) -> np.ndarray:
    """Return (n_in, n_out) float32: the share of output column j that input column i covers.

    Every output column's weights sum to 1.
    """
    edges_in = np.arange(n_in + 1) / n_in
    edges_out = np.arange(n_out + 1) / n_out
    start = np.maximum(edges_in[:-1, None], edges_out[None, :-1])
    end = np.minimum(edges_in[1:, None], edges_out[None, 1:])
    return (np.maximum(end - start, 0) * n_out).astype(np.float32)


def linear_weights(n_in: int, n_out: int) -> np.ndarray:
    """Return (n_in, n_out) float32 that interpolate linearly between column centres."""
    centres = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
    distance = np.abs(centres.clip(0, n_in - 1)[None, :] - np.arange(n_in)[:, None])
    return np.maximum(1 - distance, 0).astype(np.float32)


def resample(volume: Volume, x_um: float) -> Volume:
    """Return `volume` with round(width / x_um) columns.

    Each new pixel is the mean of the valid area under it; it is valid when at least half of that
    area is. An annotation becomes the marked fraction of the examined area. A scan that is coarser
    than `x_um` is interpolated, and `parameters` say so. New column c lies at
    x = (c + 0.5) f - 0.5 of the input, f = n_in / n_out.
    """
    if x_um <= 0:
        raise InputError(f"the lateral spacing to reach is {x_um} um; it must be positive")
    n_in = volume.data.shape[2]
    step_b, step_z, step_x = volume.spacing_mm
    n_out = max(1, round(n_in * step_x * 1000 / x_um))
    upsampled = n_out > n_in
    weights = (linear_weights if upsampled else area_weights)(n_in, n_out)

    data, covered = _average(volume.data, volume.valid, weights)
    annotation = volume.annotation
    if annotation is not None:
        annotation, examined = _average(np.nan_to_num(annotation), np.isfinite(annotation), weights)
        annotation[examined < 0.5] = np.nan
    valid = covered >= 0.5
    return volume.replace(
        data=np.where(valid, data, np.float32(-1)),
        valid=valid,
        annotation=annotation,
        vendor_layers={
            name: _resample_curve(layer, weights) for name, layer in volume.vendor_layers.items()
        },
        spacing_mm=(step_b, step_z, step_x * n_in / n_out),
        parameters={**volume.parameters, "resample": {"x_um": x_um, "upsampled": upsampled}},
    )


def _average(values: np.ndarray, mask: np.ndarray, weights: np.ndarray) -> tuple:
    """Return the weighted mean of `values` where `mask`, and the share of area it covers."""
    covered = mask.astype(np.float32) @ weights
    total = np.where(mask, values, np.float32(0)) @ weights
    return total / np.maximum(covered, np.finfo(np.float32).tiny), covered


def _resample_curve(curve: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return `curve` (b, x) by columns of `weights`, NaN where less than half of one is known."""
    mean, known = _average(curve, np.isfinite(curve), weights)
    return np.where(known >= 0.5, mean, np.float32(np.nan))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the spacing to reach."""
    parser.add_argument("--x-um", type=float, default=22.0, help="lateral spacing to reach, in um")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    parser.add_argument("--input", required=True, help="normalised volume, .nii.gz")
    add_options(parser)
    parser.add_argument("--output", required=True, help="resampled volume, .nii.gz")


def command(args: argparse.Namespace) -> str:
    """Resample one volume."""
    before = read_volume(args.input)
    try:
        after = resample(before, args.x_um)
    except InputError as error:
        raise InputError(f"{args.input}: {error}") from error
    write_volume(after, args.output)
    coarse = (
        " (interpolated: the input is coarser)"
        if after.data.shape[2] > before.data.shape[2]
        else ""
    )
    return (
        f"{after.volume}: {before.data.shape[2]} -> {after.data.shape[2]} columns of "
        f"{1000 * after.spacing_mm[2]:.2f} um{coarse}"
    )
