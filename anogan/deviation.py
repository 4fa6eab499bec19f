"""How unusual a residual is, given where it lies and what was expected there.

A sum over all pixels drowns a small lesion in speckle, and a residual that means nothing in a
bright layer means much in a dark one. So, per patch x and what it was rebuilt as, x^:

1. r_s = (x - x^) smoothed by a Gaussian, at each scale s: fine for foci, coarse for fluid;
2. d_s = (r_s - m_s) / sd_s, with the mean and the standard deviation that healthy patches have
   at that height above Bruch's membrane where x^ has that gray value: a table, learned once;
3. the mean of the largest |d_s| of the patch, a small share of its pixels; and, for what changes
   all of a patch a little, the root mean square of x - x^ as it is;
4. their logarithms, standardised by those of healthy patches: S_fine, S_coarse and S_whole; and
   S = log mean exp of the three, their soft maximum.

No sd_s is taken for smaller than half of the residual's own at that scale: the vitreous of some
eyes has no noise at all, and that of others would stand out from it.

The parts are in standard deviations of the healthy patches that the table was learned from; in
other eyes healthy patches lie a little higher. Where the height is not known, the table of all
heights together serves.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from anogan.model import TrainedModel
from preprocessing.errors import InputError


@dataclass(frozen=True)
class Scale:
    """How far residuals are smoothed (sigma in pixels), and the share that is looked at."""

    name: str
    z_px: float
    x_px: float
    share: float


SCALES = (Scale("fine", 1.0, 0.5, 0.0008), Scale("coarse", 4.0, 2.0, 0.05))
PARTS = (*(scale.name for scale in SCALES), "whole")  # of S
EXPECTED = Scale("expected", 1.0, 1.0, 1.0)  # x^ before its gray value is read
GRAYS = 12  # bins, of equal numbers of pixels
BIN_PX, LOWEST_PX, HEIGHTS = 6, -42, 36  # bins of heights; all heights together come after them
PRIOR_PX = 3000  # pixels of all heights that count in every bin, so that none is empty
LEAST_SD = 0.5  # of a bin, as a share of that of all pixels
LEAST_SPREAD = 1e-3  # of the logarithms, should all patches be alike
TINY = 1e-6  # of a residual; its logarithm is taken
BLOCK = 250  # patches in memory at a time while what is usual is learned


@cache
def _kernel(sigma: float) -> Tensor:
    reach = max(1, round(4 * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    return weights / weights.sum()


def smoothed(image: Tensor, scale: Scale) -> Tensor:
    """Return images (n, 1, h, w) smoothed by a Gaussian; beyond the border its pixels repeat."""
    along_z, along_x = (_kernel(sigma).to(image) for sigma in (scale.z_px, scale.x_px))
    z, x = len(along_z) // 2, len(along_x) // 2
    image = conv2d(pad(image, (0, 0, z, z), mode="replicate"), along_z.view(1, 1, -1, 1))
    return conv2d(pad(image, (x, x, 0, 0), mode="replicate"), along_x.view(1, 1, 1, -1))


def largest_mean(values: Tensor, share: float) -> Tensor:
    """Return (n,) the mean of the largest `share`, but one at least, of values (n, 1, h, w)."""
    flat = values.flatten(1)
    return flat.topk(max(1, round(share * flat.shape[1])), dim=1).values.mean(dim=1)


@dataclass(frozen=True)
class Usual:
    """What is usual in healthy patches.

    Attributes
    ----------
    edges : (GRAYS - 1,) gray values of x^ between the bins.
    mean, sd : (scales, (HEIGHTS + 1) * GRAYS) of the smoothed residual, by height, then gray value.
    centre, spread : (PARTS,) mean and standard deviation of the logarithms of step 4.
    """

    edges: Tensor
    mean: Tensor
    sd: Tensor
    centre: Tensor
    spread: Tensor

    def scores(self, x: Tensor, rebuilt: Tensor, height_px: Tensor) -> Tensor:
        """Return S and its `PARTS`, (n, 1 + PARTS), of patches x and as rebuilt (n, 1, h, w).

        `height_px` (n,) tells how many rows the top row of each lies above BM, NaN where unknown.
        """
        logs = _log_unusual(x, rebuilt, height_px, self.edges, self.mean, self.sd)
        unusual = (logs - self.centre) / self.spread
        soft_maximum = unusual.logsumexp(dim=1, keepdim=True) - math.log(len(PARTS))
        return torch.cat([soft_maximum, unusual], dim=1)

    def heat(self, x: Tensor, rebuilt: Tensor, height_px: Tensor) -> Tensor:
        """Return (n, 1, h, w) the mean over the scales of |d_s|, of patches as for `scores`."""
        parts = _deviations(x, rebuilt, height_px, self.edges, self.mean, self.sd)
        return torch.stack(list(parts)).mean(dim=0)


def learn_usual(x: Tensor, rebuilt: Tensor, height_px: Tensor) -> Usual:
    """Return what is usual in healthy patches x, rebuilt as (n, 1, h, w), `height_px` (n,)."""
    blocks = [*zip(*(part.split(BLOCK) for part in (x, rebuilt, height_px)), strict=True)]
    expected = np.concatenate([smoothed(part, EXPECTED).flatten() for _, part, _ in blocks])
    expected.sort()
    edges = torch.from_numpy(expected[np.arange(1, GRAYS) * len(expected) // GRAYS])
    sums = [[_sums(*block, scale, edges) for block in blocks] for scale in SCALES]
    mean, sd = (torch.stack(parts) for parts in zip(*map(_table, sums), strict=True))
    logs = torch.cat([_log_unusual(*block, edges, mean, sd) for block in blocks])
    return Usual(edges, mean, sd, logs.mean(dim=0), logs.std(dim=0).clamp(min=LEAST_SPREAD))


def _sums(x: Tensor, rebuilt: Tensor, height_px: Tensor, scale: Scale, edges: Tensor) -> Tensor:
    """Return the number, sum and sum of squares of smoothed residuals by place, (3, bins)."""
    place = _place(rebuilt, height_px, edges).flatten()
    r = smoothed(x - rebuilt, scale).flatten().double()
    bins = (HEIGHTS + 1) * GRAYS
    return torch.stack([torch.bincount(place, r**power, bins) for power in range(3)])


def _table(sums: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of residuals by place, (bins,), from their `_sums`."""
    by_place = torch.stack(sums).sum(dim=0).view(3, HEIGHTS + 1, GRAYS)
    everywhere = by_place.sum(dim=1, keepdim=True)
    count, total, squares = everywhere.sum(dim=2).flatten()
    least = (squares / count - (total / count).square()).clamp(min=0).sqrt()
    by_place = by_place + PRIOR_PX * everywhere / everywhere[0].clamp(min=1)
    by_place[:, -1:] = everywhere
    count, total, squares = by_place.flatten(1)
    mean = total / count.clamp(min=1)
    variance = (squares / count.clamp(min=1) - mean.square()).clamp(min=0)
    return mean.float(), variance.sqrt().clamp(min=max(LEAST_SD * least.item(), TINY)).float()


def _place(rebuilt: Tensor, height_px: Tensor, edges: Tensor) -> Tensor:
    """Return which entry of a table each pixel (n, 1, h, w) of patches as rebuilt belongs to."""
    rows = torch.arange(rebuilt.shape[2], device=rebuilt.device)
    height = ((height_px[:, None] - rows - LOWEST_PX) / BIN_PX).floor().clamp(0, HEIGHTS - 1)
    height = height.nan_to_num(HEIGHTS).long()[:, None, :, None]
    return height * GRAYS + torch.bucketize(smoothed(rebuilt, EXPECTED), edges)


def _log_unusual(
    x: Tensor, rebuilt: Tensor, height_px: Tensor, edges: Tensor, mean: Tensor, sd: Tensor
) -> Tensor:
    """Return (n, PARTS): logarithms of the means of the largest |d_s|, and of x - rebuilt's RMS."""
    parts = _deviations(x, rebuilt, height_px, edges, mean, sd)
    found = [largest_mean(d, scale.share) for d, scale in zip(parts, SCALES, strict=True)]
    whole = (x - rebuilt).square().mean(dim=(1, 2, 3)).sqrt()
    return torch.stack([*found, whole], dim=1).clamp(min=TINY).log()


def _deviations(
    x: Tensor, rebuilt: Tensor, height_px: Tensor, edges: Tensor, mean: Tensor, sd: Tensor
) -> Iterator[Tensor]:
    """Yield |d_s| (n, 1, h, w) of each scale."""
    place = _place(rebuilt, height_px, edges)
    for scale, usual, spread in zip(SCALES, mean, sd, strict=True):
        yield ((smoothed(x - rebuilt, scale) - usual[place]) / spread[place]).abs()


def load_usual(model: TrainedModel) -> Usual:
    """Return what a model has learned as usual; InputError when it is missing or of other sizes."""
    bins = (HEIGHTS + 1) * GRAYS
    table, one_each = (len(SCALES), bins), (len(PARTS),)
    shapes = ((GRAYS - 1,), table, table, one_each, one_each)
    names = [field.name for field in fields(Usual)]
    found = [model.weights.get(f"usual.{name}") for name in names]
    if [None if part is None else tuple(part.shape) for part in found] != list(shapes):
        raise InputError(
            f"{model.folder}: the weights do not tell what is usual in healthy patches; train the "
            "model again"
        )
    return Usual(*found)
