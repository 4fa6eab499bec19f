"""Stage `prepare`: from the volume as loaded to the flat retina, its layers and their quality.

It does what the stages normalise, resample, segment, qc and flatten do, one after the other and to
the same bytes, in one process: in half of their time, and as one job of the workflow.
"""

import argparse
from pathlib import Path

from preprocessing import flatten, normalise, resample
from preprocessing.errors import InputError
from preprocessing.geometry import geometry_path, write_geometry
from preprocessing.layers import write_layers
from preprocessing.qc import assess, flag_counts, write_table
from preprocessing.qc_measures import measure
from preprocessing.segment import segment, summary
from preprocessing.volume import as_stored, read_volume, write_volume


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options: those of the stages."""
    parser.add_argument("--input", required=True, help="volume, .nii.gz")
    for stage in (normalise, resample, flatten):
        stage.add_options(parser)
    parser.add_argument(
        "--folder",
        required=True,
        help="for resampled.nii.gz, layers.npz, qc.tsv, flat.nii.gz and what belongs to them",
    )


def command(args: argparse.Namespace) -> str:
    """Prepare one volume."""
    volume = read_volume(args.input)
    try:
        volume = as_stored(normalise.normalise(volume, tuple(args.percentiles)))
        volume = as_stored(resample.resample(volume, args.x_um))
        layers = segment(volume)
    except InputError as error:
        raise InputError(f"{args.input}: {error}") from error
    whole, *rows = assess(volume, layers, measure(volume, layers))
    flat, geometry = flatten.flatten_by(volume, layers, args)
    folder = Path(args.folder)
    write_volume(volume, folder / "resampled.nii.gz")
    write_layers(layers, folder / "layers.npz")
    write_table([whole, *rows], folder / "qc.tsv")
    write_geometry(geometry, geometry_path(folder / "flat.nii.gz"))
    write_volume(flat, folder / "flat.nii.gz")
    return f"{summary(volume, layers)}; {whole['flag']}: {flag_counts(rows)}"
