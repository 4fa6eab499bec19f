"""Stage `segment`: finds the retinal layers of one volume."""

import argparse

import numpy as np

from preprocessing.errors import InputError
from preprocessing.layer_search import find_layers
from preprocessing.layers import Layers, write_layers
from preprocessing.volume import Volume, read_volume


def segment(volume: Volume) -> Layers:
    """Return the layers of a normalised and resampled volume.

    Raises InputError when not one of its B-scans shows a retina.
    """
    if volume.intensity != "normalised":
        raise InputError("not normalised; run normalise and resample first")
    if "flatten" in volume.parameters:
        raise InputError("already flattened; give the output of the stage resample")
    layers = find_layers(volume.data, volume.valid, volume.spacing_mm)
    if not np.isfinite(layers.bm).any():
        raise InputError(
            "no B-scan shows a retina; look at the volume and, if it is empty or "
            "not an OCT of the retina, take it out of the sample sheet"
        )
    return layers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    parser.add_argument("--input", required=True, help="normalised and resampled volume, .nii.gz")
    parser.add_argument("--output", required=True, help="layers, .npz")


def command(args: argparse.Namespace) -> str:
    """Segment a volume."""
    volume = read_volume(args.input)
    try:
        layers = segment(volume)
    except InputError as error:
        raise InputError(f"{args.input}: {error}") from error
    write_layers(layers, args.output)
    return summary(volume, layers)


def summary(volume: Volume, layers: Layers) -> str:
    """Return one line about the layers."""
    thickness_um = np.nanmean(layers.bm - layers.ilm) * 1000 * volume.spacing_mm[1]
    found = np.isfinite(layers.bm).any(axis=1).sum()
    return f"{volume.volume}: {found} of {len(layers.bm)} B-scans, {thickness_um:.0f} um thick"
