"""Scores -> metrics: how well each score tells anomalous from normal, with honest intervals.

Writes `metrics.tsv` and, beside it, `differences.tsv` (paired, between methods), the scores of each
unit (`bscans.tsv`, `volumes.tsv`, `patients.tsv`) and `metrics.json` (all of it, with operating
points, settings and warnings), from which the report is made.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from anogan.evidence import cautions
from anogan.evidence.levels import add_aggregation_arguments, aggregation, unit_tables
from anogan.evidence.measures import (
    DIFFERENCE_COLUMNS,
    METRIC_COLUMNS,
    Measured,
    labelled_subsets,
    measure,
)
from anogan.evidence.pixel_level import MAPS, measure_pixels
from anogan.evidence.score_tables import patch_table, read_scores, undefined_scores
from anogan.evidence.statistics import OperatingPoint, choose_operating_point, specificity_point
from preprocessing.errors import InputError
from preprocessing.files import atomic_path, write_text

SETTINGS = ("bootstrap", "seed", "specificity", "aggregation", "top_share", "percentile")


def operating_points(
    cases: pd.DataFrame, names: list[str], specificity: float
) -> dict[str, OperatingPoint]:
    """Return each score's operating point, chosen on the labelled validation cases alone."""
    validation = cases[(cases["split"] == "validation") & (cases["label"] >= 0)]
    label = validation["label"].to_numpy()
    return {
        name: choose_operating_point(label, validation[name].to_numpy(), specificity)
        for name in names
    }


def specificity_points(
    cases: pd.DataFrame, names: list[str], specificity: float
) -> dict[str, OperatingPoint]:
    """Return each score's point of that specificity on normal cases of healthy validation eyes."""
    healthy = (cases["eye_label"] == 0) & (cases["label"] == 0)
    validation = cases[(cases["split"] == "validation") & healthy]
    return {name: specificity_point(validation[name].to_numpy(), specificity) for name in names}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `python -m anogan evaluate`."""
    parser.add_argument("--scores", nargs="+", required=True, help="score files (.parquet)")
    parser.add_argument("--maps", nargs="*", default=[], help="map files (.h5), for pixel metrics")
    parser.add_argument("--bootstrap", type=int, default=1000, help="replicates for the intervals")
    parser.add_argument("--seed", type=int, default=1, help="seed of the bootstrap")
    parser.add_argument(
        "--specificity",
        type=float,
        default=0.95,
        help="on healthy validation volumes, of one of the thresholds, and of the chosen one where "
        "validation has no anomalous cases",
    )
    add_aggregation_arguments(parser)
    parser.add_argument("--output", required=True, help="metrics.tsv to write")


def command(args: argparse.Namespace) -> str:
    """Measure every score at every level and write the tables."""
    aggregate = aggregation(args)
    _check(args)
    scores = read_scores(args.scores)
    patches, methods = patch_table(scores)
    names = [name for own in methods.values() for name in own]
    cases = {"patch": patches, **unit_tables(patches, names, aggregate)}
    points, fixed = (
        {level: choose(table, names, args.specificity) for level, table in cases.items()}
        for choose in (operating_points, specificity_points)
    )
    subsets = labelled_subsets(patches)
    measured = [
        measure(table, points[level], fixed[level], level, subset, args.bootstrap, args.seed)
        for level, table in cases.items()
        for subset in subsets
    ]
    if args.maps:
        pixels, points["pixel"] = measure_pixels(
            args.maps, args.specificity, args.bootstrap, args.seed
        )
        measured.append(pixels)
    metrics, differences = _tables(measured, list(methods))
    n_scored = len(next(iter(scores.values())))
    evaluation = {
        "metrics": metrics.to_dict("records"),
        "differences": differences.to_dict("records"),
        "operating_points": _plain(points),
        "specificity_points": _plain(fixed),
        "settings": {name: getattr(args, name) for name in SETTINGS},
        "warnings": [
            *cautions.about_scores(undefined_scores(scores), n_scored, len(patches)),
            *cautions.about_labels(patches),
            *cautions.about_thresholds(measured, points, fixed, args.specificity),
            *cautions.about_measured(measured),
            *cautions.about_baselines(metrics, differences, next(iter(methods))),
        ],
    }
    output = Path(args.output)
    for level in ("bscan", "volume", "patient"):
        _write_table(cases[level], output.with_name(f"{level}s.tsv"))
    _write_table(differences, output.with_name("differences.tsv"))
    text = json.dumps(_without_nan(evaluation), indent=1, allow_nan=False)
    write_text(output.with_name("metrics.json"), text + "\n")
    _write_table(metrics, output)
    return _summary(metrics, names[0], points["patch"][names[0]]) or (
        f"{len(cases['volume'])} volumes scored by {', '.join(methods)}; no test patch has a label"
    )


def _check(args: argparse.Namespace) -> None:
    if not 0 < args.specificity < 1:
        raise InputError(f"--specificity {args.specificity}: give a share between 0 and 1")
    if args.bootstrap < 1:
        raise InputError(f"--bootstrap {args.bootstrap}: give at least 1 replicate")


def _tables(measured: list[Measured], methods: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return (all metrics, all paired differences between the methods' own scores)."""
    residuals = [MAPS["residual"].format(method) for method in methods]
    rows, pairs = [], []
    for one in measured:
        rows += one.rows()
        pairs += one.differences(residuals if one.level == "pixel" else methods)
    return (
        pd.DataFrame(rows, columns=METRIC_COLUMNS),
        pd.DataFrame(pairs, columns=DIFFERENCE_COLUMNS),
    )


def _plain(points: dict[str, dict[str, OperatingPoint]]) -> dict:
    return {
        level: {name: asdict(point) for name, point in named.items()}
        for level, named in points.items()
    }


def _without_nan(value: object) -> object:
    """Return `value`, nested as it may be, with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table with as many digits as tell two float32 apart."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False, float_format="%.9g", na_rep="nan")


def _summary(metrics: pd.DataFrame, headline: str, point: OperatingPoint) -> str:
    """Return the line on the test patches by the score `headline`; empty where none has a label."""
    chosen = metrics[(metrics["method"] == headline) & (metrics["subset"] == "test")]
    chosen = chosen[chosen["level"] == "patch"].set_index("metric")
    if chosen.empty:
        return ""
    auc = chosen.loc["auc"]
    between = f"95 % CI {auc['ci_low']:.3f} to {auc['ci_high']:.3f}"
    return (
        f"{headline}: patch AUC {auc['value']:.3f} "
        f"({between if np.isfinite(auc['ci_low']) else 'no interval'}) "
        f"on {chosen.loc['n', 'value']:.0f} test patches of "
        f"{chosen.loc['n_patients', 'value']:.0f} patients; threshold {point.threshold:.4g} "
        f"({point.rule} on validation)"
    )
