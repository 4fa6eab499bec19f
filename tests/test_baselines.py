"""The baselines, PCA and two autoencoders: what they learn, and what a score may not depend on."""

import argparse
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from anogan.autoencoder import AutoencoderTraining, load_autoencoder
from anogan.methods import acae, load_method
from anogan.model import TrainedModel, load_model
from anogan.networks import Discriminator
from anogan.score import score_file
from anogan.scores import add_score_arguments
from anogan.training import Context
from preprocessing.cli import run_command
from preprocessing.errors import InputError
from preprocessing.patch_file import INDEX_DTYPE, PatchWriter, open_patches

MODELS = ("pca", "ae", "acae")
NETWORKS = ("ae", "acae")
TINY = ("--channels", 16, 8, 8, "--latent", 6, "--batch-size", 16, "--learning-rate", 2e-3)
OPTIONS = {
    "pca": ("--components", 8),
    "ae": (*TINY, "--precision", "fp32"),
    "acae": (*TINY, "--precision", "fp32"),
}
CPU = torch.device("cpu")


def stripes(n: int, seed: int = 0, anomalous: int = 0) -> np.ndarray:
    """Patches (n, 32, 32), a band at a random height; the last `anomalous` have a hole in it."""
    rng = np.random.default_rng(seed)
    rows = np.arange(32)[None, :, None]
    centre = rng.uniform(10, 22, (n, 1, 1))
    gray = np.tanh(4 - np.abs(rows - centre)) * np.ones((1, 1, 32)) * 0.8
    gray += rng.normal(0, 0.05, gray.shape)
    for patch, middle in zip(gray[n - anomalous :], centre[n - anomalous :, 0, 0], strict=True):
        left = rng.integers(4, 20)
        patch[int(middle) - 3 : int(middle) + 3, left : left + 7] = -0.8
    return gray.astype(np.float16)


def write(path, gray, anomalous=0):
    index = np.zeros(len(gray), INDEX_DTYPE)
    index["volume"] = index["patient"] = b"a"
    index["x"] = np.arange(len(gray))
    index["label"][len(gray) - anomalous :] = 1
    with PatchWriter(path, 32) as writer:
        writer.append(gray, None, index)
    return path


def run(model, patches, folder, *extra) -> int:
    given = ("train", model, "--patches", patches, "--output", folder, *OPTIONS[model], *extra)
    return run_command("anogan", {"train": ""}, [str(part) for part in given])


def scores_of(folder, path, batch_size=16, residuals=0, **search):
    """Return the table of a patch file, scored by the method of a model, and what was rebuilt."""
    parser = argparse.ArgumentParser()
    add_score_arguments(parser)
    options = argparse.Namespace(**{**vars(parser.parse_args([])), "seed": 1, **search})
    model = load_model(folder, CPU)
    method = load_method(model.name)
    scorer = method.scorer(model, options, CPU, torch.float32)
    return score_file(str(path), scorer, method.SCORES, batch_size, residuals, CPU)


def gray_of(path) -> torch.Tensor:
    with open_patches(path) as file:
        return torch.from_numpy(file["patches"][:].astype(np.float32)).unsqueeze(1)


def same_weights(one, other) -> bool:
    a, b = (load_file(folder / "weights.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module", autouse=True)
def _untimed():
    """Leave out what takes longest here and decides nothing: how fast the machine could be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anogan.training.peak_flops", lambda device, dtype: 1e9)
        yield


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return write(tmp_path_factory.mktemp("patches") / "train.h5", stripes(256))


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    """Sixty-one patches, the last thirty anomalous in a way that no training patch is."""
    path = tmp_path_factory.mktemp("patches") / "test.h5"
    return write(path, stripes(61, seed=1, anomalous=30), anomalous=30)


@pytest.fixture(scope="module")
def trained(healthy, tmp_path_factory):
    """A function that gives the folder of a trained model."""
    folder = tmp_path_factory.mktemp("models")

    def of(model):
        if not (folder / model).exists():
            extra = () if model == "pca" else ("--epochs", 6)
            assert run(model, healthy, folder / model, *extra) == 0
        return folder / model

    return of


@pytest.mark.parametrize("model", MODELS)
class TestEach:
    def test_what_was_never_seen_scores_higher(self, trained, unseen, model):
        table, _, _ = scores_of(trained(model), unseen)
        own = load_method(model).SCORES[0]
        assert roc_auc_score(table["label"], table[own]) > 0.95

    def test_it_writes_a_model_and_its_patches_as_rebuilt(self, trained, model):
        folder = trained(model)
        assert sorted(path.name for path in folder.iterdir()) == [
            "history.tsv",
            "model.json",
            "real.png",
            "samples.png",
            "weights.safetensors",
        ]
        real, rebuilt = (
            np.asarray(Image.open(folder / f"{name}.png")).astype(float)
            for name in ("real", "samples")
        )
        assert real.shape == rebuilt.shape
        assert np.corrcoef(real.ravel(), rebuilt.ravel())[0, 1] > 0.9

    def test_its_history_has_the_columns_of_its_kind(self, trained, model):
        history = pd.read_csv(trained(model) / "history.tsv", sep="\t")
        loop = ["step", "epoch", "loss", "patches_per_s", "peak_fraction"]
        expected = {
            "pca": ["patches", "explained_variance"],
            "ae": loop,
            "acae": [*loop, "d_loss", "d_real", "d_fake"],
        }
        assert sorted(history.columns) == sorted(expected[model])
        assert history.notna().all(axis=None)

    def test_residual_scores_are_those_of_what_is_rebuilt(self, trained, unseen, model):
        table, rows, rebuilt = scores_of(trained(model), unseen, residuals=61)
        residual = gray_of(unseen)[rows, 0].numpy() - rebuilt
        np.testing.assert_allclose(table["R"], np.abs(residual).sum((1, 2)), rtol=1e-4)
        if "L2" in table:
            np.testing.assert_allclose(table["L2"], np.linalg.norm(residual, axis=(1, 2)), 1e-4)

    def test_a_score_does_not_depend_on_order_or_company(self, trained, unseen, tmp_path, model):
        reference, _, _ = scores_of(trained(model), unseen)
        gray = gray_of(unseen)[:, 0].numpy()
        for order in (np.arange(61)[::-1], np.array([9, 2, 40])):
            other = write(tmp_path / "other.h5", gray[order])
            table, _, _ = scores_of(trained(model), other)
            for name in load_method(model).SCORES:
                assert table[name].tolist() == reference[name].iloc[order].tolist()

    @pytest.mark.parametrize("batch_size", [1, 7, 64])
    def test_a_score_does_not_depend_on_the_batch_size(self, trained, unseen, model, batch_size):
        reference, _, _ = scores_of(trained(model), unseen)
        table, _, _ = scores_of(trained(model), unseen, batch_size)
        for name in load_method(model).SCORES:
            np.testing.assert_allclose(table[name], reference[name], rtol=1e-3, atol=1e-3)

    def test_it_repeats_exactly(self, healthy, tmp_path, model):
        extra = () if model == "pca" else ("--epochs", 0.5)
        for name in ("one", "two"):
            assert run(model, healthy, tmp_path / name, *extra) == 0
        assert same_weights(tmp_path / "one", tmp_path / "two")

    def test_weights_of_another_size_are_refused(self, trained, unseen, tmp_path, model, capsys):
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(
            (trained(model) / "weights.safetensors").read_bytes()
        )
        sizes = {
            "pca": ('"components": 8', '"components": 9'),
            "ae": ('"latent": 6', '"latent": 7'),
        }
        sizes["acae"] = sizes["ae"]
        text = (trained(model) / "model.json").read_text()
        (folder / "model.json").write_text(text.replace(*sizes[model]))
        files = ("--output", tmp_path / "s.parquet", "--residual-output", tmp_path / "r.h5")
        given = ("score", "--model", folder, "--patches", unseen, *files)
        assert run_command("anogan", {"score": ""}, [str(part) for part in given]) == 1
        assert "copy all files" in capsys.readouterr().err.splitlines()[-1]


class TestPca:
    def test_it_agrees_with_an_exact_one(self, unseen, tmp_path):
        gray = stripes(900, seed=2)  # eleven batches
        assert run("pca", write(tmp_path / "p.h5", gray), tmp_path / "model") == 0
        table, _, _ = scores_of(tmp_path / "model", unseen)
        x = gray_of(unseen).flatten(1).numpy()
        exact = PCA(8, svd_solver="full").fit(gray.reshape(900, -1).astype(np.float64))
        residual = x - exact.inverse_transform(exact.transform(x))
        np.testing.assert_allclose(table["L2"], np.linalg.norm(residual, axis=1), rtol=0.01)
        np.testing.assert_allclose(table["R"], np.abs(residual).sum(1), rtol=0.01)
        history = pd.read_csv(tmp_path / "model/history.tsv", sep="\t")
        assert history["patches"].iloc[-1] > 900 - len(history)
        share = exact.explained_variance_ratio_.sum()
        assert history["explained_variance"].iloc[-1] == pytest.approx(share, rel=0.01)

    def test_the_components_are_orthonormal(self, trained, tmp_path):
        """Also where the patches have fewer directions than components were asked for."""
        flat = np.repeat(stripes(4), 16, axis=0)
        assert run("pca", write(tmp_path / "p.h5", flat), tmp_path / "model") == 0
        for folder in (trained("pca"), tmp_path / "model"):
            components = load_file(folder / "weights.safetensors")["components"]
            torch.testing.assert_close(components @ components.T, torch.eye(8))
        table, _, _ = scores_of(tmp_path / "model", tmp_path / "p.h5")
        assert (table["L2"] < 0.1).all()

    def test_memory_does_not_decide_what_is_learned(self, trained, healthy, tmp_path):
        assert run("pca", healthy, tmp_path / "model", "--memory-mb", 1) == 0
        assert same_weights(trained("pca"), tmp_path / "model")

    def test_patches_that_are_all_the_same_are_rebuilt(self, tmp_path):
        path = write(tmp_path / "p.h5", np.full((16, 32, 32), 0.5, np.float16))
        assert run("pca", path, tmp_path / "model") == 0
        table, _, _ = scores_of(tmp_path / "model", path)
        assert (table["L2"] < 1e-4).all()

    @pytest.mark.parametrize("components", [0, 257])
    def test_an_impossible_number_of_components_is_refused(
        self, healthy, tmp_path, capsys, components
    ):
        assert run("pca", healthy, tmp_path / "model", "--components", components) == 1
        assert "1 to 256 components" in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "model").exists()


class TestAdversarial:
    def test_scores_are_what_their_formulas_say(self, trained, unseen):
        model = load_model(trained("acae"), CPU)
        discriminator = Discriminator((16, 8, 8))
        autoencoder = load_autoencoder(model, discriminator=discriminator)
        x = gray_of(unseen)
        with torch.no_grad():
            f = [discriminator.features(v, 3) for v in (x, autoencoder(x))]
        d = (f[0] - f[1]).abs().sum((1, 2, 3)).numpy()
        table, _, _ = scores_of(trained("acae"), unseen, weight=0.3)
        np.testing.assert_allclose(table["D"], d, rtol=1e-3)
        np.testing.assert_allclose(table["A"], 0.7 * table["R"] + 0.3 * table["D"], rtol=1e-5)

    def test_a_layer_that_is_not_there_is_refused(self, trained, unseen):
        assert not scores_of(trained("acae"), unseen, feature_layer=1)[0].empty
        with pytest.raises(InputError, match="feature_layer is 4"):
            scores_of(trained("acae"), unseen, feature_layer=4)

    def test_each_network_moves_by_its_own_loss_only(self, tmp_path):
        parser = argparse.ArgumentParser()
        acae.add_train_arguments(parser)
        args = parser.parse_args([str(part) for part in TINY], argparse.Namespace(model="acae"))
        context = Context(CPU, torch.float32, seed=1, folder=tmp_path)
        both = acae.AdversarialTraining(stripes(64), args, context)
        gradients = []
        both.optimisers["discriminator"] = torch.optim.SGD(both.discriminator.parameters(), 0)
        both.optimisers["discriminator"].register_step_post_hook(
            lambda *_: gradients.extend(p.grad.clone() for p in both.discriminator.parameters())
        )
        before = [p.clone() for p in both.autoencoder.parameters()]
        both.step(torch.from_numpy(stripes(16)).float().unsqueeze(1), 1, torch.Generator())
        for p, gradient in zip(both.discriminator.parameters(), gradients, strict=True):
            assert torch.equal(p.grad, gradient)  # nothing was added by the autoencoder's update
            assert p.requires_grad
        for p, old in zip(both.autoencoder.parameters(), before, strict=True):
            assert not torch.equal(p, old)


@pytest.mark.parametrize("model", NETWORKS)
class TestTraining:
    @pytest.fixture
    def at_step(self, monkeypatch):
        """A function that makes something happen before a step."""
        training = {"ae": AutoencoderTraining, "acae": acae.AdversarialTraining}

        def patch(model, number, action):
            step = training[model].step

            def patched(self, real, n, draw):
                if n == number:
                    action(self)
                return step(self, real, n, draw)

            monkeypatch.setattr(training[model], "step", patched)
            return monkeypatch

        return patch

    def test_an_interrupted_run_ends_where_another_would(
        self, healthy, tmp_path, at_step, capsys, model
    ):
        extra = ("--epochs", 0.5, "--checkpoint-s", 0, "--flip")
        assert run(model, healthy, tmp_path / "whole", *extra) == 0

        def stop(training):
            raise KeyboardInterrupt

        patched = at_step(model, 6, stop)
        with pytest.raises(KeyboardInterrupt):
            run(model, healthy, tmp_path / "model", *extra)
        patched.undo()
        assert run(model, healthy, tmp_path / "model", *extra) == 0
        assert "going on from step 5 of 8" in capsys.readouterr().err
        assert same_weights(tmp_path / "whole", tmp_path / "model")

    def test_a_training_that_diverges_ends_in_one_line(
        self, healthy, tmp_path, at_step, capsys, model
    ):
        def spoil(training):
            with torch.no_grad():
                training.autoencoder.encoder.head.weight.fill_(float("nan"))

        at_step(model, 3, spoil)
        assert run(model, healthy, tmp_path / "model", "--epochs", 0.5) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert "diverged at step 3 (loss is nan)" in error
        assert f"lower {model}: learning_rate" in error
        assert not (tmp_path / "model").exists()

    def test_channels_must_fit_the_patches(self, healthy, tmp_path, capsys, model):
        assert run(model, healthy, tmp_path / "model", "--channels", 8, 8) == 1
        assert "not 32" in capsys.readouterr().err.splitlines()[-1]


def test_the_method_in_the_docs_works():
    text = (Path(__file__).parents[1] / "docs/methods.md").read_text()
    module = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1), module)
    healthy = stripes(50)
    args = argparse.Namespace(patches_used=40)
    fitted = module["fit"](healthy, args, None)
    model = TrainedModel(Path(), {"architecture": fitted.architecture}, fitted.weights)
    x = torch.from_numpy(healthy).float()[:, None]
    scores, rebuilt = module["scorer"](model, None, CPU, torch.float32)(x, [""] * 50, None)
    assert scores.shape == (50, len(module["SCORES"]))
    expected = np.linalg.norm(healthy - healthy[:40].astype(np.float32).mean(0), axis=(1, 2))
    np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-3)
    assert rebuilt.shape == x.shape
