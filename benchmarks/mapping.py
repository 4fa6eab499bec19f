"""How fast patches are mapped, against public code's way and the fastest this machine multiplies.

Usage: python benchmarks/mapping.py [--threads 2] [--gpus 1] [--rounds 10] [--patches 64 1024]

The networks are those of the paper with random weights, the patches noise. Prints a TSV table,
measure value unit baseline ratio. The baseline of a mapping is one image at a time as public code
does it: gradients for all weights, f(x) anew at every step, batch norm by itself. The baseline of a
share of the GEMM peak is that of the same loop. All take turns; the median of the rounds counts.
The baseline of the memory is a run with fewer patches.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path[0] = str(Path(__file__).parents[1])  # so that anogan is the package

from anogan.device import add_device_arguments, choose_dtype, peak_flops, prepare_device
from anogan.mapping import Mapper, MappingLoss, RandomStarts, SearchSettings, random_latents
from anogan.model import save_model, weights_of
from anogan.networks import Discriminator, Generator, freeze
from anogan.scores import feature_matching
from preprocessing.patch_file import INDEX_DTYPE, PatchWriter

CHANNELS, LATENT, SIZE, BATCH = (512, 256, 128, 64), 100, 64, 64
# generator and features of D, forward and back to z, two operations a multiply-accumulate
FLOP_PER_STEP = 2 * 2 * (159.7e6 + 158.9e6)
PUBLIC_STEPS, OUR_STEPS = 4, 1  # a step of the public loop is of one patch


def networks(device: torch.device) -> dict[str, torch.nn.Module]:
    """Return the paper's networks with random weights, in eval mode."""
    torch.manual_seed(0)
    made = {"generator": Generator(CHANNELS, LATENT), "discriminator": Discriminator(CHANNELS)}
    return {name: network.to(device).eval() for name, network in made.items()}


def public_loop(generator: Generator, discriminator: Discriminator, x: torch.Tensor) -> None:
    """Map one patch x (1, 1, h, w) as public implementations do."""
    z = (torch.rand(1, LATENT, device=x.device) * 2 - 1).requires_grad_(True)
    optimiser = torch.optim.Adam([z], 0.1)
    for _ in range(PUBLIC_STEPS):
        optimiser.zero_grad()
        generated = generator(z)
        f_x, f_generated = (discriminator.features(v, len(CHANNELS)) for v in (x, generated))
        loss = 0.9 * (x - generated).abs().sum() + 0.1 * (f_x - f_generated).abs().sum()
        loss.backward()
        optimiser.step()


def our_search(mapper: Mapper, x: torch.Tensor) -> Callable[[], None]:
    """Return what maps a batch x (n, 1, h, w)."""
    loss = MappingLoss(*mapper.fast, mapper.discrimination, mapper.settings, x)
    start = random_latents([str(i) for i in range(len(x))], LATENT, 1, 1)[0].to(x.device)
    return lambda: mapper.search(loss, start)


def median_times(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the seconds of each run, the median of some rounds in which all take turns."""
    times = {name: [] for name in runs}
    for number in range(rounds + 1):  # the first one warms up
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: float(np.median(seconds)) for name, seconds in times.items()}


def measure_speed(device: torch.device, dtypes: list[torch.dtype], rounds: int) -> None:
    """Print milliseconds per patch and step and the share of the GEMM peak."""
    x = torch.rand(BATCH, 1, SIZE, SIZE, device=device) * 2 - 1
    public = networks(device).values()
    runs = {"public": lambda: public_loop(*public, x[:1])}
    settings = SearchSettings(steps=OUR_STEPS)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    peak = dict.fromkeys(dtypes, 0.0)
    for dtype in dtypes:
        frozen = networks(device).values()
        freeze(*frozen)
        mapper = Mapper(
            *frozen,
            feature_matching(settings, len(CHANNELS)),
            settings,
            RandomStarts(LATENT, 1, seed=1),
            dtype,
        )
        runs[name_of(dtype)] = our_search(mapper, channels_last)

        def measure_peak(dtype: torch.dtype = dtype) -> None:
            peak[dtype] = max(peak[dtype], peak_flops(device, dtype))

        runs[f"GEMM {name_of(dtype)}"] = measure_peak
    seconds = median_times(runs, rounds)
    public_ms = 1e3 * seconds["public"] / PUBLIC_STEPS
    print(f"public loop per patch and step\t{public_ms:.2f}\tms\t\t")
    for dtype in dtypes:
        name = name_of(dtype)
        ours_ms = 1e3 * seconds[name] / (OUR_STEPS * BATCH)
        share, public_share = (
            100 * FLOP_PER_STEP / (ms / 1e3) / peak[dtype] for ms in (ours_ms, public_ms)
        )
        print(f"{name} GEMM peak\t{peak[dtype] / 1e9:.0f}\tGFLOP/s\t\t")
        print(
            f"{name} per patch and step\t{ours_ms:.2f}\tms\t{public_ms:.2f}\t"
            f"{public_ms / ours_ms:.1f}"
        )
        ratio = share / public_share
        print(f"{name} share of GEMM peak\t{share:.1f}\t%\t{public_share:.1f}\t{ratio:.1f}")


def name_of(dtype: torch.dtype) -> str:
    """Return fp32 or bf16."""
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def memory_mb(n_patches: int, args: argparse.Namespace) -> float:
    """Return the peak memory of scoring so many patches by the command."""
    with tempfile.TemporaryDirectory() as folder:
        model, path = Path(folder, "model"), Path(folder, "p.h5")
        sizes = {"channels": CHANNELS, "latent": LATENT, "patch_size": SIZE, "norm": "batch"}
        weights = weights_of(**networks(torch.device("cpu")))
        save_model(model, weights, {"model": "gan", "architecture": sizes})
        rng, index = np.random.default_rng(0), np.zeros(n_patches, INDEX_DTYPE)
        index["x"] = np.arange(n_patches)
        with PatchWriter(path, SIZE) as writer:
            gray = rng.uniform(-1, 1, (n_patches, SIZE, SIZE)).astype(np.float16)
            writer.append(gray, None, index)
        files = ["--model", model, "--patches", path, "--output", f"{folder}/s.parquet"]
        command = [sys.executable, "-m", "anogan", "score", *files, "--steps", 1]
        command += ["--residual-output", f"{folder}/s.h5", "--threads", args.threads]
        command += ["--gpus", args.gpus, "--precision", args.precision]
        process = subprocess.Popen([*map(str, command)], stdout=2, cwd=sys.path[0])
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit("error: `score` failed")
    return usage.ru_maxrss / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_device_arguments(parser)
    parser.set_defaults(threads=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--patches", type=int, nargs=2, default=[64, 1024], help="for the memory")
    args = parser.parse_args()
    device = prepare_device(args)
    fastest = choose_dtype(args.precision, device)
    print("measure\tvalue\tunit\tbaseline\tratio")
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False, allow_tf32=False):
        measure_speed(device, list(dict.fromkeys([torch.float32, fastest])), args.rounds)
    few, many = (memory_mb(n, args) for n in args.patches)
    print(f"peak memory, {args.patches[1]} patches\t{many:.0f}\tMB\t{few:.0f}\t{many / few:.2f}")


if __name__ == "__main__":
    main()
