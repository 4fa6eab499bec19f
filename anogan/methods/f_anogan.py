"""f-AnoGAN: what an encoder and the generator make of a patch, without a search.

Schlegl et al. 2019, Medical Image Analysis 54, doi 10.1016/j.media.2019.01.010. With x^ = G(E(x)),
f the activations of D's last convolution and means over pixels and over features:

    A = mean (x - x^)^2 + kappa mean (f(x) - f(x^))^2
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from anogan.model import DESCRIPTION, Architecture, TrainedModel, load_encoder, load_gan
from anogan.networks import freeze
from anogan.scores import residual_score, sum_per_patch
from preprocessing.errors import InputError

MODEL = "encoder"
SCORES = ("A", "R", "D")


def scorer(
    model: TrainedModel, options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor, list[str]], tuple[Tensor, Tensor]]:
    """Return what scores patches; always in fp32, as it is one pass."""
    depth, kappa = len(Architecture.of(model).channels), model.architecture.get("kappa")
    if not isinstance(kappa, int | float):
        raise InputError(
            f"{model.folder / DESCRIPTION}: kappa is {kappa}, not a number; copy the file again"
        )
    encoder, (generator, discriminator) = load_encoder(model), load_gan(model)
    freeze(encoder, generator, discriminator)

    @torch.no_grad()
    def score(x: Tensor, keys: list[str], height_px: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rebuilt = generator(encoder(x))
        f_x, f_rebuilt = (discriminator.features(image, depth) for image in (x, rebuilt))
        residual, difference = x - rebuilt, f_x - f_rebuilt
        r2, d2 = (part.square().mean(dim=(1, 2, 3)) for part in (residual, difference))
        d = sum_per_patch(difference.abs())
        return torch.stack([r2 + kappa * d2, residual_score(x, rebuilt), d], dim=1), rebuilt

    return score
