"""The stage `latent`: which patches are arranged, the same way every time; walks through z."""

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from anogan.latent import FEWEST, STEPS, WALKS, arrange, choose_patches
from anogan.model import load_gan, load_model, save_model, weights_of
from anogan.networks import Discriminator, Generator
from preprocessing.cli import run_command
from preprocessing.patch_file import INDEX_DTYPE, PatchWriter, read_index

CHANNELS, LATENT, SIZE = (16, 8, 8), 6, 32


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    networks = {"generator": Generator(CHANNELS, LATENT), "discriminator": Discriminator(CHANNELS)}
    architecture = {"channels": CHANNELS, "latent": LATENT, "patch_size": SIZE, "norm": "batch"}
    save_model(folder, weights_of(**networks), {"model": "gan", "architecture": architecture})
    return folder


def write_patches(path, label, split="test", dark=False):
    """Write a patch a label; the normal ones are much brighter than the others."""
    label = np.asarray(label)
    index = np.zeros(len(label), INDEX_DTYPE)
    index["volume"], index["split"], index["label"] = path.stem, split, label
    index["x"] = np.arange(len(label))
    gray = np.random.default_rng(len(label)).uniform(-1, 1, (len(label), SIZE, SIZE))
    gray = 0.1 * gray + np.where(label == 0, 0.8, -0.8)[:, None, None]
    with PatchWriter(path, SIZE) as writer:
        writer.append(-np.ones_like(gray) if dark else gray, None, index)
    return path


def latent(model, output, *patches, **options) -> int:
    given = [f"--{name}={value}" for name, value in options.items()]
    arguments = ["latent", "--model", model, "--patches", *patches, "--output", output, *given]
    return run_command("anogan", {"latent": ""}, [str(part) for part in arguments])


def test_patches_of_all_files_are_arranged_and_keep_their_labels(model, tmp_path):
    files = [
        write_patches(tmp_path / "a.h5", [0] * 40),
        write_patches(tmp_path / "b.h5", [1, -1] * 30),
    ]
    assert latent(model, tmp_path / "one.h5", *files) == 0
    assert latent(model, tmp_path / "two.h5", *files) == 0
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    with h5py.File(tmp_path / "one.h5") as file:
        points, index, walks = file["tsne"][:], read_index(file), file["walks"][:]
    assert index.groupby(["volume", "label"]).size().to_dict() == {("a", 0): 40, ("b", 1): 30}
    assert points.shape == (70, 2)
    assert points.dtype == np.float32
    # what D sees differently lies apart: every patch is nearer to the middle of its own kind
    normal = (index["label"] == 0).to_numpy()
    middles = np.stack([points[normal].mean(0), points[~normal].mean(0)])
    nearest = np.linalg.norm(points[:, None] - middles, axis=2).argmin(1)
    np.testing.assert_array_equal(nearest == 0, normal)
    assert walks.shape == (WALKS, STEPS, SIZE, SIZE)
    assert np.abs(walks).max() <= 1


def test_a_step_of_a_walk_is_small_beside_the_walk(model, tmp_path):
    files = [write_patches(tmp_path / "a.h5", [0] * 5)]
    for seed in (1, 2):
        assert latent(model, tmp_path / f"{seed}.h5", *files, seed=seed) == 0
    with h5py.File(tmp_path / "1.h5") as one, h5py.File(tmp_path / "2.h5") as other:
        walks = one["walks"][:].astype(np.float32)
        assert not np.array_equal(walks, other["walks"])
    steps = np.abs(np.diff(walks, axis=1)).mean((2, 3))
    whole = np.abs(walks[:, -1] - walks[:, 0]).mean((1, 2))
    assert (steps.max(1) < whole / 2).all()


def test_features_are_those_of_eval_mode(model, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "anogan.latent.arrange", lambda features, _: seen.append(features) or features[:, :2]
    )
    path = write_patches(tmp_path / "a.h5", [0, 1] * 40)
    assert latent(model, tmp_path / "x.h5", path) == 0
    _, discriminator = load_gan(load_model(model, torch.device("cpu")))
    discriminator.eval()
    with h5py.File(path) as file, torch.inference_mode():
        x = torch.from_numpy(file["patches"][:].astype(np.float32)).unsqueeze(1)
        expected = discriminator.features(x, len(CHANNELS)).flatten(1)
    np.testing.assert_allclose(seen[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("label", "split", "chosen"),
    [
        ([0] * 30 + [1] * 5 + [-1] * 9, "test", {0: 7, 1: 5}),
        ([-1] * 30, "test", {-1: 12}),
        ([0] * 30, "validation", {0: 12}),
        ([0] * 3, "test", {0: 3}),
    ],
)
def test_labelled_test_patches_come_first_both_kinds_in_turn(label, split, chosen):
    place = {"volume": "a", "bscan": 0, "z": 0, "x": range(len(label))}
    index = pd.DataFrame({**place, "split": split, "label": label})
    train = index.assign(split="train") if split == "test" and chosen.get(0) else index[:0]
    index = pd.concat([train, index], ignore_index=True)
    rows = choose_patches(index, 12)
    assert index["label"].iloc[rows].value_counts().to_dict() == chosen
    assert set(index["split"].iloc[rows]) == {split}


@pytest.mark.parametrize("features", [np.zeros((0, 8)), np.eye(FEWEST - 1), np.ones((50, 8))])
def test_what_has_no_neighbourhoods_is_not_arranged(features):
    assert arrange(features.astype(np.float32), 1).shape == (0, 2)


def test_few_patches_are_arranged(rng):
    points = arrange(rng.normal(size=(FEWEST, 8)).astype(np.float32), 1)
    assert np.isfinite(points).all()


def test_without_any_patch_there_are_still_walks(model, tmp_path):
    path = write_patches(tmp_path / "a.h5", [])
    assert latent(model, tmp_path / "x.h5", path) == 0
    with h5py.File(tmp_path / "x.h5") as file:
        assert len(file["tsne"]) == len(file["index"]) == 0
        assert len(file["walks"]) == WALKS


@pytest.mark.parametrize("case", ["other model", "other size", "diverged"])
def test_faults_end_in_one_line(model, tmp_path, capsys, case):
    path = write_patches(tmp_path / "a.h5", [0] * 6)
    found = load_model(model, torch.device("cpu"))
    weights, description = found.weights, found.description
    if case == "other model":
        description["model"] = "pca"
    elif case == "other size":
        description["architecture"]["patch_size"] = 64
    else:
        name = "discriminator.down.0.weight"
        weights[name] = torch.full_like(weights[name], torch.nan)
    save_model(tmp_path / "other", weights, description)
    assert latent(tmp_path / "other", tmp_path / "x.h5", path) == 1
    (line,) = capsys.readouterr().err.splitlines()
    messages = {
        "other model": "holds the model pca; give the folder of a gan",
        "other size": "patches of 32 pixels",
        "diverged": "its D does not answer with numbers",
    }
    assert messages[case] in line
    assert not (tmp_path / "x.h5").exists()
