"""Training patches in shuffled batches that follow from the seed and the step alone.

An epoch's order is drawn block by block: the file's blocks are dealt into groups at random, and the
patches of a group are shuffled among themselves. So a file too large for the memory can be read a
group at a time, in the same order as one that fits; and a training that is taken up again at some
step sees the batches that it would have seen.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from anogan.memory import MB, free_memory
from preprocessing.patch_file import MappedPatches
from preprocessing.seeds import derive_seed

BLOCK_BYTES = 2**20
GROUP_BYTES = 2**28
SHARE_OF_FREE_MEMORY = 0.5


def epoch_order(n: int, block: int, group: int, seed: int, epoch: int) -> np.ndarray:
    """Return the rows 0 to n - 1 in the order of an epoch (counted from 0).

    `block` neighbouring rows stay in one group of `group` rows.
    """
    rng = np.random.default_rng(derive_seed(seed, "order", epoch))
    starts = rng.permutation(-(-n // block)) * block
    rows = (starts[:, None] + np.arange(block)).ravel()
    rows = rows[rows < n]
    for start in range(0, n, group):
        rng.shuffle(rows[start : start + group])
    return rows


class ShuffledPatches:
    """Batches of `patches` (n, size, size), as (batch, 1, size, size) float32 on `device`.

    All patches are read into the device's memory, in their own compact type, when they take less
    than half of what is free there and of `memory_mb` (0: no limit), shared among `readers`
    processes, and leave `reserved` bytes; else, or where `keep` is false, two groups at a time.
    `flip` mirrors half of the patches along x.
    """

    def __init__(
        self,
        patches: np.ndarray | MappedPatches,
        batch: int,
        seed: int,
        device: torch.device,
        flip: bool = False,
        memory_mb: int = 0,
        readers: int = 1,
        keep: bool = True,
        reserved: float = 0,
    ) -> None:
        self.patches, self.batch, self.seed = patches, min(batch, len(patches)), seed
        self.device, self.flip = device, flip
        of_one = int(np.prod(patches.shape[1:])) * patches.dtype.itemsize
        self._block = max(1, BLOCK_BYTES // of_one)
        self._group = self._block * (GROUP_BYTES // BLOCK_BYTES)
        limit = free_memory(device)
        if memory_mb:
            limit = min(limit, memory_mb * MB)
        needed = of_one * len(patches) * readers
        self.resident = keep and needed < min(SHARE_OF_FREE_MEMORY * limit, limit - reserved)
        self._all = torch.from_numpy(patches[:]).to(device) if self.resident else None
        self._reader = ThreadPoolExecutor(1)
        self._orders: dict[int, np.ndarray] = {}
        self._groups: dict[tuple[int, int], Future] = {}

    def __len__(self) -> int:
        return len(self.patches)

    def at(self, step: int) -> Tensor:
        """Return the batch of a step, counted from 1; steps are asked for in rising order."""
        first = (step - 1) * self.batch
        parts = []
        while first < step * self.batch:
            epoch, place = divmod(first, len(self))
            count = min(step * self.batch - first, len(self) - place)
            if not self.resident:
                count = min(count, self._group - place % self._group)
            parts.append(self._take(epoch, place, count))
            first += count
        gray = torch.cat(parts).float().unsqueeze(1)
        if self.flip:
            rng = np.random.default_rng(derive_seed(self.seed, "flip", step))
            mirrored = torch.from_numpy(rng.random(self.batch) < 0.5).to(self.device)
            gray = torch.where(mirrored[:, None, None, None], gray.flip(-1), gray)
        return gray.contiguous(memory_format=torch.channels_last)

    def _take(self, epoch: int, place: int, count: int) -> Tensor:
        """Return the patches at `count` places of an epoch's order, all within one group."""
        if self.resident:
            rows = torch.from_numpy(self._order(epoch)[place : place + count])
            return self._all[rows.to(self.device)]
        number, within = divmod(place, self._group)
        self._groups = {k: v for k, v in self._groups.items() if k >= (epoch, number)}
        group = self._load(epoch, number).result()
        following = (epoch, number + 1)
        if (number + 1) * self._group >= len(self):
            following = (epoch + 1, 0)
        self._load(*following)  # is read while this group is learned from
        return group[within : within + count].to(self.device)

    def _load(self, epoch: int, number: int) -> Future:
        key = epoch, number
        if key not in self._groups:
            rows = self._order(epoch)[number * self._group : (number + 1) * self._group]
            self._groups[key] = self._reader.submit(self._read, rows)
        return self._groups[key]

    def _read(self, rows: np.ndarray) -> Tensor:
        """Return the patches `rows`, read in the order of the file."""
        order = np.argsort(rows)
        gray = np.empty((len(rows), *self.patches.shape[1:]), self.patches.dtype)
        for part in np.array_split(order, max(1, len(rows) // self._block)):
            gray[part] = self.patches[rows[part]]
        return torch.from_numpy(gray)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {k: v for k, v in self._orders.items() if k >= epoch - 1}
            self._orders[epoch] = epoch_order(len(self), self._block, self._group, self.seed, epoch)
        return self._orders[epoch]
