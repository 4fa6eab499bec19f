"""Data-parallel training: every process takes its share of each batch.

The processes see the batch that one process would see: batch norm runs over all of it and gradients
are averaged, so the number of processes changes nothing but the last bits.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


@dataclass(frozen=True)
class Workers:
    """This process's number and how many there are."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Tell whether this process writes the files and speaks for all."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """Return which of the n rows of a batch are this process's."""
        part = n // self.world
        return slice(self.rank * part, (self.rank + 1) * part)

    def average(self, values: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over all processes."""
        if self.world == 1:
            return
        for value in values:
            dist.all_reduce(value)
            value.div_(self.world)

    def wait(self) -> None:
        """Return when all processes have come this far."""
        if self.world > 1:
            dist.barrier()

    def agree(self, decision: bool, device: torch.device) -> bool:
        """Return what the first process has decided."""
        if self.world == 1:
            return decision
        value = torch.tensor(float(decision), device=device)
        dist.broadcast(value, 0)
        return bool(value)

    def average_gradients(self, network: nn.Module) -> None:
        """Replace the gradients of a network by their means over all processes."""
        self.average(p.grad for p in network.parameters() if p.grad is not None)

    def join(self, network: nn.Module) -> None:
        """Let the batch norm of a network, in place, run over the batches of all processes."""
        if self.world == 1:
            return
        for parent in list(network.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(parent, name, _JoinedBatchNorm.replace(child))


class _JoinedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes; PyTorch's own refuses to work on a CPU."""

    @classmethod
    def replace(cls, norm: nn.BatchNorm2d) -> "_JoinedBatchNorm":
        joined = cls(norm.num_features, norm.eps, norm.momentum).to(norm.weight.device)
        joined.load_state_dict(norm.state_dict())
        return joined.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        world = dist.get_world_size()
        wide = x.float()
        mean = all_reduce(wide.mean((0, 2, 3))) / world
        centred = wide - mean[:, None, None]
        variance = all_reduce(centred.square().mean((0, 2, 3))) / world
        n = world * x.numel() / x.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def launched() -> bool:
    """Tell whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def relaunch(processes: int) -> NoReturn:
    """Become torchrun, which runs this very command as several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", "-m", "anogan", *sys.argv[1:]]
    os.execv(sys.executable, command)  # so that what ends this process ends them as well


@contextmanager
def workers(device: torch.device) -> Iterator[tuple[Workers, torch.device]]:
    """Join the other processes of this run, if any; yield this one's place and its own device."""
    if not launched():
        yield Workers(), device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Workers(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
