"""Score files of made-up volumes, and what `evaluate` makes of them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from preprocessing.cli import run_command

LAYOUT = {  # columns of each method's score files
    "anogan": ("A", "R", "D"),
    "gan_r": ("A_hat", "R", "D_hat"),
    "p_d": ("P_D",),
    "acae": ("A", "R", "D"),
    "ae": ("L2", "R"),
    "pca": ("L2", "R"),
}
GAN_METHODS = ("anogan", "gan_r", "p_d")
DESCRIPTION = (
    *("volume", "patient", "eye", "bscan", "z", "x", "split"),
    *("eye_label", "bscan_label", "label", "anomalous_fraction", "label_source"),
)


def score_name(method: str, column: str) -> str:
    own = LAYOUT.get(method, ())[:1]
    return method if column in own else f"{method}_{column}"


def make_scores(
    seed: int = 0,
    patches_per_volume: int = 40,
    splits: tuple[tuple[str, int, int], ...] = (("validation", 3, 3), ("test", 6, 6)),
) -> pd.DataFrame:
    """Scores of made-up volumes, a row per patch, the columns named as in metrics.tsv.

    `splits` gives (split, healthy volumes, diseased volumes); those of split score have no label.
    """
    rng = np.random.default_rng(seed)
    tables = []
    for split, healthy, diseased in splits:
        for number in range(healthy + diseased):
            n = patches_per_volume
            sick = number >= healthy
            fraction = np.where(sick & (rng.random(n) < 0.5), rng.uniform(0.05, 0.5, n), 0)
            known = split != "score"
            residual = 200 + rng.normal(0, 15) + rng.normal(0, 25, n) + 220 * fraction
            feature = 300 + rng.normal(0, 20) + rng.normal(0, 60, n) + 200 * fraction
            reference = rng.gamma(2, 0.4, n) + 0.5 * (fraction > 0)
            blurred = 260 + rng.normal(0, 40, n) + 150 * fraction
            tables.append(
                pd.DataFrame(
                    {
                        "volume": f"{split}_{number:02d}",
                        "patient": f"p_{split}_{number:02d}",
                        "eye": "R",
                        "bscan": rng.integers(0, 9, n),
                        "z": np.arange(n),
                        "x": rng.integers(0, 190, n),
                        "split": split,
                        "eye_label": np.int8(sick if known else -1),
                        "label": (fraction > 0).astype(np.int8) if known else np.int8(-1),
                        "anomalous_fraction": fraction if known else np.nan,
                        "label_source": "annotation" if known else "none",
                        "anogan": 0.9 * residual + 0.1 * feature,
                        "anogan_R": residual,
                        "anogan_D": feature,
                        "gan_r": 0.9 * residual + 0.1 * reference,
                        "gan_r_R": residual,
                        "gan_r_D_hat": reference,
                        "p_d": rng.normal(0, 1, n) + fraction,
                        "acae": blurred + 0.1 * feature,
                        "acae_R": blurred,
                        "acae_D": feature,
                        "ae": np.sqrt(blurred) + rng.normal(0, 0.5, n),
                        "ae_R": blurred,
                        "pca": np.sqrt(residual) / 2 + rng.normal(0, 0.4, n) + 5 * fraction,
                        "pca_R": residual + rng.normal(0, 60, n),
                    }
                )
            )
    scores = pd.concat(tables, ignore_index=True)
    of_bscan = scores.groupby(["volume", "bscan"])["label"].transform("max")
    return scores.assign(bscan_label=of_bscan)


def write_scores(scores: pd.DataFrame, folder: Path, methods: tuple[str, ...]) -> list[str]:
    """Write a score file a method as the stage `score` does; return their paths."""
    folder.mkdir(exist_ok=True)
    paths = []
    for method in methods:
        table = scores[list(DESCRIPTION)].assign(method=method)
        for column in LAYOUT.get(method, ("S",)):
            table[column] = scores[score_name(method, column) if method in LAYOUT else method]
        paths.append(f"{folder}/{method}.parquet")
        table.to_parquet(paths[-1], index=False)
    return paths


def evaluate(
    scores: pd.DataFrame, folder: Path, *options: str, methods: tuple[str, ...] = GAN_METHODS
) -> pd.DataFrame:
    paths = write_scores(scores, folder, methods)
    arguments = ["evaluate", "--scores", *paths, "--output", f"{folder}/metrics.tsv"]
    assert run_command("anogan", {"evaluate": ""}, [*arguments, "--bootstrap", "50", *options]) == 0
    table = pd.read_csv(folder / "metrics.tsv", sep="\t")
    return table.set_index(["method", "level", "subset", "metric"]).sort_index()


def evaluation_of(folder: Path) -> dict:
    """Return the metrics.json that `evaluate` wrote into a folder."""
    return json.loads((folder / "metrics.json").read_text())
