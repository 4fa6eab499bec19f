"""The encoder behind f-AnoGAN, trained on a GAN that stays as it is (`izi_f`; Schlegl et al. 2019).

With G and D frozen, x^ = G(E(x)) and f the activations of D's last convolution, E learns to
minimise

    mean (x - x^)^2 + kappa mean (f(x) - f(x^))^2

over all pixels, and all features, of healthy patches (doi 10.1016/j.media.2019.01.010).
"""

import argparse
import math

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from anogan.autoencoder import RebuildingTraining
from anogan.model import Architecture, load_gan, weights_of
from anogan.networks import Encoder, freeze
from anogan.training import Context, Fitted, add_descent_arguments, train
from preprocessing.errors import InputError
from preprocessing.patch_file import MappedPatches

NEEDS = "gan"


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; the sizes are those of the GAN."""
    add_descent_arguments(parser, epochs=20)
    parser.add_argument(
        "--kappa", type=float, default=1.0, help="weight of the features, also in the score"
    )


def fit(patches: MappedPatches, args: argparse.Namespace, context: Context) -> Fitted:
    """Train the encoder on healthy patches (n, size, size); the GAN becomes part of the model."""
    if not 0 <= args.kappa < math.inf:
        raise InputError(f"kappa is {args.kappa}; it is a weight, 0 or more")
    trainee = EncoderTraining(patches, args, context)
    history = train(trainee, patches)
    gan, sizes = context.needed, vars(trainee.architecture)
    return Fitted(
        {**gan.weights, **weights_of(**trainee.networks)},
        {**sizes, "norm": gan.architecture["norm"], "kappa": args.kappa},
        history,
        trainee.show(),
    )


class EncoderTraining(RebuildingTraining):
    """An encoder while it learns which z a frozen generator needs for healthy patches."""

    def __init__(self, patches: MappedPatches, args: argparse.Namespace, context: Context) -> None:
        super().__init__(patches, args, context)
        channels, latent = self.architecture.channels, self.architecture.latent
        self.generator, self.discriminator = load_gan(context.needed)
        freeze(self.generator, self.discriminator)
        self.encoder = self.new("encoder", lambda: Encoder(channels, latent))

    def sizes(self, patch_size: int) -> Architecture:
        """Return the sizes of the GAN."""
        return Architecture.of(self.context.needed)

    def rebuild(self, x: Tensor) -> Tensor:
        """Return G(E(x)) of patches x (n, 1, h, w)."""
        return self.generator(self.encoder(x))

    def step(self, real: Tensor, step: int, draw: torch.Generator) -> dict[str, Tensor]:
        """Learn from a batch real (n, 1, h, w)."""
        depth = len(self.architecture.channels)
        with self.context.autocast():
            rebuilt = self.rebuild(real)
            with torch.no_grad():
                f_real = self.discriminator.features(real, depth)
            f_rebuilt = self.discriminator.features(rebuilt, depth)
        residual = mse_loss(rebuilt.float(), real)
        features = mse_loss(f_rebuilt.float(), f_real.float())
        loss = residual + self.args.kappa * features
        self.descend("encoder", loss)
        parts = {"loss": loss, "residual": residual, "features": features}
        return {name: part.detach() for name, part in parts.items()}
