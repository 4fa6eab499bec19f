"""Stage `map`: scores of every patch of a file, in a table, and the residuals of some."""

import argparse
import hashlib
from dataclasses import fields

import h5py
import numpy as np
import pandas as pd
import torch

from anogan.device import add_device_arguments, prepare_device
from anogan.mapping import METHODS, SCORES, Mapper, MappingSettings, padded_batches
from anogan.model import load_model
from anogan.networks import freeze
from anogan.progress import progress
from preprocessing.errors import InputError
from preprocessing.files import atomic_path
from preprocessing.patch_file import INDEX_DTYPE, open_patches, read_index


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


def map_file(
    path: str,
    mapper: Mapper,
    methods: list[str],
    n_residuals: int,
    device: torch.device,
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Score the patches of a file, one batch in memory at a time.

    Returns the table (a row per patch and method), the rows whose pictures are kept and G(z) of
    those (k, size, size), from the first method.
    """
    settings = mapper.settings
    with open_patches(path) as file:
        index = read_index(file)
        keys = patch_keys(index)
        kept = choose_residuals(index, keys, n_residuals)
        generated_kept = np.zeros((len(kept), *file["patches"].shape[1:]), np.float32)
        scores = {method: np.zeros((len(index), len(SCORES)), np.float32) for method in methods}
        batches = list(padded_batches(len(index), settings.batch_size))
        for rows, count in progress(batches, len(batches), "map"):
            gray = file["patches"][rows[0] : rows[0] + count].astype(np.float32)
            gray = gray[rows - rows[0]]  # repeats the first patch where the batch is padded
            x = torch.from_numpy(gray).unsqueeze(1).to(device, memory_format=torch.channels_last)
            starts = mapper.starts(x, [keys[row] for row in rows])
            for method in methods:
                z = mapper.best(x, starts, method)
                values, generated = mapper.score(x, z)
                table = torch.stack([values[name] for name in SCORES], dim=1)
                scores[method][rows[:count]] = table[:count].cpu().numpy()
                if method == methods[0]:
                    here = np.flatnonzero((kept >= rows[0]) & (kept < rows[0] + count))
                    generated_kept[here] = generated[kept[here] - rows[0], 0].cpu().numpy()
    tables = [
        index.assign(method=method, **dict(zip(SCORES, scores[method].T, strict=True)))
        for method in methods
    ]
    return pd.concat(tables, ignore_index=True), kept, generated_kept


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    defaults = MappingSettings()
    parser.add_argument("--patches", required=True, help="HDF5 of patches")
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="mapping losses"
    )
    parser.add_argument("--steps", type=int, default=defaults.steps, help="gradient steps on z")
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--schedule", choices=["constant", "cosine"], default=defaults.schedule)
    parser.add_argument(
        "--candidates", type=int, default=defaults.candidates, help="0 starts at random"
    )
    parser.add_argument("--restarts", type=int, default=defaults.restarts, help="best is kept")
    parser.add_argument("--weight", type=float, default=defaults.weight, help="lambda")
    parser.add_argument(
        "--feature-layer", type=int, default=defaults.feature_layer, help="of D; 0 is the last"
    )
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--residuals", type=int, default=64, help="patches to keep pictures of")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", required=True, help="scores, .parquet")
    parser.add_argument("--residual-output", required=True, help="pictures, .h5")
    add_device_arguments(parser)


def command(args: argparse.Namespace) -> str:
    """Map and score one patch file."""
    device = prepare_device(args)
    architecture, generator, discriminator = load_model(args.model, device)
    if not 0 <= args.feature_layer <= len(architecture.channels):
        raise InputError(
            f"map: feature_layer is {args.feature_layer}; the discriminator has the layers "
            f"1 to {len(architecture.channels)} (0 means the last)"
        )
    if 0 < args.candidates < args.restarts:
        raise InputError(
            f"map: {args.restarts} restarts need as many candidates, not {args.candidates}"
        )
    with open_patches(args.patches) as file:
        size = file["patches"].shape[-1]
    if size != architecture.patch_size:
        raise InputError(
            f"{args.patches}: patches of {size} pixels, but {args.model} was trained on "
            f"{architecture.patch_size}; cut the patches again or use another model"
        )
    freeze(generator, discriminator)
    settings = MappingSettings(**{f.name: getattr(args, f.name) for f in fields(MappingSettings)})
    mapper = Mapper(generator, discriminator, settings, args.seed)
    table, rows, generated = map_file(args.patches, mapper, args.methods, args.residuals, device)
    write_residuals(args.residual_output, args.patches, rows, generated)
    with atomic_path(args.output) as temporary:
        table.to_parquet(temporary, index=False)
    return f"{len(table) // len(args.methods)} patches mapped by {', '.join(args.methods)}"
