"""Volumes that cannot be used among good ones: `on_volume_error`."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_maps import write_model
from made_project import Project
from PIL import Image

from preprocessing.cli import run_command
from preprocessing.errors import InputError
from preprocessing.layers import read_layers
from preprocessing.qc import read_skipped_row
from preprocessing.skipped import Note, note_of, read_note, write_notes
from preprocessing.volume import files_of, read_volume, write_nifti

COMMANDS = {name: "" for name in ("load", "prepare", "patches", "qc_pictures")}


def run(*arguments: object) -> int:
    return run_command("preprocessing", COMMANDS, [str(a) for a in arguments])


def load(source: Path, folder: Path, *options: object) -> int:
    names = ["--volume", "v", "--patient", "p", "--spacing-um", 120, 3.9, 12]
    return run("load", "--input", source, *names, *options, "--output", folder / "volume.nii.gz")


def prepare(folder: Path, *options: object) -> int:
    return run("prepare", "--input", folder / "volume.nii.gz", "--folder", folder, *options)


def noise(path: Path) -> None:
    """Write a volume as a device would, without a retina in it."""
    gray = np.random.default_rng(5).integers(0, 255, (3, 320, 192), dtype=np.uint8)
    write_nifti(gray, path, np.diag([0.0117, 0.00387, 0.12, 1]))


def test_a_damaged_file_becomes_notes_that_nothing_takes_for_a_volume(tmp_path, capsys):
    source = tmp_path / "scan.nii.gz"
    source.write_bytes(b'damaged\t"<b>')
    folder = tmp_path / "v"
    assert load(source, folder) == 1
    assert not folder.exists()
    assert load(source, folder, "--on-error", "skip") == 0
    assert prepare(folder, "--on-error", "skip") == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert all(line.startswith(f"v: skipped: {source}: ") for line in said)
    for path in folder.iterdir():
        if path.name != "qc.tsv":
            assert read_note(path).cause == said[0].removeprefix("v: skipped: ")
    assert read_skipped_row(folder / "qc.tsv") == read_note(folder / "flat.json")
    with pytest.raises(InputError, match=r"v was skipped, as .*scan.nii.gz: .* rule load"):
        read_volume(folder / "volume.nii.gz")
    with pytest.raises(InputError, match=r"v was skipped, as .* rule prepare"):
        read_layers(folder / "layers.npz")
    assert prepare(folder) == 1
    geometry = ["--geometry", str(folder / "flat.geometry.npz"), "--output", str(tmp_path / "o")]
    others = ["--maps", "m", "--scales", "s", "--volume-image", "v", "--viewer-method", "pca"]
    assert run_command("anogan", {"overlay": ""}, ["overlay", *others, *geometry]) == 0
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["skipped.txt"]
    pictures = ["--picture", folder / "layers.png", "--enface", folder / "enface.png"]
    shown = ["--input", folder / "resampled.nii.gz", "--layers", folder / "layers.npz"]
    assert run("qc_pictures", *shown, "--qc", folder / "qc.tsv", *pictures) == 0
    with Image.open(folder / "enface.png") as picture:
        assert picture.getextrema()[0] < 50  # something is written on it


def test_a_name_that_cannot_be_shown_does_not_reach_the_table(tmp_path):
    """Names in a vendor's folder may be no UTF-8, or steer the terminal that shows the table."""
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / os.fsdecode(b"1\xff\x1b[2J.png")).write_bytes(b"damaged")
    assert load(scans, tmp_path / "v", "--on-error", "skip") == 0
    assert prepare(tmp_path / "v", "--on-error", "skip") == 0
    cause = read_skipped_row(tmp_path / "v/qc.tsv").cause
    assert ".png: " in cause
    assert cause.isprintable()


def test_a_note_that_was_cut_off_is_named(tmp_path):
    path = tmp_path / "flat.json"
    write_notes(Note("v", "it is damaged"), [path])
    path.write_text(path.read_text()[:20])
    with pytest.raises(InputError, match=r"flat.json: a note .* cut off"):
        read_note(path)


def test_what_is_no_fault_of_the_volume_is_never_skipped(tmp_path, monkeypatch, capsys):
    """A full disk, a disk that fails, a package that is not there, a damaged file of our own."""
    for cause in (OSError(5, "Input/output error"), ImportError("no module named pydicom")):
        error = InputError("x")
        error.__cause__ = cause
        with pytest.raises(InputError, match="x"):
            note_of(error, "v", "skip")
    lost = InputError("pixels.raw: no such file")
    lost.__cause__ = FileNotFoundError(2, "No such file")
    assert note_of(lost, "v", "skip") == Note("v", "pixels.raw: no such file")

    noise(tmp_path / "scan.nii.gz")
    assert load(tmp_path / "scan.nii.gz", tmp_path / "v", "--on-error", "skip") == 0
    image = tmp_path / "v" / "volume.nii.gz"
    image.write_bytes(image.read_bytes()[:1000])
    assert prepare(tmp_path / "v", "--on-error", "skip") == 1
    assert "rule load" in capsys.readouterr().err


def test_a_part_without_volumes_gives_no_patches_but_trains_nothing(tmp_path, capsys):
    flat = tmp_path / "flat.nii.gz"
    write_notes(Note("v", "it is damaged"), files_of(flat))
    options = ["--inputs", flat, "--labels", "healthy", "--per-volume", 5, "--size", 32]
    out = tmp_path / "p.h5"
    assert run("patches", *options, "--split", "test", "--output", out) == 0
    assert "0 test patches of 0 volumes (1 more skipped)" in capsys.readouterr().out
    assert run("patches", *options, "--split", "train", "--output", tmp_path / "t.h5") == 1
    assert "every volume to train on was skipped, the first as it is damaged" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("method", ["anogan", "p_d"])
def test_a_part_without_volumes_goes_through_all_that_follows(tmp_path, capsys, method):
    flat, patches = tmp_path / "flat.nii.gz", tmp_path / "patches.h5"
    write_notes(Note("v", "it is damaged"), files_of(flat))
    options = ["--inputs", flat, "--labels", "healthy", "--split", "test"]
    assert run("patches", *options, "--per-volume", 5, "--size", 32, "--output", patches) == 0
    model = ["--model", write_model(tmp_path / "gan", "gan")]
    pictures = ["--method", method, "--residual-output", tmp_path / "residuals.h5"]
    outputs = {name: tmp_path / name for name in ("scores", "maps", "latent", "scale")}

    def anogan(stage: str, output: str, *arguments: object) -> int:
        given = [stage, *map(str, arguments), "--output", str(outputs[output])]
        return run_command("anogan", {stage: ""}, given)

    assert anogan("score", "scores", *model, "--patches", patches, *pictures) == 0
    assert anogan("heatmap", "maps", *model, *options, "--method", method) == 0
    assert anogan("latent", "latent", *model, "--patches", patches) == 0
    assert pd.read_parquet(outputs["scores"]).empty
    assert anogan("heat_scale", "scale", "--maps", outputs["maps"]) == 1
    assert "no map of any volume, as all were skipped" in capsys.readouterr().err


class Mixed(Project):
    """One good volume to train on and one to test, among three that cannot be used."""

    SHEET = """volume patient path split label annotation spacing_um
a a phantom/a.nii.gz train healthy - -
noise n noise.nii.gz train healthy - 120,3.9,12
e e phantom/e.nii.gz test diseased phantom/e.annotation.nii.gz -
cut c i&cut.nii.gz test healthy - 120,3.9,12
empty y empty.tif test unknown - 120,3.9,12
"""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        data = folder / "data"
        data.mkdir()
        noise(data / "noise.nii.gz")
        whole = (data / "noise.nii.gz").read_bytes()
        (data / "i&cut.nii.gz").write_bytes(whole[: len(whole) // 2])
        (data / "empty.tif").touch()

    def choose(self, on_error: str) -> None:
        """Write the config."""
        pca = {"methods": ["pca"], "heatmap": {"methods": []}}
        self.write([], **pca, report={"layer_pictures_per_split": 0}, on_volume_error=on_error)
        sheet = self.SHEET.replace(" ", "\t").replace("-", "").replace(",", " ")
        (self.folder / "volumes.tsv").write_text(sheet)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A project, and what was said when it failed, and after all when it skipped."""
    project = Mixed(tmp_path_factory.mktemp("mixed"))
    project.choose("fail")
    images = [f"results/volumes/{volume}/volume.nii.gz" for volume in ("cut", "a")]
    failed = project.snakemake("--keep-going", *images)
    loaded = (project.folder / images[1]).stat().st_mtime_ns
    project.choose("skip")
    return project, failed, loaded, project.snakemake()


@pytest.mark.slow
class TestWorkflow:
    def test_fail_names_the_file_and_keeps_the_work_on_others(self, mixed):
        project, failed, loaded, _ = mixed
        assert failed.returncode != 0
        assert "data/i&cut.nii.gz: not a readable NIfTI file" in failed.stdout + failed.stderr
        image = project.folder / "results/volumes/a/volume.nii.gz"
        assert image.stat().st_mtime_ns == loaded  # by the run that skips, too

    def test_skip_goes_on_to_the_report(self, mixed):
        project, _, _, skipped = mixed
        assert skipped.returncode == 0, skipped.stderr
        report = project.folder / "results/report"
        table = pd.read_csv(report / "skipped.tsv", sep="\t").set_index("volume")
        assert table["split"].to_dict() == {"noise": "train", "cut": "test", "empty": "test"}
        assert table.loc["noise", "cause"].startswith("results/volumes/noise/volume.nii.gz: no B-")
        assert table.loc["empty", "cause"].startswith("data/empty.tif: ")
        assert pd.read_csv(report / "volumes.tsv", sep="\t")["volume"].tolist() == ["e"]
        page = (report / "index.html").read_text()
        assert "3 of 5 volumes could not be used" in page
        assert "data/i&amp;cut.nii.gz: not a readable NIfTI file" in page

    def test_no_later_run_takes_what_was_skipped_for_done(self, mixed):
        project, *_ = mixed
        project.choose("fail")
        refused = project.snakemake("--dry-run")
        project.choose("skip")
        assert refused.returncode != 0
        assert "an earlier run skipped 3 of the volumes" in refused.stdout + refused.stderr
        assert "results/volumes/noise results/volumes/cut" in refused.stdout + refused.stderr

    def test_a_file_that_is_mended_reruns_what_depends_on_it(self, mixed):
        project, *_ = mixed
        cut = project.folder / "data/i&cut.nii.gz"
        damaged, changed = cut.read_bytes(), cut.stat().st_mtime
        try:
            cut.write_bytes((project.folder / "data/phantom/a.nii.gz").read_bytes())
            planned = project.planned()
        finally:
            cut.write_bytes(damaged)
            os.utime(cut, (changed, changed))
        once = ("load", "prepare", "patches", "score", "evaluate", "report", "all")
        assert planned == dict.fromkeys(once, 1)
