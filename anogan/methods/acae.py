"""An adversarially trained convolutional autoencoder, scored like AnoGAN (aCAE of its paper).

Trained as a context encoder (Pathak et al. 2016, arXiv 1604.07379) but on whole patches: squared
error, and a little of a DCGAN's loss, whose discriminator tells real patches from rebuilt ones and
learns ten times more slowly.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from anogan.autoencoder import AutoencoderTraining, fit_autoencoder, load_autoencoder
from anogan.losses import LOSSES
from anogan.model import Architecture, TrainedModel
from anogan.networks import Discriminator
from anogan.scores import ScoreSettings, feature_matching, residual_score
from anogan.training import Context, Fitted, add_loop_arguments
from preprocessing.patch_file import MappedPatches

MODEL = "acae"
SCORES = ("A", "R", "D")
HEEDS = ("composition",)  # options of `score`
LOSS = LOSSES["dcgan"]
D_LEARNING_RATE = 0.1  # as a fraction of the autoencoder's


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_loop_arguments(parser, epochs=20)
    parser.set_defaults(learning_rate=1e-3)
    parser.add_argument(
        "--adversarial-weight",
        type=float,
        default=0.001,
        help="w of the loss (1 - w) squared error + w adversarial loss",
    )


def fit(patches: MappedPatches, args: argparse.Namespace, context: Context) -> Fitted:
    """Train encoder, decoder and discriminator on healthy patches (n, size, size)."""
    return fit_autoencoder(AdversarialTraining, patches, args, context)


class AdversarialTraining(AutoencoderTraining):
    """An autoencoder and a discriminator while they learn from each other."""

    def __init__(self, patches: MappedPatches, args: argparse.Namespace, context: Context) -> None:
        super().__init__(patches, args, context)
        self.discriminator = self.new(
            "discriminator", lambda: Discriminator(self.architecture.channels, LOSS.norm)
        )
        self.optimisers["discriminator"].param_groups[0]["lr"] *= D_LEARNING_RATE

    def step(self, real: Tensor, step: int, draw: torch.Generator) -> dict[str, Tensor]:
        """Update the discriminator, then the autoencoder, on a batch real (n, 1, h, w)."""
        with self.context.autocast():
            rebuilt = self.autoencoder(real)
        logged = self._update_discriminator(real, rebuilt.detach())
        self.discriminator.requires_grad_(False)
        with self.context.autocast():
            logit = self.discriminator(rebuilt).float()
        weight = self.args.adversarial_weight
        loss = (1 - weight) * mse_loss(rebuilt.float(), real) + weight * LOSS.g(logit)
        self.descend("autoencoder", loss)
        self.discriminator.requires_grad_(True)
        return {"loss": loss.detach(), **logged}

    def _update_discriminator(self, real: Tensor, rebuilt: Tensor) -> dict[str, Tensor]:
        with self.context.autocast():
            real_logit = self.discriminator(real).float()
            rebuilt_logit = self.discriminator(rebuilt).float()
        loss = LOSS.d(real_logit, rebuilt_logit)
        self.descend("discriminator", loss)
        return {
            "d_loss": loss.detach(),
            "d_real": torch.sigmoid(real_logit).mean().detach(),
            "d_fake": torch.sigmoid(rebuilt_logit).mean().detach(),
        }


def scorer(
    model: TrainedModel, options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor, list[str]], tuple[Tensor, Tensor]]:
    """Return what scores patches as AnoGAN does, at what is rebuilt; always in fp32."""
    settings = ScoreSettings.of(options)
    channels = Architecture.of(model).channels
    discrimination = feature_matching(settings, len(channels))
    with torch.device("meta"):
        discriminator = Discriminator(channels, LOSS.norm)
    autoencoder = load_autoencoder(model, discriminator=discriminator)

    @torch.no_grad()
    def score(x: Tensor, keys: list[str], height_px: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rebuilt = autoencoder(x)
        r = residual_score(x, rebuilt)
        d = discrimination(discriminator, x)(rebuilt)
        return torch.stack([settings.weigh(r, d), r, d], dim=1), rebuilt

    return score
