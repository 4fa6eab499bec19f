"""How well a finished run tells real drusen from healthy retina, against PCA on the same patches.

Usage: python benchmarks/drusen.py [results]

AMD eyes without annotation give every patch the label of the eye, though most of their patches look
healthy. Here the layer stage decides: a patch is anomalous with at least 40 pixels between Bruch's
membrane and an RPE raised by more than 35 um; normal patches come from the healthy test eyes.
Prints a TSV table, measure value unit baseline ratio: the AUC of every score of every method that
the run has scored with; as baseline that of the method `pca`; and how many times fewer errors.
"""

import argparse
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

sys.path[0] = str(Path(__file__).parents[1])  # so that preprocessing is the package

from anogan.evidence.score_tables import PATCH, patch_table, read_scores
from benchmarks.truths import LEAST_PX, raised_rpe
from preprocessing.errors import InputError
from preprocessing.patch_file import open_patches, read_index

BASELINE = "pca"


def drusen_pixels(file: h5py.File, index: pd.DataFrame) -> np.ndarray:
    """Return (n,) how many pixels of each patch lie between a raised RPE and Bruch's membrane."""
    size = file["patches"].shape[-1]
    counts = np.zeros(len(index), int)
    for volume, rows in index.groupby("volume"):
        group = file["geometry"][volume]
        rpe, bm = group["rpe"][:], group["bm"][:]
        step_mm = group.attrs["spacing_mm"][1]
        for row in rows.itertuples():
            place, z = (row.bscan, slice(row.x, row.x + size)), row.z + np.arange(size)
            counts[row.Index] = raised_rpe(rpe[place], bm[place], z, step_mm).sum()
    return counts


def read_drusen(results: Path) -> pd.Series:
    """Return how many pixels of drusen each test patch shows, by patch."""
    counts = []
    for path in sorted((results / "patches").glob("test-*.h5")):
        with open_patches(path) as file:
            index = read_index(file)
            counts.append(index[PATCH].assign(drusen_px=drusen_pixels(file, index)))
    if not counts:
        raise InputError(f"{results}: no test patches; give the results folder of a finished run")
    return pd.concat(counts).set_index(PATCH)["drusen_px"]


def read_test(results: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return one row per test patch of known truth, with `drusen` and every score; their names."""
    drusen_px = read_drusen(results)
    table, names = patch_table(read_scores((results / "scores").glob("*/test-*.parquet")))
    if BASELINE not in names:
        raise InputError(
            f"{results}: no scores of {BASELINE}, the baseline; add it to methods and run again"
        )
    table = table.join(drusen_px, on=PATCH)
    shows = (table["eye_label"] == 1) & (table["drusen_px"] >= LEAST_PX)
    table["drusen"] = shows.astype(int)
    table = table[shows | (table["eye_label"] == 0)]
    if table["drusen"].nunique() < 2:
        raise InputError(
            f"{results}: {shows.sum()} test patches with drusen, {(table['drusen'] == 0).sum()} of "
            "healthy eyes; both are needed, so choose test eyes of both kinds"
        )
    return table, [name for of_method in names.values() for name in of_method]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"))
    try:
        table, scores = read_test(parser.parse_args().results)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    truth = table["drusen"]
    baseline = roc_auc_score(truth, table[BASELINE])
    print("measure\tvalue\tunit\tbaseline\tratio")
    print(f"drusen patches\t{(truth == 1).sum()}\t\t\t")
    print(f"healthy patches\t{(truth == 0).sum()}\t\t\t")
    for name in scores:
        auc = roc_auc_score(truth, table[name])
        ratio = (1 - baseline) / (1 - auc) if auc < 1 else np.inf
        print(f"AUC of {name}\t{auc:.3f}\t\t{baseline:.3f}\t{ratio:.2f}")


if __name__ == "__main__":
    main()
