"""How well a finished run tells real drusen from healthy retina, against PCA on the same patches.

Usage: python benchmarks/drusen.py [results]

AMD eyes without annotation give every patch the label of the eye, though most of their patches look
healthy. Here the layer stage decides: a patch is anomalous with at least 40 pixels between Bruch's
membrane and an RPE raised by more than 35 um; normal patches come from the healthy test eyes.
Prints a TSV table, measure value unit baseline ratio: the AUC of each score; as baseline the AUC of
the residual of 50 principal components of the training patches; and how many times fewer errors.
"""

import argparse
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

sys.path[0] = str(Path(__file__).parents[1])  # so that preprocessing is the package

from preprocessing.errors import InputError
from preprocessing.patch_file import open_patches, read_index

RAISED_UM = 35
LEAST_PX = 40
COMPONENTS = 50
PCA_PATCHES = 12_000
KEYS = ["volume", "bscan", "z", "x"]
SCORES = {"anogan": ("A", "R", "D", "P_D"), "gan_r": ("A_hat",)}


def drusen_pixels(file: h5py.File, index: pd.DataFrame) -> np.ndarray:
    """Return (n,) how many pixels of each patch lie between a raised RPE and Bruch's membrane."""
    size = file["patches"].shape[-1]
    counts = np.zeros(len(index), int)
    for volume, rows in index.groupby("volume"):
        group = file["geometry"][volume]
        rpe, bm = group["rpe"][:], group["bm"][:]
        raised = (bm - rpe) * 1000 * group.attrs["spacing_mm"][1] > RAISED_UM
        for row in rows.itertuples():
            place = (row.bscan, slice(row.x, row.x + size))
            z = row.z + np.arange(size)[:, None]
            counts[row.Index] = (raised[place] & (z >= rpe[place]) & (z < bm[place])).sum()
    return counts


def fit_pca(path: Path) -> PCA:
    """Return the principal components of training patches, evenly taken from all of them."""
    with open_patches(path) as file:
        step = max(1, len(file["patches"]) // PCA_PATCHES)
        patches = file["patches"][::step]
    gray = patches.reshape(len(patches), -1).astype(np.float32)
    return PCA(COMPONENTS, svd_solver="randomized", random_state=0).fit(gray)


def read_test(results: Path, pca: PCA) -> pd.DataFrame:
    """Return one row per labelled test patch with `drusen`, `pca` and every score."""
    tables = []
    for path in sorted((results / "patches").glob("test-*.h5")):
        with open_patches(path) as file:
            index = read_index(file)
            index["drusen_px"] = drusen_pixels(file, index)
            gray = file["patches"][:].reshape(len(index), -1).astype(np.float32)
        rebuilt = pca.inverse_transform(pca.transform(gray))
        index["pca"] = np.abs(gray - rebuilt).sum(axis=1)
        scores = pd.read_parquet(results / "scores" / f"{path.stem}.parquet")
        for method, names in SCORES.items():
            rows = scores[scores["method"] == method].set_index(KEYS)[list(names)]
            index = index.join(rows, on=KEYS)
        tables.append(index)
    table = pd.concat(tables, ignore_index=True)
    table["drusen"] = np.where(
        (table["eye_label"] == 1) & (table["drusen_px"] >= LEAST_PX),
        1,
        np.where(table["eye_label"] == 0, 0, -1),
    )
    return table[table["drusen"] >= 0]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"))
    results = parser.parse_args().results
    try:
        table = read_test(results, fit_pca(results / "patches" / "train.h5"))
        baseline = roc_auc_score(table["drusen"], table["pca"])
    except (InputError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print("measure\tvalue\tunit\tbaseline\tratio")
    print(f"drusen patches\t{(table['drusen'] == 1).sum()}\t\t\t")
    print(f"healthy patches\t{(table['drusen'] == 0).sum()}\t\t\t")
    for name in (name for names in SCORES.values() for name in names):
        auc = roc_auc_score(table["drusen"], table[name])
        print(f"AUC of {name}\t{auc:.3f}\t\t{baseline:.3f}\t{(1 - baseline) / (1 - auc):.2f}")


if __name__ == "__main__":
    main()
