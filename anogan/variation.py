"""How healthy patches vary from eye to eye: thickness of layers, light, speckle.

What learns from few eyes takes what these happen to share for what is healthy. So patches are
stretched, relit and made more or less noisy, each by itself. Every function takes patches x
(n, 1, h, w) in [-1, 1] and a source of randomness, and returns new ones.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

STRETCH = 0.15, 0.2  # along z and x: a factor of exp(-+ STRETCH)
CONTRAST, GAIN = 0.3, 0.09  # a power of exp(-+ CONTRAST), a factor of 1 -+ GAIN
SPECKLE, TISSUE_PX = 0.4, 5  # what differs from the mean of 5 x 5 pixels, times 1 -+ SPECKLE
NOISE = 0.15  # standard deviation of what is added, at most


def stretched(x: Tensor, draw: torch.Generator) -> Tensor:
    """Return patches whose layers are thicker or thinner; beyond the border they are mirrored."""
    along_z, along_x = _evenly(draw, len(x), 2) * torch.tensor([STRETCH]).T
    transform = torch.zeros(len(x), 2, 3)
    transform[:, 0, 0], transform[:, 1, 1] = along_x.exp(), along_z.exp()
    grid = affine_grid(transform, list(x.shape), align_corners=False).to(x.device)
    return grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def relit(x: Tensor, draw: torch.Generator) -> Tensor:
    """Return patches with another contrast and brightness each."""
    gamma, gain = _evenly(draw, len(x), 2)[..., None, None, None].to(x.device)
    bent = ((x + 1) / 2).clamp(0, 1) ** torch.exp(CONTRAST * gamma)
    return ((bent * 2 - 1) * (1 + GAIN * gain)).clamp(-1, 1)


def noisy(x: Tensor, draw: torch.Generator) -> Tensor:
    """Return patches with more or less speckle, and some noise also where there was none.

    The noise is correlated along z as speckle is, 0.67 and 0.17 from row to row.
    """
    n, channels, height, width = x.shape
    speckle, share = _evenly(draw, n, 2)[..., None, None, None].to(x.device)
    white = torch.randn(n, channels, height + 2, width, generator=draw).to(x.device)
    noise = (white[:, :, :-2] + 2 * white[:, :, 1:-1] + white[:, :, 2:]) / math.sqrt(6)
    # without its one channel, whose layout in memory makes pooling slow
    tissue = avg_pool2d(x[:, 0], TISSUE_PX, 1, TISSUE_PX // 2, count_include_pad=False)[:, None]
    varied = tissue + (1 + SPECKLE * speckle) * (x - tissue) + NOISE * share.square() * noise
    return varied.clamp(-1, 1)


def _evenly(draw: torch.Generator, n: int, rows: int) -> Tensor:
    """Return (rows, n) uniform in [-1, 1]."""
    return torch.rand(rows, n, generator=draw) * 2 - 1
