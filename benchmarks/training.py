"""How fast the GAN learns, against a plain DCGAN loop on the same patches.

Usage: python benchmarks/training.py [--channels 512 256 128 64] [--batch 64] [--threads 2]

The plain loop is what tutorials do: NCHW in fp32, patches generated once for the discriminator and
again for the generator, weight gradients of the discriminator in the generator's update. Rounds of
all variants take turns and the median counts, as other work may run on the machine.
Prints a TSV table, measure value unit baseline ratio: milliseconds per image of every variant, the
share of this machine's peak in matrix products, and the memory that training takes.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

sys.path[0] = str(Path(__file__).parents[1])  # so that preprocessing is the package

from anogan import convolutions
from anogan.batches import ShuffledPatches
from anogan.device import WorkCounter, choose_dtype, peak_flops, prepare_device
from anogan.methods import gan
from anogan.networks import Discriminator, Generator
from anogan.training import Context


class PlainLoop:
    """DCGAN as in tutorials."""

    def __init__(self, channels: tuple[int, ...], latent: int, device: torch.device) -> None:
        self.generator = Generator(channels, latent).to(device)
        self.discriminator = Discriminator(channels).to(device)
        self.latent, self.device = latent, device
        self.optimisers = [
            torch.optim.Adam(network.parameters(), 2e-4, betas=(0.5, 0.999))
            for network in (self.generator, self.discriminator)
        ]

    def step(self, real: torch.Tensor) -> None:
        """Update D, then G, on a batch, by PyTorch's own convolutions."""
        ours, convolutions.WEIGHTS_PER_POSITION = convolutions.WEIGHTS_PER_POSITION, float("inf")
        self._step(real)
        convolutions.WEIGHTS_PER_POSITION = ours

    def _step(self, real: torch.Tensor) -> None:
        ones, zeros = (torch.full((len(real),), v, device=self.device) for v in (1.0, 0.0))
        self.discriminator.zero_grad()
        z = torch.rand(len(real), self.latent, device=self.device) * 2 - 1
        fake = self.generator(z).detach()
        loss = binary_cross_entropy_with_logits(self.discriminator(real), ones)
        loss = loss + binary_cross_entropy_with_logits(self.discriminator(fake), zeros)
        loss.backward()
        self.optimisers[1].step()
        self.generator.zero_grad()
        z = torch.rand(len(real), self.latent, device=self.device) * 2 - 1
        loss = binary_cross_entropy_with_logits(self.discriminator(self.generator(z)), ones)
        loss.backward()
        self.optimisers[0].step()


def our_gan(
    patches: np.ndarray,
    channels: tuple[int, ...],
    latent: int,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Callable[[int], None]:
    """Return our step, from reading its batch to the updated weights."""
    parser = argparse.ArgumentParser()
    gan.add_train_arguments(parser)
    args = parser.parse_args(["--channels", *map(str, channels), "--latent", str(latent)])
    context = Context(device, dtype, seed=1, folder=Path(tempfile.gettempdir()))
    trainee = gan.Gan(patches, args, context)
    batches = ShuffledPatches(patches, batch, 1, device)
    return lambda number: trainee.step(batches.at(number), number, context.generator("z", number))


def milliseconds(step: Callable[[int], None], number: int, device: torch.device) -> float:
    """Return how long a step takes until its work is done."""
    start = time.perf_counter()
    step(number)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, nargs="+", default=[512, 256, 128, 64])
    parser.add_argument("--latent", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=0, choices=(0, 1))
    args = parser.parse_args()
    device = prepare_device(args)
    channels, size = tuple(args.channels), 4 * 2 ** len(args.channels)
    rng = np.random.default_rng(0)
    patches = rng.uniform(-1, 1, (10 * args.batch, size, size)).astype(np.float16)

    plain = PlainLoop(channels, args.latent, device)
    batches = ShuffledPatches(patches, args.batch, 1, device)
    steps = {"plain loop": lambda number: plain.step(batches.at(number).contiguous())}
    dtypes = {"fp32": torch.float32}
    if choose_dtype("auto", device) != torch.float32:
        dtypes["bf16"] = choose_dtype("auto", device)
    for name, dtype in dtypes.items():
        sizes = channels, args.latent, args.batch
        steps[f"ours, {name}"] = our_gan(patches, *sizes, dtype, device)
    with WorkCounter() as work:
        steps["ours, fp32"](1)
    flops = work.flops / args.batch

    times = {name: [] for name in steps}
    peaks = dict.fromkeys(dtypes, 0.0)
    for number in range(1, args.rounds + 2):  # the first round warms up
        for name, step in steps.items():
            taken = milliseconds(step, number, device) / args.batch
            if number > 1:
                times[name].append(taken)
        for name, dtype in dtypes.items():
            peaks[name] = max(peaks[name], peak_flops(device, dtype))

    typical = {name: float(np.median(values)) for name, values in times.items()}
    base = typical["plain loop"]
    print("measure\tvalue\tunit\tbaseline\tratio")
    for name, value in typical.items():
        print(f"{name}\t{value:.2f}\tms/image\t{base:.2f}\t{base / value:.2f}")
    for name, peak in peaks.items():
        reached = flops / typical[f"ours, {name}"] * 1000
        print(
            f"ours, {name}, of the peak\t{reached / 1e9:.0f}\tGFLOP/s\t{peak / 1e9:.0f}\t"
            f"{reached / peak:.2f}"
        )
    print(f"work\t{flops / 1e9:.3f}\tGFLOP/image\t\t")
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of all variants\t{peak_mb:.0f}\tMB\t\t")


if __name__ == "__main__":
    main()
