"""How well each method detects, on eyes that it has not learned from, and what that costs.

Usage: python benchmarks/detection.py WORK [--sites N] [--methods METHOD ...]

Trains every model on one healthy eye (kept in the folder WORK: a second call only scores) and tests
on other eyes, by the truths of `benchmarks/truths.py`: lesions inserted into healthy retina,
with their sham, which must stay at an AUC of 0.5; real drusen; real fluid within its B-scan. With
OCT_TEST_DATA, the directions "validation" (learns from healthy_subject1) and "validation-2" (from
healthy_subject2) are for choosing, "test" (from healthy_subject2 as well) has other eyes to report
on; how often they were looked at, docs/validation.md tells. Without the data, phantoms stand in.

Prints a TSV table, measure value unit baseline ratio: the AUC of each method on each truth, its
interval of 95 % over B-scans in `unit`; as baseline the best score of pca, ae and acae; and how
many times fewer errors. pca_S and ae_S are these two scored as r_anogan scores; place_* and
gray_mean tell how far a patch's place and gray value alone would get. Then the time per patch,
against the published search of 500 steps. The same, with paired differences, goes to
WORK/detection.tsv. An interval is of these eyes and tells nothing about others. What lies in WORK
is used as it is: give another folder after a change of the code.
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
from torch import Tensor

sys.path[0] = str(Path(__file__).parents[1])  # so that preprocessing is the package

from anogan.deviation import learn_usual
from anogan.mapping import Mapper, RandomStarts, SearchSettings
from anogan.methods.restorer import USUAL
from anogan.networks import Discriminator, Generator, freeze
from anogan.scores import feature_matching
from anogan.scoring import (
    ReadyMethod,
    add_method_arguments,
    patch_keys,
    ready_method,
    score_batches,
)
from anogan.variation import noisy, relit
from benchmarks.eyes import Direction, prepare, sources
from benchmarks.judgement import BASELINES, RESTORED, evaluate
from benchmarks.truths import Eye, Truth, drusen, fluid, inserted, position
from preprocessing.patch_file import heights_px, open_patches, read_index
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
TRAIN_PATCHES, PER_BSCAN, LEAST_FLUID = 40000, 15, 0.01
SEED = 1
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
    """Return every score of a method by its name, an array per truth, and the seconds per patch.

    What is a baseline and rebuilds patches gets the score S of r_anogan besides.
    """
    model, options = SCORING[method]
    parser = argparse.ArgumentParser()
    add_method_arguments(parser)
    given = ["--model", folder / "model" / model, "--method", method, "--threads", os.cpu_count()]
    args = parser.parse_args([str(part) for part in [*given, *options]])
    index = pd.concat([truth.index for truth in truths], ignore_index=True)
    gray = np.concatenate([truth.patches for truth in truths])
    heights = places_of(index, eyes)[:, 0].astype(np.float32)
    with ready_method(args) as ready:
        start = time.perf_counter()
        table, rebuilt = scored(ready, gray, patch_keys(index), heights)
        seconds = (time.perf_counter() - start) / len(index)
        names = [method, *(f"{method}_{column}" for column in ready.columns[1:])]
        found = dict(zip(names, table.T, strict=True))
        if f"{method}_S" in RESTORED:
            found[f"{method}_S"] = unusual(ready, folder / "train.h5", gray, rebuilt, heights)
    ends = np.cumsum([len(truth.index) for truth in truths])[:-1]
    return {name: np.split(values, ends) for name, values in found.items()}, seconds


def scored(
    ready: ReadyMethod, gray: np.ndarray, keys: list[str], heights: np.ndarray
) -> tuple[np.ndarray, Tensor]:
    """Return the scores (n, k) of patches (n, h, w) and what they were rebuilt as (n, 1, h, w)."""
    found = [
        (values, rebuilt)
        for _, _, values, rebuilt in score_batches(
            gray.__getitem__, keys, heights, ready.scorer, 64, ready.device
        )
    ]
    values, rebuilt = zip(*found, strict=True)
    return np.concatenate(values), torch.cat(rebuilt)


def unusual(
    ready: ReadyMethod, train: Path, gray: np.ndarray, rebuilt: Tensor, heights: np.ndarray
) -> np.ndarray:
    """Return S (n,) of patches as a method has rebuilt them, its tables learned as r_anogan's."""
    with open_patches(str(train)) as file:
        index = read_index(file)
        rng = np.random.default_rng(derive_seed(SEED, "usual"))
        rows = np.sort(rng.permutation(len(index))[:USUAL])
        healthy = torch.from_numpy(file["patches"][rows].astype(np.float32)).unsqueeze(1)
        height = torch.from_numpy(heights_px(file, index)[rows])
    draw = torch.Generator().manual_seed(SEED)
    healthy = noisy(relit(healthy, draw), draw)
    keys = patch_keys(index.iloc[rows])
    restored = scored(ready, healthy[:, 0].numpy(), keys, height.numpy())[1]
    usual = learn_usual(healthy, restored, height)
    x = torch.from_numpy(gray.astype(np.float32)).unsqueeze(1)
    return usual.scores(x, rebuilt, torch.from_numpy(heights))[:, 0].numpy()


def places_of(index: pd.DataFrame, eyes: dict[str, Eye]) -> np.ndarray:
    """Return the `position` (n, 4) of every patch of an index, each in its own eye."""
    places, corners = np.zeros((len(index), 4)), index[["bscan", "z", "x"]].to_numpy()
    for volume, rows in index.groupby("volume").indices.items():
        places[rows] = position(eyes[volume], corners[rows])
    return places


def simplest(truth: Truth, eyes: dict[str, Eye]) -> dict[str, np.ndarray]:
    """Return what needs no method: the places of patches, and their mean gray values."""
    names = ("place_height", "place_distance", "place_x", "place_y")
    places = places_of(truth.index, eyes)
    gray = truth.patches.mean(axis=(1, 2), dtype=np.float32)
    return dict(zip(names, places.T, strict=True)) | {"gray_mean": gray}


def published_seconds(batch: int = 64, steps: tuple[int, int] = (2, 6)) -> float:
    """Return the seconds that the published search of 500 steps takes for a patch, in fp32."""
    torch.manual_seed(SEED)
    generator = Generator(PAPER_CHANNELS, PAPER_LATENT)
    discriminator = Discriminator(PAPER_CHANNELS)
    freeze(generator, discriminator)
    x, keys = torch.rand(batch, 1, 64, 64) * 2 - 1, [str(i) for i in range(batch)]
    starts = RandomStarts(PAPER_LATENT, 1, SEED)
    took = []
    for count in (1, *steps):  # the first warms up
        settings = SearchSettings(steps=count)
        matching = feature_matching(settings, len(PAPER_CHANNELS))
        mapper = Mapper(generator, discriminator, matching, settings, starts)
        start = time.perf_counter()
        mapper(x, keys)
        took.append(time.perf_counter() - start)
    return (took[2] - took[1]) / (steps[1] - steps[0]) / batch * PAPER_STEPS


def measure(direction: Direction, args: argparse.Namespace) -> pd.DataFrame:
    """Train, score and evaluate one direction; return its rows."""
    _, readers = sources()
    folder = args.work / direction.trains_on
    wanted = {"gan"} | {SCORING[method][0] for method in args.methods}
    healthy, _ = prepare(direction.trains_on, readers[direction.trains_on], args.work)
    train_models(healthy, folder, [model for model in TRAINING if model in wanted])
    eyes = {name: prepare(name, readers[name], args.work)[1] for name in direction.all_eyes}
    truths = []
    for truth in truths_of(direction, eyes, args.sites):
        if truth.index["label"].nunique() == 2:
            truths.append(truth)
        else:
            print(f"{direction.name}: nothing to compare: {truth.name}", file=sys.stderr)
    scores, seconds = {}, {}
    for method in args.methods:
        found, seconds[method] = score(method, folder, truths, eyes)
        scores |= found
    rows = []
    for i, truth in enumerate(truths):
        of_truth = {name: values[i] for name, values in scores.items()}
        rows += evaluate(truth, of_truth | simplest(truth, eyes), SEED)
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
