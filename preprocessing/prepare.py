"""From a vendor's file to the flat retina in one process: load to flatten, stage by stage.

For one volume by hand, and where the intermediate volumes are not wanted: the results are those of
the single stages, in half of their time.
"""

import argparse

from preprocessing import flatten, load, normalise, resample
from preprocessing.errors import InputError
from preprocessing.geometry import geometry_path, write_geometry
from preprocessing.layers import write_layers
from preprocessing.segment import segment, summary
from preprocessing.volume import as_stored, companion, write_volume


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options: those of the stages."""
    parser.add_argument("--input", required=True, help="file or folder of the vendor")
    for stage in (load, normalise, resample, flatten):
        stage.add_options(parser)
    parser.add_argument(
        "--output",
        required=True,
        help="flat volume NAME.nii.gz; NAME.layers.npz and NAME.geometry.npz go beside it",
    )


def command(args: argparse.Namespace) -> str:
    """Prepare one volume."""
    volume = as_stored(load.load(args))
    try:
        volume = as_stored(normalise.normalise(volume, tuple(args.percentiles)))
        volume = as_stored(resample.resample(volume, args.x_um))
        layers = segment(volume)
    except InputError as error:
        raise InputError(f"{args.input}: {error}") from error
    flat, geometry = flatten.flatten_by(volume, layers, args)
    write_layers(layers, companion(args.output, "layers"))
    write_geometry(geometry, geometry_path(args.output))
    write_volume(flat, args.output)
    return f"{summary(volume, layers)}; {flatten.summary(flat)}"
