"""How good generated patches are, measured without downloaded weights."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, leaky_relu, pdist

FEATURE_SEED = 20180104  # of the feature network alone, so that every training is measured alike
FEATURE_WIDTHS = (8, 16, 32, 64)
FEATURE_LEAK = 0.2
KERNEL_DEGREE = 3
LEAST_STD = 0.1  # of the features' mean one; in OCT the steadiest feature has about 0.2


def diversity(generated: Tensor, real: Tensor) -> float:
    """Return how much generated patches differ among themselves, as a fraction of real ones.

    It is the mean L1 distance over all pairs of `generated` (n, 1, h, w) or (n, h, w) divided by
    that of `real`: 1 is as diverse as real, near 0 is mode collapse. Both need two patches or more.
    """
    return float(_mean_distance(generated) / _mean_distance(real))


def _mean_distance(patches: Tensor) -> Tensor:
    return pdist(patches.detach().float().flatten(1), p=1).mean()


class KernelDistance:
    """Kernel distance (KID) of generated patches to `real` (n, 1, h, w), which are not all alike.

    KID is the unbiased MMD^2 with a cubic kernel (Binkowski et al. 2018, arXiv 1801.01401). For
    want of an Inception network that knows OCT, the features are those of a fixed random network,
    for patches of 32 pixels or more, each standardised by the real patches' mean and spread (a
    spread near 0 counts as a small one, else it would outweigh all other features). Other real
    patches are about 0 away, often a little below. Values compare only between
    generated patches that were held against the same real ones.
    """

    def __init__(self, real: Tensor) -> None:
        self._weights = _random_weights(real.device)
        features = _features(real, self._weights)
        spread = features.std(0)
        self._mean, self._std = features.mean(0), spread.clamp_min(LEAST_STD * spread.mean())
        self._real = self._standardise(features)
        self._within_real = _mean_over_pairs(_kernel(self._real, self._real))

    @torch.no_grad()
    def __call__(self, generated: Tensor) -> float:
        """Return the distance of two or more generated patches (n, 1, h, w)."""
        features = self._standardise(_features(generated, self._weights))
        within = _mean_over_pairs(_kernel(features, features))
        across = _kernel(features, self._real).mean()
        return float(within + self._within_real - 2 * across)

    def _standardise(self, features: Tensor) -> Tensor:
        return (features - self._mean) / self._std


def _random_weights(device: torch.device) -> list[Tensor]:
    """Return kernels of 5x5 convolutions, drawn as He et al. (2015, arXiv 1502.01852) do.

    The first ones have no mean: else all features follow the brightness, and fine texture is lost.
    """
    randomness = torch.Generator().manual_seed(FEATURE_SEED)
    weights = []
    for inputs, outputs in zip((1, *FEATURE_WIDTHS), FEATURE_WIDTHS, strict=False):
        scale = (2 / ((1 + FEATURE_LEAK**2) * inputs * 25)) ** 0.5
        drawn = torch.randn(outputs, inputs, 5, 5, generator=randomness) * scale
        weights.append(drawn.to(device))
    weights[0] -= weights[0].mean((2, 3), keepdim=True)
    return weights


@torch.no_grad()
def _features(patches: Tensor, weights: list[Tensor]) -> Tensor:
    """Return mean and standard deviation of the pixels and of every channel, (n, d) in float64."""
    layers = [patches.float()]
    for weight in weights:
        layers.append(leaky_relu(conv2d(layers[-1], weight, stride=2, padding=2), FEATURE_LEAK))
    return torch.cat([f((2, 3)) for x in layers for f in (x.mean, x.std)], 1).double()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** KERNEL_DEGREE


def _mean_over_pairs(kernel: Tensor) -> Tensor:
    n = len(kernel)
    return (kernel.sum() - kernel.trace()) / (n * (n - 1))
