"""The training loop of every network: batches in, steps, what is seen while it runs, checkpoints.

What a step does is the business of the `Trainee`, a GAN or an autoencoder. Everything random in a
step follows from the seed and the step's number, so a run taken up from a checkpoint ends where an
uninterrupted one would.
"""

import argparse
import hashlib
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from anogan.batches import ShuffledPatches
from anogan.checkpoint import CHECKPOINT, load_checkpoint, read_notes, save_checkpoint
from anogan.device import WorkCounter, peak_flops
from anogan.distributed import Workers
from anogan.memory import check_training
from anogan.model import Architecture, TrainedModel
from anogan.pictures import PER_SIDE, save_grid
from anogan.progress import progress
from preprocessing.errors import InputError
from preprocessing.files import atomic_path
from preprocessing.patch_file import MappedPatches
from preprocessing.say import say
from preprocessing.seeds import derive_seed

HISTORY_ROWS = 200
LONGEST_ROW = 100  # steps
SAMPLE_GRIDS = 20
LEARNING_MODULES = (
    *("autoencoder", "batches", "convolutions", "distributed", "losses", "networks", "training"),
    "variation",
    *("methods/acae", "methods/encoder", "methods/gan", "methods/restorer"),
)
NOT_LEARNED = (  # options that do not decide what is learned
    *("model", "seed", "debug", "patches", "output", "training_folder", "checkpoint_s"),
    *("memory_mb", "threads", "gpus", "precision", "needed"),
)


@dataclass(frozen=True)
class Context:
    """Where and how a model is trained: device, type to compute in, seed, folder, processes.

    `data` is a fingerprint of the training patches, `height_px` (n,) how many rows their top rows
    lie above BM, `needed` the model to learn from, if any.
    """

    device: torch.device
    dtype: torch.dtype
    seed: int
    folder: Path
    data: str = ""
    workers: Workers = field(default_factory=Workers)
    memory_mb: int = 0
    checkpoint_s: float = 300
    height_px: np.ndarray | None = None
    needed: TrainedModel | None = None

    def autocast(self) -> AbstractContextManager:
        """Return the context in which networks compute in `dtype`."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def generator(self, *labels: str | int) -> torch.Generator:
        """Return a source of randomness that follows from the seed and the labels."""
        return torch.Generator().manual_seed(derive_seed(self.seed, *labels))

    def say(self, text: str) -> None:
        """Write a line to the log, once for all processes."""
        if self.workers.is_first:
            say(text, sys.stderr)


@dataclass(frozen=True)
class Fitted:
    """A trained model before it is written: what `anogan.model` stores, and what there is to see.

    `shown` are patches (k, 1, h, w) for samples.png.
    """

    weights: dict[str, Tensor]
    architecture: dict
    history: list[dict]
    shown: Tensor


def settings(args: argparse.Namespace) -> dict:
    """Return the options that decide what is learned, as JSON can hold them."""
    return {key: value for key, value in vars(args).items() if key not in NOT_LEARNED}


def add_loop_arguments(parser: argparse.ArgumentParser, epochs: float) -> None:
    """Declare the options of the training of networks that choose their own sizes."""
    parser.add_argument(
        "--channels", type=int, nargs="+", default=[512, 256, 128, 64], help="coarse to fine"
    )
    parser.add_argument("--latent", type=int, default=100, help="size of z")
    add_descent_arguments(parser, epochs)


def add_descent_arguments(parser: argparse.ArgumentParser, epochs: float) -> None:
    """Declare the options of every network's training."""
    parser.add_argument("--epochs", type=float, default=epochs)
    parser.add_argument(
        "--batch-size", type=int, default=64, help="shared among the GPUs where there are several"
    )
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="of Adam")
    parser.add_argument("--beta1", type=float, default=0.5, help="of Adam")
    parser.add_argument("--beta2", type=float, default=0.999, help="of Adam")
    parser.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="mirror half of the patches",
    )


class Trainee:
    """Networks while they are trained: what the loop calls, for a model to fill in.

    `ends_early` tells whether fewer epochs only end the same training earlier.
    """

    ends_early = True

    def __init__(self, patches: MappedPatches, args: argparse.Namespace, context: Context) -> None:
        self.args, self.context = args, context
        self.architecture = self.sizes(patches.shape[-1])
        self.needed_bytes = check_training(args, self.architecture, patches, context)
        self.networks: dict[str, nn.Module] = {}
        self.optimisers: dict[str, torch.optim.Optimizer] = {}

    def sizes(self, patch_size: int) -> Architecture:
        """Return the sizes of the networks, for patches of `patch_size` pixels."""
        return Architecture(tuple(self.args.channels), self.args.latent, patch_size)

    def new(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """Return a network in training mode, its weights drawn from the seed and its name."""
        torch.manual_seed(derive_seed(self.context.seed, "weights", name))
        network = make().to(self.context.device, memory_format=torch.channels_last).train()
        self.context.workers.join(network)
        self.networks[name] = network
        self.optimisers[name] = torch.optim.Adam(
            network.parameters(),
            self.args.learning_rate,
            betas=(self.args.beta1, self.args.beta2),
            fused=True,
        )
        return network

    def descend(self, name: str, loss: Tensor) -> None:
        """Move the weights of a network against the gradient of its loss."""
        self.optimisers[name].zero_grad(set_to_none=True)
        loss.backward()
        self.context.workers.average_gradients(self.networks[name])
        self.optimisers[name].step()

    def identity(self) -> dict:
        """Return what a training must have in common with the checkpoint that it takes up."""
        files = (Path(__file__).parent / f"{name}.py" for name in LEARNING_MODULES)
        code = b"".join(file.read_bytes() for file in files)
        learned = {key: value for key, value in settings(self.args).items() if key != "epochs"}
        needed = self.context.needed
        learned |= {needed.name: needed.digest} if needed else {}
        return learned | {
            "code": hashlib.sha256(code).hexdigest(),
            "model": self.args.model,
            "seed": self.context.seed,
            "patches": self.context.data,
            "dtype": str(self.context.dtype),
            "torch": torch.__version__,
        }

    def step(self, real: Tensor, step: int, draw: torch.Generator) -> dict[str, Tensor]:
        """Learn from a batch real (n, 1, h, w), with no other randomness; return what to log."""
        raise NotImplementedError

    def show(self) -> Tensor:
        """Return patches (k, 1, h, w) to look at, of the same z or originals every time."""
        raise NotImplementedError

    def assess(self, shown: Tensor) -> dict[str, float]:
        """Return measures of the shown patches, by name."""
        return {}

    def trouble(self, history: list[dict], steps: int) -> str | None:
        """Return in a sentence why the training has failed, if the history (rows) shows that."""
        raise NotImplementedError

    def is_well(self, history: list[dict]) -> bool:
        """Tell whether the present state is worth going back to."""
        return True


def train(trainee: Trainee, patches: MappedPatches) -> list[dict]:
    """Train on healthy patches (n, size, size); return the history, a row per stretch of steps.

    Raises InputError when the training fails; its last good checkpoint stays in the folder.
    """
    args, context = trainee.args, trainee.context
    steps = planned_steps(args, len(patches))
    batches = _batches(trainee, patches)
    log_every = max(1, min(steps // HISTORY_ROWS, LONGEST_ROW))
    sample_every = log_every * max(1, steps // SAMPLE_GRIDS // log_every)
    checkpoint = context.folder / CHECKPOINT
    done, history = _take_up(trainee, checkpoint, steps)
    meter = _Meter(context, batches.batch)
    share = context.workers.share(batches.batch)
    saved_at = time.monotonic()

    for step in progress(range(done + 1, steps + 1), steps - done, "train"):
        with meter.counting():
            logged = trainee.step(batches.at(step)[share], step, context.generator("step", step))
        meter.add(logged)
        if step % log_every and step != steps:
            continue
        row = {"step": step, "epoch": step * batches.batch / len(patches), **meter.read()}
        history.append(row)
        due = time.monotonic() - saved_at > context.checkpoint_s
        due = context.workers.agree(due, context.device)
        reason = trainee.trouble(history, steps)
        if not reason and (due or step % sample_every == 0 or step == steps):
            reason = _look(trainee, row) or trainee.trouble(history, steps)
        _save_history(context, history)
        if reason:
            raise InputError(f"{reason}; {_last_good(trainee, checkpoint, batches)}")
        if due and trainee.is_well(history):
            notes = {"step": step, "history": history, "identity": trainee.identity()}
            if context.workers.is_first:
                save_checkpoint(checkpoint, trainee.networks, trainee.optimisers, notes)
            saved_at = time.monotonic()
    return history


def planned_steps(args: argparse.Namespace, n: int) -> int:
    """Return how many steps the options make of n patches; InputError when they make no sense."""
    possible = 0 < args.epochs < math.inf and args.learning_rate > 0
    possible = possible and 0 <= args.beta1 < 1 and 0 <= args.beta2 < 1
    if n < 2 or args.batch_size < 2 or not possible:
        raise InputError(
            f"{n} patches in batches of {args.batch_size} for {args.epochs} epochs at a "
            f"learning rate of {args.learning_rate}; there must be 2 patches, 2 in a batch, epochs "
            "and learning rate above 0, and beta1 and beta2 from 0 to below 1"
        )
    return max(1, round(args.epochs * n / min(args.batch_size, n)))


def _batches(trainee: Trainee, patches: MappedPatches) -> ShuffledPatches:
    """Return the training's batches; InputError when they cannot be shared out."""
    args, context = trainee.args, trainee.context
    world = context.workers.world
    batches = ShuffledPatches(
        patches,
        args.batch_size,
        context.seed,
        context.device,
        args.flip,
        context.memory_mb,
        readers=world,
        reserved=trainee.needed_bytes,
    )
    if batches.batch % world:
        raise InputError(f"batch_size is {batches.batch}, not a multiple of {world} GPUs")
    return batches


def _look(trainee: Trainee, row: dict) -> str | None:
    """Measure what the networks make, into the history's last row, and keep a picture of it.

    Returns what is wrong if their weights are broken, which the losses, being of the step before,
    do not show yet.
    """
    states = [value for net in trainee.networks.values() for value in net.state_dict().values()]
    if not all(bool(torch.isfinite(value).all()) for value in states):
        return (
            f"training diverged at step {row['step']} (weights are not finite); "
            f"lower {trainee.args.model}: learning_rate"
        )
    shown = trainee.show()
    row |= trainee.assess(shown)
    if trainee.context.workers.is_first:
        picture = trainee.context.folder / f"samples-{row['step']:08d}.png"
        save_grid(shown[: PER_SIDE**2, 0], picture)
    return None


def _take_up(trainee: Trainee, checkpoint: Path, steps: int) -> tuple[int, list[dict]]:
    """Return (steps done, history) of a checkpoint of this very training; (0, []) without one."""
    notes, context = read_notes(checkpoint), trainee.context
    context.workers.wait()  # until all have read it
    if notes is not None:
        ours, theirs = trainee.identity(), notes["identity"]
        differ = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
        if not differ and notes["step"] <= steps:
            load_checkpoint(checkpoint, trainee.networks, trainee.optimisers)
            context.say(f"train: going on from step {notes['step']} of {steps} ({checkpoint})")
            return notes["step"], notes["history"]
        why = f"differs in {', '.join(differ)}" if differ else f"is of step {notes['step']}"
        context.say(f"train: {checkpoint} is not of this run ({why}); training from the start,")
        context.say(f"train: it is kept as {_aside(checkpoint)}")
    if context.workers.is_first:
        if notes is not None:
            checkpoint.replace(_aside(checkpoint))
        for picture in context.folder.glob("samples-*.png"):
            picture.unlink()
    return 0, []


def _aside(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"other-{checkpoint.name}")


class _Meter:
    """Means of what the steps return, and how fast they go."""

    def __init__(self, context: Context, batch: int) -> None:
        self.context, self.batch = context, batch
        self.peak = context.workers.world * peak_flops(context.device, context.dtype)
        self.flops_per_step, self._counter = 0.0, WorkCounter()
        self._start()

    def counting(self) -> AbstractContextManager:
        """Return a context that counts the work of a step, for as long as it is not known."""
        return nullcontext() if self.flops_per_step else self._counter

    def add(self, values: dict[str, Tensor]) -> None:
        self.steps += 1
        for name, value in values.items():
            self.values[name].append(value)

    def read(self) -> dict[str, float]:
        """Return the means over all processes since the last reading, and start anew."""
        means = torch.stack([torch.stack(values).mean().float() for values in self.values.values()])
        self.context.workers.average([means])
        found = dict(zip(self.values, means.tolist(), strict=True))
        steps_per_s = self.steps / (time.monotonic() - self.started)
        if not self.flops_per_step:
            world = self.context.workers.world
            self.flops_per_step = world * self._counter.flops / self.steps
        found["patches_per_s"] = steps_per_s * self.batch
        found["peak_fraction"] = steps_per_s * self.flops_per_step / self.peak
        self._start()
        return found

    def _start(self) -> None:
        self.values, self.steps = defaultdict(list), 0
        self.started = time.monotonic()


def _save_history(context: Context, history: list[dict]) -> None:
    if context.workers.is_first:
        write_history(history, context.folder / "history.tsv")


def write_history(history: list[dict], path: Path) -> None:
    """Write the rows of a history as a table."""
    with atomic_path(path) as temporary:
        pd.DataFrame(history).to_csv(temporary, sep="\t", index=False, float_format="%.5g")


def _last_good(trainee: Trainee, checkpoint: Path, batches: ShuffledPatches) -> str:
    notes = read_notes(checkpoint)
    if notes is None:
        return "no checkpoint was written before"
    if not trainee.ends_early:
        return (
            f"{checkpoint} of step {notes['step']} cannot become the model, as the learning rate "
            "follows the number of epochs"
        )
    epochs = notes["step"] * batches.batch / len(batches)
    return (
        f"the last good checkpoint is {checkpoint}, step {notes['step']}; to keep the model as it "
        f"was then, train again with epochs {epochs:.8g}"
    )
