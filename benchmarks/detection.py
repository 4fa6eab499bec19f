"""How well each method detects, on eyes that it has not learned from, and what that costs.

Usage: python benchmarks/detection.py WORK [--sites N] [--methods METHOD ...]

Trains every model on one healthy eye (kept in the folder WORK: a second call only scores) and tests
on other eyes, by the truths of `benchmarks/truths.py`: lesions inserted into healthy retina,
with their sham, which must stay at an AUC of 0.5; real drusen; real fluid within its B-scan. With
OCT_TEST_DATA, the directions "validation" (learns from healthy_subject1) and "validation-2" (from
healthy_subject2) are for choosing, "test" (from healthy_subject2 as well) has other eyes to report
on; how often they were looked at, docs/validation.md tells. Without the data, phantoms stand in.

Prints a TSV table, measure value unit baseline ratio: the AUC of each method on each truth, its
interval of 95 % over B-scans in `unit`; as baseline the best of pca, ae and acae; and how many
times fewer errors. Then the time per patch, against the published search of 500 steps. The same,
with paired differences, goes to WORK/detection.tsv. An interval is of these eyes and tells nothing
about others.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path[0] = str(Path(__file__).parents[1])  # so that preprocessing is the package

from anogan.mapping import Mapper, RandomStarts, SearchSettings
from anogan.networks import Discriminator, Generator, freeze
from anogan.scores import feature_matching
from anogan.scoring import add_method_arguments, patch_keys, ready_method, score_batches
from benchmarks.eyes import Direction, prepare, sources
from benchmarks.truths import Eye, Truth, drusen, fluid, inserted
from preprocessing.geometry import height_px
from preprocessing.seeds import derive_seed

SIZES = ["--channels", "128", "64", "32", "16", "--latent", "128"]
TRAINING = {  # in the order of what needs what
    "gan": [*SIZES, "--epochs", "3", "--learning-rate", "0.0005"],
    "restorer": ["--epochs", "4"],
    "encoder": ["--epochs", "1.5", "--learning-rate", "0.001"],
    "pca": [],
    "ae": [*SIZES, "--epochs", "4"],
    "acae": [*SIZES, "--epochs", "2"],
}
LEARNS_FROM_GAN = ("restorer", "encoder")
SEARCH = ["--learning-rate", "0.02", "--schedule", "cosine", "--candidates", "4096"]
SCORING = {
    "r_anogan": ("restorer", []),
    "f_anogan": ("encoder", []),
    "f_anogan_refined": ("encoder", ["--refine-steps", "20"]),
    "anogan": ("gan", ["--steps", "50", *SEARCH]),
    "pca": ("pca", []),
    "ae": ("ae", []),
    "acae": ("acae", []),
}
BASELINES = ("pca", "ae", "acae")
TRAIN_PATCHES, PER_BSCAN, LEAST_FLUID = 40000, 15, 0.01
BOOTSTRAP, SEED = 300, 1
PAPER_CHANNELS, PAPER_LATENT, PAPER_STEPS = (512, 256, 128, 64), 100, 500


def train_models(eye: Path, folder: Path, models: list[str]) -> None:
    """Train what is not there yet on the patches of one healthy eye, by the stages' commands."""
    patches = folder / "train.h5"
    if not patches.exists():
        run("preprocessing", "patches", "--inputs", eye, "--labels", "healthy", "--split", "train",
            "--total", TRAIN_PATCHES, "--output", patches)  # fmt: skip
    for model in models:
        output = folder / "model" / model
        if not (output / "model.json").exists():
            gan = ["--gan", folder / "model/gan"] if model in LEARNS_FROM_GAN else []
            run("anogan", "train", model, "--patches", patches, *gan, *TRAINING[model],
                "--threads", os.cpu_count(), "--output", output)  # fmt: skip


def run(package: str, *arguments: object) -> None:
    """Run a stage's command; its messages go to stderr."""
    command = [sys.executable, "-m", package, *map(str, arguments)]
    subprocess.run(command, check=True, stdout=sys.stderr, cwd=Path(__file__).parents[1])


def truths_of(direction: Direction, eyes: dict[str, Eye], sites: int) -> list[Truth]:
    """Return all truths of a direction, `sites` of each kind of inserted lesion."""
    host = eyes[direction.host]
    found = list(inserted(host, sites, SEED))
    for name in direction.drusen:
        found += drusen(eyes[name], None if name == direction.host else host, sites, SEED)
    for name, marked in direction.fluid.items():
        found.append(fluid(name, [eyes[eye] for eye in marked], PER_BSCAN, LEAST_FLUID, SEED))
    return found


def score(
    method: str, folder: Path, truths: list[Truth], eyes: dict[str, Eye]
) -> tuple[dict[str, list[np.ndarray]], float]:
    """Return every score of a method by its name, an array per truth, and the seconds per patch."""
    model, options = SCORING[method]
    parser = argparse.ArgumentParser()
    add_method_arguments(parser)
    given = ["--model", folder / "model" / model, "--method", method, "--threads", os.cpu_count()]
    args = parser.parse_args([str(part) for part in [*given, *options]])
    index = pd.concat([truth.index for truth in truths], ignore_index=True)
    gray = np.concatenate([truth.patches for truth in truths])
    heights = np.zeros(len(index), np.float32)
    for volume, rows in index.groupby("volume").indices.items():
        heights[rows] = height_px(eyes[volume].geometry.bm, index["z"].to_numpy()[rows])
    start = time.perf_counter()
    with ready_method(args) as ready:
        batches = score_batches(
            gray.__getitem__, patch_keys(index), heights, ready.scorer, 64, ready.device
        )
        table = np.concatenate([values for _, _, values, _ in batches])
    seconds = (time.perf_counter() - start) / len(index)
    ends = np.cumsum([len(truth.index) for truth in truths])[:-1]
    names = [method, *(f"{method}_{column}" for column in ready.columns[1:])]
    return dict(zip(names, (np.split(v, ends) for v in table.T), strict=True)), seconds


def auc(truth: Truth, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return (k,) the area under the ROC curve, positives against negatives of their own group.

    Each row of `weights` (k, n) counts the patches as often; groups weigh by their pairs.
    """
    label = truth.index["label"].to_numpy()
    won, pairs = np.zeros((2, len(weights)))
    for rows in truth.groups:
        positive, negative = (rows[label[rows] == side] for side in (1, 0))
        margin = values[positive, None] - values[negative]
        wins = (margin > 0) + 0.5 * (margin == 0)
        won += ((weights[:, positive] @ wins) * weights[:, negative]).sum(axis=1)
        pairs += weights[:, positive].sum(axis=1) * weights[:, negative].sum(axis=1)
    return np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def resampled(truth: Truth) -> np.ndarray:
    """Return (1 + BOOTSTRAP, n): how often each patch counts; once, then by drawing B-scans.

    They are drawn within their eye; those of eyes with a single one, among each other.
    """
    rng = np.random.default_rng(derive_seed(SEED, "bootstrap", truth.name))
    bscans = truth.index["volume"] + "/" + truth.index["bscan"].astype(str)
    is_single = bscans.groupby(truth.index["volume"]).transform("nunique") == 1
    strata = truth.index["volume"].mask(is_single, "")
    weights = np.ones((1 + BOOTSTRAP, len(bscans)))
    for rows in strata.groupby(strata).indices.values():
        which, inverse = np.unique(bscans.to_numpy(str)[rows], return_inverse=True)
        drawn = rng.multinomial(len(which), np.full(len(which), 1 / len(which)), BOOTSTRAP)
        weights[1:, rows] = drawn[:, inverse]
    return weights


def evaluate(truth: Truth, scores: dict[str, np.ndarray]) -> list[dict]:
    """Return a row per score: AUC with interval, and the difference to the best baseline."""
    weights = resampled(truth)
    areas = {name: auc(truth, values, weights) for name, values in scores.items()}
    best = max(BASELINES, key=lambda name: areas[name][0])
    rows = []
    for name, area in areas.items():
        difference = area - areas[best]
        low, high = np.nanquantile(area[1:], (0.025, 0.975))
        d_low, d_high = np.nanquantile(difference[1:], (0.025, 0.975))
        rows.append(
            {
                "truth": truth.name,
                "positive": int(truth.index["label"].sum()),
                "negative": int((truth.index["label"] == 0).sum()),
                "score": name,
                "auc": area[0],
                "ci_low": low,
                "ci_high": high,
                "best_baseline": best,
                "baseline_auc": areas[best][0],
                "difference": difference[0],
                "difference_low": d_low,
                "difference_high": d_high,
            }
        )
    return rows


def published_seconds(batch: int = 64, steps: int = 4) -> float:
    """Return the seconds that the published search of 500 steps takes for a patch, in fp32."""
    torch.manual_seed(SEED)
    generator = Generator(PAPER_CHANNELS, PAPER_LATENT)
    discriminator = Discriminator(PAPER_CHANNELS)
    freeze(generator, discriminator)
    settings = SearchSettings(steps=steps)
    starts = RandomStarts(PAPER_LATENT, 1, SEED)
    matching = feature_matching(settings, len(PAPER_CHANNELS))
    mapper = Mapper(generator, discriminator, matching, settings, starts)
    x, keys = torch.rand(batch, 1, 64, 64) * 2 - 1, [str(i) for i in range(batch)]
    mapper(x, keys)
    start = time.perf_counter()
    mapper(x, keys)
    return (time.perf_counter() - start) / (batch * steps) * PAPER_STEPS


def measure(direction: Direction, args: argparse.Namespace) -> pd.DataFrame:
    """Train, score and evaluate one direction; return its rows."""
    _, readers = sources()
    folder = args.work / direction.trains_on
    wanted = {"gan"} | {SCORING[method][0] for method in args.methods}
    healthy, _ = prepare(direction.trains_on, readers[direction.trains_on], args.work)
    train_models(healthy, folder, [model for model in TRAINING if model in wanted])
    eyes = {name: prepare(name, readers[name], args.work)[1] for name in direction.all_eyes}
    truths = truths_of(direction, eyes, args.sites)
    scores, seconds = {}, {}
    for method in args.methods:
        found, seconds[method] = score(method, folder, truths, eyes)
        scores |= found
    rows = []
    for i, truth in enumerate(truths):
        rows += evaluate(truth, {name: values[i] for name, values in scores.items()})
    table = pd.DataFrame(rows)
    table.insert(0, "direction", direction.name)
    return table.assign(seconds=table["score"].map(seconds))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for eyes, models and detection.tsv")
    parser.add_argument("--sites", type=int, default=160, help="of each kind of inserted lesion")
    parser.add_argument("--methods", nargs="+", choices=SCORING, default=list(SCORING))
    parser.add_argument("--directions", nargs="+", choices=["validation", "validation-2", "test"])
    args = parser.parse_args()
    args.work = args.work.resolve()
    args.methods = list(dict.fromkeys([*args.methods, *BASELINES]))
    torch.set_num_threads(os.cpu_count())
    chosen = [d for d in sources()[0] if not args.directions or d.name in args.directions]
    if not chosen:
        parser.error("phantoms have the directions validation and test; set OCT_TEST_DATA")
    table = pd.concat([measure(direction, args) for direction in chosen], ignore_index=True)
    table.to_csv(args.work / "detection.tsv", sep="\t", index=False, float_format="%.4f")
    print("measure\tvalue\tunit\tbaseline\tratio")
    for row in table.itertuples():
        ratio = (1 - row.baseline_auc) / max(1 - row.auc, 1e-4)
        print(
            f"{row.direction}: {row.truth}: AUC of {row.score}\t{row.auc:.3f}"
            f"\t({row.ci_low:.3f} to {row.ci_high:.3f})\t{row.baseline_auc:.3f}\t{ratio:.2f}"
        )
    published = published_seconds()
    for name, seconds in table.groupby("score", sort=False)["seconds"].mean().dropna().items():
        print(
            f"time per patch: {name}\t{1000 * seconds:.3g}\tms\t{1000 * published:.4g}"
            f"\t{published / seconds:.0f}"
        )


if __name__ == "__main__":
    main()
