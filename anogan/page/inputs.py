"""What the report is made from, read from the files of other stages."""

import json
import platform
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd

from anogan.evidence.measures import DIFFERENCE_COLUMNS, METRIC_COLUMNS
from preprocessing.errors import InputError
from preprocessing.hdf5 import open_hdf5
from preprocessing.own_files import read_whole_lines, reading
from preprocessing.patch_file import read_index

PACKAGES = ("oct-anogan", "torch", "numpy", "scipy", "scikit-learn", "matplotlib", "snakemake")
NUMBERS = ["value", "ci_low", "ci_high"]


@dataclass(frozen=True)
class Evidence:
    """What the stage evaluate found.

    Attributes
    ----------
    metrics : value, ci_low and ci_high by (score, level, subset, metric); empty where no test case
        has a label.
    differences : a row per pair of methods, level, subset and metric.
    volumes : a row per volume with its label and its scores.
    details : the rest of metrics.json: operating points, settings, warnings.
    """

    metrics: pd.DataFrame
    differences: pd.DataFrame
    volumes: pd.DataFrame
    details: dict

    @cached_property
    def _measured(self) -> dict[tuple[str, str, str], pd.DataFrame]:
        cases = self.metrics.groupby(level=["method", "level", "subset"])
        return {case: rows.droplevel([0, 1, 2]) for case, rows in cases}

    def measured(self, level: str, score: str, subset: str = "test") -> pd.DataFrame:
        """Return value, ci_low and ci_high of a score at a level by metric; empty if unmeasured."""
        nothing = self.metrics.iloc[:0].droplevel([0, 1, 2])
        return self._measured.get((score, level, subset), nothing)

    def cases(self) -> list[tuple[str, str, str]]:
        """Return every (score, level, subset) that was measured."""
        return list(self._measured)


def read_evidence(path: Path) -> Evidence:
    """Read what lies beside metrics.tsv; InputError when it is missing or something else."""
    beside, of_volumes = path.with_name("metrics.json"), path.with_name("volumes.tsv")
    with reading(beside, "result of `evaluate`", "evaluate"):
        details = json.loads(beside.read_text(encoding="utf-8"))
        metrics = pd.DataFrame(details.pop("metrics"), columns=METRIC_COLUMNS)
        differences = pd.DataFrame(details.pop("differences"), columns=DIFFERENCE_COLUMNS)
        for table in (metrics, differences):
            table[NUMBERS] = table[NUMBERS].astype(float)
    with reading(of_volumes, "table of volumes", "evaluate"):
        volumes = pd.read_csv(
            StringIO(read_whole_lines(of_volumes)),
            sep="\t",
            dtype={"volume": str, "patient": str},
            na_values="nan",
            keep_default_na=False,  # a volume may be called NA
        )
    metrics = metrics.set_index(METRIC_COLUMNS[:4]).sort_index()
    return Evidence(metrics, differences, volumes, details)


def read_history(model: Path) -> pd.DataFrame:
    """Return the history of a model's training; an empty table where it came without one."""
    path = model / "history.tsv"
    if not path.exists():
        return pd.DataFrame()
    with reading(path, "history of a training", "train"):
        return pd.read_csv(StringIO(read_whole_lines(path)), sep="\t")


def model_facts(folder: Path, history: pd.DataFrame) -> dict[str, object]:
    """Return what the page says of the model, by name."""
    path = folder / "model.json"
    with reading(path, "description of a model", "train"):
        facts = json.loads(read_text(path))
    data, steps = facts.get("data", {}), facts.get("training", {}).get("steps")
    if {"step", "epoch"} <= set(history) and len(history):
        last = history.iloc[-1]
        steps = f"{last['step']:.0f} ({last['epoch']:.3g} epochs)"
    named = {
        "model": facts.get("model"),
        **{key.replace("_", " "): _listed(v) for key, v in facts.get("architecture", {}).items()},
        "training volumes": data.get("n_volumes"),
        "training patients": data.get("n_patients"),
        "training patches": data.get("n_patches"),
        "steps": steps,
        "seed": facts.get("seed"),
    }
    return {name: value for name, value in named.items() if value not in (None, "")}


def read_latent(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what the stage latent made.

    That is points (n, 2) of the t-SNE, the labels (n,) of their patches and the walks
    (k, steps, h, w).
    """
    with open_hdf5(path, "HDF5 file", "latent") as file, reading(path, "HDF5 file", "latent"):
        label = read_index(file)["label"].to_numpy()
        return file["tsne"][:], label, file["walks"][:].astype(np.float32)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that made the results."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def read_text(path: Path) -> str:
    """Return the text of a file; InputError where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; run the stage that writes it first") from error


def _listed(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, list) else value
