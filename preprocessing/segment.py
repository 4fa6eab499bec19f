"""Stage `segment`: finds the retinal layers of one volume and says how far to trust them."""

import argparse

import numpy as np

from preprocessing.errors import InputError
from preprocessing.layers import find_layers, write_layers
from preprocessing.qc import assess, write_picture, write_table
from preprocessing.volume import read_volume


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this stage to `parser`."""
    parser.add_argument("--volume", required=True, help="normalised and resampled volume (.nii.gz)")
    parser.add_argument("--layers", required=True, help="layers to write (.npz)")
    parser.add_argument("--picture", required=True, help="picture of the layers to write (.png)")
    parser.add_argument("--qc", required=True, help="table of quality by B-scan to write (.tsv)")


def command(args: argparse.Namespace) -> str:
    """Segment a volume; raises InputError when not one of its B-scans shows a retina."""
    volume = read_volume(args.volume)
    layers = find_layers(volume.data, volume.valid, volume.spacing_mm)
    if not np.isfinite(layers.bm).any():
        raise InputError(
            f"{args.volume}: no B-scan shows a retina; look at the volume and, if it is empty or "
            "not an OCT of the retina, take it out of the sample sheet"
        )
    rows = assess(volume, layers)
    write_layers(layers, args.layers)
    write_picture(volume, layers, rows, args.picture)
    write_table(rows, args.qc)
    flags = [row["flag"] for row in rows]
    return (
        f"{volume.volume}: {len(rows)} B-scans segmented, "
        f"mean thickness {np.nanmean([row['thickness_um'] for row in rows]):.0f} um; "
        f"{flags.count('check')} to check, {flags.count('fail')} failed"
    )
