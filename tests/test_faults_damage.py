"""Files of the pipeline that were cut off or whose bits have flipped are named, with their rule."""

import re
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path

import made_gan
import made_maps
import numpy as np
import pandas as pd
import pytest
import torch
from made_faults import flip
from made_scores import evaluate, make_scores

from anogan.checkpoint import CHECKPOINT, load_checkpoint, read_notes, save_checkpoint
from anogan.evidence.score_tables import read_scores
from anogan.heat_scale import read_scale
from anogan.maps.file import open_maps
from anogan.model import load_model
from anogan.networks import Generator
from anogan.page.figures import _panel_column, _residual_index
from anogan.page.inputs import read_evidence, read_history, read_latent
from anogan.page.quality import flags_by_volume
from anogan.score import write_residuals
from anogan.training import write_history
from preprocessing.errors import InputError
from preprocessing.geometry import read_geometry
from preprocessing.hdf5 import CHECKED, new_hdf5
from preprocessing.layers import Layers, read_layers, write_layers
from preprocessing.patch_file import INDEX_DTYPE, check_whole, open_patches, read_index
from preprocessing.qc import FIGURES, write_table
from preprocessing.volume import Volume, read_volume

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def read_patches(path: Path) -> tuple:
    with open_patches(path) as file:
        check_whole(file)
        return file["patches"][:], file["masks"][:], read_index(file)


def read_maps(path: Path) -> list:
    with open_maps(path) as file:
        return [file.method, file.stride, file.size, *file]


def read_checkpoint(path: Path) -> tuple:
    generator = Generator((8, 8, 8), 4)
    notes = read_notes(path)
    load_checkpoint(path, {"g": generator}, {})
    return notes, [value.numpy() for value in generator.state_dict().values()]


def read_residuals(path: Path) -> list:
    rows = _residual_index(str(path)).to_dict("records")
    return [rows, [_panel_column(row, "", {}) for row in rows]]


def read_model(path: Path) -> list:
    model = load_model(path.parent, CPU)
    return [model.description, {name: value.numpy() for name, value in model.weights.items()}]


def facts_of(value: object) -> bytes:
    """Return all that a reader has found, for comparison."""
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, pd.DataFrame):
        return value.to_csv().encode()
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        value = [part for pair in value.items() for part in pair]
    if isinstance(value, list | tuple):
        return b"|".join(map(facts_of, value))
    return repr(value).encode()


class Files:
    """One file of every kind, with what reads it and the rule that makes it."""

    def __init__(self, folder: Path) -> None:
        made_maps.prepare(folder)
        rng = np.random.default_rng(0)
        surface = rng.uniform(50, 60, (3, 40)).astype(np.float32)
        write_layers(Layers(surface, surface, surface, surface), folder / "layers.npz")
        made_gan.write_patches(folder / "p.h5", n=300)
        residuals = (str(folder / "r.h5"), str(folder / "p.h5"), np.arange(6))
        write_residuals(*residuals, rng.normal(0, 1, (6, 32, 32)), np.arange(4))
        pca = made_maps.write_model(folder / "pca", "pca")
        scored = ("--patches", folder / "p.h5", "--model", pca, "--output", folder / "s.parquet")
        assert made_maps.run("score", *scored) == 0
        made_maps.write_model(folder / "model", "gan")
        save_checkpoint(
            folder / CHECKPOINT,
            {"g": Generator((8, 8, 8), 4)},
            {},
            {"step": 1, "history": [], "identity": {}},
        )
        write_history([{"step": step, "epoch": 0.1} for step in range(9)], folder / "history.tsv")
        figures = dict.fromkeys(FIGURES, 1.0)
        rows = [
            {"volume": "v", "bscan": bscan, **figures, "flag": "check", "reason": "dark band"}
            for bscan in ("all", 0, 1, 2)
        ]
        write_table(rows, folder / "qc.tsv")
        with new_hdf5(folder / "latent.h5") as file:
            file.create_dataset("tsne", data=rng.normal(0, 1, (9, 2)), **CHECKED)
            file.create_dataset("index", data=np.zeros(9, INDEX_DTYPE), **CHECKED)
            file.create_dataset("walks", data=rng.normal(0, 1, (2, 3, 32, 32)), **CHECKED)
        evaluate(make_scores(patches_per_volume=4), folder, methods=("p_d",))
        self.folder = folder


def of_volume(path: Path) -> Volume:
    return read_volume(path.with_name(path.name.split(".")[0] + ".nii.gz"))


# name: (what reads it, the rule that makes it)
KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "volume.nii.gz": (of_volume, "load"),
    "volume.valid.nii.gz": (of_volume, "load"),
    "flat.nii.gz": (of_volume, "prepare"),
    "flat.annotation.nii.gz": (of_volume, "prepare"),
    "flat.vendor.npz": (of_volume, "prepare"),
    "flat.json": (of_volume, "prepare"),
    "flat.geometry.npz": (read_geometry, "prepare"),
    "layers.npz": (read_layers, "prepare"),
    "qc.tsv": (lambda path: flags_by_volume([path]), "prepare"),
    "p.h5": (read_patches, "patches"),
    "r.h5": (read_residuals, "score"),
    "pca.h5": (read_maps, "heatmap"),
    "pca.json": (read_scale, "heat_scale"),
    "s.parquet": (lambda path: read_scores([path]), "score"),
    "latent.h5": (read_latent, "latent"),
    "model/weights.safetensors": (read_model, "train"),
    "model/model.json": (read_model, "train"),
    "history.tsv": (lambda path: read_history(path.parent), "train"),
    "metrics.json": (lambda path: read_evidence(path.with_name("metrics.tsv")), "evaluate"),
    "volumes.tsv": (lambda path: read_evidence(path.with_name("metrics.tsv")), "evaluate"),
    CHECKPOINT: (read_checkpoint, ""),
}
JSON = ("flat.json", "pca.json", "model/model.json", "metrics.json")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("files"))


@pytest.fixture
def damaged(files):
    """A function that changes a file for a moment and returns what its reader says or has found."""

    def read(name: str, change: Callable[[Path], None] = lambda path: None) -> str | bytes:
        path = files.folder / name
        content = path.read_bytes()
        try:
            change(path)
            return facts_of(KINDS[name][0](path))
        except InputError as error:
            return str(error)
        finally:
            path.write_bytes(content)

    return read


def test_rules_are_those_of_the_workflow():
    text = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    known = set(re.findall(r"^(?:rule|checkpoint) (\w+):", text, re.MULTILINE))
    assert {rule for _, rule in KINDS.values() if rule} <= known


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_file_is_read(files, name):
    KINDS[name][0](files.folder / name)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_was_cut_off_is_named_with_its_rule(files, damaged, name):
    path, rule = files.folder / name, KINDS[name][1]
    size = path.stat().st_size
    last = 2 if name in JSON else 1  # the last byte of a JSON file is the end of a line
    for kept in (0, 1, size // 3, size * 2 // 3, size - 100, size - last):
        said = damaged(name, lambda path, kept=kept: path.write_bytes(path.read_bytes()[:kept]))
        assert isinstance(said, str), f"{kept} of {size} bytes were read as if they were whole"
        assert Path(name).name.split(".")[0] in said or str(path.parent) in said
        assert "delete it" in said
        assert f"with the rule {rule}" in said or not rule
        assert "\n" not in said


@pytest.mark.parametrize("name", KINDS)
def test_a_missing_file_is_named(files, damaged, name):
    if name in (CHECKPOINT, "history.tsv"):
        pytest.skip("a training starts without one, and a model may come without a history")
    assert f"rule {KINDS[name][1]}" in str(damaged(name, Path.unlink))


@pytest.mark.parametrize("name", [name for name in KINDS if not name.endswith(("json", "tsv"))])
def test_flipped_bits_are_noticed(files, damaged, name):
    """Or they change nothing that is read, but padding, times and the like."""
    size = (files.folder / name).stat().st_size
    rng = np.random.default_rng(0)
    whole = damaged(name)
    assert isinstance(whole, bytes)
    for place in rng.integers(0, size, 60).tolist():
        found = damaged(name, lambda path, place=place: flip(path, place, place % 8))
        assert isinstance(found, str) or found == whole, f"byte {place} of {size}"
