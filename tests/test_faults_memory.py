"""Memory that will not do is told before a training starts; estimates are near what is measured."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from made_gan import run, write_patches

from anogan import memory
from anogan.batches import ShuffledPatches
from anogan.memory import MB, check_fits, free_memory, search_bytes, training_bytes
from preprocessing.errors import InputError

ROOT = Path(__file__).parents[1]
PUBLISHED, QUARTER = (512, 256, 128, 64), (128, 64, 32, 16)


@pytest.mark.parametrize(
    ("estimate", "measured_mb"),  # peaks of whole processes on a CPU, fp32
    [
        (training_bytes("gan", PUBLISHED, 100, 64), 956),
        (training_bytes("gan", PUBLISHED, 100, 16), 744),
        (training_bytes("gan", QUARTER, 100, 64), 526),
        (training_bytes("gan", QUARTER, 100, 256), 798),
        (training_bytes("ae", PUBLISHED, 100, 64), 877),
        (search_bytes(PUBLISHED, 100, 64), 708),
    ],
)
def test_estimates_are_near_what_was_measured(estimate, measured_mb):
    assert 0.85 < estimate / MB / measured_mb < 1.3


def test_an_estimate_grows_with_every_size():
    least = training_bytes("gan", QUARTER, 100, 64)
    assert training_bytes("gan", PUBLISHED, 100, 64) > least
    assert training_bytes("gan", QUARTER, 1000, 64) > least
    assert training_bytes("gan", QUARTER, 100, 128) > least
    assert training_bytes("gan", QUARTER, 100, 64, penalty=True) > least
    assert training_bytes("acae", QUARTER, 100, 64) > least


@pytest.mark.slow
def test_a_training_takes_what_was_estimated(tmp_path):
    """The machine, its libraries and their threads decide some of it, so the bounds are wide."""
    channels, batch = (128, 64, 32), 128
    patches = write_patches(tmp_path / "p.h5", n=128)
    sizes = ["--channels", *channels, "--latent", 32, "--batch-size", batch, "--epochs", 1]
    command = ["anogan", "train", "gan", "--patches", patches, *sizes, "--precision", "fp32"]
    command += ["--output", tmp_path / "model"]
    program = """
import sys
from preprocessing.cli import run_command
code = run_command("anogan", {"train": ""}, sys.argv[2:])
print([line for line in open("/proc/self/status") if line.startswith("VmHWM")])  # its own peak
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    peak_mb = int(re.search(r"VmHWM:\\t *(\d+) kB", done.stdout)[1]) / 1024
    assert 0.7 < training_bytes("gan", channels, 32, batch) / MB / peak_mb < 1.5


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            ("--memory-mb", 400),
            "batches of 16 takes about 4.. MB, but 400 MB are allowed",
        ),
        (("--channels", 4096, 4096, 4096), "MB are free on this machine; lower gan: batch_size"),
    ],
)
def test_a_training_that_cannot_fit_ends_before_any_work(
    tmp_path, capsys, monkeypatch, extra, message
):
    monkeypatch.setattr("anogan.memory.free_memory", lambda device: 2000 * MB)
    assert run(write_patches(tmp_path / "p.h5"), tmp_path / "model", *extra) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.h5"]


def test_what_is_free_or_allowed_is_enough():
    check_fits(memory.BASE, "it", "wait", free=0)
    check_fits(memory.BASE + 10 * MB, "it", "wait", free=11 * MB, memory_mb=500)
    with pytest.raises(InputError, match="it takes about 440 MB, but 439 MB are free on this mach"):
        check_fits(memory.BASE + 10 * MB, "it", "wait", free=9 * MB, memory_mb=500)
    with pytest.raises(InputError, match="435 MB are allowed"):
        check_fits(memory.BASE + 10 * MB, "it", "wait", free=99 * MB, memory_mb=435)
    assert free_memory(torch.device("cpu")) > 10 * MB


def test_patches_stay_in_memory_only_beside_the_networks():
    patches = torch.zeros(64, 64, 64, dtype=torch.float16).numpy()  # 0.5 MB
    where = {"seed": 1, "device": torch.device("cpu"), "memory_mb": 2}
    assert ShuffledPatches(patches, 8, **where).resident
    assert not ShuffledPatches(patches, 8, **where, reserved=1.6 * MB).resident
