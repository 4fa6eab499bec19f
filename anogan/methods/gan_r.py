"""GAN_R: z mapped by the reference loss, D's opinion of G(z) (Yeh et al. 2016, 1607.07539)."""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from anogan.mapping import Mapper
from anogan.model import TrainedModel
from anogan.networks import Discriminator

MODEL = "gan"
SCORES = ("A_hat", "R", "D_hat")
HEEDS = ("search", "composition")  # options of `score`


def scorer(
    model: TrainedModel, options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Mapper:
    """Return what maps and scores patches."""
    return Mapper.of(model, options, dtype, reference_loss)


def reference_loss(discriminator: Discriminator, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the function G(z) -> D_hat(z) = -log sigmoid(D(G(z))) (n,), the same for every x."""
    return lambda generated: softplus(-discriminator(generated).float())
