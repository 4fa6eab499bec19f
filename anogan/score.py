"""Stage `score`: scores of every patch of a file, in a table, and the residuals of some."""

import argparse
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from anogan.device import add_device_arguments, choose_dtype, prepare_device
from anogan.mapping import add_search_arguments
from anogan.methods import load_method
from anogan.model import TrainedModel, load_model
from anogan.progress import progress
from anogan.scores import add_score_arguments
from preprocessing.errors import InputError
from preprocessing.files import atomic_path
from preprocessing.patch_file import INDEX_DTYPE, common_preprocessing, open_patches, read_index

OWN_METHOD = {"gan": "anogan"}  # of a model that is not named as its method

# (x (n, 1, h, w), what names each patch for ever) -> (scores (n, k), rebuilt patches or None)
Scorer = Callable[[Tensor, list[str]], tuple[Tensor, Tensor | None]]


def patch_keys(index: pd.DataFrame) -> list[str]:
    """Return what names each patch for ever: its volume and its place in it."""
    columns = (index[name].astype(str) for name in ("volume", "bscan", "z", "x"))
    return ["/".join(parts) for parts in zip(*columns, strict=True)]


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


def padded_batches(n: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (indices, how many of them count) with always `size` indices.

    The last batch is filled up with its first patch: kernels chosen by the batch's shape then stay
    the same, and so do the scores, to the last bit.
    """
    for start in range(0, n, size):
        indices = np.arange(start, min(start + size, n))
        count = len(indices)
        yield np.concatenate([indices, np.full(size - count, start)]), count


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
    are kept and those patches as rebuilt (k, size, size).
    """
    with open_patches(path) as file:
        index = read_index(file)
        keys = patch_keys(index)
        kept = choose_residuals(index, keys, n_residuals)
        pictures = []
        scores = np.zeros((len(index), len(columns)), np.float32)
        batches = list(padded_batches(len(index), batch_size))
        for rows, count in progress(batches, len(batches), "score"):
            gray = file["patches"][rows[0] : rows[0] + count].astype(np.float32)
            gray = gray[rows - rows[0]]  # repeats the first patch where the batch is padded
            x = torch.from_numpy(gray).unsqueeze(1).to(device, memory_format=torch.channels_last)
            values, rebuilt = scorer(x, [keys[row] for row in rows])
            scores[rows[:count]] = values[:count].cpu().numpy()
            if rebuilt is not None:
                here = kept[(kept >= rows[0]) & (kept < rows[0] + count)] - rows[0]
                pictures.append(rebuilt[here, 0].float().cpu().numpy())
        table = index.assign(**dict(zip(columns, scores.T, strict=True)))
        if pictures:
            return table, kept, np.concatenate(pictures)
        return table, kept[:0], np.zeros((0, *file["patches"].shape[1:]), np.float32)


def write_residuals(path: str, patches: str, rows: np.ndarray, generated: np.ndarray) -> None:
    """Write input, generated patch, residual |x - G(z)|, mask and index of some patches as HDF5."""
    with open_patches(patches) as source, atomic_path(path) as temporary:
        gray = source["patches"][rows].astype(np.float32)
        with h5py.File(temporary, "w") as file:
            for name, values in (
                ("patches", gray),
                ("generated", generated),
                ("residual", np.abs(gray - generated)),
            ):
                file.create_dataset(name, data=values.astype(np.float16))
            file.create_dataset("masks", data=source["masks"][rows], compression="gzip")
            file.create_dataset("index", data=source["index"][rows], dtype=INDEX_DTYPE)


def check_patches(path: str, model: TrainedModel) -> None:
    """Raise InputError unless the patches of a file are of the kind that the model has learned."""
    with open_patches(path) as file:
        size = file["patches"].shape[-1]
        found = common_preprocessing(file)
    learned_size = model.architecture["patch_size"]
    if size != learned_size:
        raise InputError(
            f"{path}: patches of {size} pixels, but {model.folder} was trained on {learned_size}; "
            "cut the patches again or use another model"
        )
    learned = model.description.get("data", {}).get("preprocessing", {})
    if not (found and learned):
        return
    for stage in sorted({*found, *learned}):
        here, there = found.get(stage, {}), learned.get(stage, {})
        for setting in sorted({*here, *there}):
            if here.get(setting) != there.get(setting):
                raise InputError(
                    f"{path}: preprocessed with {stage}: {setting} = {here.get(setting)}, but "
                    f"{model.folder} was trained on patches with {there.get(setting)}; set it as "
                    "for the model and preprocess again, or use another model"
                )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--patches", required=True, help="HDF5 of patches")
    parser.add_argument("--method", help="way to score; None is the model's own")
    parser.add_argument("--output", help="scores; None is PATCHES.METHOD.parquet")
    parser.add_argument("--residual-output", help="rebuilt patches and residuals, .h5")
    parser.add_argument("--residuals", type=int, default=64, help="patches to keep pictures of")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1, help="of the starts of the search")
    add_score_arguments(parser)
    add_search_arguments(parser)
    add_device_arguments(parser)


def command(args: argparse.Namespace) -> str:
    """Score one patch file with one method."""
    if args.batch_size < 1:
        raise InputError(f"a batch of {args.batch_size} patches; give at least 1")
    device = prepare_device(args)
    model = load_model(args.model, device)
    name = args.method or OWN_METHOD.get(model.name, model.name)
    method = load_method(name)
    if not hasattr(method, "scorer"):
        raise InputError(f"{name} is a model, not a way to score; leave --method out")
    if model.name != method.MODEL:
        raise InputError(
            f"{args.model}: holds the model {model.name}, but {name} scores with {method.MODEL}; "
            "give the folder of that model or another --method"
        )
    check_patches(args.patches, model)
    # on a GPU, repeated runs agree to the last bit and fp32 is fp32
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False, allow_tf32=False):
        scorer = method.scorer(model, args, device, choose_dtype(args.precision, device))
        table, rows, rebuilt = score_file(
            args.patches, scorer, method.SCORES, args.batch_size, args.residuals, device
        )
    table.insert(len(table.columns) - len(method.SCORES), "method", name)
    output = args.output or Path(args.patches).with_suffix(f".{name}.parquet")
    with atomic_path(output) as temporary:
        table.to_parquet(temporary, index=False)
        if args.residual_output:
            write_residuals(args.residual_output, args.patches, rows, rebuilt)
    return f"{output}: {len(table)} patches scored by {name}"
