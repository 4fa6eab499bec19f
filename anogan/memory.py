"""How much memory networks take, estimated before any work is done, and how much there is.

The sizes were fitted to the peak of the process on a CPU, in fp32; bf16 takes a little less. On a
GPU, where they stand for its own memory, they have not been compared.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from anogan.networks import FIRST_SIZE, Discriminator, Encoder, Generator
from preprocessing.errors import InputError

if TYPE_CHECKING:
    from anogan.model import Architecture
    from anogan.training import Context
    from preprocessing.patch_file import MappedPatches

MB = 2**20
BASE = 430 * MB  # Python, PyTorch and its libraries
PER_TRAINED_WEIGHT = 36  # bytes: it, its gradient, Adam's two moments, checkpoint, work space
PER_FROZEN_WEIGHT = 8  # bytes: as it was, and with batch norm folded in
PER_WEIGHT = 6  # bytes, to score with: in fp32 and, for the search, in bf16
PER_ACTIVATION = 12  # bytes: as convolved, normalised and rectified
STREAMED = 2 * 2**28  # bytes of patches that do not stay in memory, see `anogan.batches`
# of each model: its networks, and how often one of them runs on a batch before gradients follow
TRAINED = {
    "gan": ((Generator, Discriminator), 3),
    "ae": ((Encoder, Generator), 2),
    "acae": ((Encoder, Generator, Discriminator), 4),
    "encoder": ((Encoder,), 4),
    "restorer": ((Encoder, Generator), 2),
}
# networks that a model learns from
FROZEN = {"encoder": (Generator, Discriminator)}
PENALTY_PASSES = 4  # of WGAN-GP, for a gradient of a gradient


def training_bytes(
    model: str, channels: tuple[int, ...], latent: int, batch: int, penalty: bool = False
) -> float:
    """Return what a training takes at its peak, without the patches that stay in memory.

    `channels` go from coarse to fine; `penalty` tells a WGAN-GP.
    """
    networks, passes = TRAINED.get(model, TRAINED["acae"])  # of an unknown one, the most
    passes += PENALTY_PASSES * penalty
    weights = PER_TRAINED_WEIGHT * _weights(networks, channels, latent)
    weights += PER_FROZEN_WEIGHT * _weights(FROZEN.get(model, ()), channels, latent)
    activations = passes * batch * _activations(channels)
    return BASE + weights + PER_ACTIVATION * activations


def search_bytes(channels: tuple[int, ...], latent: int, batch: int) -> float:
    """Return what the search for z takes at its peak, for batches of `batch` patches."""
    weights = _weights((Generator, Discriminator), channels, latent)
    return BASE + PER_WEIGHT * weights + PER_ACTIVATION * 2 * batch * _activations(channels)


def free_memory(device: torch.device) -> int:
    """Return how many bytes are free where `device` keeps its tensors, caches of files included."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        facts = dict(line.split(":") for line in lines)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def check_fits(needed: float, what: str, remedy: str, free: int, memory_mb: int = 0) -> None:
    """Raise InputError where `needed` bytes exceed what is free or, unless 0, `memory_mb`.

    This process has taken `BASE` of what it needs already.
    """
    allowed = memory_mb * MB if memory_mb else float("inf")
    if needed <= min(free + BASE, allowed):
        return
    there = f"{allowed / MB:.0f} MB are allowed (mem_mb of the job)"
    if free + BASE < allowed:
        there = f"{(free + BASE) / MB:.0f} MB are free on this machine"
    raise InputError(f"{what} takes about {needed / MB:.0f} MB, but {there}; {remedy}")


def check_training(
    args: argparse.Namespace,
    architecture: "Architecture",
    patches: "MappedPatches",
    context: "Context",
) -> float:
    """Return what a training takes without its patches (n, size, size); InputError if too much."""
    batch = min(args.batch_size, len(patches)) // context.workers.world
    penalty = getattr(args, "loss", None) == "wgan-gp"
    needed = training_bytes(args.model, architecture.channels, architecture.latent, batch, penalty)
    check_fits(
        needed + min(len(patches) * patches[:1].nbytes, STREAMED),
        f"training {args.model} with batches of {batch}",
        f"lower {args.model}: batch_size or the channels, or give it more memory",
        free_memory(context.device),
        context.memory_mb if context.device.type == "cpu" else 0,
    )
    return needed


def _weights(networks: tuple[type, ...], channels: tuple[int, ...], latent: int) -> int:
    with torch.device("meta"):  # which takes no memory
        made = [
            network(channels) if network is Discriminator else network(channels, latent)
            for network in networks
        ]
    return sum(weight.numel() for network in made for weight in network.parameters())


def _activations(channels: tuple[int, ...]) -> int:
    """Return how many values the feature maps and the patch of one network hold, for one patch."""
    return sum(width * (FIRST_SIZE * 2**level) ** 2 for level, width in enumerate((*channels, 1)))
