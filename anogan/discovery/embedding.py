"""What D sees in a region, and how it differs from what it sees around it.

A window of a patch's size goes through the discriminator. In each convolution but the last, which
sees the whole window in every cell, the activations are averaged over the cells of the region, and
the same over its surroundings. The embedding is the first, and the first less the second: what a
region is, and how it stands out. Neither place nor size nor gray value enters but through D.
"""

import numpy as np
import torch
from torch import Tensor

from anogan.discovery.regions import Region
from anogan.networks import Discriminator
from anogan.scoring import padded_batches
from preprocessing.errors import InputError
from preprocessing.patches import cut, window_sums
from preprocessing.volume import Volume

BATCH = 64
BLOCK = 10_000  # rows that are copied at a time
COMPONENTS = 10


def choose_corner(region: Region, free: np.ndarray, size: int) -> np.ndarray | None:
    """Return the corner (row, column) of a region's window of `size` pixels, None without any.

    `free` (r - size + 1, c - size + 1) is True at the corners of windows that are valid throughout.
    Of those that hold the region's peak, it is the one whose middle is nearest to the centroid.
    """
    first = np.maximum(np.array(region.peak) - size + 1, 0)
    nearby = free[first[0] : region.peak[0] + 1, first[1] : region.peak[1] + 1]
    corners = np.argwhere(nearby) + first
    if not len(corners):
        return None
    away = corners + (size - 1) / 2 - np.array(region.centroid)
    return corners[(away**2).sum(axis=1).argmin()]


def windows(
    regions: list[Region], volume: Volume, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return gray values (n, size, size) float16 around regions, their pixels and surroundings.

    The latter two are bool (n, size, size). Raises InputError when the heat map that the regions
    come from does not belong to the flat `volume`.
    """
    shape, pixel_um = volume.data.shape[1:], tuple(1000 * step for step in volume.spacing_mm[1:])
    free = window_sums(~volume.valid, size) == 0
    corners, inside, outside = [], [], []
    for region in regions:
        corner = choose_corner(region, free[region.bscan], size)
        if corner is None:
            raise InputError(
                f"{volume.volume}: B-scan {region.bscan} has heat where no patch fits; the heat "
                "map is of another volume or of other settings: make it again with the rule heatmap"
            )
        place = tuple(slice(start, start + size) for start in corner)
        corners.append((region.bscan, *corner))
        inside.append(region.drawn(shape)[place])
        outside.append(region.surroundings(shape, pixel_um)[place])
    places = np.array(corners, int).reshape(-1, 3)
    gray = cut(volume.data.astype(np.float16), places, size)
    masks = (np.array(mask, bool).reshape(-1, size, size) for mask in (inside, outside))
    return gray, *masks


def feature_widths(discriminator: Discriminator) -> list[int]:
    """Return how many features each part of an embedding has: two parts a convolution."""
    used = [*discriminator.down][: max(1, len(discriminator.down) - 1)]
    return [convolution.out_channels for convolution in used for _ in range(2)]


@torch.inference_mode()
def embed(
    discriminator: Discriminator, gray: np.ndarray, inside: np.ndarray, outside: np.ndarray
) -> np.ndarray:
    """Return float32 (n, d): D's activations in regions, and less those of their surroundings.

    `discriminator` is frozen; the arrays are those of `windows`. A row depends on nothing but its
    own window.
    """
    widths = feature_widths(discriminator)
    rows = [np.zeros((0, sum(widths)))]
    for batch, count in padded_batches(len(gray), BATCH):
        x = torch.from_numpy(gray[batch].astype(np.float32)).unsqueeze(1)
        own, around = (torch.from_numpy(mask[batch]).float() for mask in (inside, outside))
        parts = []
        for activations in discriminator.all_features(x, len(widths) // 2):
            of_region = _mean_over(activations, own)
            parts += [of_region, of_region - _mean_over(activations, around, of_region)]
        rows.append(torch.cat(parts, dim=1)[:count].numpy())
    return np.concatenate(rows).astype(np.float32)


def _mean_over(activations: Tensor, mask: Tensor, otherwise: Tensor | None = None) -> Tensor:
    """Return (n, c): the mean of activations (n, c, h, w) over the pixels of `mask` (n, H, W).

    A cell counts by its share of the mask. `otherwise` (n, c) is taken where the mask is empty.
    """
    share = torch.nn.functional.adaptive_avg_pool2d(mask, activations.shape[-2:])
    total = share.sum(dim=(1, 2))
    mean = (activations * share.unsqueeze(1)).sum(dim=(2, 3)) / total.clamp(min=1e-9).unsqueeze(1)
    return mean if otherwise is None else torch.where(total.unsqueeze(1) > 0, mean, otherwise)


def reduce(features: np.ndarray, fitted: np.ndarray, widths: list[int]) -> np.ndarray:
    """Return (n, k): the first `COMPONENTS` principal components of standardised features (n, d).

    Mean, spread and components are those of the rows that `fitted` (n,) marks. `widths` are those
    of `feature_widths`, which sum to d. Every part weighs the same, however many channels its layer
    has; features that do not vary are left out.
    """
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    own = features[fitted]
    if len(own) < 2:
        return np.zeros((len(features), 1))
    mean = own.mean(axis=0, dtype=float).astype(own.dtype)
    own -= mean
    spread = np.sqrt(np.square(own).mean(axis=0, dtype=float))
    varying = spread > 1e-6
    if not varying.any():
        return np.zeros((len(features), 1))
    components = min(COMPONENTS, len(own) - 1, int(varying.sum()))
    weight = np.repeat([1 / np.sqrt(width) for width in widths], widths)
    scale = np.where(varying, weight / np.maximum(spread, 1e-6), 0).astype(own.dtype)
    own *= scale
    with threadpool_limits(1):  # sums of several threads differ from run to run
        axes = PCA(components, svd_solver="covariance_eigh").fit(own).components_.T
        blocks = [slice(start, start + BLOCK) for start in range(0, len(features), BLOCK)]
        return np.concatenate([((features[rows] - mean) * scale) @ axes for rows in blocks])
