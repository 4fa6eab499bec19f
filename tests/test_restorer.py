"""The restorer and its score S: what is usual in healthy patches, and what a patch differs in."""

import argparse
import dataclasses
import shutil
from unittest import mock

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from made_gan import same_weights
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter
from test_encoder import CPU, SIZE, patches_of, save_gan, score_command

from anogan.deviation import GRAYS, HEIGHTS, LOWEST_PX, PRIOR_PX, Usual, learn_usual
from anogan.distributed import Workers
from anogan.methods import r_anogan
from anogan.methods.restorer import KEPT, RestorerTraining, add_train_arguments, damaged
from anogan.model import load_model, save_model
from anogan.training import Context
from preprocessing.cli import run_command
from preprocessing.geometry import Geometry
from preprocessing.patch_file import INDEX_DTYPE, MappedPatches, PatchWriter

HEIGHT_PX = 60  # of BM below the top row of every patch
KEYS = [f"patch {i}" for i in range(11)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def write_patches(path, gray, has_geometry=True):
    index = np.zeros(len(gray), INDEX_DTYPE)
    index["volume"] = index["patient"] = b"a"
    index["x"] = np.arange(len(gray))
    with PatchWriter(path, SIZE) as writer:
        writer.append(gray.astype(np.float16), None, index)
        if has_geometry:
            layer = np.full((1, 8), HEIGHT_PX, np.float32)
            writer.add_geometry(
                "a", Geometry(layer, layer, 1.0, layer, layer, layer), {"parameters": "{}"}
            )
    return path


def train(made, output, *extra) -> int:
    """Train a restorer, two epochs, eight steps of 64 patches."""
    files = ("--patches", made / "p.h5", "--gan", made / "gan", "--output", output)
    options = ("--batch-size", 16, "--learning-rate", 5e-3, "--epochs", 2)
    given = ["train", "restorer", *files, *options, "--precision", "fp32", *extra]
    return run_command("anogan", {"train": ""}, [str(part) for part in given])


@pytest.fixture(scope="module", autouse=True)
def _untimed():
    """Leave out what takes longest here and decides nothing: how fast the machine could be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anogan.training.peak_flops", lambda device, dtype: 1e9)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a gan, patches p.h5 that it has made and a restorer that learned from both."""
    folder = tmp_path_factory.mktemp("made")
    gray = patches_of(save_gan(folder / "gan"), 64, seed=1)[:, 0].numpy()
    write_patches(folder / "p.h5", gray)
    write_patches(folder / "own.h5", gray, has_geometry=False)
    assert train(folder, folder / "restorer", "--epochs", 30) == 0
    return folder


@pytest.fixture(scope="module")
def x(made) -> torch.Tensor:
    """Patches (11, 1, 32, 32) that the generator could make but for the noise."""
    gray = patches_of(save_gan(made / "same"), len(KEYS), seed=2)
    return (gray + 0.05 * torch.randn(gray.shape, generator=seeded(5))).clamp(-1, 1)


def scorer(made):
    model = load_model(made / "restorer", CPU)
    return r_anogan.scorer(model, argparse.Namespace(), CPU, torch.float32)


@pytest.fixture(scope="module")
def learned():
    """Usual of random residuals, and the patches, rebuilt ones and heights that it was learned of.

    Patches lie at two heights; their gray values rise from left to right. The spread of residuals
    follows both, and so does their mean.
    """
    n, width = 48, 512
    gray = torch.linspace(-0.9, 0.9, width).expand(n, 1, 64, width)
    height = torch.tensor([20.0, 120.0]).repeat(n // 2)
    place = torch.where(height > 100, 2.0, 1.0)[:, None, None, None]
    spread = 0.1 * place * (2 + gray)
    noise = torch.randn(gray.shape, generator=seeded(0))
    x = gray + 0.1 * place * gray + spread * noise
    return learn_usual(x, gray, height), x, gray, height


class TestUsual:
    def test_the_score_is_what_its_formulas_say(self):
        generator = seeded(3)
        x, rebuilt = torch.rand(2, 4, 1, 48, 32, generator=generator) * 2 - 1
        height = torch.tensor([0.0, 57.0, 300.0, torch.nan])
        bins = (HEIGHTS + 1) * GRAYS
        usual = Usual(
            edges=torch.linspace(-0.6, 0.6, GRAYS - 1),
            mean=0.1 * torch.randn(2, bins, generator=generator),
            sd=0.1 + torch.rand(2, bins, generator=generator),
            centre=torch.tensor([0.4, -0.2, 0.1]),
            spread=torch.tensor([0.3, 0.5, 0.2]),
        )
        scores = usual.scores(x, rebuilt, height).double().numpy()
        edges, mean, sd = (part.double().numpy() for part in (usual.edges, usual.mean, usual.sd))
        for i in range(4):
            patch, expected = (image[i, 0].double().numpy() for image in (x, rebuilt))
            gray = np.searchsorted(edges, gaussian_filter(expected, 1, mode="nearest"))
            above = (float(height[i]) - np.arange(48) + 42) // 6
            above = np.full(48, 36) if i == 3 else above.clip(0, 35).astype(int)
            found = []
            for s, (sigma, k) in enumerate((((1, 0.5), 1), ((4, 2), 77))):  # 0.0008, 0.05 of 1536
                r = gaussian_filter(patch - expected, sigma, mode="nearest", truncate=4)
                place = above[:, None] * 12 + gray
                d = np.abs((r - mean[s][place]) / sd[s][place])
                unusual = np.sort(d, axis=None)[-k:].mean()
                found.append((np.log(unusual) - (0.4, -0.2)[s]) / (0.3, 0.5)[s])
            whole = np.sqrt(np.square(patch - expected).mean())
            found.append((np.log(whole) - 0.1) / 0.2)
            soft_maximum = np.log(np.exp(found).mean())
            np.testing.assert_allclose(scores[i], [soft_maximum, *found], rtol=1e-3, atol=1e-4)

    def test_the_table_finds_what_depends_on_height_and_gray_value(self, learned):
        usual, x, gray, _ = learned
        mean, sd = (part.view(2, HEIGHTS + 1, GRAYS) for part in (usual.mean, usual.sd))
        at = gray[0, 0, 0].view(1, -1).chunk(GRAYS, dim=1)
        at = torch.stack([part.mean() for part in at])
        taps = torch.arange(-4, 5)
        kernels = torch.exp(-0.5 * taps**2), torch.exp(-2.0 * taps[2:-2] ** 2)
        left = np.prod([float((k / k.sum()).norm()) for k in kernels])  # of the spread of noise
        pixels = len(x) // 2 * 6 * x.shape[-1] / GRAYS
        weight = pixels / (pixels + PRIOR_PX)
        places = torch.tensor([[1.0], [2.0]])
        means = 0.1 * places * at
        squares = (0.1 * places * (2 + at) * left) ** 2 + means**2
        least = 0.5 * (squares.mean() - means.mean() ** 2).sqrt()
        means, squares = (weight * m + (1 - weight) * m.mean(0) for m in (means, squares))
        rows = [(height - LOWEST_PX) // 6 for height in (-10, 90)]
        torch.testing.assert_close(mean[0, rows], means, rtol=0.1, atol=0.015)
        spread = (squares - means**2).sqrt()
        assert (spread < least).any() and (spread > least).any()
        torch.testing.assert_close(sd[0, rows], spread.clamp(min=least), rtol=0.1, atol=0)
        lower, higher = sd[1, rows]
        assert (higher >= lower).all() and (higher > lower).any()
        assert higher[-1] > higher[0]

    def test_healthy_patches_score_0_with_a_standard_deviation_of_1(self, learned):
        usual, *healthy = learned
        scores = usual.scores(*healthy)[:, 1:]
        torch.testing.assert_close(scores.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
        torch.testing.assert_close(scores.std(0), torch.ones(3), rtol=0, atol=1e-4)

    def test_where_the_height_is_unknown_the_table_of_all_heights_serves(self, learned):
        usual, x, gray, height = learned
        x, gray, height = x[:4], gray[:4], height[:4]
        unknown = usual.scores(x, gray, torch.full_like(height, torch.nan))
        mean, sd = (part[:, -GRAYS:].repeat(1, HEIGHTS + 1) for part in (usual.mean, usual.sd))
        level = dataclasses.replace(usual, mean=mean, sd=sd)
        assert torch.equal(unknown, level.scores(x, gray, height))
        assert not torch.allclose(unknown, usual.scores(x, gray, height))

    def test_patches_in_blocks_say_the_same(self, learned):
        usual, *healthy = learned
        with mock.patch("anogan.deviation.BLOCK", 7):
            in_blocks = learn_usual(*healthy)
        for name, part in vars(usual).items():
            torch.testing.assert_close(getattr(in_blocks, name), part, rtol=1e-4, atol=1e-5)

    def test_patches_without_any_residual_leave_finite_numbers(self):
        x, height = torch.zeros(9, 1, 64, 64), torch.zeros(9)
        usual = learn_usual(x, x, height)
        assert all(torch.isfinite(part).all() for part in vars(usual).values())
        assert torch.isfinite(usual.scores(x + 0.1, x, height)).all()


class TestDamage:
    @pytest.fixture
    def healthy(self):
        return torch.rand(64, 1, 64, 64, generator=seeded(1)) * 2 - 1

    def test_a_share_of_0_changes_nothing(self, healthy):
        assert torch.equal(damaged(healthy, 0.0, seeded(2)), healthy)

    def test_a_share_of_1_changes_a_rectangle_of_each(self, healthy):
        shown = damaged(healthy, 1.0, seeded(2))
        assert shown.abs().max() <= 1
        sides = []
        for changed in (shown != healthy)[:, 0]:
            rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
            assert changed.any()
            assert changed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
            sides.append((len(rows), len(columns)))
        assert (np.max(sides, axis=0) <= [40, 28]).all()
        assert (np.max(sides, axis=0) >= [30, 20]).all()
        assert len(set(sides)) > 32

    def test_the_share_is_that_of_the_patches(self, healthy):
        changed = (damaged(healthy, 0.5, seeded(2)) != healthy).flatten(1).any(1)
        assert 0.3 < changed.float().mean() < 0.7


class TestTraining:
    def test_it_learns(self, made):
        loss = pd.read_csv(made / "restorer/history.tsv", sep="\t")["loss"].to_numpy()
        assert loss[-10:].mean() < 0.5 * loss[:10].mean()

    def test_it_starts_from_the_generator_of_the_gan(self, made, tmp_path):
        seen = {}

        def watched(self, real, number, draw):
            for key, value in self.autoencoder.decoder.state_dict().items():
                seen.setdefault(f"generator.{key}", value.clone())
            return step(self, real, number, draw)

        step = RestorerTraining.step
        with mock.patch.object(RestorerTraining, "step", watched):
            assert train(made, tmp_path / "model", "--epochs", 0.5) == 0
        gan = load_file(made / "gan/weights.safetensors")
        for key, value in seen.items():
            if value.dim() > 1:
                added = value - KEPT * gan[key]
                assert added.std() == pytest.approx(0.02, rel=0.1)  # as DCGAN draws them
                assert abs(np.corrcoef(added.flatten(), gan[key].flatten())[0, 1]) < 0.1
            elif key.endswith("bias"):
                assert not value.any()  # fresh
        assert len(seen) == sum(key.startswith("generator.") for key in gan)
        moved = load_file(tmp_path / "model/weights.safetensors")
        assert not torch.equal(
            moved["autoencoder.decoder.up.0.weight"], seen["generator.up.0.weight"]
        )

    def test_an_interrupted_run_ends_where_another_would(self, made, tmp_path, capsys):
        extra = ("--checkpoint-s", 0)
        assert train(made, tmp_path / "whole", *extra) == 0
        step = RestorerTraining.step

        def interrupted(self, real, number, draw):
            if number == 6:
                raise KeyboardInterrupt
            return step(self, real, number, draw)

        stopped = mock.patch.object(RestorerTraining, "step", interrupted)
        with stopped, pytest.raises(KeyboardInterrupt):
            train(made, tmp_path / "model", *extra)
        shutil.copytree(tmp_path / "model.training", tmp_path / "longer.training")
        assert train(made, tmp_path / "model", *extra) == 0
        assert "going on from step 5 of 8" in capsys.readouterr().err
        assert same_weights(tmp_path / "whole", tmp_path / "model")

        assert train(made, tmp_path / "longer", *extra, "--epochs", 3) == 0
        said = capsys.readouterr().err
        assert "not of this run (differs in epochs)" in said
        assert (tmp_path / "longer.training/other-checkpoint.safetensors").exists()

    def test_a_failure_promises_no_checkpoint_that_another_number_of_epochs_sets_aside(
        self, made, tmp_path, capsys
    ):
        def diverged(self, history, steps):
            return "training diverged" if history[-1]["step"] > 5 else None

        with mock.patch.object(RestorerTraining, "trouble", diverged):
            assert train(made, tmp_path / "model", "--checkpoint-s", 0) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert "cannot become the model" in said and "train again with epochs" not in said

    def test_each_of_several_processes_damages_its_share_by_itself(self, made):
        seen = []

        def kept(self, shown, real):
            seen.append(shown)
            return {}

        with h5py.File(made / "p.h5") as file:
            patches = MappedPatches(file)
        parser = argparse.ArgumentParser()
        add_train_arguments(parser)
        args = parser.parse_args([])
        args.model = "restorer"
        gan = load_model(made / "gan", CPU)
        with mock.patch.object(RestorerTraining, "learn", kept):
            for rank in (0, 1, 1):
                context = Context(CPU, torch.float32, 1, made, needed=gan)
                trainee = RestorerTraining(patches, args, context)
                several = dataclasses.replace(context, workers=Workers(rank, 2))
                trainee.context = several
                trainee.step(torch.zeros(8, 1, SIZE, SIZE), 1, several.generator("step", 1))
        assert not torch.equal(seen[0], seen[1]) and torch.equal(seen[1], seen[2])

    @pytest.mark.parametrize("share", [-0.1, 1.5, "nan"])
    def test_an_impossible_share_is_refused(self, made, tmp_path, capsys, share):
        assert train(made, tmp_path / "model", "--damaged", share) == 1
        assert "from 0 to 1" in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "model").exists()


class TestScores:
    def test_a_score_does_not_depend_on_batch_order_or_company(self, made, x):
        score, height = scorer(made), torch.linspace(20, 120, len(KEYS))
        alone = score(x, KEYS, height)[0]
        order = torch.tensor([3, 7, 0, 10, 1, 2, 4, 5, 6, 8, 9])
        shuffled = score(x[order], [KEYS[i] for i in order], height[order])[0]
        assert torch.equal(shuffled, alone[order])
        others = score(torch.cat([x[:4], -x[4:]]), KEYS, height)[0]
        assert torch.equal(others[:4], alone[:4])
        parts = [
            score(x[i : i + 3], KEYS[i : i + 3], height[i : i + 3])[0] for i in range(0, 11, 3)
        ]
        torch.testing.assert_close(torch.cat(parts), alone, rtol=1e-3, atol=1e-3)

    def test_a_dark_blob_is_found(self, made, x):
        blob = x.clone()
        blob[:, :, 10:18, 12:20] = -0.9
        height = torch.full((len(x),), float(HEIGHT_PX))
        score = scorer(made)
        without, with_blob = (score(gray, KEYS, height)[0][:, 0] for gray in (x, blob))
        assert (with_blob > without + 1).sum() >= len(x) - 1

    def test_a_model_that_does_not_know_what_is_usual_is_refused(self, made, tmp_path, capsys):
        model = load_model(made / "restorer", CPU)
        kept = {k: v for k, v in model.weights.items() if not k.startswith("usual.sd")}
        save_model(tmp_path / "model", kept, model.description)
        assert score_command(tmp_path / "model", made / "p.h5", tmp_path) == 1
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1
        assert "do not tell what is usual in healthy patches; train the model again" in error[0]

    def test_patches_without_geometry_train_a_model_and_are_scored(self, made, tmp_path, capsys):
        given = ("--patches", made / "own.h5", "--epochs", 0.25)
        assert train(made, tmp_path / "model", *given) == 0
        for model in (tmp_path / "model", made / "restorer"):
            assert score_command(model, made / "own.h5", tmp_path) == 0
            assert "64 patches scored by r_anogan" in capsys.readouterr().out
