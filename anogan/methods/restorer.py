"""The networks behind r_anogan: an encoder and a generator learn to undo damage.

A generator that only ever learned to deceive D cannot make every healthy patch (the search for z
leaves twice the residual of 50 principal components), and an encoder of healthy patches alone lets
a lesion move z. So E and G, which begins with a part of the GAN's weights, learn together that

    mean (x - G(E(x')))^2

be small for healthy patches x, where x' is x with a rectangle of foreign tissue in most patches:
denoising (Kascenas et al. 2022, PMLR 172) with pasted cuts (Li et al. 2021, CutPaste, 2104.04015).
Weights as the GAN has left them would learn slowly, so they are shrunk and fresh ones are added
(Ash & Adams 2020, 1910.08475).
Thickness, light and speckle vary as they do from eye to eye (`anogan.variation`), also where the
residuals that are usual are learned.
"""

import argparse
import math

import numpy as np
import torch
from torch import Tensor

from anogan.autoencoder import AutoencoderTraining
from anogan.deviation import Usual, learn_usual
from anogan.model import Architecture, load_gan, weights_of
from anogan.networks import Generator
from anogan.training import Context, Fitted, add_descent_arguments, planned_steps, train
from anogan.variation import noisy, relit, stretched
from preprocessing.errors import InputError
from preprocessing.patch_file import MappedPatches
from preprocessing.seeds import derive_seed

NEEDS = "gan"
USUAL = 3000  # patches that say what is usual
BATCH = 250  # of them at a time
KEPT = 0.4  # of the weights of the GAN's generator
SIDES_PX = (4, 40), (2, 28)  # of the rectangles, z and x, in patches of 64 pixels
FULL_SIZE = 64


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; the sizes are those of the GAN."""
    add_descent_arguments(parser, epochs=20)
    parser.set_defaults(learning_rate=1e-3, flip=True)
    parser.add_argument("--damaged", type=float, default=0.75, help="share of the patches")


def fit(patches: MappedPatches, args: argparse.Namespace, context: Context) -> Fitted:
    """Train encoder and generator on healthy patches (n, size, size), and learn what is usual."""
    if not 0 <= args.damaged <= 1:
        raise InputError(f"damaged is {args.damaged}; it is a share of the patches, from 0 to 1")
    trainee = RestorerTraining(patches, args, context)
    history = train(trainee, patches)
    usual = {f"usual.{name}": part for name, part in vars(trainee.learn_usual(patches)).items()}
    if not all(bool(torch.isfinite(part).all()) for part in usual.values()):
        raise InputError(
            "restorer: what is usual in healthy patches is not a number; look at real.png and at "
            f"the newest samples in {context.folder}, and lower restorer: learning_rate"
        )
    weights = weights_of(**trainee.networks) | usual
    return Fitted(weights, vars(trainee.architecture), history, trainee.show())


class RestorerTraining(AutoencoderTraining):
    """An encoder and a generator while they learn to restore healthy patches."""

    ends_early = False

    def __init__(self, patches: MappedPatches, args: argparse.Namespace, context: Context) -> None:
        super().__init__(patches, args, context)
        generator, _ = load_gan(context.needed)
        shrink_and_perturb(self.autoencoder.decoder, generator)
        self.steps = planned_steps(args, len(patches))

    def sizes(self, patch_size: int) -> Architecture:
        """Return the sizes of the GAN."""
        return Architecture.of(self.context.needed)

    def identity(self) -> dict:
        """Return what a checkpoint must share: the epochs too, which set the learning rate."""
        return super().identity() | {"epochs": self.args.epochs}

    def step(self, real: Tensor, step: int, draw: torch.Generator) -> dict[str, Tensor]:
        """Learn from a batch real (n, 1, h, w)."""
        workers = self.context.workers
        if workers.world > 1:  # each process varies and damages its own share of the batch
            draw = self.context.generator("step", step, workers.rank)
        rate = self.args.learning_rate * (1 + math.cos(math.pi * step / self.steps)) / 2
        self.optimisers["autoencoder"].param_groups[0]["lr"] = rate
        real = noisy(relit(stretched(real, draw), draw), draw)
        return self.learn(damaged(real, self.args.damaged, draw), real)

    @torch.no_grad()
    def learn_usual(self, patches: MappedPatches) -> Usual:
        """Return what is usual in healthy patches, undamaged and restored as they will be.

        Their layers are not stretched, as a table by height could not follow.
        """
        self.autoencoder.eval()
        rng = np.random.default_rng(derive_seed(self.context.seed, "usual"))
        rows = np.sort(rng.permutation(len(patches))[:USUAL])
        x = torch.from_numpy(patches[rows]).float().unsqueeze(1)
        draw = self.context.generator("usual")
        x = noisy(relit(x, draw), draw)
        parts = [self.rebuild(part.to(self.context.device)).cpu() for part in x.split(BATCH)]
        height_px = torch.from_numpy(self.context.height_px[rows])
        return learn_usual(x, torch.cat(parts), height_px)


@torch.no_grad()
def shrink_and_perturb(fresh: Generator, trained: Generator) -> None:
    """Add the shrunk weights of a trained generator's convolutions to those of a fresh one."""
    for own, learned in zip(fresh.parameters(), trained.parameters(), strict=True):
        if own.dim() > 1:  # batch norm finds its own scale and shift
            own.add_(learned, alpha=KEPT)


def damaged(x: Tensor, share: float, draw: torch.Generator) -> Tensor:
    """Return patches x (n, 1, h, w) with a rectangle of foreign tissue in a `share` of them.

    The tissue is that of another patch of the batch, moved sideways and mixed, in any proportion,
    with any gray value.
    """
    size = x.shape[-1]
    at, extent = torch.rand(2, len(x), 2, 1, 1, generator=draw)
    mixture, gray, chance = torch.rand(3, len(x), 1, 1, generator=draw)
    low, high = torch.tensor(SIDES_PX).T[..., None, None] * (size / FULL_SIZE)
    extent = low + (high - low) * extent
    first = at * (size + extent) - extent
    z, x_px = torch.arange(size)[:, None], torch.arange(size)
    inside = (z >= first[:, 0]) & (z < (first + extent)[:, 0])
    inside = inside & (x_px >= first[:, 1]) & (x_px < (first + extent)[:, 1]) & (chance < share)
    sideways = int(torch.randint(size, (), generator=draw))
    foreign = x.roll(1, 0).roll(sideways, 3)
    inside, mixture, gray = (part[:, None].to(x.device) for part in (inside, mixture, gray))
    return torch.where(inside, mixture * foreign + (1 - mixture) * (2 * gray - 1), x)
