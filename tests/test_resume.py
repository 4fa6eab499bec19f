"""Training that was interrupted goes on as if nothing had been; one that fails leaves no model."""

import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
from made_gan import LOSSES, options, run, same_weights, write_patches
from safetensors.torch import load_file

from anogan import convolutions
from anogan.checkpoint import CHECKPOINT, read_notes
from anogan.methods.gan import Gan

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def patch_file(tmp_path_factory):
    return write_patches(tmp_path_factory.mktemp("patches") / "p.h5")


class TestGoingOn:
    @pytest.fixture
    def breaking(self):
        """A function that gives a context in which training stops in the middle of a step."""

        @contextmanager
        def at(step_number):
            step = Gan.step

            def interrupted(self, real, number, draw):
                if number == step_number:
                    raise KeyboardInterrupt
                return step(self, real, number, draw)

            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(Gan, "step", interrupted)
                yield

        return at

    @pytest.mark.parametrize("loss", LOSSES)
    def test_the_weights_are_those_of_an_uninterrupted_run(
        self, patch_file, tmp_path, breaking, loss, capsys
    ):
        extra = ("--loss", loss, "--flip", "--checkpoint-s", 0)
        assert run(patch_file, tmp_path / "whole", *extra) == 0
        with breaking(6), pytest.raises(KeyboardInterrupt):
            run(patch_file, tmp_path / "model", *extra)
        assert not (tmp_path / "model").exists()
        assert run(patch_file, tmp_path / "model", *extra) == 0
        assert "going on from step 5 of 8" in capsys.readouterr().err
        assert same_weights(tmp_path / "whole", tmp_path / "model")
        timeless = ["step", "epoch", "d_loss", "g_loss", "kid"]
        expected, gone_on = (
            pd.read_csv(tmp_path / name / "history.tsv", sep="\t") for name in ("whole", "model")
        )
        pd.testing.assert_frame_equal(expected[timeless], gone_on[timeless])

    def test_so_are_they_where_convolutions_are_products(
        self, patch_file, tmp_path, breaking, monkeypatch
    ):
        monkeypatch.setattr(convolutions, "WEIGHTS_PER_POSITION", 0)
        assert run(patch_file, tmp_path / "whole") == 0
        with breaking(6), pytest.raises(KeyboardInterrupt):
            run(patch_file, tmp_path / "model", "--checkpoint-s", 0)
        assert run(patch_file, tmp_path / "model", "--checkpoint-s", 0) == 0
        assert same_weights(tmp_path / "whole", tmp_path / "model")

    @pytest.mark.slow
    def test_a_process_killed_again_and_again_goes_on(self, tmp_path):
        patches = write_patches(tmp_path / "p.h5", n=128)
        extra = ("--epochs", 8, "--checkpoint-s", 0)  # 64 steps
        command = [sys.executable, "-m", "anogan", *options(patches, tmp_path / "model", *extra)]
        checkpoint = tmp_path / "model.training" / CHECKPOINT
        for least in (1, 15):
            process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 60
            while (read_notes(checkpoint) or {"step": 0})["step"] < least:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            assert not (tmp_path / "model").exists()
        reached = read_notes(checkpoint)["step"]
        last = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert last.returncode == 0, last.stderr
        assert f"going on from step {reached} of 64" in last.stderr
        assert run(patches, tmp_path / "whole", "--epochs", 8) == 0
        assert same_weights(tmp_path / "whole", tmp_path / "model")

    def test_a_checkpoint_of_another_run_is_not_taken_up(
        self, patch_file, tmp_path, breaking, capsys
    ):
        assert run(patch_file, tmp_path / "whole", "--flip") == 0
        with breaking(3), pytest.raises(KeyboardInterrupt):
            run(patch_file, tmp_path / "model", "--checkpoint-s", 0, "--seed", 2)
        assert run(patch_file, tmp_path / "model", "--flip") == 0
        assert "not of this run (differs in flip, seed)" in capsys.readouterr().err
        assert same_weights(tmp_path / "whole", tmp_path / "model")

    def test_a_checkpoint_can_be_kept_as_the_model(self, patch_file, tmp_path, breaking):
        """As the message on a failed training says."""
        with breaking(6), pytest.raises(KeyboardInterrupt):
            run(patch_file, tmp_path / "model", "--checkpoint-s", 0)
        assert run(patch_file, tmp_path / "model", "--epochs", 1.25) == 0
        assert run(patch_file, tmp_path / "short", "--epochs", 1.25) == 0
        assert same_weights(tmp_path / "short", tmp_path / "model")

    def test_a_damaged_checkpoint_is_named(self, patch_file, tmp_path, capsys):
        folder = tmp_path / "model.training"
        folder.mkdir()
        (folder / CHECKPOINT).write_bytes(b"\x10" * 50)
        assert run(patch_file, tmp_path / "model") == 1
        assert "damaged" in capsys.readouterr().err.splitlines()[-1]


class TestFailing:
    def test_it_ends_with_the_last_good_checkpoint(self, patch_file, tmp_path, monkeypatch, capsys):
        step = Gan.step

        def exploding(self, real, number, draw):
            if number == 6:
                with torch.no_grad():
                    self.generator.project.weight.fill_(float("nan"))
            return step(self, real, number, draw)

        monkeypatch.setattr(Gan, "step", exploding)
        assert run(patch_file, tmp_path / "model", "--checkpoint-s", 0) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert "step 6" in error
        assert "step 5; to keep the model as it was then" in error
        kept = load_file(tmp_path / "model.training" / CHECKPOINT)
        assert all(torch.isfinite(value).all() for value in kept.values())
        assert not (tmp_path / "model").exists()

    def test_weights_broken_by_the_last_step_are_not_kept(
        self, patch_file, tmp_path, monkeypatch, capsys
    ):
        """The losses of a step do not show what it has made of the weights."""
        step = Gan.step

        def breaking(self, real, number, draw):
            logged = step(self, real, number, draw)
            if number == 6:
                with torch.no_grad():
                    self.generator.project.weight[0, 0] = float("nan")
            return logged

        monkeypatch.setattr(Gan, "step", breaking)
        assert run(patch_file, tmp_path / "model", "--checkpoint-s", 0) == 1
        assert "step 6" in capsys.readouterr().err.splitlines()[-1]
        checkpoint = tmp_path / "model.training" / CHECKPOINT
        assert read_notes(checkpoint)["step"] == 5
        assert all(torch.isfinite(value).all() for value in load_file(checkpoint).values())
        assert run(patch_file, tmp_path / "short", "--epochs", 1.5) == 1  # of 6 steps
        assert not any((tmp_path / name).exists() for name in ("model", "short"))

    def test_an_exploding_training_writes_no_model(self, patch_file, tmp_path, capsys):
        assert run(patch_file, tmp_path / "model", "--learning-rate", 1e10) == 1
        assert re.search(r"diverged at step \d", capsys.readouterr().err.splitlines()[-1])
        assert not (tmp_path / "model").exists()
