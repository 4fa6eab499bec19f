"""Principal components: what the leading ones of healthy patches cannot rebuild is anomalous."""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from anogan.batches import ShuffledPatches
from anogan.model import TrainedModel
from anogan.pictures import shown_rows
from anogan.progress import progress
from anogan.scores import residual_scores
from anogan.training import Context, Fitted
from preprocessing.errors import InputError
from preprocessing.patch_file import MappedPatches

MODEL = "pca"
SCORES = ("L2", "R")
USES_GPU = False  # to be trained
BATCH_PER_COMPONENT = 4  # the cost of a patch grows with the batch, the loss with their number


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--components", type=int, default=50)


def fit(patches: MappedPatches, args: argparse.Namespace, context: Context) -> Fitted:
    """Find the components of healthy patches (n, size, size), reading each patch once.

    Incrementally, after Ross et al. 2008 (doi 10.1007/s11263-007-0075-7), so the memory does not
    grow with n. Fewer patches than there are batches are left out: all batches are of one size.
    """
    from sklearn.decomposition import IncrementalPCA

    n, size = len(patches), patches.shape[-1]
    if not 1 <= args.components <= min(n, size**2):
        raise InputError(
            f"{n} patches of {size} x {size} pixels have 1 to {min(n, size**2)} components, "
            f"not {args.components}; set pca: components"
        )
    steps = max(1, n // (BATCH_PER_COMPONENT * args.components))
    batches = ShuffledPatches(patches, n // steps, context.seed, torch.device("cpu"), keep=False)
    pca = IncrementalPCA(args.components)
    history = []
    for step in progress(range(1, steps + 1), steps, "train"):
        pca.partial_fit(batches.at(step).flatten(1).numpy())
        explained = float(pca.explained_variance_ratio_.sum())
        history.append({"patches": step * batches.batch, "explained_variance": explained})
    mean, components = (torch.from_numpy(a).float() for a in (pca.mean_, pca.components_))
    shown = torch.from_numpy(patches[shown_rows(n)]).float().unsqueeze(1)
    return Fitted(
        {"mean": mean, "components": components},
        {"components": args.components, "patch_size": size},
        history,
        rebuild(shown, mean, components),
    )


def rebuild(x: Tensor, mean: Tensor, components: Tensor) -> Tensor:
    """Return patches x (n, 1, h, w) as their components (k, h * w) alone would have them."""
    centred = x.flatten(1) - mean
    return (centred @ components.T @ components + mean).view(x.shape)


def scorer(
    model: TrainedModel, options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor, list[str]], tuple[Tensor, Tensor]]:
    """Return what scores patches; always in fp32, as it is two matrix products."""
    found = {name: tuple(weight.shape) for name, weight in model.weights.items()}
    pixels = model.architecture["patch_size"] ** 2
    k = model.architecture.get("components")
    if found != {"mean": (pixels,), "components": (k, pixels)}:
        raise InputError(
            f"{model.folder}: the weights do not fit model.json; copy all files of the model again"
        )
    mean, components = (model.weights[name].to(device) for name in ("mean", "components"))

    @torch.no_grad()
    def score(x: Tensor, keys: list[str], height_px: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rebuilt = rebuild(x, mean, components)
        return residual_scores(x, rebuilt), rebuilt

    return score
