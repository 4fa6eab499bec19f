"""Mapping patches to the latent space by gradient descent on z alone (Schlegl et al. 2017).

With G and D frozen and f the activations of D, per patch x:

    R(z)     = sum |x - G(z)|               residual loss
    D(z)     = sum |f(x) - f(G(z))|         discrimination loss, feature matching
    D_hat(z) = -log sigmoid(D(G(z)))        reference loss of Yeh et al. 2016
    loss     = (1 - lambda) R + lambda D    or with D_hat in place of D

Every sum runs over one patch and every optimiser works element by element, so patches share a batch
without knowing of each other.

The search may compute in bf16: the networks alone; z, the optimiser and every sum stay fp32. What
is reported, and what chooses among restarts and candidates, is computed in fp32.
"""

import argparse
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anogan.model import TrainedModel, load_encoder, load_gan
from anogan.networks import Discriminator, Encoder, Generator, freeze
from anogan.scores import Discrimination, ScoreSettings, residual_score
from preprocessing.errors import InputError
from preprocessing.seeds import derive_seed

# element-wise ones only: with line searches or norms over a batch, patches would meet
OPTIMISERS = {
    "adam": torch.optim.Adam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
CANDIDATE_BATCH = 64
SPREAD = 0.25  # of the starts around an encoding; z itself is within 1

# (patches x (n, 1, h, w), what names each) -> z_1 (restarts, n, latent)
Starts = Callable[[Tensor, list[str]], Tensor]


@dataclass(frozen=True)
class SearchSettings(ScoreSettings):
    """How z is searched; the loss is composed as A is.

    Attributes
    ----------
    schedule : "constant" keeps the learning rate, "cosine" lets it fall to zero.
    candidates : 0 starts the search at random, as published; n > 0 starts it at the one of n random
        z, the same for all patches, whose G(z) is nearest to the patch.
    restarts : searches from different starts; the one with the lowest loss is kept.
    clamp : keep z within [-1, 1], where the prior has its support.
    """

    steps: int = 500
    optimiser: str = "adam"
    learning_rate: float = 0.1
    schedule: str = "constant"
    candidates: int = 0
    restarts: int = 1
    clamp: bool = False

    def __post_init__(self) -> None:
        if self.steps < 0 or self.restarts < 1 or self.candidates < 0:
            raise InputError(
                f"search: {self.steps} steps, {self.candidates} candidates and {self.restarts} "
                "restarts; there must be 0, 0 and 1 at least"
            )
        if 0 < self.candidates < self.restarts:
            raise InputError(
                f"search: {self.restarts} restarts need as many candidates, not {self.candidates}"
            )


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare an option for each of the settings of the search."""
    default = SearchSettings()
    group = parser.add_argument_group("search for z (anogan and gan_r)")
    group.add_argument("--steps", type=int, default=default.steps, help="gradient steps on z")
    group.add_argument("--optimiser", choices=list(OPTIMISERS), default=default.optimiser)
    group.add_argument("--learning-rate", type=float, default=default.learning_rate)
    group.add_argument("--schedule", choices=["constant", "cosine"], default=default.schedule)
    group.add_argument(
        "--candidates", type=int, default=default.candidates, help="0 starts at random"
    )
    group.add_argument("--restarts", type=int, default=default.restarts, help="best is kept")
    group.add_argument(
        "--clamp",
        action=argparse.BooleanOptionalAction,
        default=default.clamp,
        help="keep z within [-1, 1]",
    )


def add_refinement_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the search that starts at an encoding."""
    group = parser.add_argument_group("search from the encoding (f_anogan_refined)")
    group.add_argument("--refine-steps", type=int, default=20, help="0 scores the encoding itself")
    group.add_argument("--refine-learning-rate", type=float, default=0.02, help="falls to zero")
    group.add_argument(
        "--refine-restarts", type=int, default=1, help="further ones start around the encoding"
    )


def refinement_settings(options: argparse.Namespace) -> SearchSettings:
    """Return the settings of the search that starts at an encoding."""
    return SearchSettings(
        **vars(ScoreSettings.of(options)),
        steps=options.refine_steps,
        learning_rate=options.refine_learning_rate,
        restarts=options.refine_restarts,
        schedule="cosine",
    )


@dataclass(frozen=True)
class RandomStarts:
    """Starts at random, as published, each drawn from its patch's key."""

    latent: int
    restarts: int
    seed: int

    def __call__(self, x: Tensor, keys: list[str]) -> Tensor:
        """Return z_1 (restarts, n, latent) for patches x (n, 1, h, w) named by `keys`."""
        return random_latents(keys, self.latent, self.restarts, self.seed).to(x.device)


class NearestCandidates:
    """Starts at those of some random z whose G(z), by R alone, is nearest to the patch."""

    @torch.no_grad()
    def __init__(self, generator: Generator, count: int, restarts: int, seed: int) -> None:
        self.restarts = restarts
        keys = [f"candidate {i}" for i in range(count)]
        z = random_latents(keys, generator.latent, 1, seed)[0]
        self.candidates = z.to(generator.project.weight.device)
        parts = self.candidates.split(CANDIDATE_BATCH)
        self.patches = torch.cat([generator(part).flatten(1) for part in parts])

    def __call__(self, x: Tensor, keys: list[str]) -> Tensor:
        """Return z_1 (restarts, n, latent) for patches x (n, 1, h, w)."""
        distance = torch.cdist(x.flatten(1), self.patches, p=1)
        nearest = distance.topk(self.restarts, largest=False).indices
        return self.candidates[nearest].transpose(0, 1)


@dataclass(frozen=True)
class EncodedStarts:
    """Starts at E(x), and further ones around it, drawn from the patch's key."""

    encoder: Encoder
    restarts: int
    seed: int

    @torch.no_grad()
    def __call__(self, x: Tensor, keys: list[str]) -> Tensor:
        """Return z_1 (restarts, n, latent) for patches x (n, 1, h, w) named by `keys`."""
        z = self.encoder(x)
        around = random_latents(keys, z.shape[1], self.restarts - 1, self.seed).to(x.device)
        return torch.cat([z[None], z + SPREAD * around])


class MappingLoss:
    """The loss of patches x (n, 1, h, w) as a function of z, in the networks' own type."""

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        discrimination: Discrimination,
        settings: SearchSettings,
        x: Tensor,
    ) -> None:
        self.generator, self.x = generator, x
        self.dtype = generator.project.weight.dtype
        with torch.no_grad():
            self.discriminate = discrimination(discriminator, x.to(self.dtype))
        self.weigh = settings.weigh

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return loss, residual and discrimination (n,), all fp32, and G(z) (n, 1, h, w)."""
        generated = self.generator(z.to(self.dtype))
        residual = residual_score(self.x, generated)
        discrimination = self.discriminate(generated)
        return self.weigh(residual, discrimination), residual, discrimination, generated


class Mapper:
    """Maps patches with frozen networks and scores them: (loss, R, discrimination).

    `starts` says where the search begins, `dtype` is what the networks compute it in.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        discrimination: Discrimination,
        settings: SearchSettings,
        starts: Starts,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.exact = generator, discriminator
        self.fast = self.exact
        if dtype != torch.float32:
            self.fast = tuple(deepcopy(network).to(dtype) for network in self.exact)
        self.discrimination, self.settings, self.starts = discrimination, settings, starts

    @classmethod
    def of(
        cls,
        model: TrainedModel,
        options: argparse.Namespace,
        dtype: torch.dtype,
        discrimination: Discrimination,
    ) -> "Mapper":
        """Return the mapper of a trained GAN, searching as the command line says."""
        settings = SearchSettings.of(options)
        generator, discriminator = load_gan(model)
        freeze(generator, discriminator)
        count, restarts, seed = settings.candidates, settings.restarts, options.seed
        starts = RandomStarts(generator.latent, restarts, seed)
        if count:
            starts = NearestCandidates(generator, count, restarts, seed)
        return cls(generator, discriminator, discrimination, settings, starts, dtype)

    @classmethod
    def refining(
        cls,
        model: TrainedModel,
        options: argparse.Namespace,
        dtype: torch.dtype,
        discrimination: Discrimination,
    ) -> "Mapper":
        """Return the mapper of a trained encoder, searching from what it makes of a patch."""
        settings, encoder = refinement_settings(options), load_encoder(model)
        generator, discriminator = load_gan(model)
        freeze(encoder, generator, discriminator)
        starts = EncodedStarts(encoder, settings.restarts, options.seed)
        return cls(generator, discriminator, discrimination, settings, starts, dtype)

    def __call__(
        self, x: Tensor, keys: list[str], height_px: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return scores (n, 3) and G(z) of patches x (n, 1, h, w), the best of all restarts."""
        fast = exact = self._loss(self.exact, x)
        if self.fast is not self.exact:
            fast = self._loss(self.fast, x)
        best = None
        for start in self.starts(x, keys):
            z = self.search(fast, start)
            with torch.no_grad():
                *scores, generated = exact(z)
            found = torch.stack(scores, dim=1), generated
            if best is not None:
                better = (found[0][:, 0] < best[0][:, 0]) | best[0][:, 0].isnan()
                found = (
                    torch.where(better[:, None], found[0], best[0]),
                    torch.where(better[:, None, None, None], found[1], best[1]),
                )
            best = found
        return best

    def search(self, loss: MappingLoss, start: Tensor) -> Tensor:
        """Return z (n, latent) after `steps` steps from `start`."""
        settings = self.settings
        z = start.clone().requires_grad_(True)
        optimiser = OPTIMISERS[settings.optimiser]([z], settings.learning_rate)
        for step in range(settings.steps):
            if settings.schedule == "cosine":
                phase = math.pi * step / settings.steps
                optimiser.param_groups[0]["lr"] = settings.learning_rate * (1 + math.cos(phase)) / 2
            (z.grad,) = torch.autograd.grad(loss(z)[0].sum(), z)
            optimiser.step()
            if settings.clamp:
                z.data.clamp_(-1, 1)
        return z.detach()

    def _loss(self, networks: tuple[Generator, Discriminator], x: Tensor) -> MappingLoss:
        return MappingLoss(*networks, self.discrimination, self.settings, x)


def random_latents(keys: list[str], latent: int, restarts: int, seed: int) -> Tensor:
    """Return z (restarts, n, latent), uniform in [-1, 1], each drawn from its key alone."""
    starts = [
        np.random.default_rng(derive_seed(seed, "z", key)).uniform(-1, 1, (restarts, latent))
        for key in keys
    ]
    return torch.from_numpy(np.stack(starts, axis=1).astype(np.float32))
