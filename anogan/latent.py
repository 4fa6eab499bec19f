"""Stage `latent`: how D sees normal and anomalous patches, and how G's patches change with z."""

import argparse

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from anogan.model import Architecture, read_frozen_gan
from anogan.networks import Generator
from anogan.score import check_patches, choose_residuals
from anogan.scoring import patch_keys
from preprocessing.errors import InputError
from preprocessing.hdf5 import CHECKED, new_hdf5
from preprocessing.patch_file import INDEX_DTYPE, open_patches, read_index
from preprocessing.seeds import derive_seed

BATCH = 64
WALKS, STEPS = 6, 10
PERPLEXITY = 30  # about as many neighbours count; scikit-learn's default
FEWEST = 5  # patches: fewer have no neighbourhoods


def choose_patches(index: pd.DataFrame, count: int) -> np.ndarray:
    """Return the rows of at most `count` labelled test patches, of any patches if there are none.

    Normal and anomalous in turn; which ones is random but fixed by the patches' keys.
    """
    of_test = np.flatnonzero((index["split"] == "test") & (index["label"] >= 0))
    rows = of_test if len(of_test) else np.arange(len(index))
    among = index.iloc[rows]
    return rows[choose_residuals(among, patch_keys(among), count)]


def arrange(features: np.ndarray, seed: int) -> np.ndarray:
    """Return a t-SNE of `features` (n, d) as points (n, 2), float32; the same for the same seed.

    van der Maaten and Hinton 2008, as in scikit-learn. No points where there are fewer than
    `FEWEST` rows or all are alike.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if len(features) < FEWEST or not np.ptp(features, axis=0).any():
        return np.zeros((0, 2), np.float32)
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    embedding = TSNE(perplexity=perplexity, random_state=derive_seed(seed, "tsne") % 2**32)
    with threadpool_limits(1):  # sums of several threads differ from run to run
        return embedding.fit_transform(features)


def walk(generator: Generator, seed: int) -> Tensor:
    """Return what G makes on straight lines between random z, patches (WALKS, STEPS, h, w).

    The ends are drawn as in training: uniform in [-1, 1].
    """
    rng = np.random.default_rng(derive_seed(seed, "walks"))
    ends = rng.uniform(-1, 1, (2, WALKS, 1, generator.latent))
    way = np.linspace(0, 1, STEPS)[:, None]
    z = torch.from_numpy((1 - way) * ends[0] + way * ends[1]).float()
    return generator(z.flatten(0, 1)).unflatten(0, (WALKS, STEPS)).squeeze(2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    parser.add_argument("--model", required=True, help="folder of the GAN")
    parser.add_argument("--patches", nargs="+", required=True, help="HDF5 of patches")
    parser.add_argument("--output", required=True, help=".h5 to write")
    parser.add_argument("--count", type=int, default=1000, help="patches to arrange, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")


@torch.inference_mode()
def command(args: argparse.Namespace) -> str:
    """Arrange patches by D's last features, walk through z, and write both."""
    torch.set_num_threads(args.threads)
    model, generator, discriminator = read_frozen_gan(args.model)
    for path in args.patches:
        check_patches(path, model)
    gray, index = read_chosen(args.patches, args.count)
    depth = len(Architecture.of(model).channels)
    batches = torch.from_numpy(gray).float().unsqueeze(1).split(BATCH)
    features = torch.cat([discriminator.features(x, depth).flatten(1) for x in batches]).numpy()
    if not np.isfinite(features).all():
        raise InputError(f"{args.model}: its D does not answer with numbers; train it again")
    points = arrange(features, args.seed)
    walks = walk(generator, args.seed).numpy().astype(np.float16)
    checked = CHECKED if len(points) else {}  # what is empty has no chunks
    with new_hdf5(args.output) as file:
        file.create_dataset("tsne", data=points, **checked)
        file.create_dataset("index", data=index[: len(points)], dtype=INDEX_DTYPE, **checked)
        file.create_dataset("walks", data=walks, **CHECKED)
    return f"{args.output}: {len(points)} patches arranged, {WALKS} walks of {STEPS} steps"


def read_chosen(paths: list[str], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `count` patches (n, h, w) of some files, and their index (n,)."""
    indices = []
    for path in paths:
        with open_patches(path) as file:
            indices.append(read_index(file))
    index = pd.concat(indices, ignore_index=True)
    rows = choose_patches(index, count)
    starts = np.cumsum([0, *map(len, indices)])
    parts = []
    for path, start, end in zip(paths, starts[:-1], starts[1:], strict=True):
        own = rows[(rows >= start) & (rows < end)] - start
        with open_patches(path) as file:
            parts.append((file["patches"][own], file["index"][own]))
    gray, kept = zip(*parts, strict=True)
    return np.concatenate(gray), np.concatenate(kept)
