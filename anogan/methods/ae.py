"""A plain convolutional autoencoder: what it cannot rebuild is anomalous."""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from anogan.autoencoder import AutoencoderTraining, fit_autoencoder, load_autoencoder
from anogan.model import TrainedModel
from anogan.scores import residual_scores
from anogan.training import Context, Fitted, add_loop_arguments
from preprocessing.patch_file import MappedPatches

MODEL = "ae"
SCORES = ("L2", "R")


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_loop_arguments(parser, epochs=20)
    parser.set_defaults(learning_rate=1e-3)


def fit(patches: MappedPatches, args: argparse.Namespace, context: Context) -> Fitted:
    """Train encoder and decoder on healthy patches (n, size, size)."""
    return fit_autoencoder(AutoencoderTraining, patches, args, context)


def scorer(
    model: TrainedModel, options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor, list[str]], tuple[Tensor, Tensor]]:
    """Return what scores patches; always in fp32, as it is one pass."""
    autoencoder = load_autoencoder(model)

    @torch.no_grad()
    def score(x: Tensor, keys: list[str], height_px: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rebuilt = autoencoder(x)
        return residual_scores(x, rebuilt), rebuilt

    return score
