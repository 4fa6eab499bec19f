"""One process does what the stages do, one after the other."""

from pathlib import Path

import pytest

from preprocessing.cli import run_command

IDS = ("--volume", "v", "--patient", "p", "--mirror-left-eyes")


def run(stage: str, *options: object) -> int:
    return run_command("preprocessing", {stage: ""}, [stage, *map(str, options)])


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("phantom") / "eye.nii.gz"
    shape = ("--bscans", 3, "--depth", 384, "--width", 300)
    assert run("phantom", "--volume", "v2", "--label", "diseased", *shape, "--output", path) == 0
    return path


@pytest.mark.parametrize("mode", ["bm", "both"])
def test_the_results_are_those_of_the_stages(source, tmp_path, mode):
    apart, at_once = tmp_path / "apart", tmp_path / "at_once"
    mask = source.with_name("eye.annotation.nii.gz")
    load = ("--input", source, "--annotation", mask, *IDS)
    volume, normalised, resampled, flat = (
        apart / f"{name}.nii.gz" for name in ("volume", "normalised", "resampled", "flat")
    )
    layers = apart / "layers.npz"
    flatten = ("--mode", mode, "--above-um", 500)
    assert run("load", *load, "--output", volume) == 0
    assert run("normalise", "--input", volume, "--output", normalised) == 0
    assert run("resample", "--input", normalised, "--x-um", 25, "--output", resampled) == 0
    assert run("segment", "--input", resampled, "--output", layers) == 0
    assert run("flatten", "--input", resampled, "--layers", layers, *flatten, "--output", flat) == 0

    assert run("qc", "--input", resampled, "--layers", layers, "--output", apart / "qc.tsv") == 0

    prepare = ("--input", volume, "--x-um", 25, *flatten, "--folder", at_once)
    assert run("prepare", *prepare) == 0
    written = sorted(file.name for file in at_once.iterdir())
    assert len(written) == 13
    for name in written:
        assert (at_once / name).read_bytes() == (apart / name).read_bytes(), name


def test_a_volume_without_a_retina_leaves_nothing(tmp_path, rng, capsys):
    import numpy as np

    from preprocessing.volume import write_nifti

    noise = rng.integers(1, 30, (2, 200, 80), dtype=np.uint8)
    write_nifti(noise, tmp_path / "noise.nii.gz", np.diag([0.012, 0.004, 0.1, 1]))
    volume, output = tmp_path / "volume.nii.gz", tmp_path / "out"
    assert run("load", "--input", tmp_path / "noise.nii.gz", *IDS, "--output", volume) == 0
    assert run("prepare", "--input", volume, "--folder", output) == 1
    error = capsys.readouterr().err
    assert "volume.nii.gz: no B-scan shows a retina" in error
    assert error.count("\n") == 1
    assert not output.exists()
