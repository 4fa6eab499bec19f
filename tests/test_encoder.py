"""f-AnoGAN: an encoder that learns from a GAN, and the two methods that score with it."""

import argparse
import json
import shutil
from unittest import mock

import h5py
import made_reruns
import numpy as np
import pytest
import torch
from made_gan import same_weights
from made_reruns import Plans
from safetensors.torch import load_file

from anogan.mapping import SPREAD
from anogan.methods import load_method
from anogan.methods.encoder import EncoderTraining
from anogan.model import DIGEST, load_encoder, load_gan, load_model, save_model, weights_of
from anogan.networks import Discriminator, Generator
from anogan.scoring import add_method_arguments
from preprocessing.cli import run_command
from preprocessing.errors import InputError
from preprocessing.patch_file import INDEX_DTYPE, PatchWriter

CPU = torch.device("cpu")
METHODS = ("f_anogan", "f_anogan_refined")
KEYS = [f"patch {i}" for i in range(11)]
KAPPA = 0.5
CHANNELS, LATENT, SIZE = (16, 8, 8), 6, 32


def save_gan(folder, seed=1):
    """Write a gan whose patches react to z and whose batch norm has seen some; return G."""
    torch.manual_seed(seed)
    generator, discriminator = Generator(CHANNELS, LATENT), Discriminator(CHANNELS)
    for network in (generator, discriminator):
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                module.weight.data *= 4  # fresh weights make gray patches that do not react to z
    with torch.no_grad():
        discriminator(generator(torch.rand(32, LATENT) * 2 - 1))
    sizes = {"channels": CHANNELS, "latent": LATENT, "patch_size": SIZE, "norm": "batch"}
    weights = weights_of(generator=generator, discriminator=discriminator)
    save_model(folder, weights, {"model": "gan", "architecture": sizes, "data": {}})
    return generator.eval()


def write_patches(path, gray):
    index = np.zeros(len(gray), INDEX_DTYPE)
    index["volume"] = index["patient"] = b"a"
    index["x"] = np.arange(len(gray))
    with PatchWriter(path, SIZE) as writer:
        writer.append(gray.astype(np.float16), None, index)
    return path


@torch.no_grad()
def patches_of(generator, n, seed):
    z = torch.rand(n, LATENT, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return generator(z)


@pytest.fixture(scope="module", autouse=True)
def _untimed():
    """Leave out what takes longest here and decides nothing: how fast the machine could be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anogan.training.peak_flops", lambda device, dtype: 1e9)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a gan, patches p.h5 that it has made and an encoder that learned from it."""
    folder = tmp_path_factory.mktemp("made")
    generator = save_gan(folder / "gan")
    write_patches(folder / "p.h5", patches_of(generator, 64, seed=1)[:, 0].numpy())
    assert train(folder, folder / "encoder", "--epochs", 12) == 0
    return folder


def train(made, output, *extra) -> int:
    """Train an encoder, two epochs, eight steps of 64 patches."""
    files = ("--patches", made / "p.h5", "--gan", made / "gan", "--output", output)
    options = ("--batch-size", 16, "--learning-rate", 2e-3, "--epochs", 2, "--kappa", KAPPA)
    given = ["train", "encoder", *files, *options, "--precision", "fp32", *extra]
    return run_command("anogan", {"train": ""}, [str(part) for part in given])


def scorer(made, method, *options):
    parser = argparse.ArgumentParser()
    add_method_arguments(parser)
    given = parser.parse_args(["--model", "", *map(str, options)])
    return load_method(method).scorer(load_model(made / "encoder", CPU), given, CPU, torch.float32)


def networks(made):
    """Return E, G and D as they were trained, in eval mode, batch norm not folded in."""
    model = load_model(made / "encoder", CPU)
    return [network.eval() for network in (load_encoder(model), *load_gan(model))]


@pytest.fixture(scope="module")
def x(made) -> torch.Tensor:
    """Patches (11, 1, 32, 32) that the generator could make but for the noise."""
    gray = patches_of(networks(made)[1], len(KEYS), seed=2)
    return gray + 0.1 * torch.rand(gray.shape, generator=torch.Generator().manual_seed(5))


class TestTraining:
    def test_it_learns_and_leaves_the_gan_as_it_was(self, made):
        gan, model = (load_file(made / name / "weights.safetensors") for name in ("gan", "encoder"))
        assert all(torch.equal(model[name], weight) for name, weight in gan.items())
        own = {name.split(".")[0] for name in model.keys() - gan.keys()}
        assert own == {"encoder"}
        rows = (made / "encoder/history.tsv").read_text().splitlines()
        columns = rows[0].split("\t")
        assert columns[:5] == ["step", "epoch", "loss", "residual", "features"]
        first, last = (
            dict(zip(columns, map(float, row.split("\t")), strict=True))
            for row in (rows[1], rows[-1])
        )
        assert last["residual"] < 0.5 * first["residual"]
        for row in (first, last):
            assert row["loss"] == pytest.approx(row["residual"] + KAPPA * row["features"], rel=1e-3)

    def test_the_loss_is_what_its_formula_says(self, made, tmp_path):
        """Of one batch, before the first step, by unfolded networks."""
        seen = {}
        step = EncoderTraining.step

        def watched(self, real, number, draw):
            if number > 1:
                return step(self, real, number, draw)
            _, generator, discriminator = networks(made)
            with torch.no_grad():
                rebuilt = generator(self.encoder(real))  # statistics of this batch
                f = [discriminator.features(image, 3) for image in (real, rebuilt)]
            n, m = real.numel(), f[0].numel()
            residual = ((real - rebuilt) ** 2).sum() / n
            seen["expected"] = residual + KAPPA * ((f[0] - f[1]) ** 2).sum() / m
            logged = step(self, real, number, draw)
            seen["loss"] = logged["loss"]
            return logged

        with mock.patch.object(EncoderTraining, "step", watched):
            assert train(made, tmp_path / "model", "--epochs", 0.25) == 0
        torch.testing.assert_close(seen["loss"], seen["expected"], rtol=1e-4, atol=1e-6)

    def test_the_model_says_what_it_learned_from(self, made):
        gan, model = (
            json.loads((made / name / "model.json").read_text()) for name in ("gan", "encoder")
        )
        assert model["learned_from"] == {"gan": gan[DIGEST]}
        assert model["architecture"] == {**gan["architecture"], "kappa": KAPPA}
        assert "needed" not in model["training"]

    def test_an_interrupted_run_ends_where_another_would(self, made, tmp_path, capsys):
        extra = ("--checkpoint-s", 0, "--flip")
        assert train(made, tmp_path / "whole", *extra) == 0
        step = EncoderTraining.step

        def interrupted(self, real, number, draw):
            if number == 6:
                raise KeyboardInterrupt
            return step(self, real, number, draw)

        stopped = mock.patch.object(EncoderTraining, "step", interrupted)
        with stopped, pytest.raises(KeyboardInterrupt):
            train(made, tmp_path / "model", *extra)
        shutil.copytree(tmp_path / "model.training", tmp_path / "other.training")
        assert train(made, tmp_path / "model", *extra) == 0
        assert "going on from step 5 of 8" in capsys.readouterr().err
        assert same_weights(tmp_path / "whole", tmp_path / "model")

        save_gan(tmp_path / "gan", seed=2)
        assert train(made, tmp_path / "other", *extra, "--gan", tmp_path / "gan") == 0
        assert "not of this run (differs in gan)" in capsys.readouterr().err

    @pytest.mark.parametrize("kappa", [-1, "nan", "inf"])
    def test_an_impossible_weight_is_refused(self, made, tmp_path, capsys, kappa):
        assert train(made, tmp_path / "model", "--kappa", kappa) == 1
        assert "kappa is" in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "model").exists()

    def test_a_model_that_cannot_be_learned_from_is_refused(self, made, tmp_path, capsys):
        def said(*extra):
            assert train(made, tmp_path / "model", *extra) == 1
            assert not (tmp_path / "model").exists()
            return capsys.readouterr().err.splitlines()[-1]

        wrong = said("--gan", made / "encoder")
        assert "holds the model encoder, but encoder learns from gan" in wrong

        shutil.copytree(made / "gan", tmp_path / "gan")
        description = json.loads((made / "gan/model.json").read_text())
        description["data"] = {"preprocessing": {"resample": {"x_um": 22}}}
        (tmp_path / "gan/model.json").write_text(json.dumps(description))
        shutil.copy(made / "p.h5", tmp_path / "p.h5")
        with h5py.File(tmp_path / "p.h5", "a") as file:
            parameters = json.dumps({"resample": {"x_um": 11}})
            file.create_group("geometry/v").attrs["parameters"] = parameters
        other = said("--gan", tmp_path / "gan", "--patches", tmp_path / "p.h5")
        assert "resample: x_um = 11" in other
        assert "trained on patches with 22" in other

        description["architecture"]["patch_size"] = 64
        (tmp_path / "gan/model.json").write_text(json.dumps(description))
        assert "patches of 32 pixels" in said("--gan", tmp_path / "gan")

    def test_a_training_that_diverges_ends_in_one_line(self, made, tmp_path, capsys):
        step = EncoderTraining.step

        def spoilt(self, real, number, draw):
            if number == 3:
                with torch.no_grad():
                    self.encoder.head.weight.fill_(float("nan"))
            return step(self, real, number, draw)

        with mock.patch.object(EncoderTraining, "step", spoilt):
            assert train(made, tmp_path / "model") == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert "diverged at step 3 (loss is nan); lower encoder: learning_rate" in error
        assert not (tmp_path / "model").exists()


class TestScores:
    def test_f_anogan_is_what_its_formulas_say(self, made, x):
        scores, rebuilt = scorer(made, "f_anogan")(x, KEYS)
        encoder, generator, discriminator = networks(made)
        for i in (0, 10):
            with torch.no_grad():
                expected = generator(encoder(x[[i]]))
                f = [discriminator.features(image, 3) for image in (x[[i]], expected)]
            residual, difference = (x[[i]] - expected).flatten(), (f[0] - f[1]).flatten()
            a = (residual**2).mean() + KAPPA * (difference**2).mean()
            written_out = torch.stack([a, residual.abs().sum(), difference.abs().sum()])
            torch.testing.assert_close(scores[i], written_out, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(rebuilt[i], expected[0], rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("method", METHODS)
    def test_a_score_does_not_depend_on_batch_order_or_company(self, made, x, method):
        score = scorer(made, method, "--refine-restarts", 2, "--refine-steps", 5)
        alone = score(x, KEYS)[0]
        order = torch.tensor([3, 7, 0, 10, 1, 2, 4, 5, 6, 8, 9])
        shuffled = score(x[order], [KEYS[i] for i in order])[0]
        assert torch.equal(shuffled, alone[order])
        others = score(torch.cat([x[:4], -x[4:]]), KEYS)[0]
        assert torch.equal(others[:4], alone[:4])
        parts = [score(x[i : i + 3], KEYS[i : i + 3])[0] for i in range(0, len(x), 3)]
        torch.testing.assert_close(torch.cat(parts), alone, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("options", [("--refine-steps", 0), ("--refine-steps", 3)])
    def test_refinement_starts_at_the_encoding(self, made, x, options):
        first, rebuilt = scorer(made, "f_anogan")(x, KEYS)
        refined, found = scorer(made, "f_anogan_refined", *options)(x, KEYS)
        if options[1]:
            weighed = 0.9 * first[:, 1] + 0.1 * first[:, 2]
            assert (refined[:, 0] < weighed).all()
        else:
            torch.testing.assert_close(found, rebuilt)
            torch.testing.assert_close(refined[:, 1:], first[:, 1:])

    def test_refinement_heeds_the_composition(self, made, x):
        given = ("--weight", 0.3, "--weighting", "additive", "--refine-steps", 2)
        scores, _ = scorer(made, "f_anogan_refined", *given)(x, KEYS)
        torch.testing.assert_close(scores[:, 0], 0.3 * scores[:, 1] + scores[:, 2])

    def test_further_starts_lie_around_the_encoding_and_the_best_is_kept(self, made, x):
        mapper = scorer(made, "f_anogan_refined", "--refine-restarts", 3)
        encoded, *around = mapper.starts(x, KEYS)
        encoder, *_ = networks(made)
        torch.testing.assert_close(encoded, encoder(x).detach(), rtol=1e-3, atol=1e-3)
        for z in around:
            assert 0 < (z - encoded).abs().max() <= SPREAD
        assert not torch.equal(*around)
        one = scorer(made, "f_anogan_refined")(x, KEYS)[0]
        best = mapper(x, KEYS)[0]
        assert (best[:, 0] <= one[:, 0]).all()
        assert (best[:, 0] < one[:, 0]).any()

    def test_networks_left_in_training_mode_would_be_noticed(self, made, x, monkeypatch):
        monkeypatch.setattr("anogan.methods.f_anogan.freeze", lambda *networks: None)
        score = scorer(made, "f_anogan")
        others = score(torch.cat([x[:4], -x[4:]]), KEYS)[0]
        assert not torch.equal(others[:4], score(x, KEYS)[0][:4])

    @pytest.mark.parametrize("given", [("--refine-steps", -1), ("--refine-restarts", 0)])
    def test_impossible_settings_are_refused(self, made, given):
        with pytest.raises(InputError, match="there must be 0, 0 and 1 at least"):
            scorer(made, "f_anogan_refined", *given)


def score_command(model, patches, folder, *extra) -> int:
    files = ("--model", model, "--patches", patches, "--output", folder / "s.parquet")
    return run_command("anogan", {"score": ""}, [str(p) for p in ("score", *files, *extra)])


def test_a_damaged_model_is_named(made, tmp_path, capsys):
    shutil.copytree(made / "encoder", tmp_path / "encoder")
    text = (made / "encoder/model.json").read_text()
    for old, new, message in (
        ('"latent": 6', '"latent": 7', "copy all files of the model again"),
        (f'"kappa": {KAPPA}\n', '"kappa": null\n', "kappa is None"),
        ('"norm": "batch"', '"norm": "x"', "norm is x"),
    ):
        assert old in text
        (tmp_path / "encoder/model.json").write_text(text.replace(old, new, 1))
        assert score_command(tmp_path / "encoder", made / "p.h5", tmp_path) == 1
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_an_encoder_is_scored_with_f_anogan_and_holds_all_that_is_needed(made, tmp_path, capsys):
    shutil.copytree(made / "encoder", tmp_path / "alone")
    assert score_command(tmp_path / "alone", made / "p.h5", tmp_path) == 0
    assert "64 patches scored by f_anogan" in capsys.readouterr().out
    refined = ("--method", "f_anogan_refined", "--refine-steps", 1)
    assert score_command(tmp_path / "alone", made / "p.h5", tmp_path, *refined) == 0
    assert score_command(made / "gan", made / "p.h5", tmp_path, "--method", "f_anogan") == 1
    assert "f_anogan scores with encoder" in capsys.readouterr().err.splitlines()[-1]


class TestPlanning:
    @pytest.fixture(scope="class")
    @staticmethod
    def plans(tmp_path_factory):
        settings = {"methods": [*METHODS, "p_d"], "heatmap": {"methods": []}}
        with mock.patch.dict(made_reruns.SETTINGS, settings):
            yield Plans(tmp_path_factory.mktemp("plans"))

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({}, "-"),
            ({"gan": {"epochs": 4}}, "train latent score evaluate report"),
            (
                {"encoder": {"kappa": 2}},
                "train[encoder] score[f_anogan,f_anogan_refined] evaluate report",
            ),
            ({"map": {"refine_steps": 5}}, "score[f_anogan_refined] evaluate report"),
            ({"map": {"steps": 4}}, "report"),  # which tells the config
        ],
        ids=["nothing", "gan", "encoder", "refinement", "search"],
    )
    def test_a_change_reruns_what_depends_on_it(self, plans, change, expected):
        assert plans.after(change) == expected

    def test_a_gan_that_exists_is_learned_from(self, plans, made):
        folder = plans.folder / "given"
        shutil.copytree(made / "gan", folder)
        planned = plans.after({"existing_models": {"gan": "given"}})
        assert planned.startswith("train[encoder] latent score")

    def test_an_encoder_that_exists_needs_no_gan(self, plans, made):
        shutil.copytree(made / "encoder", plans.folder / "encoder")
        planned = plans.after({"existing_models": {"encoder": "encoder"}, "methods": ["f_anogan"]})
        assert planned.startswith("score[f_anogan]")
        assert "train" not in planned and "latent" not in planned
