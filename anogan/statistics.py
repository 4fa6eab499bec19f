"""Operating points and bootstrap intervals: functions of labels and scores, one per case.

A case is a patch or a volume; label 1 is anomalous, 0 normal. A score at or above the threshold
calls the case anomalous.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

OPTIMISTIC = "_optimistic"  # ends the name of a metric whose threshold was chosen on the test set
_CHUNK = 4_000_000  # weights held at a time: about 32 MB an array


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and where it comes from: `rule` is "youden", "healthy_quantile" or "none"."""

    threshold: float
    rule: str
    n: int
    n_anomalous: int


def choose_operating_point(
    label: np.ndarray, score: np.ndarray, healthy_quantile: float
) -> OperatingPoint:
    """Return the operating point that validation cases (`label`, `score`: (n,)) support.

    Youden's index (sensitivity + specificity - 1) when both labels occur, else the
    `healthy_quantile` of the normal cases; NaN when there are none.
    """
    n, n_anomalous = len(label), int(np.sum(label == 1))
    if 0 < n_anomalous < n:
        return OperatingPoint(youden_threshold(label, score), "youden", n, n_anomalous)
    if n_anomalous < n:
        threshold = float(np.quantile(score, healthy_quantile))
        return OperatingPoint(threshold, "healthy_quantile", n, n_anomalous)
    return OperatingPoint(np.nan, "none", n, n_anomalous)


def youden_threshold(label: np.ndarray, score: np.ndarray) -> float:
    """Return the highest score that maximises Youden's index as a threshold (both labels occur)."""
    fpr, tpr, thresholds = roc_curve(label, score, drop_intermediate=False)
    best = 1 + np.argmax((tpr - fpr)[1:])  # the first threshold is infinity: it calls nothing
    return float(thresholds[best])


def point_metrics(label: np.ndarray, score: np.ndarray, threshold: float) -> dict[str, float]:
    """Return every metric of cases `label`, `score` (n,) by name; NaN where it is undefined.

    Names ending in `_optimistic` are at Youden's threshold on these same cases.
    """
    label = np.asarray(label)
    both = 0 < np.sum(label == 1) < len(label)
    best = youden_threshold(label, score) if both else np.nan
    return {
        "auc": float(roc_auc_score(label, score)) if both else np.nan,
        "average_precision": float(average_precision_score(label, score)) if both else np.nan,
        "threshold": threshold,
        **_at_threshold(label, score, threshold),
        "threshold" + OPTIMISTIC: best,
        **{name + OPTIMISTIC: value for name, value in _at_threshold(label, score, best).items()},
    }


def rates(
    tp: np.ndarray, fp: np.ndarray, tn: np.ndarray, fn: np.ndarray
) -> dict[str, np.ndarray | float]:
    """Return the metrics of the 2x2 table, elementwise; NaN where the denominator is 0."""
    tp, fp, tn, fn = (np.asarray(count, float) for count in (tp, fp, tn, fn))
    with np.errstate(divide="ignore", invalid="ignore"):
        recall = tp / (tp + fn)
        return {
            "precision": tp / (tp + fp),
            "recall": recall,
            "sensitivity": recall,
            "specificity": tn / (tn + fp),
            "f1": 2 * tp / (2 * tp + fp + fn),
        }


def patient_strata(patient: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (patients (p,), sorted; True for those with an anomalous case (p,))."""
    patients, member = np.unique(patient, return_inverse=True)
    return patients, np.bincount(member, weights=label == 1) > 0


def draw_patients(anomalous: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """Return how often each patient is drawn: (replicates, p) counts.

    Patients with and without an anomalous case (`anomalous` (p,) bool) are drawn with replacement
    within their group, so every replicate has as many of each as the data.
    """
    rng = np.random.default_rng(seed)
    counts = np.zeros((replicates, len(anomalous)), np.int64)
    for group in (False, True):
        members = np.flatnonzero(anomalous == group)
        if members.size:
            share = np.full(members.size, 1 / members.size)
            counts[:, members] = rng.multinomial(members.size, share, size=replicates)
    return counts


def bootstrap_metrics(
    label: np.ndarray, score: np.ndarray, patient: np.ndarray, threshold: float, draws: np.ndarray
) -> dict[str, np.ndarray]:
    """Return each metric of `point_metrics` in every replicate: (replicates,) arrays.

    `label`, `score`, `patient` are (n,); row r of `draws` (replicates, p) says how often replicate
    r holds each patient, in sorted order. The threshold stays; the optimistic one is chosen again.
    """
    order = np.argsort(-score, kind="stable")
    label, score = np.asarray(label)[order] == 1, np.asarray(score)[order]
    member = np.unique(patient, return_inverse=True)[1][order]
    last_of_tie = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)
    n_called = np.sum(score[last_of_tie] >= threshold) if np.isfinite(threshold) else None

    step = max(1, _CHUNK // len(score))
    chunks = []
    for start in range(0, len(draws), step):
        weight = draws[start : start + step, member]
        tp = _counts_from_zero(weight * label, last_of_tie)
        fp = _counts_from_zero(weight * ~label, last_of_tie)
        chunks.append(_curve_metrics(tp, fp, n_called))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def interval(replicates: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of the replicates (NaN ones left out; all NaN gives NaN)."""
    defined = replicates[np.isfinite(replicates)]
    if not defined.size:
        return np.nan, np.nan
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _at_threshold(label: np.ndarray, score: np.ndarray, threshold: float) -> dict[str, float]:
    if not np.isfinite(threshold):
        table = dict.fromkeys(("tp", "fp", "tn", "fn"), np.nan)
    else:
        called, anomalous = score >= threshold, label == 1
        table = {
            "tp": float(np.sum(called & anomalous)),
            "fp": float(np.sum(called & ~anomalous)),
            "tn": float(np.sum(~called & ~anomalous)),
            "fn": float(np.sum(~called & anomalous)),
        }
    return {name: float(value) for name, value in rates(**table).items()} | table


def _counts_from_zero(weight: np.ndarray, last_of_tie: np.ndarray) -> np.ndarray:
    """Return (r, t + 1) counts called anomalous at no score, the highest, ..., the lowest."""
    return np.pad(np.cumsum(weight, axis=1)[:, last_of_tie], ((0, 0), (1, 0)))


def _curve_metrics(tp: np.ndarray, fp: np.ndarray, n_called: int | None) -> dict[str, np.ndarray]:
    """Return the metrics of curves (r, t + 1) of counts; the operating point is column `n_called`.

    Average precision is the step-wise sum, the area under the ROC curve trapezoidal, as in
    scikit-learn.
    """
    positives, negatives = tp[:, -1].astype(float), fp[:, -1].astype(float)
    gained = np.diff(tp, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        auc = np.sum(np.diff(fp, axis=1) * (tp[:, 1:] + tp[:, :-1]), axis=1) / 2
        precision = tp[:, 1:] / np.maximum(tp[:, 1:] + fp[:, 1:], 1)
        metrics = {
            "auc": auc / (positives * negatives),
            "average_precision": np.sum(gained * precision, axis=1) / positives,
        }
        youden = tp[:, 1:] / positives[:, None] - fp[:, 1:] / negatives[:, None]
    best = 1 + np.argmax(youden, axis=1)
    if n_called is not None:
        metrics |= _rates_at(tp, fp, np.full(len(tp), n_called))
    optimistic = _rates_at(tp, fp, best)
    one_class = (positives == 0) | (negatives == 0)
    metrics["average_precision"][one_class] = np.nan
    return metrics | {
        name + OPTIMISTIC: np.where(one_class, np.nan, value) for name, value in optimistic.items()
    }


def _rates_at(tp: np.ndarray, fp: np.ndarray, column: np.ndarray) -> dict[str, np.ndarray]:
    row = np.arange(len(tp))
    called_right, called_wrong = tp[row, column], fp[row, column]
    return rates(
        tp=called_right,
        fp=called_wrong,
        tn=fp[:, -1] - called_wrong,
        fn=tp[:, -1] - called_right,
    )
