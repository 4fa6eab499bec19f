"""What tensors are computed on: threads, device, precision, and how much it can compute."""

import argparse
import os
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from preprocessing.errors import InputError

PRECISIONS = ("auto", "fp32", "bf16")


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that every stage on tensors shares."""
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--gpus", type=int, default=0, help="0 computes on the CPU")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="bf16 is faster; auto takes it where the hardware multiplies it",
    )


def prepare_device(args: argparse.Namespace) -> torch.device:
    """Set the number of threads and return the device to compute on.

    With ANOGAN_DEVICE=cpu in the environment that is the CPU even where GPUs are asked for, so that
    what a cluster does with them can be tried without any; the number of processes stays.
    """
    torch.set_num_threads(args.threads)
    wanted = os.environ.get("ANOGAN_DEVICE", "")
    if wanted not in ("", "cpu"):
        raise InputError(f"ANOGAN_DEVICE={wanted}: it can only be cpu; unset it to use GPUs")
    if args.gpus == 0 or wanted == "cpu":
        return torch.device("cpu")
    if torch.cuda.device_count() < args.gpus:
        found = torch.cuda.device_count() or "none"
        plural = "a GPU was" if args.gpus == 1 else f"{args.gpus} GPUs were"
        raise InputError(
            f"{plural} asked for but PyTorch sees {found}; run with --resources gpu=0 or set "
            "gpus in the config"
        )
    return torch.device("cuda")


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the type that networks compute in; InputError for bf16 on a device without it.

    A CPU counts as having bf16 only with AMX: without it, bf16 is slower than fp32.
    """
    has_bf16 = (
        torch.cuda.get_device_capability(device) >= (8, 0)
        if device.type == "cuda"
        else torch.cpu.get_capabilities().get("amx_bf16", False)
    )
    if precision == "bf16" and not has_bf16:
        raise InputError(f"precision bf16: this {device.type} does not multiply it; use auto")
    return torch.bfloat16 if has_bf16 and precision != "fp32" else torch.float32


@torch.inference_mode()
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of a large matrix product, best of five."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):  # the first one warms up
        _wait_for(device)
        start = time.perf_counter()
        torch.mm(a, b)
        _wait_for(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


class WorkCounter(TorchDispatchMode):
    """Counts the floating-point operations of convolutions and matrix products inside a `with`.

    PyTorch's FlopCounterMode has the same formulas but cannot follow a gradient of a gradient.
    """

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
