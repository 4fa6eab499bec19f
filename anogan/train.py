"""Stage `train`: a model learns what patches of healthy retina look like."""

import argparse
import hashlib
from pathlib import Path

import numpy as np
import torch

from anogan.checkpoint import CHECKPOINT
from anogan.device import add_device_arguments, choose_dtype, prepare_device
from anogan.distributed import Workers, launched, relaunch, workers
from anogan.methods import load_method, trainable
from anogan.model import TrainedModel, check_preprocessing, load_model, save_model
from anogan.pictures import save_grid, shown_rows
from anogan.training import Context, Fitted, settings, write_history
from preprocessing import __version__
from preprocessing.errors import InputError
from preprocessing.patch_file import (
    MappedPatches,
    check_whole,
    common_preprocessing,
    heights_px,
    open_patches,
    read_index,
)

FINGERPRINT_PATCHES = 4096


def read_healthy(path: str, check: bool = True) -> tuple[MappedPatches, np.ndarray, dict, str]:
    """Return patches (n, size, size) left on the disk, heights, what to remember, a fingerprint.

    The heights (n,) are rows above BM. With `check`, the whole file is compared with its
    checksums, at about 1 GB a second. Raises InputError when it is damaged or a patch is not
    healthy.
    """
    with open_patches(path) as file:
        if check:
            check_whole(file)
        index = read_index(file)
        if index.empty:
            raise InputError(f"{path}: it holds no patches; look at what the stage qc has left out")
        if not (index["label"] == 0).all():
            raise InputError(
                f"{path}: it holds patches that are not healthy; train on healthy eyes"
            )
        facts = {
            "n_patches": len(index),
            "n_volumes": int(index["volume"].nunique()),
            "n_patients": int(index["patient"].nunique()),
            "preprocessing": common_preprocessing(file),
        }
        patches = MappedPatches(file)
        some = np.linspace(0, len(patches) - 1, FINGERPRINT_PATCHES).astype(int)
        content = file["index"][:].tobytes() + patches[some].tobytes()
        height_px = heights_px(file, index)
    return patches, height_px, facts, hashlib.sha256(content).hexdigest()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    models = parser.add_subparsers(dest="model", metavar="MODEL", required=True)
    for name, module in trainable().items():
        title = module.__doc__.splitlines()[0]
        of_model = models.add_parser(
            name,
            help=title,
            description=title,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        of_model.add_argument("--patches", required=True, help="HDF5 of healthy training patches")
        if needed := getattr(module, "NEEDS", None):
            of_model.add_argument(
                f"--{needed}",
                dest="needed",
                required=True,
                metavar="FOLDER",
                help=f"of the model {needed} to learn from",
            )
        of_model.add_argument("--output", required=True, help="folder of the model")
        of_model.add_argument(
            "--training-folder",
            help="for checkpoints and samples meanwhile; None is OUTPUT.training",
        )
        of_model.add_argument("--checkpoint-s", type=float, default=300, help="seconds in between")
        of_model.add_argument(
            "--memory-mb", type=int, default=0, help="for the patches; 0: half of what is free"
        )
        of_model.add_argument("--seed", type=int, default=1)
        module.add_train_arguments(of_model)
        add_device_arguments(of_model)
        of_model.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback"
        )


def command(args: argparse.Namespace) -> str:
    """Train a model and write it with its history and pictures."""
    if not getattr(load_method(args.model), "USES_GPU", True):
        args.gpus = 0
    device = prepare_device(args)
    if args.gpus > 1 and not launched():
        relaunch(args.gpus)
    with workers(device) as (place, device):
        return _train(args, place, device)


def _train(args: argparse.Namespace, place: Workers, device: torch.device) -> str:
    patches, height_px, facts, fingerprint = read_healthy(args.patches, place.is_first)
    needed = _needed(args, patches.shape[-1], facts, device)
    output = Path(args.output)
    context = Context(
        device=device,
        dtype=choose_dtype(args.precision, device),
        seed=args.seed,
        folder=Path(args.training_folder or f"{output}.training"),
        data=fingerprint,
        workers=place,
        memory_mb=args.memory_mb,
        checkpoint_s=args.checkpoint_s,
        height_px=height_px,
        needed=needed,
    )
    fitted = load_method(args.model).fit(patches, args, context)
    if not place.is_first:
        return ""
    description = {
        "model": args.model,
        "architecture": fitted.architecture,
        "training": settings(args) | {"dtype": str(context.dtype).removeprefix("torch.")},
        "data": facts,
        "learned_from": {needed.name: needed.digest} if needed else {},
        "seed": args.seed,
        "versions": {
            "oct-anogan": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }
    _write(output, patches, fitted, description)
    (context.folder / CHECKPOINT).unlink(missing_ok=True)
    last = ", ".join(f"{name} {value:.4g}" for name, value in fitted.history[-1].items())
    return f"{args.model} on {len(patches)} patches: {last}"


def _needed(
    args: argparse.Namespace, size: int, facts: dict, device: torch.device
) -> TrainedModel | None:
    """Return the model to learn from, None where patches are all that is needed.

    Raises InputError when it is another one or has learned other patches.
    """
    wanted = getattr(load_method(args.model), "NEEDS", None)
    if wanted is None:
        return None
    found = load_model(args.needed, device)
    if found.name != wanted:
        raise InputError(
            f"{args.needed}: holds the model {found.name}, but {args.model} learns from {wanted}; "
            f"give the folder of that model"
        )
    check_preprocessing(args.patches, size, facts["preprocessing"], found)
    return found


def _write(output: Path, patches: MappedPatches, fitted: Fitted, description: dict) -> None:
    save_grid(fitted.shown[:, 0], output / "samples.png")
    save_grid(patches[shown_rows(len(patches))], output / "real.png")
    write_history(fitted.history, output / "history.tsv")
    save_model(output, fitted.weights, description)
