"""Scores -> metrics: how well each score tells anomalous from normal, with honest intervals.

Writes `metrics.tsv` and, beside it, `evaluation.json` (operating points, settings, warnings) and
`volumes.tsv` (the scores of each volume), from which the report is made.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from anogan.score_tables import BASELINES, patch_table, read_scores
from anogan.statistics import (
    OperatingPoint,
    bootstrap_metrics,
    choose_operating_point,
    draw_patients,
    interval,
    patient_strata,
    point_metrics,
)
from preprocessing.files import atomic_path, write_text
from preprocessing.seeds import derive_seed

LEVELS = {"patch": "patches", "volume": "volumes"}
HEALTHY_EYE = "healthy"  # source of the labels of a healthy eye without annotation
TOP_SHARE = 0.1  # of a volume's patches make its score
FEW_PATIENTS = 10
METRIC_COLUMNS = ["method", "level", "subset", "metric", "value", "ci_low", "ci_high"]


def volume_table(patches: pd.DataFrame, names: list[str]) -> pd.DataFrame:
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
    for name in names:
        table[name] = group[name].agg(_top_mean)
    return table.reset_index()


def operating_points(
    cases: pd.DataFrame, names: list[str], healthy_quantile: float
) -> dict[str, OperatingPoint]:
    """Return each score's operating point, chosen on the labelled validation cases alone."""
    validation = cases[(cases["split"] == "validation") & (cases["label"] >= 0)]
    label = validation["label"].to_numpy()
    return {
        name: choose_operating_point(label, validation[name].to_numpy(), healthy_quantile)
        for name in names
    }


def labelled_subsets(patches: pd.DataFrame) -> list[str]:
    """Return "test" and, where labels come from several sources, "test:<source>" for each.

    Patches of healthy eyes belong to every source: nothing is marked in them either way.
    Nothing is returned when no test patch has a label.
    """
    labelled = patches[(patches["split"] == "test") & (patches["label"] >= 0)]
    if labelled.empty:
        return []
    sources = sorted(set(labelled["label_source"]) - {HEALTHY_EYE})
    return ["test", *(f"test:{source}" for source in sources if len(sources) > 1)]


def measure(
    cases: pd.DataFrame,
    points: dict[str, OperatingPoint],
    level: str,
    subset: str,
    replicates: int,
    seed: int,
) -> tuple[list[tuple], list[str]]:
    """Return (metric rows, warnings) of a level and subset; every score sees the same draws."""
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
            rows.append((name, level, subset, metric, value, low, high))
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
    """Measure every score at patch and volume level and write the three tables."""
    patches, methods = patch_table(read_scores(args.scores))
    names = [name for own in methods.values() for name in own]
    cases = {"patch": patches, "volume": volume_table(patches, names)}
    points = {
        level: operating_points(table, names, args.healthy_quantile)
        for level, table in cases.items()
    }
    metrics, warnings = _measure_all(cases, points, args)
    evaluation = {
        "bootstrap": args.bootstrap,
        "seed": args.seed,
        "healthy_quantile": args.healthy_quantile,
        "top_share": TOP_SHARE,
        "operating_points": {
            level: {name: _without_nan(asdict(point)) for name, point in named.items()}
            for level, named in points.items()
        },
        "healthy_volume_threshold": _healthy_quantiles(
            cases["volume"], names, args.healthy_quantile
        ),
        "warnings": warnings + _baseline_warnings(metrics, list(methods)),
    }
    output = Path(args.output)
    _write_table(cases["volume"], output.with_name("volumes.tsv"))
    write_text(output.with_name("evaluation.json"), json.dumps(evaluation, indent=1) + "\n")
    _write_table(metrics, output)
    if metrics.empty:
        return f"{len(cases['volume'])} volumes scored by {', '.join(methods)}; none to measure on"
    return _summary(metrics, names[0], points["patch"][names[0]])


def _measure_all(
    cases: dict[str, pd.DataFrame],
    points: dict[str, dict[str, OperatingPoint]],
    args: argparse.Namespace,
) -> tuple[pd.DataFrame, list[str]]:
    """Return (all metrics, warnings); no metrics where no test patch has a label."""
    subsets = labelled_subsets(cases["patch"])
    rows, warnings = [], _eye_label_warnings(cases["patch"])
    if not subsets:
        warnings.append(
            "no patch of split test carries a label: the volumes are scored, but nothing could "
            "be measured of how well the scores tell anomalous from normal"
        )
    for level, table in cases.items():
        if subsets and all(point.rule == "none" for point in points[level].values()):
            warnings.append(
                f"no normal {level} in split validation: no threshold could be chosen, so the "
                f"metrics that need one are missing at {level} level"
            )
        for subset in subsets:
            measured, said = measure(table, points[level], level, subset, args.bootstrap, args.seed)
            rows += measured
            warnings += said
    return pd.DataFrame(rows, columns=METRIC_COLUMNS), warnings


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


def _baseline_warnings(metrics: pd.DataFrame, methods: list[str]) -> list[str]:
    """Say which simple baselines beat the method that leads the report, `methods[0]`."""
    auc = metrics[
        (metrics["metric"] == "auc") & (metrics["level"] == "patch") & (metrics["subset"] == "test")
    ].set_index("method")["value"]
    winners = [
        f"{name} ({auc[name]:.3f})"
        for name in methods[1:]
        if name in BASELINES and name in auc.index and auc[name] > auc[methods[0]]
    ]
    if not winners:
        return []
    return [
        f"by AUC over test patches {methods[0]} ({auc[methods[0]]:.3f}) is beaten by "
        f"{'a simple baseline' if len(winners) == 1 else 'simple baselines'}: {', '.join(winners)}"
    ]


def _healthy_quantiles(
    volumes: pd.DataFrame, names: list[str], quantile: float
) -> dict[str, float | None]:
    healthy = volumes[(volumes["split"] == "validation") & (volumes["label"] == 0)]
    return {
        name: float(healthy[name].quantile(quantile)) if len(healthy) else None for name in names
    }


def _without_nan(values: dict) -> dict:
    return {key: None if value != value else value for key, value in values.items()}


def _write_table(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False, float_format="%.6g", na_rep="nan")


def _summary(metrics: pd.DataFrame, headline: str, point: OperatingPoint) -> str:
    chosen = metrics[
        (metrics["method"] == headline)
        & (metrics["level"] == "patch")
        & (metrics["subset"] == "test")
    ].set_index("metric")
    auc = chosen.loc["auc"]
    return (
        f"{headline}: patch AUC {auc['value']:.3f} (95 % CI {auc['ci_low']:.3f} to "
        f"{auc['ci_high']:.3f}) on {chosen.loc['n', 'value']:.0f} test patches of "
        f"{chosen.loc['n_patients', 'value']:.0f} patients; threshold {point.threshold:.4g} "
        f"({point.rule} on validation)"
    )
