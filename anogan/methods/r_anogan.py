"""Restoring AnoGAN: how unusual the changes are that restoring makes to a patch.

The restorer makes of every patch the healthy one that it could have been; S tells how far the
difference exceeds that of healthy patches (`anogan.deviation`). One pass, no search.
"""

import argparse

import torch
from torch import Tensor

from anogan.autoencoder import Autoencoder, load_autoencoder
from anogan.deviation import PARTS, Usual, load_usual
from anogan.model import TrainedModel
from anogan.scores import residual_scores

MODEL = "restorer"
SCORES = ("S", *(f"S_{part}" for part in PARTS), "L2", "R")


def scorer(
    model: TrainedModel, options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> "Restoring":
    """Return what scores patches; always in fp32, as it is one pass."""
    return Restoring(load_autoencoder(model), load_usual(model))


class Restoring:
    """Scores patches by what the restorer changes in them, and shows where."""

    def __init__(self, restorer: Autoencoder, usual: Usual) -> None:
        self.restorer, self.usual = restorer, usual

    @torch.no_grad()
    def __call__(
        self, x: Tensor, keys: list[str], height_px: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the scores (n, 6) of patches x (n, 1, h, w), and the patches as restored."""
        if height_px is None:
            height_px = x.new_full((len(x),), torch.nan)
        restored = self.restorer(x)
        scores = self.usual.scores(x, restored, height_px)
        return torch.cat([scores, residual_scores(x, restored)], dim=1), restored

    def heat(self, x: Tensor, rebuilt: Tensor, height_px: Tensor) -> Tensor:
        """Return what heat maps show (n, 1, h, w): how unusual each pixel's residual is."""
        return self.usual.heat(x, rebuilt, height_px)
