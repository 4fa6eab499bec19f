"""Scores -> metrics: how well each score tells anomalous from normal, with honest intervals.

Writes `metrics.tsv` and, beside it, `evaluation.json` (operating points, settings, warnings) and
`volumes.tsv` (the scores of each volume), from which the report is made.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from anogan.statistics import (
    OperatingPoint,
    bootstrap_metrics,
    choose_operating_point,
    draw_patients,
    interval,
    patient_strata,
    point_metrics,
)
from preprocessing.errors import InputError
from preprocessing.files import atomic_path, write_text
from preprocessing.seeds import derive_seed

# name in the report: (method of the score rows, column)
METHODS = {
    "anogan": ("anogan", "A"),
    "gan_r": ("gan_r", "A_hat"),
    "p_d": ("anogan", "P_D"),
    "anogan_R": ("anogan", "R"),
    "anogan_D": ("anogan", "D"),
    "gan_r_D_hat": ("gan_r", "D_hat"),
}
PATCH = ["volume", "bscan", "z", "x"]
DESCRIPTION = [
    "patient",
    "eye",
    "split",
    "eye_label",
    "label",
    "anomalous_fraction",
    "label_source",
]
LEVELS = {"patch": "patches", "volume": "volumes"}
HEALTHY_EYE = "healthy"  # source of the labels of a healthy eye without annotation
TOP_SHARE = 0.1  # of a volume's patches make its score
FEW_PATIENTS = 10


def read_scores(paths: Iterable[str | Path]) -> pd.DataFrame:
    """Read score files into one table, a row per patch and method.

    Raises InputError when a file is unreadable or lacks a column.
    """
    tables = []
    for path in paths:
        try:
            table = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: not a readable score file ({error}); run `map` again"
            ) from error
        needed = [*PATCH, *DESCRIPTION, "method", *(column for _, column in METHODS.values())]
        missing = sorted(set(needed) - set(table.columns))
        if missing:
            raise InputError(f"{path}: lacks the columns {', '.join(missing)}; run `map` again")
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def patch_table(scores: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return (one row per patch with a column per method, sorted; the methods there are).

    Raises InputError when a patch occurs twice or has no score, or a score that is not a number.
    """
    table = scores.loc[scores["method"] == "anogan", [*PATCH, *DESCRIPTION]].set_index(PATCH)
    if table.empty:
        raise InputError("the score files hold no rows of method anogan; run `map` with it")
    methods = []
    for name, (row_method, column) in METHODS.items():
        rows = scores[scores["method"] == row_method]
        if rows.empty:
            continue
        values = rows.set_index(PATCH)[column]
        if values.index.has_duplicates:
            twice = "/".join(map(str, values.index[values.index.duplicated()][0]))
            raise InputError(
                f"the score files hold patch {twice} (volume/B-scan/z/x) of {row_method} twice; "
                "give each file once"
            )
        table[name] = values
        undefined = int((~np.isfinite(table[name])).sum())
        if undefined:
            raise InputError(
                f"{name}: {undefined} of {len(table)} patches have no finite score {column}; "
                "look for a diverged model in history.tsv, then run `map` again"
            )
        methods.append(name)
    return table.sort_index().reset_index(), methods


def volume_table(patches: pd.DataFrame, methods: list[str]) -> pd.DataFrame:
    """Return one row per volume: a score is the mean of the highest tenth of its patch scores.

    All patches count, also those without a label. The label is that of the eye in the sample sheet;
    where it is unknown, 1 with any anomalous patch, else 0 with any normal one, else -1.
    """
    group = patches.groupby("volume")
    table = group.agg(
        patient=("patient", "first"),
        eye=("eye", "first"),
        split=("split", "first"),
        label=("eye_label", "first"),
        n_patches=("label", "size"),
    )
    table["label"] = table["label"].where(table["label"] >= 0, group["label"].max())
    source = patches[patches["label"] >= 0].groupby("volume")["label_source"].min()
    table["label_source"] = source.reindex(table.index).fillna("none")
    for name in methods:
        table[name] = group[name].agg(_top_mean)
    return table.reset_index()


def operating_points(
    cases: pd.DataFrame, methods: list[str], healthy_quantile: float
) -> dict[str, OperatingPoint]:
    """Return each method's operating point, chosen on the labelled validation cases alone."""
    validation = cases[(cases["split"] == "validation") & (cases["label"] >= 0)]
    label = validation["label"].to_numpy()
    return {
        name: choose_operating_point(label, validation[name].to_numpy(), healthy_quantile)
        for name in methods
    }


def labelled_subsets(patches: pd.DataFrame) -> list[str]:
    """Return "test" and, where labels come from several sources, "test:<source>" for each.

    Patches of healthy eyes belong to every source: nothing is marked in them either way.
    Raises InputError when no test patch has a label.
    """
    labelled = patches[(patches["split"] == "test") & (patches["label"] >= 0)]
    if labelled.empty:
        raise InputError(
            "the score files hold no labelled patch of split test; "
            "give the sample sheet test volumes with a label or an annotation"
        )
    sources = sorted(set(labelled["label_source"]) - {HEALTHY_EYE})
    return ["test", *(f"test:{source}" for source in sources if len(sources) > 1)]


def measure(
    cases: pd.DataFrame,
    points: dict[str, OperatingPoint],
    level: str,
    subset: str,
    replicates: int,
    seed: int,
) -> tuple[list[dict], list[str]]:
    """Return (metric rows, warnings) of one level and subset; every method sees the same draws."""
    chosen = cases[cases["split"] == "test"]
    if ":" in subset:
        chosen = chosen[chosen["label_source"].isin([subset.partition(":")[2], HEALTHY_EYE])]
    labelled = chosen[chosen["label"] >= 0]
    label, patient = labelled["label"].to_numpy(), labelled["patient"].to_numpy()
    patients, anomalous = patient_strata(patient, label)
    warnings = _warnings(label, anomalous, f"{subset}, {LEVELS[level]}")
    draws = draw_patients(anomalous, replicates, derive_seed(seed, "bootstrap", subset))
    counts = {
        "n": len(label),
        "n_anomalous": int(label.sum()),
        "n_patients": len(patients),
        "n_excluded": len(chosen) - len(labelled),
    }
    rows = []
    for name, point in points.items():
        score = labelled[name].to_numpy(float)
        values = point_metrics(label, score, point.threshold)
        repeated = {}
        if _supports_interval(anomalous):
            repeated = bootstrap_metrics(label, score, patient, point.threshold, draws)
        for metric, value in (counts | values).items():
            low, high = np.nan, np.nan
            if metric in repeated and np.isfinite(value):
                low, high = interval(repeated[metric])
            rows.append(
                {
                    "method": name,
                    "level": level,
                    "subset": subset,
                    "metric": metric,
                    "value": value,
                    "ci_low": low,
                    "ci_high": high,
                }
            )
    return rows, warnings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `python -m anogan evaluate`."""
    parser.add_argument("--scores", nargs="+", required=True, help="score files (.parquet)")
    parser.add_argument("--bootstrap", type=int, default=1000, help="replicates for the intervals")
    parser.add_argument("--seed", type=int, default=1, help="seed of the bootstrap")
    parser.add_argument(
        "--healthy-quantile",
        type=float,
        default=0.95,
        help="threshold among healthy validation cases where validation has no anomalous ones",
    )
    parser.add_argument("--output", required=True, help="metrics.tsv to write")


def command(args: argparse.Namespace) -> str:
    """Measure every method at patch and volume level and write the three tables."""
    patches, methods = patch_table(read_scores(args.scores))
    subsets = labelled_subsets(patches)
    volumes = volume_table(patches, methods)
    rows, points = [], {}
    warnings = _eye_label_warnings(patches)
    for level, cases in (("patch", patches), ("volume", volumes)):
        points[level] = operating_points(cases, methods, args.healthy_quantile)
        if points[level]["anogan"].rule == "none":
            warnings.append(
                f"no normal {level} in split validation: no threshold could be chosen, so the "
                f"metrics that need one are missing at {level} level"
            )
        for subset in subsets:
            measured, said = measure(cases, points[level], level, subset, args.bootstrap, args.seed)
            rows += measured
            warnings += said

    metrics = pd.DataFrame(rows)
    evaluation = {
        "bootstrap": args.bootstrap,
        "seed": args.seed,
        "healthy_quantile": args.healthy_quantile,
        "top_share": TOP_SHARE,
        "operating_points": {
            level: {name: _without_nan(asdict(point)) for name, point in named.items()}
            for level, named in points.items()
        },
        "healthy_volume_threshold": _healthy_quantiles(volumes, methods, args.healthy_quantile),
        "warnings": warnings,
    }
    output = Path(args.output)
    _write_table(volumes, output.with_name("volumes.tsv"))
    write_text(output.with_name("evaluation.json"), json.dumps(evaluation, indent=1) + "\n")
    _write_table(metrics, output)
    return _summary(metrics, points["patch"]["anogan"])


def _top_mean(score: pd.Series) -> float:
    count = int(np.ceil(TOP_SHARE * len(score)))
    return float(np.sort(score.to_numpy())[-count:].mean())


def _supports_interval(anomalous: np.ndarray) -> bool:
    """Tell whether each group of patients (`anomalous` (p,) bool) has two members to resample."""
    return all(np.sum(anomalous == group) != 1 for group in (False, True))


def _warnings(label: np.ndarray, anomalous: np.ndarray, where: str) -> list[str]:
    warnings = []
    if len(np.unique(label)) < 2:
        kind = "anomalous" if label[0] else "normal"
        warnings.append(
            f"{where}: only {kind} cases, so AUC and whatever needs both classes are undefined"
        )
    if not _supports_interval(anomalous):
        warnings.append(
            f"{where}: a group of patients (with or without anomaly) has a single member, "
            "so no interval can be given"
        )
    elif len(anomalous) < FEW_PATIENTS:
        warnings.append(
            f"{where}: only {len(anomalous)} patients carry a label, "
            "so the intervals are rough and probably too narrow"
        )
    return warnings


def _eye_label_warnings(patches: pd.DataFrame) -> list[str]:
    by_eye = (patches["split"] == "test") & (patches["label_source"] == "eye")
    if not by_eye.any():
        return []
    return [
        f"{by_eye.sum()} test patches carry the label of their whole eye; many of them may show "
        "healthy retina, so the AUC by patch says little: give an annotation"
    ]


def _healthy_quantiles(
    volumes: pd.DataFrame, methods: list[str], quantile: float
) -> dict[str, float | None]:
    healthy = volumes[(volumes["split"] == "validation") & (volumes["label"] == 0)]
    return {
        name: float(healthy[name].quantile(quantile)) if len(healthy) else None for name in methods
    }


def _without_nan(values: dict) -> dict:
    return {key: None if value != value else value for key, value in values.items()}


def _write_table(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False, float_format="%.6g", na_rep="nan")


def _summary(metrics: pd.DataFrame, point: OperatingPoint) -> str:
    chosen = metrics[
        (metrics["method"] == "anogan")
        & (metrics["level"] == "patch")
        & (metrics["subset"] == "test")
    ].set_index("metric")
    auc = chosen.loc["auc"]
    return (
        f"AnoGAN patch AUC {auc['value']:.3f} (95 % CI {auc['ci_low']:.3f} to "
        f"{auc['ci_high']:.3f}) on {chosen.loc['n', 'value']:.0f} test patches of "
        f"{chosen.loc['n_patients', 'value']:.0f} patients; threshold {point.threshold:.4g} "
        f"({point.rule} on validation)"
    )
