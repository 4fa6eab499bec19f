"""The GAN behind AnoGAN, GAN_R and P_D: how it is trained."""

import argparse

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parametrizations, parametrize

from anogan.losses import LOSSES, gradient_penalty
from anogan.model import weights_of
from anogan.networks import Discriminator, Generator
from anogan.pictures import PER_SIDE
from anogan.sample_quality import KernelDistance, diversity
from anogan.training import Context, Fitted, Trainee, add_loop_arguments, planned_steps, train
from anogan.watch import check, is_suspect
from preprocessing.errors import InputError
from preprocessing.patch_file import MappedPatches

ASSESSED = 256  # patches that diversity and distance are measured on


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_loop_arguments(parser, epochs=20)
    parser.add_argument("--loss", choices=list(LOSSES), default="dcgan")
    parser.add_argument(
        "--critic-steps", type=int, default=1, help="updates of D per update of G (WGAN-GP: 5)"
    )
    parser.add_argument("--penalty", type=float, default=10.0, help="of WGAN-GP")


def fit(patches: MappedPatches, args: argparse.Namespace, context: Context) -> Fitted:
    """Train generator and discriminator on healthy patches (n, size, size)."""
    if not 1 <= args.critic_steps <= planned_steps(args, len(patches)):
        raise InputError(
            f"critic_steps is {args.critic_steps}; it must be at least 1, and at most the "
            "number of steps, or the generator learns nothing"
        )
    gan = Gan(patches, args, context)
    history = train(gan, patches)
    sizes = {**vars(gan.architecture), "norm": gan.loss.norm}
    return Fitted(gan.weights(), sizes, history, gan.show()[: PER_SIDE**2])


class Gan(Trainee):
    """Generator and discriminator while they learn from each other."""

    def __init__(self, patches: MappedPatches, args: argparse.Namespace, context: Context) -> None:
        super().__init__(patches, args, context)
        self.loss, self.latent = LOSSES[args.loss], self.architecture.latent
        channels, norm = self.architecture.channels, self.loss.norm
        self.generator = self.new("generator", lambda: Generator(channels, self.latent))
        self.discriminator = self.new("discriminator", lambda: self._discriminator(channels, norm))
        self.shown_z = self.latents(ASSESSED, context.generator("samples"))
        chosen = np.random.default_rng(0).permutation(len(patches))[:ASSESSED]
        self.real = torch.from_numpy(patches[np.sort(chosen)]).float().unsqueeze(1)
        self.distance = KernelDistance(self.real)

    def _discriminator(self, channels: tuple[int, ...], norm: str) -> Discriminator:
        network = Discriminator(channels, norm)
        if self.loss.is_spectral:
            for layer in (*network.down, network.head):
                parametrizations.spectral_norm(layer)
        return network

    def latents(self, n: int, draw: torch.Generator) -> Tensor:
        """Return z (n, latent), uniform in [-1, 1]."""
        z = torch.rand(n, self.latent, generator=draw).mul_(2).sub_(1)
        return z.to(self.context.device)

    def step(self, real: Tensor, step: int, draw: torch.Generator) -> dict[str, Tensor]:
        """Update D, and every `critic_steps`-th time G, on a batch real (n, 1, h, w).

        G(z) is computed once for both, and D's weights get no gradient in G's update.
        """
        batch = len(real) * self.context.workers.world
        share = self.context.workers.share(batch)
        z = self.latents(batch, draw)[share]
        mixing = torch.rand(batch, generator=draw).to(real.device)[share]
        updates_g = step % self.args.critic_steps == 0
        with self.context.autocast(), torch.set_grad_enabled(updates_g):
            fake = self.generator(z)
        logged = self._update_discriminator(real, fake.detach(), mixing)
        if updates_g:
            logged |= self._update_generator(fake)
        return logged

    def _update_discriminator(
        self, real: Tensor, fake: Tensor, mixing: Tensor
    ) -> dict[str, Tensor]:
        with self.context.autocast():
            real_logit, fake_logit = self.discriminator(real), self.discriminator(fake)
        real_logit, fake_logit = real_logit.float(), fake_logit.float()
        loss = self.loss.d(real_logit, fake_logit)
        if self.loss.has_penalty:
            penalty = gradient_penalty(self.discriminator, real, fake.float(), mixing)
            loss = loss + self.args.penalty * penalty
        self.descend("discriminator", loss)
        if not self.loss.has_probability:
            means = {"critic_real": real_logit.mean(), "critic_fake": fake_logit.mean()}
        else:
            means = {
                "d_real": torch.sigmoid(real_logit).mean(),
                "d_fake": torch.sigmoid(fake_logit).mean(),
            }
        return {"d_loss": loss.detach(), **{name: mean.detach() for name, mean in means.items()}}

    def _update_generator(self, fake: Tensor) -> dict[str, Tensor]:
        self.discriminator.requires_grad_(False)
        with self.context.autocast():
            logit = self.discriminator(fake)
        loss = self.loss.g(logit.float())
        self.descend("generator", loss)
        self.discriminator.requires_grad_(True)
        return {"g_loss": loss.detach()}

    @torch.no_grad()
    def show(self) -> Tensor:
        """Return G(z) (k, 1, h, w) of the same z every time, as it would be scored with."""
        self.generator.eval()
        made = torch.cat([self.generator(z) for z in self.shown_z.split(PER_SIDE**2)])
        self.generator.train()
        return made

    def assess(self, shown: Tensor) -> dict[str, float]:
        """Return how diverse the shown patches are and how far from the real ones."""
        made = shown.cpu()
        return {"diversity": diversity(made, self.real), "kid": self.distance(made)}

    def trouble(self, history: list[dict], steps: int) -> str | None:
        """Return why the training has failed, if it has."""
        return check(history, steps)

    def is_well(self, history: list[dict]) -> bool:
        """Tell whether this state is worth going back to."""
        return not is_suspect(history)

    def weights(self) -> dict[str, Tensor]:
        """Return the weights of both networks, spectral normalisation carried out."""
        if self.loss.is_spectral:
            for layer in (*self.discriminator.down, self.discriminator.head):
                parametrize.remove_parametrizations(layer, "weight")
        return weights_of(**self.networks)
