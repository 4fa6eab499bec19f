"""Config and sample sheet: every mistake is named before any work starts."""

import os
from pathlib import Path

import pytest
import yaml

from planning.config import load_schema, resolve_config
from planning.errors import PlanningError
from planning.sample_sheet import chunk_of, read_sample_sheet
from planning.sources import HEYEX_IMAGES, source_files
from preprocessing.readers.images import FORMATS

ROOT = Path(__file__).parents[1]
COLUMNS = ["volume", "patient", "eye", "path", "split", "label", "annotation"]
GOOD = [
    ["a", "p1", "R", "a.nii.gz", "train", "healthy", ""],
    ["b", "p2", "", "b.nii.gz", "validation", "healthy", ""],
    ["c", "p3", "L", "c.nii.gz", "test", "diseased", "c.mask.nii.gz"],
]


@pytest.fixture
def sheet(tmp_path):
    """Write rows as a sample sheet, with the files it names, and read it."""

    def read(rows=GOOD, columns=COLUMNS, absent=(), **options):
        path = tmp_path / "volumes.tsv"
        path.write_text("".join("\t".join(cells) + "\n" for cells in [columns, *rows]))
        for row in rows:
            for name in row:
                if name.endswith(".gz") and name not in absent:
                    (tmp_path / name).touch()
        return read_sample_sheet(str(path), str(tmp_path), **options)

    return read


def changed(row, column, value):
    rows = [list(cells) for cells in GOOD]
    rows[row][COLUMNS.index(column)] = value
    return rows


def test_a_good_sheet(sheet):
    read = sheet()
    assert read.volumes("train") == ["a"]
    assert read["c"].annotation == "c.mask.nii.gz"
    assert read["c"].line == 4


def test_optional_columns_may_be_absent(sheet):
    columns = [c for c in COLUMNS if c not in ("eye", "annotation")]
    rows = [[v for v, c in zip(row, COLUMNS, strict=True) if c in columns] for row in GOOD]
    assert sheet(rows, columns)["a"].eye == ""


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (GOOD, [*COLUMNS[:4], "splitt", *COLUMNS[5:]], "column 'split' is missing"),
        ([[*r, "x"] for r in GOOD], [*COLUMNS, "note"], "unknown column 'note'"),
        ([], COLUMNS, "has no rows"),
        (
            [*GOOD, ["A", "p9", "", "d.nii.gz", "test", "healthy", ""]],
            COLUMNS,
            "row 5, column 'volume': 'A' already stands in row 2",
        ),
        (
            changed(2, "path", "a.nii.gz"),
            COLUMNS,
            "row 4, column 'path': row 2 already names a.nii.gz",
        ),
        (
            changed(2, "patient", "P1"),
            COLUMNS,
            "rows 2 and 4, column 'split': patient 'p1' is in train and in test",
        ),
        (
            changed(2, "patient", "p1"),
            COLUMNS,
            "rows 2 and 4, column 'split': patient 'p1' is in train and in test",
        ),
        (
            changed(0, "label", "diseased"),
            COLUMNS,
            "row 2, column 'label': a training volume must be healthy",
        ),
        (changed(0, "split", "score"), COLUMNS, "no healthy training volume"),
        (changed(2, "split", "validation"), COLUMNS, "no volume to examine"),
        ([*GOOD[:2], [*GOOD[2][:5], "unknown", ""]], COLUMNS, "no test volume has a label"),
        ([*GOOD, [*GOOD[2], "x"]], COLUMNS, "row 5: more cells than the 7 columns"),
        (changed(1, "split", "testing"), COLUMNS, "row 3, column 'split': 'testing' is not one of"),
        (changed(1, "label", ""), COLUMNS, "row 3, column 'label': '' is not one of"),
        (changed(1, "eye", "OD"), COLUMNS, "row 3, column 'eye'"),
        (changed(1, "volume", "../b"), COLUMNS, "row 3, column 'volume'"),
        (changed(1, "patient", "Jane Doe"), COLUMNS, "never a patient's name|pseudonym"),
        ([GOOD[0], GOOD[1][:3], GOOD[2]], COLUMNS, "row 3, column 'split'"),
    ],
)
def test_a_bad_sheet_is_named_with_its_place(sheet, rows, columns, message):
    with pytest.raises(PlanningError, match=message):
        sheet(rows, columns)


def test_all_volumes_come_from_the_same_stage(sheet):
    columns = [*COLUMNS, "already"]
    flat = sheet([[*row, "flat"] for row in GOOD], columns)
    assert flat["c"].already == "flat"
    with pytest.raises(PlanningError, match="rows 2 and 4, column 'already': 'flat' and ''"):
        sheet([[*GOOD[0], "flat"], [*GOOD[1], "flat"], [*GOOD[2], ""]], columns)


def test_a_sheet_without_training_or_without_truth(sheet):
    assert sheet([[*GOOD[2][:4], "score", "unknown", ""]], needs_training=False).volumes("score")
    assert not sheet(changed(2, "split", "score")).volumes("test")
    with pytest.raises(PlanningError, match="name trained models in the config"):
        sheet(GOOD[1:])


@pytest.mark.parametrize(
    ("name", "column"), [("b.nii.gz", "path"), ("c.mask.nii.gz", "annotation")]
)
def test_a_missing_file_is_named(sheet, name, column):
    with pytest.raises(PlanningError, match=rf"column '{column}': .*{name} does not exist"):
        sheet(absent=[name])


def test_a_file_of_ones_own_is_never_overwritten_by_a_phantom(sheet, tmp_path):
    (tmp_path / "phantom").mkdir()
    image = tmp_path / "phantom/c.nii.gz"
    rows = changed(2, "path", "phantom/c.nii.gz")
    assert sheet(rows, absent=["phantom/c.nii.gz"])["c"].is_phantom
    image.touch()
    with pytest.raises(PlanningError, match=r"row 4, column 'path': .* is no phantom"):
        sheet(rows)
    (tmp_path / "phantom/c.truth.npz").touch()
    assert sheet(rows)["c"].is_phantom


def test_a_home_folder_is_found():
    assert resolve_config({"data_dir": "~/oct"})["data_dir"] == str(Path("~/oct").expanduser())


def test_a_missing_or_binary_sheet(tmp_path):
    with pytest.raises(PlanningError, match="cannot be read"):
        read_sample_sheet(str(tmp_path / "absent.tsv"), ".")
    (tmp_path / "x.tsv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(PlanningError, match="not a tab-separated UTF-8"):
        read_sample_sheet(str(tmp_path / "x.tsv"), ".")


def test_chunks_are_stable_and_complete(sheet):
    read = sheet(
        [*GOOD, *([f"t{i}", f"q{i}", "", f"t{i}.nii.gz", "test", "healthy", ""] for i in range(40))]
    )
    chunks = [read.volumes("test", k, 4) for k in range(4)]
    assert sorted(v for chunk in chunks for v in chunk) == sorted(read.volumes("test"))
    assert min(map(len, chunks)) > 3
    assert chunk_of("t1", 4) == chunk_of("t1", 4)


def test_defaults_are_filled_in_and_the_input_left_alone():
    given = {"map": {"steps": 7}}
    resolved = resolve_config(given)
    assert resolved["map"]["steps"] == 7
    assert resolved["map"]["lambda"] == 0.1
    assert given == {"map": {"steps": 7}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"stepz": 1}, "unknown key 'stepz'"),
        ({"map": {"stepz": 1}}, "unknown key 'map: stepz'"),
        ({"map": {"steps": 0}}, "map: steps: 0 is less than the minimum of 1"),
        ({"gan": {"learning_rate": "1e-4"}}, "write it as 0.001 or 1.0e-3"),
        ({"map": {"steps": "many"}}, "map: steps: 'many' is not of type 'integer'"),
        ({"map": 3}, "map: 3 is not of type 'object'"),
        ({"flatten": {"mode": "rpe"}}, "flatten: mode: 'rpe' is not one of"),
        ({"patches": {"size": 32}}, "gan: channels has 4 numbers"),
        ({"normalise": {"percentiles": [99, 1]}}, "the first must be the smaller"),
        ({"map": {"feature_layer": 5}}, "map: feature_layer"),
        ({"map": {"feature_layer": "last"}}, "map: feature_layer"),
        ({"acae": {"channels": [8, 8, 8]}}, "acae: channels has 3 numbers"),
        ({"methods": ["anogan", "knn"]}, "there is no method 'knn'; there are acae, ae, anogan"),
        ({"methods": ["gan"]}, "there is no method 'gan'"),
        ({"methods": []}, "methods"),
        ({"existing_models": {"gan": "absent"}}, "absent holds no model.json"),
        ({"existing_models": {"gan": "results/model/gan"}}, "gan lies in results_dir"),
        ({"methods": ["pca"], "existing_models": {"gan": "x"}}, "no method needs 'gan'"),
        ({"heatmap": {"methods": ["knn"]}}, "heatmap: methods: there is no method 'knn'"),
        ({"heatmap": {"overlap": 1}}, "heatmap: overlap: 1 is greater than the maximum of 0.95"),
        ({"evaluate": {"aggregation": "sum"}}, "evaluate: aggregation: 'sum' is not one of"),
        ({"map": {"candidates": 2, "restarts": 3}}, "3 restarts need at least as many candidates"),
    ],
)
def test_a_bad_config_is_named_with_its_place(config, message):
    with pytest.raises(PlanningError, match=message):
        resolve_config(config)


@pytest.mark.parametrize(
    ("methods", "wanted", "drawn"),
    [
        (["pca", "anogan"], {}, ["anogan"]),
        (["pca", "ae"], {"methods": ["pca", "anogan"]}, ["pca"]),
        (["pca", "ae"], {"methods": ["anogan"]}, ["ae"]),
        (["pca", "ae"], {"methods": []}, []),
    ],
)
def test_heat_maps_are_drawn_with_what_runs(methods, wanted, drawn):
    """So that a preset can name methods without forbidding to run fewer."""
    config = resolve_config({"methods": methods, "heatmap": wanted})
    assert config["heatmap"]["methods"] == drawn


@pytest.mark.parametrize("preset", sorted(p.name for p in (ROOT / "config/presets").glob("*.yaml")))
def test_presets_are_valid(preset):
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    over = yaml.safe_load((ROOT / "config/presets" / preset).read_text())
    resolve_config(
        {k: {**config.get(k, {}), **v} if isinstance(v, dict) else v for k, v in over.items()}
    )


@pytest.mark.parametrize("preset", sorted(p.name for p in (ROOT / "config/presets").glob("*.yaml")))
def test_a_preset_leaves_nothing_of_the_demonstration(preset):
    """The demonstration lies under every config, so a preset must set each stage key it changes."""
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    over = yaml.safe_load((ROOT / "config/presets" / preset).read_text())
    for section, values in config.items():
        if isinstance(values, dict):
            assert set(values) <= set(over.get(section, {})), section


def test_the_paper_preset_is_what_was_published():
    paper = resolve_config(yaml.safe_load((ROOT / "config/presets/paper.yaml").read_text()))
    assert paper["model"]["channels"] == [512, 256, 128, 64]
    assert paper["patches"]["train_total"] == 1_000_000
    assert (paper["map"]["steps"], paper["map"]["lambda"]) == (500, 0.1)
    assert (paper["gan"]["epochs"], paper["flatten"]["mode"]) == (20, "both")
    assert paper["acae"]["channels"] == paper["gan"]["channels"]  # the same sizes for all


def test_every_key_is_explained():
    readme = (ROOT / "config/README.md").read_text()
    for name, part in load_schema("config")["properties"].items():
        for key in part.get("properties", {name: None}):
            assert f"`{key}`" in readme, f"config/README.md does not explain {name}: {key}"
    for column in load_schema("volumes")["properties"]:
        assert f"`{column}`" in readme, f"config/README.md does not explain the column {column}"


def test_all_files_of_a_volume_are_watched(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("b1.png", "b2.png", "oct.yaml", ".hidden"):
        (folder / name).touch()
    for name in ("export.xml", "A.TIF", "other.nii.gz", "scan.mhd", "scan.raw", "scan.json"):
        (tmp_path / name).touch()

    def names(path):
        return [Path(file).name for file in source_files(str(path))]

    assert names(folder) == ["b1.png", "b2.png", "oct.yaml"]
    assert names(tmp_path / "export.xml") == ["export.xml", "A.TIF"]
    assert names(tmp_path / "scan.mhd") == ["scan.mhd", "scan.json", "scan.raw"]
    assert names(tmp_path / "other.nii.gz") == ["other.nii.gz"]


def test_pixels_and_images_of_any_name_are_watched(tmp_path):
    header = b"NDims = 3\nElementDataFile = %s\n"
    pixels = ("pixels.bin", "../pixels.bin", "absent.bin", "LOCAL", "", "\0", ".", "9" * 4000)
    for n, name in enumerate(pixels):
        (tmp_path / f"{n}.mhd").write_bytes(header % name.encode() + bytes(9) + b"=\xff")
    export = ("a.xml", "A.TIF", "b.png", "c.bmp", "d.JPG", "a.yaml", "e.xml", "Thumbs.db")
    for name in ("pixels.bin", *export):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.tif")
    found = [[Path(f).name for f in source_files(str(tmp_path / f"{n}.mhd"))] for n in range(8)]
    assert found == [["0.mhd", "pixels.bin"], *([f"{n}.mhd"] for n in range(1, 8))]
    images = source_files(str(tmp_path / "a.xml"))
    assert [Path(f).name for f in images] == ["a.xml", *sorted(export[1:5]), "a.yaml"]
    assert set(FORMATS) == set(HEYEX_IMAGES)
    assert source_files(str(tmp_path / "absent.mhd")) == [str(tmp_path / "absent.mhd")]
