"""Stage `own_patches`: patches that were cut elsewhere become a patch file, to start from them.

The table has a row per patch, in the order of the array. Of its columns only `patient` is needed:

    patient    pseudonym
    volume     id of the volume; the patient's pseudonym where the column is missing
    eye        R, L or empty
    label      1 anomalous, 0 normal, -1 unknown (so where the column is missing)
    eye_label  the same of the whole eye

Nothing is known of a patch's place, so no map can be drawn and no pixel found on a scan.
"""

import argparse
from pathlib import Path

import numpy as np

from preprocessing import __version__
from preprocessing.errors import InputError
from preprocessing.patch_file import INDEX_DTYPE, PatchWriter
from preprocessing.untrusted import parsing

SIZES = (32, 64, 128)
DEFAULTS = {"eye": "", "label": "-1", "eye_label": "-1"}
ALLOWED = {"eye": ("R", "L", ""), "label": ("-1", "0", "1"), "eye_label": ("-1", "0", "1")}
NOWHERE = -1  # B-scan and row of a patch without a place
BLOCK = 4096  # patches in memory at a time


def read_patches(path: str | Path) -> np.ndarray:
    """Return the array (n, size, size) of gray values in [-1, 1] at `path`, mapped, not read.

    Raises InputError when it is no such array.
    """
    with parsing(path, "array in NumPy's format .npy"):
        patches = np.load(path, mmap_mode="r", allow_pickle=False)
        shape = patches.shape
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] not in SIZES:
        raise InputError(
            f"{path}: an array of {shape}; it must be (n, size, size), size 32, 64, 128"
        )
    if patches.dtype.kind != "f":
        raise InputError(f"{path}: values of type {patches.dtype}; scale them to [-1, 1] as floats")
    return patches


def read_rows(path: str | Path, n: int, split: str) -> np.ndarray:
    """Return the index (n,) of `INDEX_DTYPE` that the table at `path` gives; InputError."""
    import pandas as pd

    with parsing(path, "tab-separated table"):
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    if "patient" not in table:
        raise InputError(f"{path}: no column 'patient'; columns are separated by tabs")
    if len(table) != n:
        raise InputError(f"{path}: {len(table)} rows for {n} patches; give one each")
    table = table.assign(**{name: text for name, text in DEFAULTS.items() if name not in table})
    if "volume" not in table:
        table["volume"] = table["patient"]
    for name, allowed in ALLOWED.items():
        wrong = ~table[name].isin(allowed)
        if wrong.any():
            raise InputError(
                f"{path}, row {wrong.argmax() + 2}, column '{name}': "
                f"'{table[name][wrong.argmax()]}'; it must be one of "
                f"{', '.join(text or 'empty' for text in allowed)}"
            )
    if split == "train" and (table["label"] == "1").any():
        raise InputError(f"{path}: anomalous patches to train on; leave them out")
    index = np.zeros(n, INDEX_DTYPE)
    for name in ("volume", "patient"):
        texts = np.char.encode(table[name].to_numpy(str), "utf-8")
        if texts.itemsize > INDEX_DTYPE[name].itemsize or (texts == b"").any():
            raise InputError(
                f"{path}: column '{name}' has an empty or too long text; "
                f"it must have 1 to {INDEX_DTYPE[name].itemsize} bytes"
            )
        index[name] = texts
    index["split"], index["eye"] = split.encode(), np.char.encode(table["eye"].to_numpy(str))
    index["label"], index["eye_label"] = table["label"].astype(int), table["eye_label"].astype(int)
    index["label_source"] = np.where(index["label"] >= 0, b"annotation", b"none")
    index["bscan"] = index["z"] = index["bscan_label"] = NOWHERE
    index["x"] = np.arange(n)  # tells the patches of a volume apart
    index["anomalous_fraction"] = np.nan
    return index


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    parser.add_argument("--patches", required=True, help="array (n, size, size) in [-1, 1], .npy")
    parser.add_argument("--table", required=True, help="a row per patch, tab-separated")
    parser.add_argument(
        "--split", required=True, choices=["train", "validation", "test", "score"], help="their use"
    )
    parser.add_argument("--output", required=True, help="patch file, .h5")


def command(args: argparse.Namespace) -> str:
    """Write one patch file."""
    patches = read_patches(args.patches)
    index = read_rows(args.table, len(patches), args.split)
    with PatchWriter(args.output, patches.shape[1]) as writer:
        for start in range(0, len(patches), BLOCK):
            block = np.asarray(patches[start : start + BLOCK])
            if not (np.abs(block) <= 1).all():  # also where it is NaN
                raise InputError(f"{args.patches}: values outside [-1, 1]; scale the gray values")
            writer.append(block, None, index[start : start + BLOCK])
        writer.set_attributes(size=patches.shape[1], seed=0, version=__version__)
    return f"{len(patches)} {args.split} patches of {len(set(index['volume']))} volumes"
