"""What discriminator and generator minimise, as functions of D's logits (n,).

dcgan: the minimax loss with the non-saturating generator loss (Goodfellow et al. 2014, as in
Radford et al. 2016). wgan-gp: the Wasserstein distance with a gradient penalty (Gulrajani et al.
2017, arXiv 1704.00028). hinge: the hinge loss with spectral normalisation (Miyato et al. 2018,
arXiv 1802.05957).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus


@dataclass(frozen=True)
class Loss:
    """`d(real, fake)` and `g(fake)` return the losses of D and of G, scalars.

    `norm` is the normalisation of D that goes with them.
    """

    d: Callable[[Tensor, Tensor], Tensor]
    g: Callable[[Tensor], Tensor]
    norm: str
    has_probability: bool = False  # sigmoid(logit) is D's probability that a patch is real
    has_penalty: bool = False
    is_spectral: bool = False


LOSSES = {
    "dcgan": Loss(
        d=lambda real, fake: softplus(-real).mean() + softplus(fake).mean(),
        g=lambda fake: softplus(-fake).mean(),
        norm="batch",
        has_probability=True,
    ),
    "wgan-gp": Loss(
        d=lambda real, fake: fake.mean() - real.mean(),
        g=lambda fake: -fake.mean(),
        norm="layer",
        has_penalty=True,
    ),
    "hinge": Loss(
        d=lambda real, fake: relu(1 - real).mean() + relu(1 + fake).mean(),
        g=lambda fake: -fake.mean(),
        norm="none",
        is_spectral=True,
    ),
}


def gradient_penalty(
    discriminator: nn.Module, real: Tensor, fake: Tensor, mixing: Tensor
) -> Tensor:
    """Return mean (|grad D| - 1)^2 between real and fake (n, 1, h, w), at shares `mixing` (n,)."""
    share = mixing[:, None, None, None]
    between = (share * real + (1 - share) * fake).requires_grad_(True)
    logit = discriminator(between)
    (slope,) = torch.autograd.grad(logit.sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()
