import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from anogan.sample_quality import KernelDistance, diversity
from preprocessing.phantom import make_phantom

N = 128


def cut(size: int, n: int) -> torch.Tensor:
    """Patches (n, 1, size, size) in [-1, 1] from random places of a healthy phantom."""
    volume, layers = make_phantom("healthy", 0, False, (8, 400, 320))
    rng = np.random.default_rng(0)
    patches = []
    for b, x in zip(rng.integers(8, size=n), rng.integers(320 - size, size=n), strict=True):
        z = int(layers["bm"][b, x]) - rng.integers(size // 2, size)
        patches.append(volume.data[b, z : z + size, x : x + size])
    return torch.from_numpy(np.stack(patches)).float().unsqueeze(1) * 2 - 1


@pytest.fixture(scope="module")
def patches() -> torch.Tensor:
    return cut(64, 4 * N)


@pytest.fixture(scope="module")
def real(patches) -> torch.Tensor:
    return patches[:N]


@pytest.fixture(scope="module")
def other(patches) -> torch.Tensor:
    return patches[N : 2 * N]


@pytest.fixture(scope="module")
def distance(real) -> KernelDistance:
    return KernelDistance(real)


@pytest.fixture(scope="module")
def spread(patches) -> float:
    """Standard deviation of the distance between two random halves of real patches."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(20):
        first, second = torch.from_numpy(rng.permutation(len(patches))[: 2 * N]).split(N)
        found.append(KernelDistance(patches[first])(patches[second]))
    assert abs(np.mean(found)) < np.std(found)
    return float(np.std(found))


def blurred(patches: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.from_numpy(gaussian_filter(patches.numpy(), (0, 0, sigma, sigma)))


def noisy(patches: torch.Tensor, amplitude: float) -> torch.Tensor:
    noise = torch.randn(patches.shape, generator=torch.Generator().manual_seed(0))
    return patches + amplitude * noise


def few(patches: torch.Tensor, distinct: int) -> torch.Tensor:
    return patches[:distinct].repeat(len(patches) // distinct, 1, 1, 1)


def test_real_patches_are_no_distance_from_other_real_ones(distance, other, spread):
    assert abs(distance(other)) < 5 * spread


@pytest.mark.parametrize(
    ("worsen", "degrees"),
    [(noisy, (0.1, 0.2, 0.4)), (blurred, (0.7, 1, 2)), (few, (16, 4, 1))],
)
def test_the_distance_grows_as_patches_get_worse(distance, other, spread, worsen, degrees):
    found = [distance(worsen(other, degree)) for degree in degrees]
    assert found[0] > 5 * spread
    assert found == sorted(found)


def test_the_distance_sees_what_is_where(distance, other, spread):
    assert distance(torch.flip(other, (2,))) > 5 * spread


@pytest.mark.parametrize("size", [32, 128])
def test_other_sizes_are_measured_as_well(size):
    patches = cut(size, 2 * N)
    distance = KernelDistance(patches[:N])
    fine, coarse = distance(patches[N:]), distance(blurred(patches[N:], 2))
    assert abs(fine) < 0.5 < coarse


def test_what_all_real_patches_share_does_not_outweigh_the_rest(real, other):
    """Real patches of one brightness and contrast, up to rounding."""

    def alike(patches):
        mean, std = patches.mean((1, 2, 3), keepdim=True), patches.std((1, 2, 3), keepdim=True)
        return 0.2 * (patches - mean) / std

    distance, worse = KernelDistance(alike(real)), alike(blurred(other, 2))
    assert abs(distance(alike(other))) < 0.1
    for slightly_off in (alike(other) + 0.02, 1.05 * alike(other), noisy(alike(other), 0.05)):
        assert 1 < distance(slightly_off) < distance(worse)


def test_order_repetition_and_the_global_seed_change_nothing(real, other, distance):
    first = distance(other)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert distance(other) == first
    assert KernelDistance(real)(other) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert distance(other.flip(0)) == pytest.approx(first, abs=1e-4)
    assert KernelDistance(real.flip(0))(other) == pytest.approx(first, abs=1e-4)


def test_diversity_is_the_share_of_the_real_distance(real, other):
    assert diversity(real, real) == 1
    assert diversity(0.5 * real, real) == pytest.approx(0.5)
    assert diversity(other[:, 0], real) == pytest.approx(1, abs=0.15)
    assert diversity(other.flip(0), real) == pytest.approx(diversity(other, real))


def test_diversity_of_collapsed_patches_is_near_zero(real, other):
    one = few(other, 1)
    assert diversity(one, real) == 0
    assert diversity(noisy(one, 0.01), real) < 0.1


def test_diversity_counts_every_pair():
    generated, real = torch.zeros(3, 2, 2), torch.zeros(2, 2, 2)
    generated[2], real[1] = 3, 1
    assert diversity(generated, real) == pytest.approx((0 + 12 + 12) / 3 / 4)
