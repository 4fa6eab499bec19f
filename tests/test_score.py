"""The command `score`: a table in the file's order, pictures of some patches, faults in a line."""

import json
import re

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from anogan.model import save_model, weights_of
from anogan.networks import Discriminator, Generator
from anogan.score import choose_residuals, score_file
from anogan.scoring import padded_batches
from preprocessing.cli import run_command
from preprocessing.patch_file import INDEX_DTYPE, PatchWriter, open_patches

CHANNELS, LATENT, SIZE = (16, 8, 8), 6, 32
SCORES = {"anogan": ["A", "R", "D"], "gan_r": ["A_hat", "R", "D_hat"], "p_d": ["P_D"]}
LEARNED = {"resample": {"x_um": 22.0}, "flatten": {"mode": "bm", "above_um": 650.0}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a model that has learned nothing, but from patches as in `patch_file`."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    networks = {"generator": Generator(CHANNELS, LATENT), "discriminator": Discriminator(CHANNELS)}
    architecture = {"channels": CHANNELS, "latent": LATENT, "patch_size": SIZE, "norm": "batch"}
    description = {"model": "gan", "architecture": architecture, "data": {"preprocessing": LEARNED}}
    save_model(folder, weights_of(**networks), description)
    return folder


@pytest.fixture(scope="module")
def patch_file(tmp_path_factory):
    """Eleven patches of two volumes, the second one's anomalous."""
    index = np.zeros(11, INDEX_DTYPE)
    index["volume"] = [b"a"] * 6 + [b"b"] * 5
    index["patient"], index["split"], index["label_source"] = index["volume"], b"test", b"eye"
    index["x"] = np.arange(11)
    index["label"] = [0] * 6 + [1] * 5
    gray = np.random.default_rng(0).uniform(-1, 1, (11, SIZE, SIZE)).astype(np.float16)
    path = tmp_path_factory.mktemp("patches") / "p.h5"
    with PatchWriter(path, SIZE) as writer:
        writer.append(gray, np.full(gray.shape, 255, np.uint8), index)
    preprocess(path, LEARNED)
    return path


def preprocess(path, parameters) -> None:
    with h5py.File(path, "a") as file:
        group = file.require_group("geometry/a")
        group.attrs["parameters"] = json.dumps(parameters)


def part(path, rows, target):
    """Write the patches `rows` of a file into another."""
    with open_patches(path) as file, PatchWriter(target, SIZE) as writer:
        writer.append(*(file[name][:][rows] for name in ("patches", "masks", "index")))
    return target


def score(model, patches, folder, *extra) -> int:
    files = ["--model", model, "--patches", patches, "--output", folder / "s.parquet"]
    arguments = [*files, "--residual-output", folder / "s.h5", "--steps", 10, "--batch-size", 4]
    return run_command("anogan", {"score": ""}, ["score", *map(str, [*arguments, *extra])])


def table(model, patches, folder, *extra) -> pd.DataFrame:
    assert score(model, patches, folder, *extra) == 0
    return pd.read_parquet(folder / "s.parquet")


@pytest.fixture(scope="module")
def reference(model, patch_file, tmp_path_factory) -> pd.DataFrame:
    """The scores as they are without further options."""
    return table(model, patch_file, tmp_path_factory.mktemp("reference"))


@pytest.mark.parametrize("method", SCORES)
def test_the_table_has_every_patch_in_the_order_of_the_file(model, patch_file, tmp_path, method):
    found = table(model, patch_file, tmp_path, "--method", method)
    assert list(found.columns) == [*INDEX_DTYPE.names, "method", *SCORES[method]]
    assert found["x"].tolist() == list(range(11))  # the last, partial batch is there
    assert set(found["method"]) == {method}
    assert np.isfinite(found[SCORES[method]]).all(axis=None)
    assert found[SCORES[method][0]].nunique() == 11


def test_a_gan_is_scored_by_anogan_unless_told_otherwise(reference):
    assert set(reference["method"]) == {"anogan"}


@pytest.mark.parametrize("precision", ["fp32", "auto"])
@pytest.mark.parametrize("candidates", [0, 20])
def test_a_score_does_not_depend_on_order_or_chunk(
    model, patch_file, tmp_path, precision, candidates
):
    extra = ["--candidates", candidates, "--precision", precision]
    whole = table(model, patch_file, tmp_path, *extra).set_index("x")
    again = table(model, patch_file, tmp_path, *extra).set_index("x")
    pd.testing.assert_frame_equal(again, whole, check_exact=True)
    for rows in (np.arange(11)[::-1], np.arange(7), np.arange(7, 11), np.array([9, 2])):
        other = part(patch_file, rows, tmp_path / "part.h5")
        found = table(model, other, tmp_path, *extra).set_index("x")
        assert found.index.tolist() == rows.tolist()
        pd.testing.assert_frame_equal(found, whole.loc[found.index], check_exact=True)


@pytest.mark.parametrize("extra", [("--batch-size", 1), ("--batch-size", 16), ("--threads", 2)])
def test_a_score_does_not_depend_on_batch_size_or_threads(
    model, patch_file, reference, tmp_path, extra
):
    other = table(model, patch_file, tmp_path, *extra)
    # another shape may take another kernel, so the last bits may differ
    pd.testing.assert_frame_equal(other, reference, rtol=1e-3, atol=1e-3)


def test_another_seed_starts_elsewhere(model, patch_file, reference, tmp_path):
    # searches end close to each other: a single number may be the same
    found = table(model, patch_file, tmp_path, "--seed", 2)
    assert (found["R"] != reference["R"]).mean() > 0.5


def test_kept_residuals_belong_to_their_patches(model, patch_file, tmp_path):
    scores = table(model, patch_file, tmp_path, "--residuals", 6)
    with h5py.File(tmp_path / "s.h5") as kept, h5py.File(patch_file) as file:
        rows = kept["index"]["x"]
        assert sorted(scores["label"].iloc[rows[kept["random"][:]]]) == [0, 0, 0, 1, 1, 1]
        np.testing.assert_array_equal(kept["patches"][:], file["patches"][:][rows])
        residual = np.abs(kept["patches"][:].astype(np.float32) - kept["generated"][:])
        np.testing.assert_allclose(residual, kept["residual"][:], atol=2e-3)
        np.testing.assert_allclose(residual.sum((1, 2)), scores["R"].iloc[rows], rtol=1e-3)
        assert kept["masks"].shape == (len(rows), SIZE, SIZE)


def test_a_method_that_rebuilds_nothing_leaves_an_empty_file(model, patch_file, tmp_path):
    table(model, patch_file, tmp_path, "--method", "p_d")
    with h5py.File(tmp_path / "s.h5") as kept:
        assert {name: len(kept[name]) for name in kept} == dict.fromkeys(
            ("patches", "generated", "residual", "masks", "index", "random"), 0
        )


def test_a_file_without_patches_gives_a_table_without_rows(model, patch_file, tmp_path):
    empty = part(patch_file, np.arange(0), tmp_path / "empty.h5")
    assert len(table(model, empty, tmp_path)) == 0


@pytest.mark.parametrize("side", ["patches", "model", "same"])
def test_preprocessing_is_compared_where_both_sides_know_it(
    model, patch_file, tmp_path, side, capsys
):
    other = part(patch_file, np.arange(4), tmp_path / "other.h5")
    if side != "patches":
        black = {**LEARNED, "normalise": {"black": 0.3}}  # of this volume alone
        preprocess(other, black if side == "model" else LEARNED)
    if side == "model":
        description = json.loads((model / "model.json").read_text())
        description["data"] = {"preprocessing": {}}
        for file in model.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / "model.json").write_text(json.dumps(description))
        model = tmp_path
    assert score(model, other, tmp_path) == 0, capsys.readouterr().err


def fault(case, model, patch_file, folder):
    """Return (model, patches, options) of a wrong use."""
    patches = part(patch_file, np.arange(11), folder / "wrong.h5")
    if case == "preprocessing":
        preprocess(patches, {**LEARNED, "flatten": {"mode": "rpe", "above_um": 650.0}})
    elif case == "missing setting":
        preprocess(patches, {"resample": {"x_um": 22.0}, "flatten": {"mode": "bm"}})
    elif case == "size":
        with PatchWriter(patches, 64) as writer:
            writer.append(np.zeros((1, 64, 64)), None, np.zeros(1, INDEX_DTYPE))
    elif case == "other model":
        wrong = folder / "pca"
        wrong.mkdir()
        (wrong / "weights.safetensors").write_bytes((model / "weights.safetensors").read_bytes())
        description = {"model": "pca", "architecture": {"patch_size": SIZE}}
        (wrong / "model.json").write_text(json.dumps(description))
        return wrong, patches, ["--method", "anogan"]
    elif case == "no model":
        return folder / "absent", patches, []
    elif case == "no patches":
        return model, folder / "absent.h5", []
    options = {
        "layer": ["--feature-layer", 4],
        "restarts": ["--candidates", 2, "--restarts", 3],
        "method": ["--method", "magic"],
        "not a method": ["--method", "gan"],
        "batch": ["--batch-size", 0],
    }
    return model, patches, options.get(case, [])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("preprocessing", "flatten: mode = rpe, but .* trained on patches with bm; set it"),
        ("missing setting", "flatten: above_um = None, but .* 650.0"),
        ("size", "patches of 64 pixels, but .* trained on 32"),
        ("other model", "holds the model pca, but anogan scores with gan"),
        ("no model", "not a complete model"),
        ("no patches", "no such file"),
        ("layer", "the layers 1 to 3"),
        ("restarts", "as many candidates"),
        ("method", "no method 'magic'; there are .*anogan"),
        ("not a method", "gan is a model, not a way to score"),
        ("batch", "at least 1"),
    ],
)
def test_faults_end_in_one_line_and_leave_nothing(
    model, patch_file, tmp_path, capsys, case, message
):
    model, patches, extra = fault(case, model, patch_file, tmp_path)
    output = tmp_path / "output"
    assert score(model, patches, output, *extra) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert not output.exists()


def test_when_the_pictures_cannot_be_written_there_is_no_table(model, patch_file, tmp_path):
    (tmp_path / "s.h5").mkdir()
    assert score(model, patch_file, tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]


@pytest.mark.parametrize(
    ("count", "chosen"),
    [(0, {}), (1, {1: 1}), (12, {0: 6, 1: 6}), (30, {0: 20, 1: 10}), (100, {0: 80, 1: 10, -1: 10})],
)
def test_the_choice_of_residuals_is_balanced(count, chosen):
    index = pd.DataFrame({"label": [-1] * 10 + [0] * 80 + [1] * 10})
    rows = choose_residuals(index, [str(i) for i in range(100)], count)
    assert index["label"].iloc[rows].value_counts().to_dict() == chosen


@pytest.mark.parametrize("batch_size", [7, 100])
def test_the_patches_scored_most_wrongly_are_kept(tmp_path, rng, batch_size):
    """The score is the brightness here, and one patch has none."""
    n = 90
    index = np.zeros(n, INDEX_DTYPE)
    index["volume"], index["x"] = b"a", np.arange(n)
    index["label"] = label = rng.integers(-1, 2, n)
    score = rng.permutation(n) / n
    score[np.flatnonzero(label == 0)[3]] = np.nan
    gray = np.broadcast_to(score[:, None, None], (n, SIZE, SIZE)).astype(np.float16)
    with PatchWriter(tmp_path / "p.h5", SIZE) as writer:
        writer.append(gray, None, index)

    def scorer(x, keys, height_px):
        return x[:, 0, :1, 0], -x

    cpu = torch.device("cpu")
    _, rows, rebuilt = score_file(str(tmp_path / "p.h5"), scorer, ("S",), batch_size, 0, cpu)
    ranked = {value: np.flatnonzero((label == value) & np.isfinite(score)) for value in (0, 1)}
    ranked = {value: own[np.argsort(score[own])] for value, own in ranked.items()}
    assert rows.tolist() == sorted([*ranked[0][-8:], *ranked[1][:8]])
    np.testing.assert_array_equal(rebuilt, -gray[rows])


def test_the_last_batch_is_not_dropped():
    batches = list(padded_batches(10, 4))
    assert [len(rows) for rows, _ in batches] == [4, 4, 4]
    assert np.concatenate([rows[:count] for rows, count in batches]).tolist() == list(range(10))
