"""A run can start from what there is: own models, own patches, own normalised or flat volumes."""

import shutil

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from made_project import ROWS, Project, phantom
from PIL import Image

from planning.errors import PlanningError
from planning.existing import check_patches
from planning.sample_sheet import Row
from preprocessing.cli import run_command
from preprocessing.geometry import read_geometry
from preprocessing.volume import read_volume

CHEAP = {"methods": ["pca"], "heatmap": {"methods": []}}


def run(stage: str, *options: object) -> int:
    return run_command("preprocessing", {stage: ""}, [stage, *map(str, options)])


def own_patches(folder, split, patients, rng, size=32, **columns):
    """Make patches as a user has them, an array and a table, and of these a patch file."""
    n = 10 * len(patients)
    texture = rng.uniform(-1, 1, (n, size, size)).astype(np.float32)
    np.save(folder / f"{split}.npy", texture)
    table = pd.DataFrame({"patient": np.repeat(patients, 10), **columns})
    table.to_csv(folder / f"{split}.tsv", sep="\t", index=False)
    out = folder / f"{split}.h5"
    given = ("--patches", folder / f"{split}.npy", "--table", folder / f"{split}.tsv")
    return run("own_patches", *given, "--split", split, "--output", out), out


@pytest.fixture(scope="module")
def from_patches(tmp_path_factory):
    """A run that starts from patches of all splits, and no volume."""
    project = Project(tmp_path_factory.mktemp("own"))
    rng = np.random.default_rng(0)
    splits = {"train": ["a", "b"], "validation": ["c"], "test": ["d", "e"]}
    files = {}
    for split, patients in splits.items():
        label = rng.integers(0, 2, 10 * len(patients)) if split == "test" else 0
        code, files[split] = own_patches(project.folder, split, patients, rng, label=label)
        assert code == 0
    existing = {split: [path.name] for split, path in files.items()}
    existing["train"] = existing["train"][0]
    project.write([], existing_patches=existing, **CHEAP)
    result = project.snakemake()
    assert result.returncode == 0, result.stderr
    return project


class TestOwnPatches:
    def test_they_go_to_the_report(self, from_patches):
        results = from_patches.folder / "results"
        scores = pd.read_parquet(results / "scores/pca/test-0.parquet")
        assert scores["patient"].unique().tolist() == ["d", "e"]
        metrics = pd.read_csv(results / "report/metrics.tsv", sep="\t")
        assert (metrics["level"] == "patch").any()
        assert (results / "report/index.html").stat().st_size > 10_000
        assert not (results / "volumes").exists()

    def test_nothing_is_cut(self, from_patches):
        planned = from_patches.planned("--forceall")
        assert not {"load", "prepare", "patches", "overlay"} & set(planned)

    def test_a_volume_of_the_same_split_is_refused(self, from_patches):
        from_patches.write(
            ROWS[3:4], existing_patches={"train": "train.h5", "test": ["test.h5"]}, **CHEAP
        )
        result = from_patches.snakemake("--dry-run")
        assert result.returncode != 0
        assert "row 2, column 'split': the patches of test" in result.stdout + result.stderr

    def test_they_stand_beside_volumes(self, from_patches):
        rows = [phantom("v", "validation"), phantom("t", "test", "diseased")]
        from_patches.write(rows, existing_patches={"train": "train.h5"}, **CHEAP)
        planned = from_patches.planned()
        assert planned["patches"] == planned["prepare"] == 2
        assert "train" not in planned  # that model is there from the run before

    def test_no_heat_map_is_drawn_that_nobody_sees(self, from_patches):
        existing = {"train": "train.h5", "test": ["test.h5"]}
        config = {"existing_patches": existing, "methods": ["pca"], "heatmap": {"methods": ["pca"]}}
        from_patches.write([phantom("v", "validation")], **config)
        assert "heatmap" not in from_patches.planned()
        from_patches.write([phantom("v", "validation"), phantom("s", "score")], **config)
        assert from_patches.planned()["heatmap"] == 2


class TestOwnVolumes:
    """Volumes that stages of this pipeline have made stand for those of other tools."""

    @pytest.fixture(scope="class")
    @staticmethod
    def made(tmp_path_factory):
        folder = tmp_path_factory.mktemp("made")
        shape = ("--bscans", 2, "--depth", 320, "--width", 192)
        phantom = folder / "phantom.nii.gz"
        assert (
            run("phantom", "--volume", "v", "--label", "healthy", *shape, "--output", phantom) == 0
        )
        assert load(phantom, folder / "volume.nii.gz") == 0
        assert (
            run("normalise", "--input", folder / "volume.nii.gz", "--output", folder / "n.nii.gz")
            == 0
        )
        assert run("prepare", "--input", folder / "volume.nii.gz", "--folder", folder) == 0
        return folder

    def test_a_normalised_volume_keeps_its_gray_values(self, made, tmp_path):
        own = bare_copy(made / "n.nii.gz", tmp_path)
        assert load(own, tmp_path / "volume.nii.gz", "normalised") == 0
        assert run("prepare", "--input", tmp_path / "volume.nii.gz", "--folder", tmp_path) == 0
        there, here = (read_volume(folder / "flat.nii.gz") for folder in (made, tmp_path))
        np.testing.assert_allclose(here.data, there.data, atol=1e-3)
        assert here.parameters["load"] == {"already": "normalised"}

    def test_a_flat_volume_stays_as_it_is(self, made, tmp_path):
        own = bare_copy(made / "flat.nii.gz", tmp_path)
        assert load(own, tmp_path / "volume.nii.gz", "flat") == 0
        assert run("prepare", "--input", tmp_path / "volume.nii.gz", "--folder", tmp_path) == 0
        there, here = (read_volume(folder / "flat.nii.gz") for folder in (made, tmp_path))
        np.testing.assert_allclose(here.data, there.data, atol=1e-3)
        geometry = read_geometry(tmp_path / "flat.geometry.npz")
        before = read_geometry(made / "flat.geometry.npz")
        assert np.nanmedian(np.abs(geometry.bm - before.bm)) < 1
        b, z, x = geometry.to_native(np.array([1]), np.array([7]), np.array([5]))
        assert (b[0], z[0], x[0]) == (1, 7, 5)

    @pytest.mark.parametrize(
        ("values", "name", "message"),
        [
            (np.full((32, 64, 1), 2.0), "own.nii.gz", "gray values from 2 to 2"),
            (None, "own.tif", "must be in one of"),
        ],
    )
    def test_what_is_not_normalised_is_refused(self, tmp_path, capsys, values, name, message):
        if values is None:
            Image.new("L", (64, 64)).save(tmp_path / name)
        else:
            nib.save(nib.Nifti1Image(values, np.diag([0.01, 0.004, 0.1, 1])), tmp_path / name)
        spacing = ("--spacing-um", 100, 4, 10)
        assert load(tmp_path / name, tmp_path / "volume.nii.gz", "flat", *spacing) == 1
        error = capsys.readouterr().err
        assert message in error
        assert name in error
        assert not (tmp_path / "volume.nii.gz").exists()

    def test_the_sample_sheet_says_so(self, tmp_path):
        project = Project(tmp_path)
        project.write(ROWS[:1] + ROWS[3:4], **CHEAP)
        sheet = tmp_path / "volumes.tsv"
        head, *rows = sheet.read_text().splitlines()
        text = [f"{head}\talready", *(f"{row}\tflat" for row in rows)]
        sheet.write_text("\n".join(text) + "\n")
        result = project.snakemake("--dry-run", "--printshellcmds")
        assert result.stdout.count("--already flat") == 2


def load(path, output, already="", *options) -> int:
    """Load one volume."""
    ids = ("--volume", "v", "--patient", "p", "--already", already)
    return run("load", "--input", path, *ids, *options, "--output", output)


def bare_copy(path, folder):
    """Write the gray values and the spacing of a volume alone, as another tool would."""
    volume = read_volume(path)
    gray = np.where(volume.valid, volume.data, np.nan).transpose(2, 1, 0)
    step_b, step_z, step_x = volume.spacing_mm
    own = folder / "own.nii.gz"
    nib.save(nib.Nifti1Image(gray, np.diag([step_x, step_z, step_b, 1])), own)
    return own


def test_an_archive_is_no_array(tmp_path, capsys):
    np.savez(tmp_path / "p.npz", np.zeros((3, 32, 32), np.float32))
    (tmp_path / "p.tsv").write_text("patient\na\na\na\n")
    given = ("--patches", tmp_path / "p.npz", "--table", tmp_path / "p.tsv", "--split", "test")
    assert run("own_patches", *given, "--output", tmp_path / "p.h5") == 1
    assert "p.npz: not a readable array in NumPy's format .npy" in capsys.readouterr().err


def test_the_patch_file_holds_what_was_given(tmp_path, rng):
    code, path = own_patches(tmp_path, "test", ["d"], rng, label=[0] * 9 + [1], eye="R")
    assert code == 0
    with h5py.File(path) as file:
        given = np.load(tmp_path / "test.npy")
        np.testing.assert_array_equal(file["patches"][:], given.astype(np.float16))
        index = file["index"][:]
    assert index["label"].tolist() == [0] * 9 + [1]
    assert set(index["volume"]) == {b"d"}
    assert len(set(zip(index["volume"], index["x"], strict=True))) == 10


@pytest.mark.parametrize(
    ("split", "columns", "message"),
    [
        ("train", {"label": 1}, "anomalous patches to train on"),
        ("test", {"label": "ill"}, "row 2, column 'label': 'ill'"),
        ("test", {"eye": "left"}, "row 2, column 'eye': 'left'; it must be one of R, L, empty"),
        ("test", {"volume": ""}, "column 'volume' has an empty"),
        ("test", {"volume": "x" * 65}, "too long"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, rng, capsys, split, columns, message):
    code, path = own_patches(tmp_path, split, ["d"], rng, **columns)
    assert code == 1
    assert message in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 32, 31), np.float32), "it must be (n, size, size)"),
        (np.zeros((3, 32, 32), np.uint8), "scale them to [-1, 1]"),
        (np.full((3, 32, 32), 1.5, np.float32), "values outside [-1, 1]"),
        (np.full((3, 32, 32), np.nan, np.float32), "values outside [-1, 1]"),
        (np.zeros((4, 32, 32), np.float32), "3 rows for 4 patches"),
    ],
)
def test_a_wrong_array_is_refused(tmp_path, capsys, array, message):
    np.save(tmp_path / "p.npy", array)
    (tmp_path / "p.tsv").write_text("patient\n" + "a\n" * 3)
    given = ("--patches", tmp_path / "p.npy", "--table", tmp_path / "p.tsv", "--split", "test")
    assert run("own_patches", *given, "--output", tmp_path / "p.h5") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "p.h5").exists()


@pytest.mark.parametrize(
    ("split", "size", "patients", "message"),
    [
        ("test", 32, ["D"], "patient 'd' is in train as well"),
        ("test", 64, [], "patches of 32 x 32 pixels"),
        ("score", 32, [], "patches of the split test"),
    ],
)
def test_a_patch_file_must_fit_the_run(tmp_path, rng, split, size, patients, message):
    _, path = own_patches(tmp_path, "test", ["d"], rng)
    with pytest.raises(PlanningError, match=message):
        rows = [Row(2, "v", patient, "v.nii.gz", "train", "healthy") for patient in patients]
        check_patches({split: [str(path)]}, size, rows, "results")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PlanningError, match=r"q\.h5 does not exist"):
        check_patches({"test": [str(tmp_path / "q.h5")]}, 32, [], "results")


@pytest.mark.parametrize("twice", [r"train\.h5", "the sample sheet"])
def test_a_volume_in_two_places_is_refused(tmp_path, rng, twice):
    """Their scores could not be told apart."""
    (_, train), (_, test) = (
        own_patches(tmp_path, split, [patient], rng, volume="v")
        for split, patient in (("train", "a"), ("test", "b"))
    )
    files, rows = {"test": [str(test)]}, [Row(2, "v", "c", "v.nii.gz", "score", "unknown")]
    if "train" in twice:
        files, rows = {"train": [str(train)], **files}, []
    with pytest.raises(PlanningError, match=f"volume 'v' is in .*{twice} as well"):
        check_patches(files, 32, rows, "results")


def patches_elsewhere(file, secret):
    del file["index"]
    file["index"] = h5py.ExternalLink(secret, "index")


def group_of_patches(file, secret):
    del file["patches"]
    file.create_group("patches")


def single_number(file, secret):
    del file["patches"]
    file["patches"] = 1


def numbers_alone(file, secret):
    n = len(file["patches"])
    del file["patches"]
    file["patches"] = np.zeros(n)


def numbers_for_text(file, secret):
    n = len(file["patches"])
    del file["index"]
    file["index"] = np.zeros(n, [("split", "i4"), ("patient", "i4")])


def more_rows_than_memory_holds(file, secret):
    file["index"].resize(2**50, axis=0)


def more_patches_than_the_file_holds(file, secret):
    for name in ("patches", "index"):
        file[name].resize(2**40, axis=0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (patches_elsewhere, "'index' takes its values from another file"),
        (group_of_patches, "not a readable patch file"),
        (single_number, "not a readable patch file"),
        (numbers_alone, "patches of no pixels"),
        (numbers_for_text, "not a readable patch file"),
        (more_rows_than_memory_holds, "rows for"),
        (more_patches_than_the_file_holds, "cut off"),
        (None, "not a readable patch file"),
    ],
)
def test_a_file_that_is_no_patch_file_is_refused(tmp_path, rng, spoil, message):
    _, path = own_patches(tmp_path, "test", ["d"], rng)
    if spoil:
        secret = shutil.copy(path, tmp_path / "secret.h5")
        with h5py.File(path, "a") as file:
            spoil(file, secret)
    else:
        path.write_text("{}")
    with pytest.raises(PlanningError, match=message) as caught:
        check_patches({"test": [str(path)]}, 32, [], "results")
    assert str(path) in str(caught.value)


def test_patches_of_the_run_itself_are_refused(tmp_path):
    path = tmp_path / "results/patches/train.h5"
    with pytest.raises(PlanningError, match="lies in results_dir"):
        check_patches({"train": [str(path)]}, 32, [], str(tmp_path / "results"))
