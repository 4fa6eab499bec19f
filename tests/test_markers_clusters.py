"""Marker discovery: what D sees in regions, clusters of them, and how frequent these are."""

from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from made_maps import SIZE, native_volume, write_flat, write_model

from anogan.discovery.clusters import cluster, renumber
from anogan.discovery.embedding import choose_corner, embed, feature_widths, reduce, windows
from anogan.discovery.frequency import compare
from anogan.discovery.regions import Region
from anogan.discovery.tables import cluster_table
from anogan.model import read_frozen_gan
from anogan.networks import Discriminator
from preprocessing.volume import Volume, read_volume


@pytest.fixture(scope="module")
def discriminator(tmp_path_factory) -> Discriminator:
    return read_frozen_gan(write_model(tmp_path_factory.mktemp("model") / "gan", "gan"))[2]


@pytest.fixture(scope="module")
def volume(tmp_path_factory) -> Volume:
    folder = tmp_path_factory.mktemp("d1")
    write_flat(native_volume("d1"), folder)
    return read_volume(folder / "flat.nii.gz")


def regions_of(count: int, seed: int) -> list[Region]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        corner = int(rng.integers(32, 60)), int(rng.integers(0, 60))
        mask = np.ones(rng.integers(1, 12, 2), bool)
        found.append(Region(int(rng.integers(3)), corner, mask, corner, 0.1))
    return found


def test_features_depend_on_the_region_alone(volume, discriminator):
    regions = regions_of(70, 1)  # more than a batch
    together = embed(discriminator, *windows(regions, volume, SIZE))
    assert together.shape == (70, sum(feature_widths(discriminator)))
    assert np.isfinite(together).all() and together.std(axis=0).max() > 0
    turned = embed(discriminator, *windows(regions[::-1], volume, SIZE))
    np.testing.assert_allclose(turned[::-1], together, rtol=1e-4, atol=1e-5)
    for i in (0, 69):
        alone = embed(discriminator, *windows([regions[i]], volume, SIZE))
        np.testing.assert_allclose(alone[0], together[i], rtol=1e-4, atol=1e-5)
    assert embed(discriminator, *windows([], volume, SIZE)).shape == (0, together.shape[1])


def test_features_are_of_the_regions_own_cells(discriminator):
    gray = np.random.default_rng(2).uniform(-1, 1, (2, SIZE, SIZE)).astype(np.float16)
    inside, outside = np.zeros((2, 2, SIZE, SIZE), bool)
    inside[:, 3, 4] = True  # one pixel, so one cell in every layer
    gray[1] = gray[0]
    gray[1, 24:] = -gray[1, 24:]  # far from what the first layer sees there
    found = embed(discriminator, gray, inside, outside)
    with torch.inference_mode():
        first = discriminator.features(torch.from_numpy(gray[:, None].astype(np.float32)), 1)
    n = first.shape[1]
    np.testing.assert_allclose(found[:, :n], first[:, :, 1, 2], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[:, n : 2 * n], 0)  # nothing around it to differ from


def test_a_window_holds_the_peak_and_is_valid():
    region = Region(0, (0, 5), np.ones((60, 3), bool), (2, 6), 0.1)
    free = np.ones((79, 41), bool)
    np.testing.assert_array_equal(choose_corner(region, free, 32), [2, 0])
    free[1:, :] = False
    np.testing.assert_array_equal(choose_corner(region, free, 32), [0, 0])
    free[0, :4] = False
    np.testing.assert_array_equal(choose_corner(region, free, 32), [0, 4])
    assert choose_corner(region, np.zeros((79, 41), bool), 32) is None


def test_layers_weigh_the_same_whatever_their_channels(rng):
    wide = np.repeat(rng.normal(size=(40, 1)), 30, axis=1)
    narrow = rng.normal(size=(40, 1))
    features = np.hstack([wide, narrow, np.ones((40, 1))])
    points = reduce(features, np.ones(40, bool), [30, 1, 1])
    assert points.std(axis=0)[:2] == pytest.approx(np.ones(2), abs=0.3)


def test_components_are_those_of_the_fitted_rows(rng):
    features = rng.normal(size=(60, 5)).astype(np.float32)
    fitted = np.arange(60) % 3 > 0
    alone = reduce(features[fitted], np.ones(40, bool), [5])
    features[~fitted] *= 100
    together = reduce(features, fitted, [5])
    np.testing.assert_allclose(together[fitted], alone, rtol=1e-4, atol=1e-5)
    assert together[~fitted].std() > 20 * alone.std()
    assert reduce(features, np.zeros(60, bool), [5]).shape == (60, 1)


def blobs(rng, count: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    label = np.repeat(np.arange(count), each)
    return 20 * np.eye(count)[label] + rng.normal(size=(count * each, count)), label


@pytest.mark.parametrize("count", [4, 6])
def test_the_number_of_clusters_is_that_of_the_data(rng, count):
    points, label = blobs(rng, count, 12)
    found = cluster(points, np.ones(len(points), bool), None, 1)
    assert len(np.unique(found.label)) == count == max(found.silhouettes, key=found.silhouettes.get)
    assert pd.crosstab(found.label, label).astype(bool).sum(axis=1).max() == 1
    again = cluster(points, np.ones(len(points), bool), None, 1)
    np.testing.assert_array_equal(found.label, again.label)
    assert found.distance.max() < 10


@pytest.mark.parametrize(("last", "count"), [(0.29, 8), (0.27, 5)])
def test_of_numbers_that_are_nearly_as_good_the_largest_is_taken(rng, last, count):
    points, told = rng.normal(size=(60, 3)), [0.28, 0.3, 0.1, 0.2, last]
    with mock.patch("anogan.discovery.clusters._silhouette", side_effect=told):
        found = cluster(points, np.ones(60, bool), None, 1)
    assert len(np.unique(found.label)) == count


@pytest.mark.parametrize(
    ("points", "wanted", "n"),
    [
        (np.zeros((0, 3)), None, 0),
        (np.zeros((0, 3)), 4, 0),
        (np.zeros((1, 3)), 4, 1),
        (np.eye(3)[:2], None, 1),
        (np.eye(3), 7, 3),
        (np.ones((60, 3)), None, 1),
    ],
)
def test_few_or_equal_regions_are_few_clusters(points, wanted, n):
    found = cluster(points, np.ones(len(points), bool), wanted, 1)
    assert len(np.unique(found.label)) == n
    assert len(found.label) == len(found.distance) == len(points)


def test_clusters_are_of_the_fitted_points_and_the_others_go_to_the_nearest(rng):
    points, label = blobs(rng, 4, 20)
    fitted = np.arange(80) % 2 > 0
    far = np.vstack([points, np.full((200, 4), [90, 0, 0, 0])])  # fitted, they would be a cluster
    found = cluster(far, np.append(fitted, np.zeros(200, bool)), 4, 1)
    alone = cluster(points[fitted], np.ones(40, bool), 4, 1)
    np.testing.assert_array_equal(found.label[:80][fitted], alone.label)
    np.testing.assert_allclose(found.distance[:80][fitted], alone.distance)
    assert pd.crosstab(found.label[:80], label).astype(bool).sum(axis=1).max() == 1
    assert set(found.label[80:]) == set(found.label[:80][label == 0])
    assert found.distance[80:].min() > 60


def test_clusters_are_renumbered_in_the_order_of_the_table():
    label = np.array([5, 2, 5, 9, 2, 5])
    assert renumber(label, pd.Index([9, 5, 2])).tolist() == [2, 3, 2, 1, 3, 2]


LOOKED_AT = pd.DataFrame(
    {
        "volume": ["a", "b", "c", "d", "e", "u"],
        "patient": ["p", "p", "q", "r", "s", "t"],
        "eye_label": [1, 1, 1, 0, 0, -1],
        "searched_mm": [2, 1, 5, 4, 4, 9],
    }
)
FOUND = pd.Series({"a": 5, "b": 1, "c": 2, "d": 1, "u": 30})


def test_a_ratio_is_that_of_regions_per_mm_of_bscan():
    found = compare(FOUND, LOOKED_AT, 400, 1)
    assert (found.diseased, found.healthy) == (10 * 8 / 8, 10 * 1 / 8)
    assert found.ratio == pytest.approx((8.5 / 8) / (1.5 / 8))
    # the interval of two and two patients reaches from q and r, each drawn twice, to p and s
    assert found.low == pytest.approx((4.5 / 10) / (2.5 / 8))
    assert found.high == pytest.approx((12.5 / 6) / (0.5 / 8))
    assert (found.why_not, found.order) == ("", found.low)
    assert found == compare(FOUND, LOOKED_AT, 400, 1)
    assert compare(FOUND[["a"]], LOOKED_AT, 400, 1).ratio == pytest.approx(5.5 / 0.5)


@pytest.mark.parametrize(
    ("volumes", "ratio", "why_not"),
    [
        (["a", "c", "u"], np.nan, "no healthy eye"),
        (["d", "e"], np.nan, "no diseased eye"),
        (["u"], np.nan, "no diseased and no healthy eye"),
        (["a", "b", "d", "e"], (6.5 / 3) / (1.5 / 8), "fewer than 2 patients with a diseased eye"),
        (["a", "c", "d"], (7.5 / 7) / (1.5 / 4), "fewer than 2 patients with a healthy eye"),
    ],
)
def test_without_patients_there_is_a_reason_in_place_of_a_number(volumes, ratio, why_not):
    found = compare(FOUND, LOOKED_AT[LOOKED_AT["volume"].isin(volumes)], 50, 1)
    assert found.ratio == pytest.approx(ratio, nan_ok=True)
    assert np.isnan(found.low) and np.isnan(found.high)
    assert found.why_not == why_not
    assert found.order == pytest.approx(ratio, nan_ok=True)


@pytest.mark.parametrize(
    ("names", "low", "why_not"),
    [
        (["a", "b", "c"], (4.5 / 10) / (0.5 / 8), "no region in a healthy eye"),
        (["d"], (0.5 / 10) / (2.5 / 8), "no region in a diseased eye"),
        (["u"], np.nan, "no region in a diseased or a healthy eye"),
    ],
)
def test_without_a_region_on_a_side_no_interval_is_shown_but_ranked_by(names, low, why_not):
    found = compare(FOUND[names], LOOKED_AT, 400, 1)
    assert np.isnan(found.low) and np.isnan(found.high)
    assert found.why_not == why_not
    assert found.order == pytest.approx(low, nan_ok=True)
    assert np.isnan(found.ratio) == np.isnan(low)


def test_both_reasons_are_told():
    one_a_side = LOOKED_AT[LOOKED_AT["volume"].isin(["a", "c", "e"])]
    found = compare(FOUND, one_a_side, 50, 1)
    assert found.ratio == found.order == pytest.approx((7.5 / 7) / (0.5 / 4))
    reasons = "no region in a healthy eye; fewer than 2 patients with a healthy eye"
    assert found.why_not == reasons


def made_regions(counts: dict[int, dict[str, int]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Regions by cluster and volume, and the volumes: four diseased ones d*, four healthy h*."""
    eyes = [f"{kind}{i}" for kind in "dh" for i in range(4)]
    label = [1] * 4 + [0] * 4
    volumes = pd.DataFrame({"volume": eyes, "patient": eyes, "eye_label": label, "searched_mm": 9})
    rows = [
        (number, name)
        for number, by_volume in counts.items()
        for name, n in by_volume.items()
        for _ in range(n)
    ]
    regions = pd.DataFrame(rows, columns=["cluster", "volume"])
    kinds = regions["volume"].str[0].map({"d": "diseased", "h": "healthy"})
    regions = regions.assign(patient=regions["volume"], eye_label=kinds)
    for i, name in enumerate(("width_um", "height_um", "depth", "above_bm_um"), 1):
        regions[name] = i * (1 + np.arange(len(regions)) % 7)
    return regions.assign(gray_inside=-0.5, gray_outside=0.5), volumes


def test_clusters_are_ordered_by_what_is_sure_not_by_the_ratio():
    everywhere = {f"d{i}": 12 + i for i in range(4)} | {f"h{i}": 3 for i in range(4)}
    regions, volumes = made_regions({3: {"d0": 4}, 7: everywhere, 9: {"h0": 5, "h1": 4, "d3": 1}})
    table = cluster_table(regions, volumes, 400, 1)
    assert table["cluster"].tolist() == [7, 3, 9]
    assert table["ratio"][1] > table["ratio"][0] > 4 > 1 > table["ratio"][2]
    assert table["ratio_low"][0] > 3 and np.isnan(table["ratio_low"][1])
    assert table["why_not"].tolist() == ["", "no region in a healthy eye", ""]


def test_without_intervals_the_ratio_orders_and_without_labels_the_size():
    counts = {3: {"d0": 2, "h0": 9}, 7: {"d0": 5, "h0": 1}, 9: {"h0": 12, "d0": 9}}
    regions, volumes = made_regions(counts)
    few = volumes[volumes["volume"].isin(["d0", "h0"])]
    assert cluster_table(regions, few, 50, 1)["cluster"].tolist() == [7, 9, 3]
    unknown = few.assign(eye_label=-1)
    assert cluster_table(regions, unknown, 50, 1)["cluster"].tolist() == [9, 3, 7]
