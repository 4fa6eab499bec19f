"""The convolutional autoencoder of `ae` and `acae`, made of the GAN's own layers, and its training.

The encoder has the discriminator's convolutions, the decoder is the generator.
"""

import argparse
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from anogan.model import Architecture, TrainedModel, weights_of
from anogan.networks import ConvolutionStack, Encoder, Generator, freeze
from anogan.pictures import shown_rows
from anogan.training import Context, Fitted, Trainee, train
from preprocessing.patch_file import MappedPatches


class Autoencoder(nn.Module):
    """patch (n, 1, size, size) -> z (n, latent) -> patch (n, 1, size, size) in [-1, 1]."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.encoder = Encoder(architecture.channels, architecture.latent)
        self.decoder = Generator(architecture.channels, architecture.latent)

    def forward(self, x: Tensor) -> Tensor:
        """Return the patches x as rebuilt."""
        return self.decoder(self.encoder(x))


class RebuildingTraining(Trainee):
    """Networks that learn to rebuild healthy patches: what there is to see, and when they fail."""

    def __init__(self, patches: MappedPatches, args: argparse.Namespace, context: Context) -> None:
        super().__init__(patches, args, context)
        shown = torch.from_numpy(patches[shown_rows(len(patches))]).float().unsqueeze(1)
        self.shown = shown.to(context.device, memory_format=torch.channels_last)

    def rebuild(self, x: Tensor) -> Tensor:
        """Return patches x (n, 1, h, w) as rebuilt."""
        raise NotImplementedError

    @torch.no_grad()
    def show(self) -> Tensor:
        """Return the patches of real.png as rebuilt (k, 1, h, w), as they would be scored."""
        for network in self.networks.values():
            network.eval()
        rebuilt = self.rebuild(self.shown)
        for network in self.networks.values():
            network.train()
        return rebuilt

    def trouble(self, history: list[dict], steps: int) -> str | None:
        """Return why the training has failed, if it has."""
        last = history[-1]
        for name in ("loss", "d_loss"):
            if not math.isfinite(last.get(name, 0)):
                return (
                    f"training diverged at step {last['step']} ({name} is {last[name]}); "
                    f"lower {self.args.model}: learning_rate"
                )
        return None


class AutoencoderTraining(RebuildingTraining):
    """An autoencoder while it learns to rebuild healthy patches with the least squared error."""

    def __init__(self, patches: MappedPatches, args: argparse.Namespace, context: Context) -> None:
        super().__init__(patches, args, context)
        self.autoencoder = self.new("autoencoder", lambda: Autoencoder(self.architecture))

    def rebuild(self, x: Tensor) -> Tensor:
        """Return patches x (n, 1, h, w) as rebuilt."""
        return self.autoencoder(x)

    def step(self, real: Tensor, step: int, draw: torch.Generator) -> dict[str, Tensor]:
        """Learn from a batch real (n, 1, h, w)."""
        return self.learn(real, real)

    def learn(self, shown: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Learn to make patches real (n, 1, h, w) of those that are shown."""
        with self.context.autocast():
            rebuilt = self.rebuild(shown)
        loss = mse_loss(rebuilt.float(), real)
        self.descend("autoencoder", loss)
        return {"loss": loss.detach()}


def fit_autoencoder(
    training: type[AutoencoderTraining],
    patches: MappedPatches,
    args: argparse.Namespace,
    context: Context,
) -> Fitted:
    """Train an autoencoder, and what learns beside it, on healthy patches (n, size, size)."""
    trainee = training(patches, args, context)
    history = train(trainee, patches)
    sizes = vars(trainee.architecture)
    return Fitted(weights_of(**trainee.networks), sizes, history, trainee.show())


def load_autoencoder(model: TrainedModel, **others: ConvolutionStack) -> Autoencoder:
    """Return a trained autoencoder, frozen; `others` get their weights and are frozen as well."""
    with torch.device("meta"):
        autoencoder = Autoencoder(Architecture.of(model))
    model.fill(autoencoder=autoencoder, **others)
    freeze(autoencoder.encoder, autoencoder.decoder, *others.values())
    return autoencoder
