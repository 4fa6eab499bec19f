"""Operating points and bootstrap intervals: functions of labels and scores, one per case.

A case is a patch, a B-scan, a volume or a patient; label 1 is anomalous, 0 normal. A score at or
above the threshold calls the case anomalous.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, stdtrit
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

OPTIMISTIC = "_optimistic"  # ends the name of a metric whose threshold was chosen on the test set
AT_SPECIFICITY = "_at_specificity"  # of one whose threshold healthy validation volumes fixed
BLOCK = 100_000  # counts held at a time: more do not fit in a core's cache


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and where it comes from.

    `rule` is "youden", "healthy_quantile", "specificity", for pixels "dice", or "none"; `n` and
    `n_anomalous` count the cases it was chosen on.
    """

    threshold: float
    rule: str
    n: int
    n_anomalous: int


def choose_operating_point(
    label: np.ndarray, score: np.ndarray, specificity: float
) -> OperatingPoint:
    """Return the operating point that validation cases (`label`, `score`: (n,)) support.

    Youden's index (sensitivity + specificity - 1) when both labels occur, else the given
    `specificity` among the normal cases; NaN when there are none.
    """
    n, n_anomalous = len(label), int(np.sum(label == 1))
    if 0 < n_anomalous < n:
        return OperatingPoint(youden_threshold(label, score), "youden", n, n_anomalous)
    if n_anomalous < n:
        threshold = specificity_threshold(score, specificity)
        return OperatingPoint(threshold, "healthy_quantile", n, n_anomalous)
    return OperatingPoint(np.nan, "none", n, n_anomalous)


def specificity_point(score: np.ndarray, specificity: float) -> OperatingPoint:
    """Return the point with `specificity` on normal cases of `score` (n,), NaN when n is 0."""
    if not len(score):
        return OperatingPoint(np.nan, "none", 0, 0)
    return OperatingPoint(specificity_threshold(score, specificity), "specificity", len(score), 0)


def youden_threshold(label: np.ndarray, score: np.ndarray) -> float:
    """Return the highest score that maximises Youden's index as a threshold (both labels occur)."""
    fpr, tpr, thresholds = roc_curve(label, score, drop_intermediate=False)
    best = 1 + np.argmax((tpr - fpr)[1:])  # the first threshold is infinity: it calls nothing
    return float(thresholds[best])


def specificity_threshold(
    score: np.ndarray, specificity: float, count: np.ndarray | None = None
) -> float:
    """Return the lowest threshold below which at least that share of the scores (n,) lies.

    `count` (n,) says how often each score occurs. The threshold is the next float32 above a score,
    so that scores tied with it are not called and it survives being written with 9 digits.
    """
    last = np.quantile(score, specificity, method="inverted_cdf", weights=count)
    return float(np.nextafter(np.float32(last), np.float32(np.inf)))


def point_metrics(
    label: np.ndarray, score: np.ndarray, thresholds: dict[str, float]
) -> dict[str, float]:
    """Return every metric of cases `label`, `score` (n,) by name; NaN where it is undefined.

    `thresholds` are by the suffix of the names of their metrics; names ending in `_optimistic` are
    at Youden's threshold on these same cases.
    """
    label = np.asarray(label)
    both = 0 < np.sum(label == 1) < len(label)
    best = youden_threshold(label, score) if both else np.nan
    metrics = {
        "auc": float(roc_auc_score(label, score)) if both else np.nan,
        "average_precision": float(average_precision_score(label, score)) if both else np.nan,
    }
    for suffix, threshold in {**thresholds, OPTIMISTIC: best}.items():
        at_threshold = {"threshold": threshold, **_at_threshold(label, score, threshold)}
        metrics |= {name + suffix: value for name, value in at_threshold.items()}
    return metrics


def rates(
    tp: np.ndarray, fp: np.ndarray, tn: np.ndarray, fn: np.ndarray
) -> dict[str, np.ndarray | float]:
    """Return the metrics of the 2x2 table, elementwise; NaN where the denominator is 0."""
    tp, fp, tn, fn = (np.asarray(count, float) for count in (tp, fp, tn, fn))
    with np.errstate(divide="ignore", invalid="ignore"):
        recall, specificity = tp / (tp + fn), tn / (tn + fp)
        return {
            "precision": tp / (tp + fp),
            "recall": recall,
            "sensitivity": recall,
            "specificity": specificity,
            "f1": 2 * tp / (2 * tp + fp + fn),
            "balanced_accuracy": (recall + specificity) / 2,
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
    label: np.ndarray,
    score: np.ndarray,
    patient: np.ndarray,
    thresholds: dict[str, float],
    draws: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return each metric of `point_metrics` in every replicate: (replicates,) arrays.

    `label`, `score`, `patient` are (n,); row r of `draws` (replicates, p) says how often replicate
    r holds each patient, in sorted order. Thresholds stay; the optimistic one is chosen again.
    """
    anomalous, score = np.asarray(label) == 1, np.asarray(score)
    patients, member = np.unique(patient, return_inverse=True)

    def drawn(chosen: np.ndarray) -> np.ndarray:
        return draws @ np.bincount(member[chosen], minlength=len(patients))

    positives, negatives = drawn(anomalous), drawn(~anomalous)
    step = _curve_steps(anomalous, score)
    blocks = _patient_counts(anomalous, member, step, max(1, BLOCK // len(draws)))
    auc, precision, best = 0, 0, _Youden(positives, negatives)
    for tp, fp in cumulative_counts(blocks, draws):
        parts = rank_parts(tp, fp)
        auc, precision = auc + parts[0], precision + parts[1]
        best.look(tp, fp)
    metrics = rank_metrics(auc, precision, positives, negatives)
    for suffix, threshold in thresholds.items():
        if np.isfinite(threshold):
            called = score >= threshold
            tp, fp = drawn(called & anomalous), drawn(called & ~anomalous)
            metrics |= _named(rates(tp, fp, negatives - fp, positives - tp), suffix)
    return metrics | _named(best.rates(), OPTIMISTIC)


def cumulative_counts(blocks: Iterable[np.ndarray], draws: np.ndarray) -> Iterator[np.ndarray]:
    """Yield (k, r, t + 1) for each block: how many of each of k kinds every replicate has called.

    Blocks (k, p, t) count what each patient or volume has at successive steps of a curve, from
    high scores to low; row r of `draws` (r, p) says how often replicate r holds each. A yielded
    array begins with the column that the one before ended with, the first with 0.
    """
    draws, carried = draws.astype(float), 0
    for block in blocks:
        counts = draws @ np.pad(np.cumsum(block, axis=2, dtype=float), ((0, 0), (0, 0), (1, 0)))
        counts += carried
        carried = counts[:, :, -1:]
        yield counts


def rank_parts(tp: np.ndarray, fp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what part (r, t + 1) of a curve adds to the sums that `rank_metrics` takes.

    Average precision is the step-wise sum, AUC the trapezoidal area, as in scikit-learn.
    """
    gained = np.diff(tp, axis=1)
    between = tp[:, 1:] - gained / 2
    precision = tp[:, 1:] / np.maximum(tp[:, 1:] + fp[:, 1:], 1)
    return (
        np.einsum("rt,rt->r", np.diff(fp, axis=1), between),
        np.einsum("rt,rt->r", gained, precision),
    )


def rank_metrics(
    area: np.ndarray, precision: np.ndarray, positives: np.ndarray, negatives: np.ndarray
) -> dict[str, np.ndarray]:
    """Return AUC and average precision (r,), NaN where a class is missing."""
    both = (positives > 0) & (negatives > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "auc": np.where(both, area / (positives * negatives), np.nan),
            "average_precision": np.where(both, precision / positives, np.nan),
        }


def interval(replicates: np.ndarray, n: int) -> tuple[float, float]:
    """Return the 95 % interval of the replicates (NaN ones left out; all NaN gives NaN).

    `n` is the number of patients in the smaller group that they were drawn from. A bootstrap of few
    is too narrow by sqrt((n - 1) / n) and lacks the tails of Student's t; the percentiles are
    those that make up for both ("expanded percentile", Hesterberg, The American Statistician 2015).
    """
    defined = replicates[np.isfinite(replicates)]
    if not defined.size or n < 2:
        return np.nan, np.nan
    tail = ndtr(np.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.025))
    low, high = np.quantile(defined, [tail, 1 - tail])
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


class _Youden:
    """The cases called at the best Youden's index of each replicate, so far in the curve."""

    def __init__(self, positives: np.ndarray, negatives: np.ndarray) -> None:
        self._positives, self._negatives = positives, negatives
        self._index = np.full(len(positives), -np.inf)
        self._tp, self._fp = np.zeros((2, len(positives)))

    def look(self, tp: np.ndarray, fp: np.ndarray) -> None:
        """Take a further part (r, t + 1) of the curve into account."""
        with np.errstate(divide="ignore", invalid="ignore"):
            youden = tp[:, 1:] / self._positives[:, None] - fp[:, 1:] / self._negatives[:, None]
        row, column = np.arange(len(tp)), np.argmax(youden, axis=1)
        better = youden[row, column] > self._index
        self._index = np.where(better, youden[row, column], self._index)
        self._tp = np.where(better, tp[row, column + 1], self._tp)
        self._fp = np.where(better, fp[row, column + 1], self._fp)

    def rates(self) -> dict[str, np.ndarray]:
        """Return the metrics at the best index, NaN where a class is missing."""
        both = (self._positives > 0) & (self._negatives > 0)
        table = rates(self._tp, self._fp, self._negatives - self._fp, self._positives - self._tp)
        return {name: np.where(both, value, np.nan) for name, value in table.items()}


def _curve_steps(anomalous: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Return (n,): the step of the curve, from 0, at which each case is called.

    Tied cases are called together. So are neighbours among which none is anomalous, as the curve
    has no corner there.
    """
    tie = np.unique(-score, return_inverse=True)[1]
    corner = np.bincount(tie, anomalous) > 0
    corner[1:] |= corner[:-1].copy()
    return (np.cumsum(corner) - corner[0])[tie]


def _patient_counts(
    anomalous: np.ndarray, member: np.ndarray, step: np.ndarray, width: int
) -> Iterator[np.ndarray]:
    """Yield (2, p, t): the anomalous and normal cases of each patient at `width` further steps."""
    order = np.argsort(step, kind="stable")
    anomalous, member, step = anomalous[order], member[order], step[order]
    for first in range(0, step[-1] + 1, width):
        rows = slice(*np.searchsorted(step, [first, first + width]))
        shape = (2, member.max() + 1, min(width, step[-1] + 1 - first))
        place = np.ravel_multi_index(
            ((~anomalous[rows]).astype(int), member[rows], step[rows] - first), shape
        )
        yield np.bincount(place, minlength=np.prod(shape)).reshape(shape)


def _named(metrics: dict[str, np.ndarray], suffix: str) -> dict[str, np.ndarray]:
    return {name + suffix: value for name, value in metrics.items()}
