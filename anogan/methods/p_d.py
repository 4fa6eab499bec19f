"""P_D: the discriminator's own opinion of a patch, -logit of D(x), without any mapping."""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from anogan.model import TrainedModel, load_gan
from anogan.networks import freeze

MODEL = "gan"
SCORES = ("P_D",)


def scorer(
    model: TrainedModel, options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor, list[str]], tuple[Tensor, None]]:
    """Return what scores patches; always in fp32, as it is one pass."""
    _, discriminator = load_gan(model)
    freeze(discriminator)

    @torch.no_grad()
    def score(x: Tensor, keys: list[str], height_px: Tensor | None = None) -> tuple[Tensor, None]:
        return -discriminator(x)[:, None], None

    return score
