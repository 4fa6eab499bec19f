"""What the cases of a level say of the scores: metrics with intervals, and paired differences."""

from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd

from anogan.evidence.statistics import (
    AT_SPECIFICITY,
    OperatingPoint,
    bootstrap_metrics,
    draw_patients,
    interval,
    patient_strata,
    point_metrics,
)
from preprocessing.seeds import derive_seed

HEALTHY_EYE = "healthy"  # source of the labels of a healthy eye without annotation
METRIC_COLUMNS = ["method", "level", "subset", "metric", "value", "ci_low", "ci_high"]
DIFFERENCE_COLUMNS = ["method", "other", *METRIC_COLUMNS[1:]]
COMPARED = ("auc", "average_precision")
FEW_PATIENTS = 10


@dataclass(frozen=True)
class Measured:
    """The scores of a level on one subset of its cases.

    Attributes
    ----------
    metrics : each by score and name.
    repeated : the same in every bootstrap replicate, (replicates,), where there is an interval;
        every score has seen the same draws.
    n_group : patients in the smaller group, with or without anomaly, that replicates drew from.
    cautions : what weakens them, each the end of a sentence that names level and subset.
    """

    level: str
    subset: str
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    repeated: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    n_group: int = 0
    cautions: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple]:
        """Return the rows of metrics.tsv."""
        return [
            (name, self.level, self.subset, metric, value, *self._interval(name, metric))
            for name, metrics in self.metrics.items()
            for metric, value in metrics.items()
        ]

    def differences(self, names: list[str]) -> list[tuple]:
        """Return the rows of differences.tsv: every pair of `names`, the earlier minus the later.

        The interval is that of the difference within each replicate, as the methods' errors on the
        same patients are alike.
        """
        rows = []
        for name, other in combinations([name for name in names if name in self.metrics], 2):
            for metric in COMPARED:
                value = self.metrics[name][metric] - self.metrics[other][metric]
                between = (np.nan, np.nan)
                if np.isfinite(value) and metric in self.repeated.get(name, {}):
                    difference = self.repeated[name][metric] - self.repeated[other][metric]
                    between = interval(difference, self.n_group)
                rows.append((name, other, self.level, self.subset, metric, value, *between))
        return rows

    def _interval(self, name: str, metric: str) -> tuple[float, float]:
        repeated = self.repeated.get(name, {})
        if metric not in repeated or not np.isfinite(self.metrics[name][metric]):
            return np.nan, np.nan
        return interval(repeated[metric], self.n_group)


def labelled_subsets(patches: pd.DataFrame) -> list[str]:
    """Return "test" and, where labels come from several sources, "test:<source>" for each.

    Healthy eyes without annotation belong to every source: nothing is marked in them either way.
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
    fixed: dict[str, OperatingPoint],
    level: str,
    subset: str,
    replicates: int,
    seed: int,
) -> Measured:
    """Measure every score on the cases of a level and subset.

    `points` and `fixed` are the scores' operating points, by Youden's index and at the fixed
    specificity.
    """
    chosen = cases[cases["split"] == "test"]
    if ":" in subset:
        chosen = chosen[chosen["label_source"].isin([subset.partition(":")[2], HEALTHY_EYE])]
    labelled = chosen[chosen["label"] >= 0]
    if labelled.empty:
        return Measured(level, subset, cautions=["no case carries a label, nothing is measured"])
    label, patient = labelled["label"].to_numpy(), labelled["patient"].to_numpy()
    patients, anomalous = patient_strata(patient, label)
    draws = draw_patients(anomalous, replicates, bootstrap_seed(seed, subset))
    counts = {
        "n": len(label),
        "n_anomalous": int(label.sum()),
        "n_patients": len(patients),
        "n_excluded": len(chosen) - len(labelled),
    }
    values, repeated, n_group = {}, {}, smaller_group(anomalous)
    for name, point in points.items():
        score = labelled[name].to_numpy(float)
        thresholds = {"": point.threshold, AT_SPECIFICITY: fixed[name].threshold}
        values[name] = counts | point_metrics(label, score, thresholds)
        if n_group > 1:
            repeated[name] = bootstrap_metrics(label, score, patient, thresholds, draws)
    cautions = cautions_on(counts["n"], counts["n_anomalous"], anomalous)
    return Measured(level, subset, values, repeated, n_group, cautions)


def bootstrap_seed(seed: int, subset: str) -> int:
    """Return the seed of the draws of patients for a subset."""
    return derive_seed(seed, "bootstrap", subset)


def smaller_group(anomalous: np.ndarray) -> int:
    """Return the patients of the smaller group, with or without anomaly (p,) bool, that exists.

    A group of one has nobody to resample, so there is no interval.
    """
    sizes = np.bincount(anomalous, minlength=2)
    return int(sizes[sizes > 0].min())


def cautions_on(n: int, n_anomalous: int, anomalous: np.ndarray) -> list[str]:
    """Return what weakens metrics of `n` cases of patients with and without anomaly (p,) bool."""
    cautions = []
    if n_anomalous in (0, n):
        kind = "anomalous" if n_anomalous else "normal"
        cautions.append(f"only {kind} cases, so AUC and whatever needs both classes are undefined")
    if smaller_group(anomalous) < 2:
        cautions.append(
            "a group of patients (with or without anomaly) has a single member, so no interval can "
            "be given"
        )
    elif len(anomalous) < FEW_PATIENTS:
        cautions.append(f"only {len(anomalous)} patients carry a label, so the intervals are rough")
    return cautions
