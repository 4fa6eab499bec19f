"""Grids of patches as PNG."""

from pathlib import Path

import numpy as np
from torch import Tensor

from preprocessing.files import atomic_path

PER_SIDE = 8


def save_grid(patches: np.ndarray | Tensor, path: Path) -> None:
    """Write patches (n, h, w) in [-1, 1], array or tensor, as one PNG, `PER_SIDE` a row."""
    from PIL import Image

    if isinstance(patches, Tensor):
        patches = patches.float().cpu().numpy()
    n, h, w = patches.shape
    rows = -(-n // PER_SIDE)
    grid = np.full((rows * (h + 2), PER_SIDE * (w + 2)), 255, np.uint8)
    gray = np.clip(patches.astype(np.float32), -1, 1)
    for i, patch in enumerate(gray):
        top, left = (i // PER_SIDE) * (h + 2), (i % PER_SIDE) * (w + 2)
        grid[top : top + h, left : left + w] = np.rint((patch + 1) * 127.5)
    with atomic_path(path) as temporary:
        Image.fromarray(grid).save(temporary)


def shown_rows(n: int) -> np.ndarray:
    """Return which of n training patches are shown: the same ones every time."""
    return np.sort(np.random.default_rng(0).permutation(n)[: PER_SIDE**2])
