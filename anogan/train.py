"""Stage `train`: a DCGAN learns what patches of healthy retina look like."""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from anogan.device import add_device_arguments, prepare_device
from anogan.model import Architecture, save_model
from anogan.networks import Discriminator, Generator
from anogan.progress import progress
from preprocessing import __version__
from preprocessing.errors import InputError
from preprocessing.files import atomic_path
from preprocessing.patch_file import MappedPatches, open_patches, read_index
from preprocessing.seeds import derive_seed

HISTORY_ROWS = 200
SAMPLES_PER_SIDE = 8


@dataclass
class TrainingSettings:
    """Adam on the minimax loss with the non-saturating generator loss (Radford et al. 2016)."""

    epochs: float = 20
    batch_size: int = 64
    learning_rate: float = 2e-4
    beta1: float = 0.5


def gan_step(
    generator: Generator,
    discriminator: Discriminator,
    optimisers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    real: Tensor,
    z: Tensor,
) -> dict[str, Tensor]:
    """Update D, then G, on one batch real (n, 1, h, w) and z (n, latent); return what is logged.

    D minimises -log D(x) - log(1 - D(G(z))), G minimises -log D(G(z)). G(z) is computed once for
    both, and D's weights get no gradient in G's update.
    """
    generator_optimiser, discriminator_optimiser = optimisers
    fake = generator(z)

    real_logit, fake_logit = discriminator(real), discriminator(fake.detach())
    d_loss = softplus(-real_logit).mean() + softplus(fake_logit).mean()
    discriminator_optimiser.zero_grad(set_to_none=True)
    d_loss.backward()
    discriminator_optimiser.step()

    discriminator.requires_grad_(False)
    g_loss = softplus(-discriminator(fake)).mean()
    generator_optimiser.zero_grad(set_to_none=True)
    g_loss.backward()
    generator_optimiser.step()
    discriminator.requires_grad_(True)

    return {
        "d_loss": d_loss.detach(),
        "g_loss": g_loss.detach(),
        "d_real": torch.sigmoid(real_logit.detach()).mean(),
        "d_fake": torch.sigmoid(fake_logit.detach()).mean(),
    }


def train(
    patches: np.ndarray | MappedPatches,
    architecture: Architecture,
    settings: TrainingSettings,
    seed: int,
    device: torch.device,
) -> tuple[Generator, Discriminator, list[dict]]:
    """Train on patches (n, size, size) in [-1, 1]; return G, D and the history (rows of means)."""
    torch.manual_seed(derive_seed(seed, "weights"))
    networks = architecture.build()
    generator, discriminator = (
        network.to(device, memory_format=torch.channels_last).train() for network in networks
    )
    optimisers = tuple(
        torch.optim.Adam(network.parameters(), settings.learning_rate, (settings.beta1, 0.999))
        for network in (generator, discriminator)
    )
    fetch = _fetcher(patches, device)
    batch = min(settings.batch_size, len(patches))
    steps = max(1, round(settings.epochs * len(patches) / batch))
    randomness = torch.Generator().manual_seed(derive_seed(seed, "batches"))
    log_every = max(1, steps // HISTORY_ROWS)

    history, recent, logged_at = [], [], time.monotonic()
    batches = _shuffled_batches(len(patches), batch, randomness)
    for step in progress(range(1, steps + 1), steps, "train"):
        real = fetch(next(batches)).float().unsqueeze(1)
        z = torch.rand(batch, architecture.latent, generator=randomness).mul_(2).sub_(1)
        recent.append(gan_step(generator, discriminator, optimisers, real, z.to(device)))
        if step % log_every == 0 or step == steps:
            means = {k: float(torch.stack([r[k] for r in recent]).mean()) for k in recent[0]}
            if not np.isfinite([means["d_loss"], means["g_loss"]]).all():
                raise InputError(
                    f"training diverged at step {step} (loss is not a number); "
                    "lower train: learning_rate or change the seed"
                )
            now = time.monotonic()
            rate = len(recent) * batch / (now - logged_at)
            epoch = step * batch / len(patches)
            history.append({"step": step, "epoch": epoch, **means, "patches_per_s": rate})
            recent, logged_at = [], now
    return generator.eval(), discriminator.eval(), history


def _fetcher(
    patches: np.ndarray | MappedPatches, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return a function from row numbers (n,) to patches (n, size, size) on `device`.

    A GPU holds all of them, as it would wait for the disk; a CPU leaves them there.
    """
    if device.type == "cpu":
        return lambda rows: torch.from_numpy(patches[rows.numpy()])
    data = torch.from_numpy(patches[:]).to(device)
    return lambda rows: data[rows]


def _shuffled_batches(n: int, batch: int, randomness: torch.Generator):
    """Yield index batches for ever; every patch comes up once before any comes up again."""
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(n, generator=randomness)])
        yield order[:batch]
        order = order[batch:]


def fixed_latents(n: int, latent: int, seed: int) -> Tensor:
    """Return the z (n, latent) of the sample picture."""
    randomness = torch.Generator().manual_seed(derive_seed(seed, "samples"))
    return torch.rand(n, latent, generator=randomness) * 2 - 1


def save_grid(patches: np.ndarray, path: Path) -> None:
    """Write patches (n, h, w) in [-1, 1] as one PNG, `SAMPLES_PER_SIDE` a row."""
    from PIL import Image

    n, h, w = patches.shape
    rows = -(-n // SAMPLES_PER_SIDE)
    grid = np.full((rows * (h + 2), SAMPLES_PER_SIDE * (w + 2)), 255, np.uint8)
    for i, patch in enumerate(patches):
        top, left = (i // SAMPLES_PER_SIDE) * (h + 2), (i % SAMPLES_PER_SIDE) * (w + 2)
        grid[top : top + h, left : left + w] = np.rint((patch.astype(np.float32) + 1) * 127.5)
    with atomic_path(path) as temporary:
        Image.fromarray(grid).save(temporary)


def read_healthy(path: str) -> tuple[MappedPatches, dict]:
    """Return the patches (n, size, size), left on the disk, and what the model must remember."""
    with open_patches(path) as file:
        index = read_index(file)
        if not (index["label"] == 0).all():
            raise InputError(
                f"{path}: it holds patches that are not healthy; train on healthy eyes"
            )
        facts = {
            "n_patches": len(index),
            "n_volumes": int(index["volume"].nunique()),
            "n_patients": int(index["patient"].nunique()),
            "preprocessing": _common_preprocessing(path, file),
        }
        return MappedPatches(file), facts


def _common_preprocessing(path: str, file: h5py.File) -> dict:
    """Return the settings of the stages before, which must be the same for every volume."""
    settings = None
    for group in file.get("geometry", {}).values():
        found = json.loads(group.attrs["parameters"])
        for of_this_volume in ("black", "white"):
            found.get("normalise", {}).pop(of_this_volume, None)
        found.get("resample", {}).pop("upsampled", None)
        if settings not in (None, found):
            raise InputError(
                f"{path}: its volumes were preprocessed in different ways; cut the patches again"
            )
        settings = found
    return settings or {}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    defaults = TrainingSettings()
    parser.add_argument("--patches", required=True, help="HDF5 of healthy training patches")
    parser.add_argument(
        "--channels", type=int, nargs="+", default=[512, 256, 128, 64], help="coarse to fine"
    )
    parser.add_argument("--latent", type=int, default=100, help="size of z")
    parser.add_argument("--epochs", type=float, default=defaults.epochs)
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--beta1", type=float, default=defaults.beta1, help="of Adam")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", required=True, help="folder of the model")
    add_device_arguments(parser)


def command(args: argparse.Namespace) -> str:
    """Train a model and write it with its history and pictures."""
    import pandas as pd

    device = prepare_device(args)
    patches, data_facts = read_healthy(args.patches)
    architecture = Architecture(tuple(args.channels), args.latent, patches.shape[-1])
    settings = TrainingSettings(args.epochs, args.batch_size, args.learning_rate, args.beta1)
    generator, discriminator, history = train(patches, architecture, settings, args.seed, device)

    folder = Path(args.output)
    n = SAMPLES_PER_SIDE**2
    with torch.inference_mode():
        samples = generator(fixed_latents(n, args.latent, args.seed).to(device))
    save_grid(samples[:, 0].cpu().numpy(), folder / "samples.png")
    chosen = np.random.default_rng(derive_seed(args.seed, "real")).permutation(len(patches))[:n]
    save_grid(patches[np.sort(chosen)], folder / "real.png")
    with atomic_path(folder / "history.tsv") as temporary:
        pd.DataFrame(history).to_csv(temporary, sep="\t", index=False, float_format="%.5g")
    facts = {
        "training": {**dataclasses.asdict(settings), "steps": history[-1]["step"]},
        "data": data_facts,
        "seed": args.seed,
        "versions": {
            "oct-anogan": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }
    save_model(folder, architecture, generator, discriminator, facts)
    last = history[-1]
    return (
        f"{last['step']} steps on {len(patches)} patches, {last['patches_per_s']:.0f} patches/s, "
        f"D(x) {last['d_real']:.2f}, D(G(z)) {last['d_fake']:.2f}"
    )
