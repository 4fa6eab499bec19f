"""Mapping patches to the latent space and scoring how badly they fit (Schlegl et al. 2017).

G and D are frozen; only z moves, by Adam from a random start of its own. With f the activations of
an intermediate layer of D, per patch x:

    R(z)     = sum |x - G(z)|                      residual loss
    D(z)     = sum |f(x) - f(G(z))|                discrimination loss, feature matching
    D_hat(z) = -log sigmoid(D(G(z)))               reference loss of Yeh et al. 2016
    A        = (1 - lambda) R + lambda D           minimised by method "anogan"
    A_hat    = (1 - lambda) R + lambda D_hat       minimised by method "gan_r"

Every sum runs over one patch and Adam works element by element, so patches share a batch without
knowing of each other.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from anogan.networks import Discriminator, Generator
from preprocessing.seeds import derive_seed

METHODS = ("anogan", "gan_r")
SCORES = ("R", "D", "A", "D_hat", "A_hat", "P_D")


@dataclass
class MappingSettings:
    """How z is searched.

    Attributes
    ----------
    schedule : "constant" keeps the learning rate, "cosine" lets it fall to zero.
    candidates : 0 starts the search at random, as published; n > 0 starts it at the one of n random
        z, the same for all patches, whose G(z) is nearest to the patch.
    restarts : searches from different starts; the one with the lowest loss is kept.
    weight : lambda of the losses.
    feature_layer : the convolution of D that f is taken from, counted from 1; 0 is the last.
    """

    steps: int = 500
    learning_rate: float = 0.1
    schedule: str = "constant"
    candidates: int = 0
    restarts: int = 1
    weight: float = 0.1
    feature_layer: int = 0
    batch_size: int = 64


class Mapper:
    """Maps and scores patches with networks prepared by `anogan.networks.freeze`.

    `seed` decides the starts of the search.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        settings: MappingSettings,
        seed: int = 1,
    ) -> None:
        self.generator = generator
        self.discriminator = discriminator
        self.settings = settings
        self.seed = seed
        self.layer = settings.feature_layer or len(discriminator.down)
        if settings.candidates:
            self.candidates, self.candidate_patches = self._draw_candidates()

    def starts(self, x: Tensor, keys: list[str]) -> Tensor:
        """Return z_1 (restarts, n, latent) for patches x (n, 1, h, w) named by `keys`.

        A random start is drawn from its patch's key, a candidate chosen by R alone.
        """
        settings = self.settings
        if settings.candidates:
            distance = torch.cdist(x.flatten(1), self.candidate_patches, p=1)
            nearest = distance.topk(settings.restarts, largest=False).indices
            return self.candidates[nearest].transpose(0, 1)
        z = random_latents(keys, self.generator.latent, settings.restarts, self.seed)
        return z.to(x.device)

    @torch.no_grad()
    def _draw_candidates(self) -> tuple[Tensor, Tensor]:
        """Return candidates (n, latent) and their patches (n, h * w)."""
        settings, device = self.settings, next(self.generator.parameters()).device
        keys = [f"candidate {i}" for i in range(settings.candidates)]
        z = random_latents(keys, self.generator.latent, 1, self.seed)[0].to(device)
        patches = [self.generator(part).flatten(1) for part in z.split(settings.batch_size)]
        return z, torch.cat(patches)

    def loss(self, x: Tensor, f_x: Tensor, z: Tensor, method: str) -> Tensor:
        """Return the mapping loss (n,) of patches x with features f_x at z."""
        generated = self.generator(z)
        if method == "anogan":
            discrimination = self._feature_distance(f_x, generated)
        else:
            discrimination = softplus(-self.discriminator(generated))
        return self._weigh(_residual(x, generated), discrimination)

    def search(self, x: Tensor, z: Tensor, method: str) -> tuple[Tensor, Tensor]:
        """Return (z (n, latent), mapping loss (n,)) after `steps` steps from z."""
        settings = self.settings
        with torch.no_grad():
            f_x = self.discriminator.features(x, self.layer)
        z = z.clone().requires_grad_(True)
        optimiser = torch.optim.Adam([z], settings.learning_rate)
        for step in range(settings.steps):
            if settings.schedule == "cosine":
                phase = math.pi * step / settings.steps
                optimiser.param_groups[0]["lr"] = settings.learning_rate * (1 + math.cos(phase)) / 2
            loss = self.loss(x, f_x, z, method).sum()
            (z.grad,) = torch.autograd.grad(loss, z)
            optimiser.step()
        with torch.no_grad():
            return z.detach(), self.loss(x, f_x, z, method)

    def best(self, x: Tensor, starts: Tensor, method: str) -> Tensor:
        """Return the z (n, latent) of lowest loss over starts (restarts, n, latent)."""
        z, loss = self.search(x, starts[0], method)
        for start in starts[1:]:
            z_new, loss_new = self.search(x, start, method)
            better = loss_new < loss
            z = torch.where(better[:, None], z_new, z)
            loss = torch.where(better, loss_new, loss)
        return z

    @torch.no_grad()
    def score(self, x: Tensor, z: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return every score (n,) by its name in the paper, and G(z), for patches x mapped to z.

        P_D = -logit of D(x): the discriminator's own opinion, which needs no mapping.
        """
        generated = self.generator(z)
        residual = _residual(x, generated)
        discrimination = self._feature_distance(
            self.discriminator.features(x, self.layer), generated
        )
        reference = softplus(-self.discriminator(generated))
        scores = {
            "R": residual,
            "D": discrimination,
            "A": self._weigh(residual, discrimination),
            "D_hat": reference,
            "A_hat": self._weigh(residual, reference),
            "P_D": -self.discriminator(x),
        }
        return scores, generated

    def _weigh(self, residual: Tensor, discrimination: Tensor) -> Tensor:
        weight = self.settings.weight
        return (1 - weight) * residual + weight * discrimination

    def _feature_distance(self, f_x: Tensor, generated: Tensor) -> Tensor:
        f_generated = self.discriminator.features(generated, self.layer)
        return (f_x - f_generated).abs().sum(dim=(1, 2, 3))


def _residual(x: Tensor, generated: Tensor) -> Tensor:
    return (x - generated).abs().sum(dim=(1, 2, 3))


def random_latents(keys: list[str], latent: int, restarts: int, seed: int) -> Tensor:
    """Return z (restarts, n, latent), uniform in [-1, 1], each drawn from its key alone."""
    starts = [
        np.random.default_rng(derive_seed(seed, "z", key)).uniform(-1, 1, (restarts, latent))
        for key in keys
    ]
    return torch.from_numpy(np.stack(starts, axis=1).astype(np.float32))


def padded_batches(n: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (indices, how many of them count) with always `size` indices.

    The last batch is filled up with its first patch: kernels chosen by the batch's shape then stay
    the same, and so do the scores, to the last bit.
    """
    for start in range(0, n, size):
        indices = np.arange(start, min(start + size, n))
        count = len(indices)
        yield np.concatenate([indices, np.full(size - count, start)]), count
