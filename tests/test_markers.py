"""Marker discovery: regions, what D sees in them, clusters, their frequency, and the files."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from made_maps import SIZE, native_volume, run, write_flat, write_model
from PIL import Image

from anogan.discovery.clusters import cluster
from anogan.discovery.embedding import choose_corner, embed, feature_widths, reduce, windows
from anogan.discovery.frequency import compare
from anogan.discovery.gallery import OUTLINE, PIXEL_UM, draw_tile
from anogan.discovery.regions import (
    Region,
    find_regions,
    measures,
    native_outline,
    retinal_heat,
)
from anogan.discovery.sources import find_sources, make_rule
from anogan.discovery.tables import CLUSTER_COLUMNS, REGION_COLUMNS
from anogan.maps.file import VolumeMaps, write_maps
from anogan.model import load_gan, load_model
from anogan.networks import freeze
from anogan.page.markers import read_markers
from preprocessing.geometry import geometry_path, read_geometry
from preprocessing.native import to_native_map
from preprocessing.volume import read_volume

PIXEL = (4.0, 22.0)  # um
SHAPE = (3, 110, 72)  # of the flat volumes, whose retina takes the rows 30 to 80
BLOCK = (0, slice(50, 62), slice(20, 33))
SPECK = (1, slice(40, 46), slice(50, 52))
VOLUMES = {  # name: split, label of the eye, what is hot
    "v": ("validation", 0, []),
    "h1": ("test", 0, [SPECK]),
    "h2": ("test", 0, []),
    "d1": ("test", 1, [BLOCK, SPECK]),
    "d2": ("test", 1, [BLOCK]),
    "s": ("score", -1, [SPECK]),
}


def made_maps(name: str, split: str, label: int, hot: list) -> VolumeMaps:
    rng = np.random.default_rng(sum(name.encode()))
    residual = rng.uniform(0, 0.1, SHAPE).astype(np.float32)
    for place in hot:
        residual[place] += 0.8
    residual[:, 100:] = np.nan
    return VolumeMaps(name, f"p-{name}", "R", split, label, 9, residual, residual)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Volumes, their maps, one file a split, and a model."""
    folder = tmp_path_factory.mktemp("markers")
    for name in VOLUMES:
        (folder / name).mkdir()
        write_flat(native_volume(name), folder / name)
    for split in ("validation", "test", "score"):
        with write_maps(folder / f"{split}.h5", "pca", 16, SIZE) as writer:
            for name, facts in VOLUMES.items():
                if facts[0] == split:
                    writer.append(made_maps(name, *facts))
    write_model(folder / "gan", "gan")
    return folder


@pytest.fixture(scope="module")
def discriminator(folder):
    found = load_gan(load_model(folder / "gan", torch.device("cpu")))[1]
    freeze(found)
    return found


def arguments(folder, splits=("validation", "test", "score"), names=tuple(VOLUMES)) -> list:
    return [
        *("--maps", *(folder / f"{split}.h5" for split in splits)),
        *("--flats", *(folder / name / "flat.nii.gz" for name in names)),
        *("--images", *(folder / name / "volume.nii.gz" for name in names)),
        *("--model", folder / "gan", "--bootstrap", 50),
    ]


def markers(folder, output, *extra, **given) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    assert run("markers", *arguments(folder, **given), "--output", output, *extra) == 0
    tables = [
        pd.read_csv(output / f"{name}.tsv", sep="\t", na_values="n.a.", keep_default_na=False)
        for name in ("regions", "clusters")
    ]
    return *tables, json.loads((output / "markers.json").read_text())


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """Folder, tables and facts of a run on everything, in two clusters."""
    output = tmp_path_factory.mktemp("out") / "markers"
    return output, *markers(folder, output, "--clusters", 2)


def test_regions_are_connected_within_a_bscan_and_large_enough():
    heat = np.zeros(SHAPE, np.float32)
    heat[0, 50:54, 20:24] = heat[1, 50:54, 20:24] = 0.7  # the same place in two B-scans
    heat[1, 54:58, 24:28] = 0.9  # touches by a corner only
    heat[2, 60, 10] = 5  # small
    found = find_regions(heat, 0.5, PIXEL, 4 * PIXEL[0] * PIXEL[1], 10)
    assert [(region.bscan, region.corner, region.mask.sum()) for region in found] == [
        (0, (50, 20), 16),
        (1, (50, 20), 16),
        (1, (54, 24), 16),
    ]
    np.testing.assert_allclose([region.excess for region in found], [0.2, 0.2, 0.4], atol=1e-6)
    (hottest,) = find_regions(heat, 0.5, PIXEL, 100, 1)
    assert hottest.corner == (54, 24)
    assert len(find_regions(heat, 0.5, PIXEL, 0, 10)) == 4
    assert find_regions(np.full(SHAPE, np.nan), 0.5, PIXEL, 0, 10) == []


def test_heat_is_that_of_the_covered_retina(folder):
    geometry = read_geometry(geometry_path(folder / "d1" / "flat.nii.gz"))
    hot = [(0, slice(5, 20), slice(5, 20)), (0, slice(84, 99), slice(5, 20))]  # above and below
    maps = made_maps("d1", "test", 1, hot)
    kind, heat = retinal_heat(maps, geometry, PIXEL)
    assert kind == "residual"
    assert np.isfinite(heat[:, 32:79]).all() and np.isnan(heat[:, :29]).all()
    assert np.isnan(heat[:, 82:]).all() and np.nanmax(heat) < 0.2
    bare = VolumeMaps("d1", "p", "R", "test", 1, 9, maps.score)
    assert retinal_heat(bare, geometry, PIXEL)[0] == "score"


@pytest.mark.parametrize("place", [BLOCK, SPECK, (2, slice(70, 73), slice(0, 1))])
def test_a_region_maps_back_to_its_native_pixels(folder, place):
    geometry = read_geometry(geometry_path(folder / "d1" / "flat.nii.gz"))
    volume = read_volume(folder / "d1" / "volume.nii.gz")
    heat = np.zeros(SHAPE, np.float32)
    heat[place] = 1
    (region,) = find_regions(heat, 0.5, PIXEL, 0, 9)
    native = to_native_map(heat, geometry, volume.data.shape) == 1
    b, z, x = np.nonzero(native)
    found = native_outline(region, geometry)
    assert set(b) == {region.bscan}
    assert (found["z0"], found["z1"]) == (z.min(), z.max() + 1)
    assert (found["x0"], found["x1"]) == (x.min(), x.max() + 1)
    assert abs(found["z"] - z.mean()) < 0.5 and abs(found["x"] - x.mean()) < 0.5


def test_size_depth_and_gray_are_those_of_the_pixels(folder):
    geometry = read_geometry(geometry_path(folder / "d1" / "flat.nii.gz"))
    heat = np.zeros(SHAPE, np.float32)
    heat[BLOCK] = 1
    (region,) = find_regions(heat, 0.5, PIXEL, 0, 9)
    gray = np.full(SHAPE[1:], -0.5, np.float32)
    gray[BLOCK[1:]] = 0.25
    found = measures(region, gray, np.ones(gray.shape, bool), geometry, PIXEL)
    assert found["width_um"] == 13 * 22 and found["height_um"] == 12 * 4
    assert found["area_um2"] == 12 * 13 * 4 * 22
    assert found["above_bm_um"] == pytest.approx((80 - 55.5) * 4, abs=3)
    assert found["depth"] == pytest.approx((55.5 - 30) / 50, abs=0.02)
    assert (found["gray_inside"], found["gray_outside"]) == (0.25, -0.5)


def test_the_threshold_is_that_of_healthy_validation_volumes(folder):
    files = [[str(part) for part in folder.glob(f"*/{name}.nii.gz")] for name in ("flat", "volume")]
    given = [str(folder / f"{split}.h5") for split in ("validation", "test", "score")]
    _, sources = find_sources(given, *files)
    rule = make_rule(sources, 0.99, 300, 9)
    assert (rule.kind, rule.chosen_on) == ("residual", "healthy validation volumes")
    (validation,) = [source for source in sources if source.facts["volume"] == "v"]
    known = validation.heat().map
    assert rule.threshold == pytest.approx(np.nanquantile(known, 0.99))
    _, sources = find_sources(given[1:], *files)
    other = make_rule(sources, 0.99, 300, 9)
    assert other.chosen_on == "all volumes" and other.threshold > rule.threshold


def regions_of(count: int, seed: int) -> list[Region]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        corner = int(rng.integers(32, 60)), int(rng.integers(0, 60))
        mask = np.ones(rng.integers(1, 12, 2), bool)
        found.append(Region(int(rng.integers(3)), corner, mask, corner, 0.1))
    return found


def test_features_depend_on_the_region_alone(folder, discriminator):
    volume = read_volume(folder / "d1" / "flat.nii.gz")
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
    points = reduce(np.hstack([wide, narrow, np.ones((40, 1))]), [30, 1, 1])
    assert points.std(axis=0)[:2] == pytest.approx(np.ones(2), abs=0.3)


def blobs(rng, count: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    label = np.repeat(np.arange(count), each)
    return 20 * np.eye(count)[label] + rng.normal(size=(count * each, count)), label


@pytest.mark.parametrize("count", [4, 6])
def test_the_number_of_clusters_is_that_of_the_data(rng, count):
    points, label = blobs(rng, count, 12)
    found = cluster(points, None, 1)
    assert len(np.unique(found.label)) == count == max(found.silhouettes, key=found.silhouettes.get)
    assert pd.crosstab(found.label, label).astype(bool).sum(axis=1).max() == 1
    again = cluster(points, None, 1)
    np.testing.assert_array_equal(found.label, again.label)
    assert found.distance.max() < 10


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
    found = cluster(points, wanted, 1)
    assert len(np.unique(found.label)) == n
    assert len(found.label) == len(found.distance) == len(points)


LOOKED_AT = pd.DataFrame(
    {
        "volume": ["a", "b", "c", "d", "e", "u"],
        "patient": ["p", "p", "q", "r", "s", "t"],
        "eye_label": [1, 1, 1, 0, 0, -1],
        "n_bscans": [2, 1, 5, 4, 4, 9],
    }
)
FOUND = pd.Series({"a": 5, "b": 1, "c": 2, "d": 1, "u": 30})


def test_a_ratio_is_that_of_regions_per_bscan():
    found = compare(FOUND, LOOKED_AT, 400, 1)
    assert (found.diseased, found.healthy) == (8 / 8, 1 / 8)
    assert found.ratio == pytest.approx((8.5 / 8) / (1.5 / 8))
    # the interval of two and two patients reaches from q and r, each drawn twice, to p and s
    assert found.low == pytest.approx((4.5 / 10) / (2.5 / 8))
    assert found.high == pytest.approx((12.5 / 6) / (0.5 / 8))
    assert found.why_not == ""
    assert found == compare(FOUND, LOOKED_AT, 400, 1)
    assert compare(FOUND[["a"]], LOOKED_AT, 400, 1).ratio == pytest.approx(5.5 / 0.5)


@pytest.mark.parametrize(
    ("volumes", "ratio", "why_not"),
    [
        (["a", "c", "u"], np.nan, "no healthy eye"),
        (["d", "e"], np.nan, "no diseased eye"),
        (["u"], np.nan, "no diseased and no healthy eye"),
        (["a", "b", "d", "e"], (6.5 / 3) / (1.5 / 8), "1 patient with a diseased eye"),
        (["a", "c", "e"], (7.5 / 7) / (0.5 / 4), "1 patient with a healthy eye"),
    ],
)
def test_without_patients_there_is_a_reason_in_place_of_a_number(volumes, ratio, why_not):
    found = compare(FOUND, LOOKED_AT[LOOKED_AT["volume"].isin(volumes)], 50, 1)
    assert found.ratio == pytest.approx(ratio, nan_ok=True)
    assert np.isnan(found.low) and np.isnan(found.high)
    assert found.why_not.startswith(why_not)


def test_every_region_is_in_the_table_with_its_cluster(whole):
    output, regions, clusters, facts = whole
    assert list(regions) == list(REGION_COLUMNS) and list(clusters) == list(CLUSTER_COLUMNS)
    hot = regions[regions["excess"] > 0.3]
    assert sorted(hot["volume"]) == ["d1", "d1", "d2", "h1", "s"]
    block = hot[(hot["volume"] == "d2") & (hot["width_um"] > 200)].iloc[0]
    assert (block["bscan"], block["eye_label"], block["split"]) == (0, "diseased", "test")
    assert abs(block["flat_z"] - 55.5) < 1 and abs(block["flat_x"] - 26) < 1
    assert not regions["region"].duplicated().any()
    assert clusters["cluster"].tolist() == [1, 2] == sorted(regions["cluster"].unique())
    assert clusters["regions"].sum() == len(regions) == facts["regions"]
    assert facts["from"] == "healthy validation volumes" and facts["volumes"] == 5
    names = {path.name for path in output.iterdir()}
    assert names == {
        *("regions.tsv", "clusters.tsv", "markers.json", "cluster-1.png", "cluster-2.png")
    }


def test_the_order_of_files_and_another_run_change_nothing(whole, folder, tmp_path):
    output, *_ = whole
    turned, splits = tuple(reversed(VOLUMES)), ("test", "score", "validation")
    markers(folder, tmp_path / "m", "--clusters", 2, names=turned, splits=splits)
    for path in output.iterdir():
        assert path.read_bytes() == (tmp_path / "m" / path.name).read_bytes(), path.name


def test_the_page_says_what_was_measured(whole):
    output, _, clusters, _ = whole
    found = read_markers(str(output))
    assert [cluster.number for cluster in found.clusters] == [1, 2]
    assert found.clusters[0].description.startswith(clusters["description"][0][:20])
    assert re.search(r"times as frequent .* \(95 % interval", found.clusters[0].frequency)
    assert found.clusters[0].picture.startswith("data:image/webp;base64,")
    assert "healthy validation volumes" in found.rule


@pytest.mark.parametrize(
    ("extra", "splits", "n_regions", "n_clusters"),
    [
        (["--smallest-um2", "1e9"], ("validation", "test"), 0, 0),
        (["--smallest-um2", "8000"], ("score",), 0, 0),
        (["--smallest-um2", "8000", "--clusters", "3"], ("validation", "test"), 2, 2),
        (["--regions-per-volume", "1"], ("score",), 1, 1),
        ([], ("validation",), 0, 0),
    ],
)
def test_little_data_end_in_a_clear_table(folder, tmp_path, extra, splits, n_regions, n_clusters):
    regions, clusters, facts = markers(folder, tmp_path / "m", *extra, splits=splits)
    assert (len(regions), len(clusters)) == (n_regions, n_clusters)
    assert list(regions) == list(REGION_COLUMNS)
    assert len(list((tmp_path / "m").glob("cluster-*.png"))) == n_clusters
    if splits == ("score",):
        assert facts["from"] == "all volumes"
        assert set(clusters["why_not"]) <= {"no diseased and no healthy eye"}
    assert len(read_markers(str(tmp_path / "m")).clusters) == n_clusters


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("method", "maps of ae, pca; give the files of one method"),
        ("flat", "holds maps of s; name its file with --flats"),
        ("model", "holds the model pca; give the folder of a gan"),
        ("bare", "B-scan 0 has heat where no patch fits"),
    ],
)
def test_faults_end_in_one_line(folder, tmp_path, capsys, case, message):
    given = arguments(folder, names=tuple(VOLUMES)[:5] if case == "flat" else tuple(VOLUMES))
    if case == "method":
        with write_maps(tmp_path / "ae.h5", "ae", 16, SIZE) as writer:
            writer.append(made_maps("s", *VOLUMES["s"]))
        given[1] = tmp_path / "ae.h5"
    elif case == "model":
        given[given.index("--model") + 1] = write_model(tmp_path / "pca", "pca")
    elif case == "bare":
        (tmp_path / "d1").mkdir()
        native = native_volume("d1")
        native.valid[0] = False
        write_flat(native, tmp_path / "d1")
        place = given.index("--flats") + 4
        given[place] = tmp_path / "d1" / "flat.nii.gz"
    assert run("markers", *given, "--output", tmp_path / "m") == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "m").exists()


def test_a_region_is_outlined_where_it_lies_and_to_scale(folder):
    geometry = read_geometry(geometry_path(folder / "d1" / "flat.nii.gz"))
    heat = np.zeros(SHAPE, np.float32)
    heat[BLOCK] = 1
    (region,) = find_regions(heat, 0.5, PIXEL, 0, 9)
    shape = read_volume(folder / "d1" / "volume.nii.gz").data.shape
    gray = np.where(to_native_map(heat, geometry, shape)[0] == 1, 255, 0).astype(np.uint8)
    place = native_outline(region, geometry)
    centre = (place["z"], place["x"])
    picture = draw_tile(gray, region, geometry, (4.0, 11.0), centre, "").picture
    outline = (picture == OUTLINE).all(axis=2)
    rows, columns = np.nonzero(outline)
    height_um = (place["z1"] - place["z0"]) * 4
    assert np.ptp(columns) * PIXEL_UM == pytest.approx(13 * 22, abs=2 * PIXEL_UM)
    assert np.ptp(rows) * PIXEL_UM == pytest.approx(height_um, abs=2 * PIXEL_UM)
    # all that is bright lies inside the outline, but for its soft edge
    bright = (picture[..., 0] > 200) & ~outline
    assert bright.any()
    z, x = np.nonzero(bright)
    assert rows.min() <= z.min() and z.max() <= rows.max()
    assert columns.min() <= x.min() and x.max() <= columns.max()


def test_a_sheet_is_a_picture(whole):
    output, *_ = whole
    with Image.open(output / "cluster-1.png") as sheet:
        assert sheet.mode == "RGB" and sheet.width > 1000
