"""Patches that cover the whole retina, for dense maps."""

import numpy as np

from preprocessing.geometry import Geometry
from preprocessing.patches import possible_corners, window_sums
from preprocessing.volume import Volume


def grid_corners(volume: Volume, geometry: Geometry, size: int, stride: int) -> np.ndarray:
    """Return (n, 3) int: (b, z, x) of the top left pixels of patches that cover the retina, sorted.

    They lie at multiples of `stride` rows and columns. To these come, one by one, the patches that
    cover most of what is still bare (at the edge of what is valid, or where the ILM is steep),
    until every pixel from ILM to BM is covered that any patch may cover. As where random patches
    are drawn, all of a patch is valid and its centre lies in the retina.
    """
    possible = possible_corners(volume, geometry, size)
    chosen = possible[(possible[:, 1:] % stride == 0).all(axis=1)]
    rows = np.arange(volume.data.shape[1])[:, None]
    added = [chosen]
    for b in range(len(volume.data)):
        bare = (rows >= geometry.ilm[b]) & (rows <= geometry.bm[b])
        for _, z, x in chosen[chosen[:, 0] == b]:
            bare[z : z + size, x : x + size] = False
        here = possible[possible[:, 0] == b]
        while len(here):
            gain = window_sums(bare[None], size)[0, here[:, 1], here[:, 2]]
            if not gain.any():
                break
            _, z, x = best = here[gain.argmax()]
            bare[z : z + size, x : x + size] = False
            added.append(best[None])
    corners = np.concatenate(added)
    return corners[np.lexsort(corners.T[::-1])]
