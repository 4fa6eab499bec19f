"""Stage `score`: scores of every patch of a file, in a table, and the residuals of some."""

import argparse
import hashlib
import heapq
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from anogan.model import TrainedModel, check_preprocessing
from anogan.scoring import (
    Scorer,
    add_method_arguments,
    patch_keys,
    ready_method,
    score_batches,
)
from preprocessing.files import atomic_path
from preprocessing.hdf5 import CHECKED, new_hdf5
from preprocessing.patch_file import (
    INDEX_DTYPE,
    check_whole,
    common_preprocessing,
    heights_px,
    open_patches,
    read_index,
)

FAILURES = 8  # of each label, whose pictures are kept


def choose_residuals(index: pd.DataFrame, keys: list[str], count: int) -> np.ndarray:
    """Return the rows of at most `count` patches to keep pictures of: anomalous, normal, in turn.

    Unlabelled ones come last. Within a label the choice is random but fixed by the patch's key.
    """
    order = np.argsort([hashlib.sha256(key.encode()).digest() for key in keys], kind="stable")
    label = index["label"].to_numpy()[order]
    turn = pd.Series(label).groupby(label).cumcount()
    turn[label < 0] += len(order)
    chosen = np.lexsort([-label, turn])[:count]
    return np.sort(order[chosen])


class Failures:
    """The normal patches that score highest and the anomalous ones that score lowest, so far."""

    def __init__(self, label: np.ndarray, keys: list[str]) -> None:
        self._label, self._keys = label, keys
        self._found: dict[int, list[tuple[float, str, int]]] = {0: [], 1: []}

    def add(self, rows: slice, score: np.ndarray) -> None:
        """Take the scores (k,) of `rows`; patches that score the same are ranked by their keys."""
        for label, sign in ((0, -1), (1, 1)):
            own = np.flatnonzero((self._label[rows] == label) & np.isfinite(score)) + rows.start
            new = [(sign * float(score[row - rows.start]), self._keys[row], row) for row in own]
            self._found[label] = heapq.nsmallest(FAILURES, self._found[label] + new)

    @property
    def rows(self) -> set[int]:
        """At most `FAILURES` rows of each label."""
        return {row for found in self._found.values() for *_, row in found}


def score_file(
    path: str,
    scorer: Scorer,
    columns: tuple[str, ...],
    batch_size: int,
    n_residuals: int,
    device: torch.device,
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Score the patches of a file, one batch in memory at a time.

    Returns the table (a row per patch: the file's index and its scores), the rows whose pictures
    are kept (`n_residuals` of them by `choose_residuals`, the others failures) and those patches as
    rebuilt (k, size, size).
    """
    with open_patches(path) as file:
        index = read_index(file)
        keys = patch_keys(index)
        failures = Failures(index["label"].to_numpy(), keys)
        chosen = set(choose_residuals(index, keys, n_residuals))
        pictures: dict[int, np.ndarray] = {}
        scores = np.zeros((len(index), len(columns)), np.float32)
        take = file["patches"].__getitem__
        height_px = heights_px(file, index)
        for rows, _, values, rebuilt in score_batches(
            take, keys, height_px, scorer, batch_size, device
        ):
            scores[rows] = values
            if rebuilt is not None:
                failures.add(rows, values[:, 0])
                kept = chosen | failures.rows
                here = sorted(row for row in kept if rows.start <= row < rows.stop)
                new = rebuilt[[row - rows.start for row in here], 0].float().cpu().numpy()
                pictures = {row: pictures[row] for row in pictures if row in kept}
                pictures |= zip(here, new, strict=True)
        table = index.assign(**dict(zip(columns, scores.T, strict=True)))
        shape = (len(pictures), *file["patches"].shape[1:])
        rows = np.fromiter(pictures, int)  # in the order of the file, as they came
        return table, rows, np.array(list(pictures.values()), np.float32).reshape(shape)


def write_residuals(
    path: str, patches: str, rows: np.ndarray, generated: np.ndarray, chosen: np.ndarray
) -> None:
    """Write input, generated patch, residual |x - G(z)|, mask and index of some patches as HDF5.

    `random` tells those of the rows `chosen` whatever they scored from those kept as failures.
    """
    with open_patches(patches) as source:
        gray = source["patches"][rows].astype(np.float32)
        masks, index = source["masks"][rows], source["index"][rows]
    checked = CHECKED if len(rows) else {}  # what is empty has no chunks
    with new_hdf5(path) as file:
        for name, values in (
            ("patches", gray),
            ("generated", generated),
            ("residual", np.abs(gray - generated)),
        ):
            file.create_dataset(name, data=values.astype(np.float16), **checked)
        file.create_dataset("masks", data=masks, compression="gzip", **checked)
        file.create_dataset("index", data=index, dtype=INDEX_DTYPE, **checked)
        file.create_dataset("random", data=np.isin(rows, chosen), **checked)


def check_patches(path: str, model: TrainedModel) -> None:
    """Raise InputError unless a file is whole and has patches as those that the model learned."""
    with open_patches(path) as file:
        check_whole(file)
        check_preprocessing(path, file["patches"].shape[-1], common_preprocessing(file), model)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    parser.add_argument("--patches", required=True, help="HDF5 of patches")
    parser.add_argument("--output", help="scores; None is PATCHES.METHOD.parquet")
    parser.add_argument("--residual-output", help="rebuilt patches and residuals, .h5")
    parser.add_argument(
        "--residuals", type=int, default=64, help="patches to keep pictures of, whatever they score"
    )
    add_method_arguments(parser)


def command(args: argparse.Namespace) -> str:
    """Score one patch file with one method."""
    with ready_method(args) as method:
        check_patches(args.patches, method.model)
        table, rows, rebuilt = score_file(
            args.patches,
            method.scorer,
            method.columns,
            args.batch_size,
            args.residuals,
            method.device,
        )
    table.insert(len(table.columns) - len(method.columns), "method", method.name)
    output = args.output or Path(args.patches).with_suffix(f".{method.name}.parquet")
    with atomic_path(output) as temporary:
        table.to_parquet(temporary, index=False, write_page_checksum=True)
        if args.residual_output:
            chosen = choose_residuals(table, patch_keys(table), args.residuals)
            write_residuals(args.residual_output, args.patches, rows, rebuilt, chosen)
    return f"{output}: {len(table)} patches scored by {method.name}"
