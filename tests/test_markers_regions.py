"""Marker discovery: where regions come from, what makes one, and where and how large it is."""

import numpy as np
import pytest
from made_maps import native_volume, write_flat
from made_markers import (
    BLOCK,
    PIXEL,
    PIXEL_UM2,
    SHAPE,
    SPECK,
    SPLITS,
    made_maps,
    region_at,
    thickening,
    write_eyes,
)
from scipy.ndimage import binary_dilation

from anogan.discovery import sources as discovery_sources
from anogan.discovery.regions import (
    RING_UM,
    find_regions,
    hottest,
    measures,
    native_outline,
    retinal_heat,
    some_values,
)
from anogan.discovery.sources import RetinalHeat, Source, find_sources, make_rule
from anogan.maps.file import VolumeMaps
from preprocessing.geometry import Geometry
from preprocessing.native import to_native_map


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_eyes(tmp_path_factory.mktemp("markers"))


@pytest.fixture(scope="module")
def geometry(tmp_path_factory) -> Geometry:
    return write_flat(native_volume("d1"), tmp_path_factory.mktemp("d1"))


def sources_of(folder, splits=SPLITS) -> list[Source]:
    files = [[str(part) for part in folder.glob(f"*/{name}.nii.gz")] for name in ("flat", "volume")]
    return find_sources([str(folder / f"{split}.h5") for split in splits], *files, 32)[1]


def test_regions_are_connected_within_a_bscan_and_large_enough():
    heat = np.zeros(SHAPE, np.float32)
    heat[0, 50:54, 20:24] = heat[1, 50:54, 20:24] = 0.7  # the same place in two B-scans
    heat[1, 54:58, 24:28] = 0.9  # touches by a corner only
    heat[2, 60, 10] = 5  # small
    found = find_regions(heat, 0.5, PIXEL_UM2, 16 * PIXEL[0] * PIXEL[1])
    assert [(region.bscan, region.corner, region.mask.sum()) for region in found] == [
        (0, (50, 20), 16),
        (1, (50, 20), 16),
        (1, (54, 24), 16),
    ]
    np.testing.assert_allclose([region.excess for region in found], [0.2, 0.2, 0.4], atol=1e-6)
    assert len(find_regions(heat, 0.5, PIXEL_UM2, 0)) == 4
    assert find_regions(np.full(SHAPE, np.nan), 0.5, PIXEL_UM2, 0) == []


def test_the_hottest_regions_are_chosen_the_first_of_equal_ones():
    heat = np.zeros(SHAPE, np.float32)
    for b, value in enumerate((0.7, 0.9, 0.7)):
        heat[b, 50:54, 20:24] = value
    found = find_regions(heat, 0.5, PIXEL_UM2, 0)
    assert hottest(found, 1).tolist() == [False, True, False]
    assert hottest(found, 2).tolist() == [True, True, False]
    assert hottest(found, 9).all() and hottest([], 9).tolist() == []


def test_a_region_must_be_as_large_in_every_retina_however_it_was_stretched():
    heat = np.zeros(SHAPE, np.float32)
    thin, thick = (0, slice(50, 54), slice(2, 6)), (0, slice(50, 54), slice(66, 70))
    heat[thin] = heat[thick] = 1
    found = RetinalHeat(thickening(), PIXEL, "residual", heat)
    (region,) = find_regions(heat, 0.5, found.pixel_um2, 16 * PIXEL[0] * PIXEL[1])
    assert region.corner == (50, 66)


def test_surroundings_reach_as_far_on_every_side_and_end_with_the_bscan():
    region = region_at(2, slice(0, 3), slice(5, 9))
    for shape in (SHAPE[1:], (3, 10)):
        own = np.zeros(shape, bool)
        own[:3, 5:9] = True
        box = np.ones([2 * round(um / px) + 1 for um, px in zip(RING_UM, PIXEL, strict=True)], bool)
        np.testing.assert_array_equal(region.drawn(shape), own)
        expected = binary_dilation(own, box) & ~own
        np.testing.assert_array_equal(region.surroundings(shape, PIXEL), expected)


def test_heat_is_that_of_the_covered_retina(geometry):
    hot = [(0, slice(5, 20), slice(5, 20)), (0, slice(84, 99), slice(5, 20))]  # above and below
    maps = made_maps("d1", "test", 1, hot)
    kind, heat = retinal_heat(maps, geometry, PIXEL)
    assert kind == "residual"
    assert np.isfinite(heat[:, 32:79]).all() and np.isnan(heat[:, :29]).all()
    assert np.isnan(heat[:, 82:]).all() and np.nanmax(heat) < 0.2
    bare = VolumeMaps("d1", "p", "R", "test", 1, 9, maps.score)
    assert retinal_heat(bare, geometry, PIXEL)[0] == "score"


def test_what_was_searched_are_the_columns_with_heat(geometry):
    maps = made_maps("d1", "test", 1, [])
    maps.residual[0] = np.nan  # a B-scan that was left out
    maps.residual[1, :, :22] = np.nan
    found = RetinalHeat(geometry, PIXEL, *retinal_heat(maps, geometry, PIXEL))
    assert found.searched_mm == pytest.approx((72 - 22 + 72) * 0.022)


@pytest.mark.parametrize("mode", ["bm", "both"])
@pytest.mark.parametrize("place", [BLOCK, SPECK, (2, slice(70, 73), slice(0, 1))])
def test_a_region_maps_back_to_its_native_pixels(geometry, place, mode):
    geometry = thickening() if mode == "both" else geometry
    region = region_at(*place)
    heat = np.zeros(SHAPE, np.float32)
    heat[place] = 1
    native = to_native_map(heat, geometry, (3, 180, 144)) == 1
    b, z, x = np.nonzero(native)
    found = native_outline(region, geometry)
    assert set(b) == {region.bscan}
    assert (found["z0"], found["z1"]) == (z.min(), z.max() + 1)
    assert (found["x0"], found["x1"]) == (x.min(), x.max() + 1)
    # in mode both tall columns count for more pixels as loaded
    assert abs(found["z"] - z.mean()) < 0.5 and abs(found["x"] - x.mean()) < 0.8


def test_size_depth_and_gray_are_those_of_the_pixels(geometry):
    region = region_at(*BLOCK)
    gray = np.full(SHAPE[1:], -0.5, np.float32)
    gray[BLOCK[1:]] = 0.25
    found = measures(region, gray, np.ones(gray.shape, bool), geometry, PIXEL)
    assert found["width_um"] == 13 * 22 and found["height_um"] == 12 * 4
    assert found["area_um2"] == 12 * 13 * 4 * 22
    assert found["above_bm_um"] == pytest.approx((80 - 55.5) * 4, abs=3)
    assert found["depth"] == pytest.approx((55.5 - 30) / 50, abs=0.02)
    assert (found["gray_inside"], found["gray_outside"]) == (0.25, -0.5)


def test_sizes_are_those_of_the_retina_before_it_was_stretched():
    geometry, gray = thickening(), np.zeros(SHAPE[1:], np.float32)
    region = region_at(*BLOCK)
    found = measures(region, gray, gray == 0, geometry, PIXEL)
    scale = geometry.z_scale[0, 20:33].mean()
    assert scale == pytest.approx(43.3 / 50, abs=0.01)  # rows of the scan per flat one
    assert found["width_um"] == 13 * 22
    assert found["height_um"] == pytest.approx(12 * 4 * scale)
    assert found["area_um2"] == pytest.approx(12 * 13 * 4 * 22 * scale)
    assert found["above_bm_um"] == pytest.approx((80 - 55.5) * 4 * scale, rel=1e-4)
    assert found["depth"] == pytest.approx((55.5 - 30) / 50, abs=1e-3)


def test_the_threshold_is_that_of_healthy_validation_volumes(folder):
    sources = sources_of(folder)
    rule = make_rule(sources, 0.99, 300)
    assert (rule.kind, rule.chosen_on) == ("residual", "healthy validation volumes")
    (validation,) = [source for source in sources if source.facts["volume"] == "v"]
    known = validation.heat().map
    assert rule.threshold == pytest.approx(np.nanquantile(known, 0.99))
    other = make_rule(sources_of(folder, ("test", "score")), 0.99, 300)
    assert other.chosen_on == "all volumes" and other.threshold > rule.threshold


def test_volumes_share_the_values_that_the_threshold_is_chosen_from(folder, monkeypatch):
    taken = []

    def noted(heat: np.ndarray, count: int) -> np.ndarray:
        taken.append(len(some_values(heat, count)))
        return some_values(heat, count)

    monkeypatch.setattr(discovery_sources, "SAMPLE", 5000)
    monkeypatch.setattr(discovery_sources, "some_values", noted)
    make_rule(sources_of(folder, ("test", "score")), 0.99, 300)
    assert len(taken) == 5 and 2500 < sum(taken) <= 5000
