"""Where the tensors live and how many threads work on them."""

import argparse

import torch

from preprocessing.errors import InputError


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that every stage on tensors shares."""
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--gpus", type=int, default=0, help="0 computes on the CPU")


def prepare_device(args: argparse.Namespace) -> torch.device:
    """Set the number of threads and return the device to compute on."""
    torch.set_num_threads(args.threads)
    if args.gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError("a GPU was asked for but PyTorch sees none; run with --resources gpu=0")
    return torch.device("cuda")
