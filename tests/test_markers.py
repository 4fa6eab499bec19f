"""Marker discovery: the stage, the files that it writes, and the faults that it names."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from made_maps import SIZE, native_volume, run, write_flat, write_model
from made_markers import MIRRORED, REVERSED, VOLUMES, arguments, made_maps, markers, write_eyes

from anogan.discovery.tables import CLUSTER_COLUMNS, REGION_COLUMNS
from anogan.maps.file import write_maps
from anogan.markers import MOST_CLUSTERS
from anogan.page.markers import read_markers

CAP = 3  # regions of a volume that clusters are fitted on


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_eyes(tmp_path_factory.mktemp("markers"))


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """Folder, tables and facts of a run on everything, in two clusters."""
    output = tmp_path_factory.mktemp("out") / "markers"
    return output, *markers(folder, output, "--clusters", 2, "--regions-per-volume", CAP)


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
    assert facts["fitted"] == regions["fitted"].sum() and facts["regions_per_volume"] == CAP
    names = {path.name for path in output.iterdir()}
    assert names == {
        *("regions.tsv", "clusters.tsv", "markers.json", "cluster-1.png", "cluster-2.png")
    }


def test_a_row_of_clusters_tells_of_its_own_regions(whole):
    _, regions, clusters, _ = whole
    assert clusters["regions"][0] != clusters["regions"][1]
    for row in clusters.to_dict("records"):
        own = regions[regions["cluster"] == row["cluster"]]
        assert (row["regions"], row["volumes"]) == (len(own), own["volume"].nunique())
        assert row["patients"] == own["patient"].nunique()
        for side in ("diseased", "healthy", "unknown"):
            assert row[side] == (own["eye_label"] == side).sum()
        for name in ("width_um", "height_um", "depth", "above_bm_um"):
            found = [row[f"{name}{end}"] for end in ("_q1", "", "_q3")]
            np.testing.assert_allclose(found, own[name].quantile([0.25, 0.5, 0.75]), rtol=2e-4)
        for name in ("gray_inside", "gray_outside"):
            assert row[name] == pytest.approx(own[name].median(), rel=2e-4)
        mm = 2 * 3 * 72 * 0.022  # two eyes a side, three B-scans of 72 columns of 22 um
        for side in ("diseased", "healthy"):
            assert row[f"per_10mm_{side}"] == pytest.approx(10 * row[side] / mm, rel=1e-4)


def test_all_regions_are_counted_and_the_hottest_fitted_on(whole, folder, tmp_path):
    _, regions, _, _ = whole
    assert (regions["volume"].value_counts() > CAP).any()
    for _, own in regions.groupby("volume"):
        assert own["fitted"].sum() == min(CAP, len(own))
        others = own.loc[~own["fitted"], "excess"]
        assert own.loc[own["fitted"], "excess"].min() >= others.max() or others.empty
    every, _, _ = markers(folder, tmp_path / "m", "--clusters", 2)
    assert every["fitted"].all()
    told = [name for name in REGION_COLUMNS if name not in ("cluster", "fitted", "distance")]
    pd.testing.assert_frame_equal(every[told], regions[told])


def test_places_in_the_vendors_file_are_told_too(whole):
    _, regions, _, _ = whole
    bscan, x = regions["bscan"], regions["x"]
    bscan = bscan.where(regions["volume"] != REVERSED, 2 - bscan)
    np.testing.assert_array_equal(regions["vendor_bscan"], bscan)
    x = x.where(regions["volume"] != MIRRORED, 143 - x)
    np.testing.assert_allclose(regions["vendor_x"], x, rtol=1e-3)


def test_the_order_of_files_and_another_run_change_nothing(whole, folder, tmp_path):
    output, *_ = whole
    turned, splits = tuple(reversed(VOLUMES)), ("test", "score", "validation")
    again = ("--clusters", 2, "--regions-per-volume", CAP)
    markers(folder, tmp_path / "m", *again, names=turned, splits=splits)
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
        (["--regions-per-volume", "1"], ("score",), 2, 1),
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
        ("rows", "its maps of s (3, 100, 72) do not fit"),
        ("size", "made with patches of 16 pixels, where the GAN has 32"),
        ("twice", "again.h5: holds s, as does"),
        ("two flats", "flat.nii.gz: holds v, as does"),
    ],
)
def test_faults_end_in_one_line(folder, tmp_path, capsys, case, message):
    given = arguments(folder, names=tuple(VOLUMES)[:5] if case == "flat" else tuple(VOLUMES))
    if case == "method":
        with write_maps(tmp_path / "ae.h5", "ae", 16, SIZE) as writer:
            writer.append(made_maps("s", *VOLUMES["s"]))
        given[1] = tmp_path / "ae.h5"
    elif case in ("rows", "size"):
        maps = made_maps("s", *VOLUMES["s"])
        if case == "rows":
            maps = replace(maps, score=maps.score[:, :100], residual=maps.residual[:, :100])
        with write_maps(tmp_path / "score.h5", "pca", 16, SIZE if case == "rows" else 16) as writer:
            writer.append(maps)
        given[3] = tmp_path / "score.h5"
    elif case == "twice":
        shutil.copy(folder / "score.h5", tmp_path / "again.h5")
        given.insert(4, tmp_path / "again.h5")
    elif case == "two flats":
        (tmp_path / "v").mkdir()
        write_flat(native_volume("v"), tmp_path / "v")
        given.insert(given.index("--images"), tmp_path / "v" / "flat.nii.gz")
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


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--quantile", "2", "a number between 0 and 1"),
        ("--quantile", "nan", "a number between 0 and 1"),
        ("--smallest-um2", "-1", "a number of 0 or more"),
        ("--regions-per-volume", "0", "a whole number of 1 or more"),
        ("--bootstrap", "1.5", "a whole number of 1 or more"),
        ("--clusters", "many", "auto or a whole number from 1 to 50"),
        ("--clusters", "0", "auto or a whole number from 1 to 50"),
        ("--clusters", "51", "auto or a whole number from 1 to 50"),
    ],
)
def test_a_number_out_of_bounds_is_wrong_use(tmp_path, capsys, option, value, words):
    files = ["--maps", "m.h5", "--flats", "f.nii.gz", "--model", "gan", "--output", tmp_path / "m"]
    with pytest.raises(SystemExit):
        run("markers", *files, option, value)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"argument {option}: '{value}' is not {words}")


def test_the_bounds_are_those_of_the_config():
    schema = Path(__file__).parents[1] / "workflow" / "schemas" / "config.schema.yaml"
    asked = yaml.safe_load(schema.read_text())["properties"]["markers"]["properties"]
    number = asked["clusters"]["anyOf"][1]
    assert (number["minimum"], number["maximum"]) == (1, MOST_CLUSTERS)
    assert asked["quantile"]["exclusiveMinimum"] == asked["smallest_um2"]["minimum"] == 0
    assert asked["quantile"]["exclusiveMaximum"] == asked["regions_per_volume"]["minimum"] == 1
