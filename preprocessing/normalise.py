"""Stage `normalise`: gray values to [-1, 1] by robust percentiles of the retina.

The vitreous is left out of the percentiles: its gray level follows the device's noise and averaging
and differs threefold between eyes whose retina looks the same (docs/method.md).
"""

import argparse

import numpy as np

from preprocessing.errors import InputError
from preprocessing.intensity import to_display
from preprocessing.volume import Volume, read_volume, write_volume

SAMPLE_UM = 25  # every column tells no more about the whole volume than one in so many um
SMOOTH_UM = (30.0, 150.0)  # z, x: wide enough to average speckle, thin enough to keep the retina


def tissue_mask(data: np.ndarray, valid: np.ndarray, spacing_mm: tuple) -> np.ndarray:
    """Return a bool array (b, z, x): bright after smoothing (Otsu's threshold), so not vitreous."""
    from scipy.ndimage import uniform_filter1d
    from skimage.filters.thresholding import threshold_otsu  # skimage.filters takes 0.3 s

    smooth = np.where(valid, data, np.float32(0))
    for axis, width_um in ((1, SMOOTH_UM[0]), (2, SMOOTH_UM[1])):
        width_px = max(1, round(width_um / 1000 / spacing_mm[axis]))
        smooth = uniform_filter1d(smooth, width_px, axis=axis)
    return valid & (smooth > threshold_otsu(smooth[valid]))


def normalise(volume: Volume, percentiles: tuple[float, float]) -> Volume:
    """Return `volume` in [-1, 1]: the two percentiles of tissue become -1 and 1; clipped.

    Invalid pixels become -1. The gray values used are kept in `parameters["normalise"]`.
    """
    if volume.intensity == "normalised":
        raise InputError("the volume is already normalised; give the output of the stage load")
    data = to_display(volume.data) if volume.intensity == "linear" else volume.data
    step_b, step_z, step_x = volume.spacing_mm
    every = max(1, int(SAMPLE_UM / 1000 / step_x))
    sample, valid = data[:, :, ::every], volume.valid[:, :, ::every]
    tissue = valid
    if valid.any():
        tissue = tissue_mask(sample, valid, (step_b, step_z, step_x * every))
    if not tissue.any():
        raise InputError(
            "no tissue stands out from the background; look at the volume and, if it is empty or "
            "not an OCT of the retina, take it out of the sample sheet"
        )
    low, high = np.percentile(sample[tissue], percentiles)
    scaled = (data - np.float32(low)) * np.float32(2 / max(high - low, 1e-6))
    scaled -= 1
    np.clip(scaled, -1, 1, out=scaled)
    scaled[~volume.valid] = -1
    used = {"percentiles": list(percentiles), "black": float(low), "white": float(high)}
    return volume.replace(
        data=scaled, intensity="normalised", parameters={**volume.parameters, "normalise": used}
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare how gray values are scaled."""
    parser.add_argument("--percentiles", nargs=2, type=float, default=[1, 99], help="of tissue")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    parser.add_argument("--input", required=True, help="volume, .nii.gz")
    add_options(parser)
    parser.add_argument("--output", required=True, help="normalised volume, .nii.gz")


def command(args: argparse.Namespace) -> str:
    """Normalise one volume."""
    volume = read_volume(args.input)
    try:
        volume = normalise(volume, tuple(args.percentiles))
    except InputError as error:
        raise InputError(f"{args.input}: {error}") from error
    write_volume(volume, args.output)
    used = volume.parameters["normalise"]
    return f"{volume.volume}: gray {used['black']:.3f}..{used['white']:.3f} -> -1..1"
