"""Small patches with a pattern to learn, and a small GAN that learns it in seconds."""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from anogan.methods import gan as gan_module
from anogan.methods.gan import Gan
from anogan.training import Context
from preprocessing.cli import run_command
from preprocessing.patch_file import INDEX_DTYPE, PatchWriter

LOSSES = ("dcgan", "wgan-gp", "hinge")
TINY = ("--channels", 16, 8, 8, "--latent", 6, "--batch-size", 16, "--learning-rate", 1e-3)


def stripes(n: int) -> np.ndarray:
    """Patches (n, 32, 32) with one bright band at a random height."""
    rng = np.random.default_rng(0)
    rows = np.arange(32)[None, :, None]
    band = np.abs(rows - rng.uniform(8, 24, (n, 1, 1))) < 4
    return np.where(np.broadcast_to(band, (n, 32, 32)), 0.8, -0.8).astype(np.float16)


def real_batch() -> torch.Tensor:
    """Patches (16, 1, 32, 32) to learn from."""
    return torch.from_numpy(stripes(16)).float().unsqueeze(1)


def write_patches(path: Path, n: int = 64, label: int = 0) -> Path:
    """Write a file of training patches; the last one has the label."""
    index = np.zeros(n, INDEX_DTYPE)
    index["volume"] = index["patient"] = b"a"
    index["label"][-1] = label
    with PatchWriter(path, 32) as writer:
        writer.append(stripes(n), None, index)
    return path


def options(patches, folder, *extra) -> list[str]:
    """The command line that trains two epochs, eight steps of 64 patches."""
    given = ["train", "gan", "--patches", patches, *TINY, "--output", folder, "--precision", "fp32"]
    return [str(part) for part in (*given, "--epochs", 2, *extra)]


def run(patches, folder, *extra) -> int:
    """Train; return the exit status."""
    return run_command("anogan", {"train": ""}, options(patches, folder, *extra))


def same_weights(one: Path, other: Path) -> bool:
    """Whether two models are the same to the last bit."""
    a, b = (load_file(folder / "weights.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def make_gan(folder: Path, *extra, **where) -> Gan:
    """A GAN as it is before its first step."""
    parser = argparse.ArgumentParser()
    gan_module.add_train_arguments(parser)
    parser.set_defaults(model="gan")
    args = parser.parse_args([str(part) for part in (*TINY, *extra)])
    context = Context(torch.device("cpu"), torch.float32, seed=1, folder=folder, **where)
    return Gan(stripes(64), args, context)
