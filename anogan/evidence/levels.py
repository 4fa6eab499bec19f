"""The scores of patches -> those of the B-scans, volumes and patients that they lie in."""

import argparse
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from preprocessing.errors import InputError

# what one is called in a sentence; pixels have maps instead of a table
LEVELS = {
    "patch": "patches",
    "bscan": "B-scans",
    "volume": "volumes",
    "patient": "patients",
    "pixel": "pixels",
}
UNIT = {"bscan": ["volume", "bscan"], "volume": ["volume"], "patient": ["patient", "split"]}
IDS = {"bscan": ["patient", "eye", "split"], "volume": ["patient", "eye", "split"], "patient": []}

Aggregation = Callable[[np.ndarray], float]  # scores (n,) of a unit's patches -> the unit's score


def top_mean(score: np.ndarray, share: float) -> float:
    """Return the mean of the highest `share` of the scores (n,), of at least one.

    >>> top_mean(np.array([1, 9, 5, 4]), 0.5)
    7.0
    """
    count = max(1, math.ceil(share * len(score) - 1e-9))  # 0.07 * 100 is a little more than 7
    return float(np.sort(score)[-count:].mean())


def add_aggregation_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how the score of a B-scan, volume or patient is made of its patches'."""
    parser.add_argument(
        "--aggregation",
        choices=["top_mean", "max", "percentile", "mean"],
        default="top_mean",
        help="of patch scores into that of a B-scan, volume or patient",
    )
    parser.add_argument("--top-share", type=float, default=0.1, help="patches in top_mean")
    parser.add_argument("--percentile", type=float, default=95, help="of percentile, 0 to 100")


def aggregation(options: argparse.Namespace) -> Aggregation:
    """Return the aggregation that was asked for; InputError when it makes no sense."""
    if not 0 < options.top_share <= 1:
        raise InputError(f"--top-share {options.top_share}: give a share above 0, 1 at most")
    if not 0 <= options.percentile <= 100:
        raise InputError(f"--percentile {options.percentile}: give one from 0 to 100")
    return {
        "top_mean": partial(top_mean, share=options.top_share),
        "max": np.max,
        "percentile": partial(np.percentile, q=options.percentile),
        "mean": np.mean,
    }[options.aggregation]


def unit_tables(
    patches: pd.DataFrame, names: list[str], aggregate: Aggregation
) -> dict[str, pd.DataFrame]:
    """Return a table a level, a row per B-scan, volume or patient, a column per score of `names`.

    All patches count, also those without a label. A B-scan has its own label; a volume that of its
    eye or, where it is unknown, 1 with any anomalous B-scan, else 0 with any normal one, else -1; a
    patient is anomalous with any anomalous volume, else normal with any normal one.
    """
    by_bscans = patches.groupby("volume")["bscan_label"].transform("max")
    of_volume = patches["eye_label"].where(patches["eye_label"] >= 0, by_bscans)
    labels = {"bscan": patches["bscan_label"], "volume": of_volume, "patient": of_volume}
    return {
        level: _table(patches, level, label, names, aggregate) for level, label in labels.items()
    }


def _table(
    patches: pd.DataFrame,
    level: str,
    label: pd.Series,
    names: list[str],
    aggregate: Aggregation,
) -> pd.DataFrame:
    """Return the units of a level; `label` (n,) is what each patch says of its unit."""
    group = patches.assign(label=label).groupby(UNIT[level])
    table = group.agg(
        **{name: (name, "first") for name in IDS[level]},
        eye_label=("eye_label", "max"),
        label=("label", "max"),
        label_source=("label_source", "min"),  # annotation before eye, healthy and none
        n_patches=("label", "size"),
    )
    unit = group.ngroup().to_numpy()
    order = np.argsort(unit, kind="stable")
    starts = np.flatnonzero(np.diff(unit[order])) + 1
    scores = {
        name: [aggregate(part) for part in np.split(patches[name].to_numpy(float)[order], starts)]
        for name in names
    }
    return table.assign(**scores).reset_index()
