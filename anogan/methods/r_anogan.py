"""Restoring AnoGAN: how unusual it is what a restored patch differs in from the patch itself.

The restorer makes of every patch the healthy one that it could have been; S tells how far the
difference exceeds that of healthy patches (`anogan.deviation`). One pass, no search.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from anogan.autoencoder import load_autoencoder
from anogan.deviation import SCALES, load_usual
from anogan.model import TrainedModel
from anogan.scores import residual_scores

MODEL = "restorer"
SCORES = ("S", *(f"S_{scale.name}" for scale in SCALES), "L2", "R")


def scorer(
    model: TrainedModel, options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor, list[str], Tensor | None], tuple[Tensor, Tensor]]:
    """Return what scores patches; always in fp32, as it is one pass."""
    autoencoder, usual = load_autoencoder(model), load_usual(model)

    @torch.no_grad()
    def score(x: Tensor, keys: list[str], height_px: Tensor | None = None) -> tuple[Tensor, Tensor]:
        restored = autoencoder(x)
        if height_px is None:
            height_px = x.new_full((len(x),), torch.nan)
        scores = usual.scores(x, restored, height_px)
        return torch.cat([scores, residual_scores(x, restored)], dim=1), restored

    return score
