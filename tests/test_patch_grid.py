"""The grid of patches of a dense map leaves no pixel of the retina bare that it could cover."""

import numpy as np
import pytest

from preprocessing.flatten import flat_geometry, flatten
from preprocessing.layers import Layers
from preprocessing.patch_grid import grid_corners
from preprocessing.patches import possible_corners

SIZE = 64


def flat(volume, ilm_height):
    """The volume flattened on its BM, and a geometry with the ILM so far above it, (b, x)."""
    bm = np.full((3, 100), 140, np.float32)
    layers = Layers(ilm=bm - ilm_height, rpe=bm - 5, bm=bm, confidence=np.ones_like(bm))
    geometry = flat_geometry(layers, volume, "bm", above_um=560, thickness_um=240)
    return flatten(volume, geometry, n_rows=180), geometry


def covered_by(corners, shape):
    covered = np.zeros(shape, bool)
    for b, z, x in corners:
        covered[b, z : z + SIZE, x : x + SIZE] = True
    return covered


HEIGHTS = {
    "level": np.full((3, 100), 60),
    "thin": np.full((3, 100), 9),
    "steep": np.abs(np.arange(100) - 50) * 1.5 * np.ones((3, 1)) + 20,
    "hole": np.where(np.abs(np.arange(100) - 50) < 6, np.nan, 60) * np.ones((3, 1)),
}


@pytest.mark.parametrize("stride", [16, 32])
@pytest.mark.parametrize("form", HEIGHTS)
def test_every_retinal_pixel_that_a_patch_may_cover_is_covered(volume, form, stride):
    volume.valid[1, :, :3] = False  # an empty wedge
    volume.valid[2] = False
    volume, geometry = flat(volume, HEIGHTS[form])
    rows = np.arange(180)[:, None]
    retina = (rows >= geometry.ilm[:, None]) & (rows <= geometry.bm[:, None])
    coverable = retina & covered_by(possible_corners(volume, geometry, SIZE), retina.shape)
    corners = grid_corners(volume, geometry, SIZE, stride)
    covered = covered_by(corners, retina.shape)
    assert coverable[:2].any(axis=(1, 2)).all()
    np.testing.assert_array_equal(covered & retina, coverable)
    assert not covered[2].any()


@pytest.mark.parametrize("stride", [16, 32])
def test_patches_are_possible_sorted_different_and_few(volume, stride):
    volume, geometry = flat(volume, HEIGHTS["level"])
    corners = grid_corners(volume, geometry, SIZE, stride)
    places = [tuple(corner) for corner in corners.tolist()]
    assert places == sorted(set(places))
    possible = {tuple(corner) for corner in possible_corners(volume, geometry, SIZE).tolist()}
    assert set(places) <= possible
    regular = (corners[:, 1:] % stride == 0).all(axis=1)
    assert (~regular).sum() <= 2 * len(volume.data)


def test_where_nothing_is_valid_there_is_no_patch(volume):
    volume.valid[:] = False
    assert grid_corners(*flat(volume, HEIGHTS["level"]), SIZE, 32).shape == (0, 3)
