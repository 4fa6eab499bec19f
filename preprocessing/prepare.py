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
from preprocessing.qc import assess, flag_counts, skipped_row, write_table
from preprocessing.qc_measures import measure
from preprocessing.segment import segment, summary
from preprocessing.skipped import Note, add_skip_option, note_of, read_note, write_notes
from preprocessing.volume import as_stored, files_of, read_volume, write_volume


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options: those of the stages."""
    parser.add_argument("--input", required=True, help="volume, .nii.gz")
    for stage in (normalise, resample, flatten):
        stage.add_options(parser)
    add_skip_option(parser)
    parser.add_argument(
        "--folder",
        required=True,
        help="for resampled.nii.gz, layers.npz, qc.tsv, flat.nii.gz and what belongs to them",
    )


def command(args: argparse.Namespace) -> str:
    """Prepare one volume."""
    folder = Path(args.folder)
    if args.on_error == "skip" and (note := read_note(args.input)):
        return _skip(note, folder)
    volume = read_volume(args.input)
    try:
        if volume.intensity != "normalised":  # before it was loaded
            volume = as_stored(normalise.normalise(volume, tuple(args.percentiles)))
        volume = as_stored(resample.resample(volume, args.x_um))
        layers = segment(volume)
    except InputError as error:
        error = InputError(f"{args.input}: {error}")
        return _skip(note_of(error, volume.volume, args.on_error), folder)
    whole, *rows = assess(volume, layers, measure(volume, layers))
    flat, geometry = flatten.flatten_by(volume, layers, args)
    write_volume(volume, folder / "resampled.nii.gz")
    write_layers(layers, folder / "layers.npz")
    write_table([whole, *rows], folder / "qc.tsv")
    write_geometry(geometry, geometry_path(folder / "flat.nii.gz"))
    write_volume(flat, folder / "flat.nii.gz")
    return f"{summary(volume, layers)}; {whole['flag']}: {flag_counts(rows)}"


def _skip(note: Note, folder: Path) -> str:
    """Write `note` in place of all that would be made of the volume; the table says so too."""
    flat = folder / "flat.nii.gz"
    volumes = [*files_of(folder / "resampled.nii.gz"), *files_of(flat)]
    write_notes(note, [*volumes, geometry_path(flat), folder / "layers.npz"])
    write_table([skipped_row(note)], folder / "qc.tsv")
    return f"{note.volume}: skipped: {note.cause}"
