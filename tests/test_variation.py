"""How healthy patches are varied before anything is learned from them."""

import math

import pytest
import torch

from anogan.variation import NOISE, STRETCH, noisy, relit, stretched


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def healthy():
    return torch.rand(64, 1, 64, 64, generator=seeded(1)) * 2 - 1


@pytest.mark.parametrize("vary", [stretched, relit, noisy])
def test_each_patch_varies_by_itself_as_the_seed_says(healthy, vary):
    varied = vary(healthy, seeded(3))
    assert varied.shape == healthy.shape and varied.abs().max() <= 1
    assert torch.equal(varied, vary(healthy, seeded(3)))
    assert not torch.equal(varied, vary(healthy, seeded(4)))
    assert (varied != healthy).flatten(1).any(1).all()
    others = torch.cat([healthy[:5], -healthy[5:]])
    assert torch.equal(vary(others, seeded(3))[:5], varied[:5])


@pytest.mark.parametrize("size", [32, 128])
def test_patches_of_other_sizes_vary_too(size):
    x = torch.rand(3, 1, size, size, generator=seeded(1)) * 2 - 1
    for vary in (stretched, relit, noisy):
        assert vary(x, seeded(2)).shape == x.shape


@pytest.mark.parametrize("axis", [2, 3])
def test_layers_get_thicker_or_thinner_and_stay_straight(axis):
    layer = torch.full((200, 1, 64, 64), -1.0)
    layer.narrow(axis, 24, 16).fill_(1)
    varied = stretched(layer, seeded(2))
    across = varied.diff(dim=5 - axis).abs().max()
    assert across < 1e-4
    thickness = ((varied + 1) / 2).sum(axis).mean((1, 2)) / 16
    largest = math.exp(STRETCH[axis - 2])
    assert 0.8 * largest < thickness.max() <= 1.03 * largest
    assert 0.97 / largest <= thickness.min() < 1.2 / largest
    middle = (varied.narrow(axis, 30, 4) > 0.99).flatten(1).all(1)
    assert middle.all()  # it is where it was


def test_light_varies_and_keeps_the_order_of_gray_values(healthy):
    lit = relit(healthy, seeded(3))
    order = healthy.flatten(1).argsort(dim=1)
    assert (lit.flatten(1).gather(1, order).diff(dim=1) >= 0).all()
    assert lit.mean((1, 2, 3)).std() > 5 * healthy.mean((1, 2, 3)).std()


def test_speckle_grows_and_shrinks(healthy):
    ratio = (noisy(0.3 * healthy, seeded(3)) / 0.3).flatten(1).std(1) / healthy.flatten(1).std(1)
    assert ratio.min() < 0.8 and ratio.max() > 1.2


def test_noise_comes_where_there_was_none_and_is_correlated_along_z():
    noise = noisy(torch.zeros(256, 1, 64, 64), seeded(3))
    spread = noise.flatten(1).std(1)
    assert spread.min() < 0.1 * NOISE and 0.8 * NOISE < spread.max() < 1.1 * NOISE
    scaled = noise / spread[:, None, None, None]
    along_z = [(scaled[:, :, lag:] * scaled[:, :, : 64 - lag]).mean().item() for lag in (1, 2, 3)]
    assert along_z == pytest.approx([2 / 3, 1 / 6, 0], abs=0.02)
    assert (scaled[..., 1:] * scaled[..., :-1]).mean().abs() < 0.02
