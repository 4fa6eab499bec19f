"""Every patch once an epoch, in an order that follows from the seed and the step alone."""

import numpy as np
import pytest
import torch

from anogan import batches
from anogan.batches import ShuffledPatches, epoch_order

CPU = torch.device("cpu")


def numbered(n: int, size: int = 4) -> np.ndarray:
    """Patches (n, size, size) that hold their own number."""
    return np.broadcast_to(np.arange(n, dtype=np.float16)[:, None, None], (n, size, size)).copy()


def numbers(batch: torch.Tensor) -> list[int]:
    return batch.amax((1, 2, 3)).round().int().tolist()


@pytest.fixture
def small_groups(monkeypatch):
    """Blocks of 4 patches of 4 x 4 float16, groups of 12, so that 50 patches are many groups."""
    monkeypatch.setattr(batches, "BLOCK_BYTES", 4 * 32)
    monkeypatch.setattr(batches, "GROUP_BYTES", 12 * 32)


@pytest.mark.parametrize(
    ("n", "block", "group"), [(50, 4, 12), (50, 4, 100), (7, 8, 16), (1, 1, 1)]
)
def test_an_epoch_holds_every_row_once(n, block, group):
    order = epoch_order(n, block, group, seed=1, epoch=0)
    assert sorted(order) == list(range(n))
    if n > 1:
        assert not np.array_equal(order, epoch_order(n, block, group, 1, 1))
        assert not np.array_equal(order, epoch_order(n, block, group, 2, 0))


def test_a_group_is_made_of_blocks_from_all_over_the_file():
    order = epoch_order(100_000, 100, 10_000, seed=1, epoch=0)
    group = order[10_000:20_000]
    assert len(np.unique(group // 100)) <= 101  # few places to read from
    assert np.histogram(group, 10, (0, 100_000))[0].min() > 0  # and yet from everywhere
    assert np.corrcoef(group[1:], group[:-1])[0, 1] < 0.05  # in no order


def test_batches_go_on_from_one_epoch_to_the_next(small_groups):
    patches = ShuffledPatches(numbered(50), 8, seed=1, device=CPU)
    seen = [n for step in range(1, 26) for n in numbers(patches.at(step))]
    for epoch in range(4):
        assert sorted(seen[50 * epoch : 50 * (epoch + 1)]) == list(range(50))


def test_streamed_batches_are_those_from_memory(small_groups, monkeypatch):
    patches = numbered(50)
    resident = ShuffledPatches(patches, 8, seed=3, device=CPU, flip=True)
    monkeypatch.setattr(batches, "SHARE_OF_FREE_MEMORY", 0)
    streamed = ShuffledPatches(patches, 8, seed=3, device=CPU, flip=True)
    assert resident.resident
    assert not streamed.resident
    for step in range(1, 20):
        assert torch.equal(resident.at(step), streamed.at(step))


def test_a_limit_of_memory_makes_it_stream():
    patches = numbered(20_000, size=8)  # 2.4 MB
    assert not ShuffledPatches(patches, 8, 1, CPU, memory_mb=2).resident
    assert ShuffledPatches(patches, 8, 1, CPU, memory_mb=20).resident


def test_streaming_holds_two_groups(small_groups, monkeypatch):
    monkeypatch.setattr(batches, "SHARE_OF_FREE_MEMORY", 0)
    patches = ShuffledPatches(numbered(200), 8, seed=3, device=CPU)
    for step in range(1, 80):
        patches.at(step)
        assert len(patches._groups) <= 2
        assert len(patches._orders) <= 3


def test_the_batch_of_a_step_needs_no_step_before(small_groups):
    first = ShuffledPatches(numbered(50), 8, seed=5, device=CPU)
    earlier = [first.at(step) for step in range(1, 15)]
    late = ShuffledPatches(numbered(50), 8, seed=5, device=CPU)
    assert torch.equal(late.at(13), earlier[12])


def test_a_flip_mirrors_half_of_the_patches_along_x(rng):
    patches = rng.uniform(-1, 1, (400, 4, 4)).astype(np.float16)
    plain = ShuffledPatches(patches, 400, seed=1, device=CPU).at(1)
    flipped = ShuffledPatches(patches, 400, seed=1, device=CPU, flip=True).at(1)
    same = (plain == flipped).flatten(1).all(1)
    assert 150 < int(same.sum()) < 250
    assert torch.equal(flipped[~same], plain[~same].flip(-1))


def test_fewer_patches_than_a_batch():
    assert ShuffledPatches(numbered(5), 64, 1, CPU).at(1).shape == (5, 1, 4, 4)
