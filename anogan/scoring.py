"""What the stages that score patches share: a method made ready, and its scores batch by batch."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from anogan.device import add_device_arguments, choose_dtype, prepare_device
from anogan.mapping import add_refinement_arguments, add_search_arguments
from anogan.memory import check_fits, free_memory, search_bytes
from anogan.methods import load_method
from anogan.model import Architecture, TrainedModel, load_model
from anogan.progress import progress
from anogan.scores import add_score_arguments
from preprocessing.errors import InputError

# of models that are not named as their method
OWN_METHOD = {"gan": "anogan", "encoder": "f_anogan", "restorer": "r_anogan"}

# (x (n, 1, h, w), what names each patch for ever, how many rows its top row lies above BM (n,), NaN
# where unknown) -> (scores (n, k), rebuilt patches or None)
Scorer = Callable[[Tensor, list[str], Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class ReadyMethod:
    """A way to score with its trained model: `columns` names the scores, its own first."""

    name: str
    columns: tuple[str, ...]
    model: TrainedModel
    scorer: Scorer
    device: torch.device


def patch_keys(index: pd.DataFrame) -> list[str]:
    """Return what names each patch for ever: its volume and its place in it."""
    columns = (index[name].astype(str) for name in ("volume", "bscan", "z", "x"))
    return ["/".join(parts) for parts in zip(*columns, strict=True)]


def padded_batches(n: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (indices, how many of them count) with always `size` indices.

    The last batch is filled up with its first patch: kernels chosen by the batch's shape then stay
    the same, and so do the scores, to the last bit.
    """
    for start in range(0, n, size):
        indices = np.arange(start, min(start + size, n))
        count = len(indices)
        yield np.concatenate([indices, np.full(size - count, start)]), count


def score_batches(
    take: Callable[[slice], np.ndarray],
    keys: list[str],
    height_px: np.ndarray,
    scorer: Scorer,
    batch_size: int,
    device: torch.device,
) -> Iterator[tuple[slice, np.ndarray, np.ndarray, Tensor | None]]:
    """Yield (rows, patches (k, h, w), scores (k, n), rebuilt (k, 1, h, w) or None), by batches.

    `take(rows)` returns the gray values of some patches, `keys` names all of them, `height_px` (n,)
    tells their height above BM.
    """
    batches = list(padded_batches(len(keys), batch_size))
    for rows, count in progress(batches, len(batches), "score"):
        counted = slice(rows[0], rows[0] + count)
        gray = take(counted).astype(np.float32)
        padded = torch.from_numpy(gray[rows - rows[0]]).unsqueeze(1)
        x = padded.to(device, memory_format=torch.channels_last)
        height = torch.from_numpy(height_px[rows]).to(device)
        scores, rebuilt = scorer(x, [keys[row] for row in rows], height)
        rebuilt = None if rebuilt is None else rebuilt[:count]
        yield counted, gray, scores[:count].cpu().numpy(), rebuilt


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `ready_method` heeds."""
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--method", help="way to score; None is the model's own")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1, help="of the starts of the search")
    add_score_arguments(parser)
    add_search_arguments(parser)
    add_refinement_arguments(parser)
    add_device_arguments(parser)


def _check_memory(model: TrainedModel, batch: int, device: torch.device) -> None:
    """Raise InputError where the search for z cannot fit."""
    sizes = Architecture.of(model)
    check_fits(
        search_bytes(sizes.channels, sizes.latent, batch),
        f"the search for z of {batch} patches at once",
        "lower map: batch_size, or give it more memory",
        free_memory(device),
    )


@contextmanager
def ready_method(args: argparse.Namespace) -> Iterator[ReadyMethod]:
    """Yield the method that the command line asks for, with its model loaded.

    Raises InputError when there is no such method or the model is damaged or another method's.
    """
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
    if {"search", "refinement"} & {*getattr(method, "HEEDS", ())}:
        _check_memory(model, args.batch_size, device)
    # on a GPU, repeated runs agree to the last bit and fp32 is fp32
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False, allow_tf32=False):
        scorer = method.scorer(model, args, device, choose_dtype(args.precision, device))
        yield ReadyMethod(name, method.SCORES, model, scorer, device)
