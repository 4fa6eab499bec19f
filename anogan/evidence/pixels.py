"""Metrics of pixels from how often a map takes each value, so that memory holds one map at a time.

A map (b, r, c) gives each pixel a value, higher being more anomalous. Pixels count where the map
covers them and their truth is known. The per-region overlap (PRO) is the mean, over the connected
regions of anomalous pixels in a B-scan, of the share of the region that is called; AUPRO is its
area over the false-positive rate up to 0.3, divided by 0.3 (Bergmann et al. 2020).
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from anogan.evidence.statistics import (
    BLOCK,
    OperatingPoint,
    cumulative_counts,
    rank_metrics,
    rank_parts,
    specificity_threshold,
)
from anogan.maps.file import VolumeMaps
from preprocessing.volume import NOT_EXAMINED

FPR_LIMIT = 0.3
MOST_VALUES = 2**14 + 1  # as many as float16 has from 0 to 2, where residuals lie
_IN_BSCAN = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])


@dataclass(frozen=True)
class Tally:
    """How often a map takes each value among the pixels of a volume that count.

    `values` (k,) are distinct and ascend; `counts` (3, k) are of normal pixels, of anomalous
    pixels and of regions, each of whose pixels counts as one part of it.
    """

    values: np.ndarray
    counts: np.ndarray

    @property
    def n(self) -> int:
        """Number of pixels."""
        return int(self.counts[:2].sum())

    @property
    def n_anomalous(self) -> int:
        """Number of anomalous pixels."""
        return int(self.counts[1].sum())


def pixel_truth(maps: VolumeMaps) -> np.ndarray:
    """Return (b, r, c) int8: 1 anomalous, 0 normal, -1 unknown.

    A pixel that nobody examined is normal in a healthy eye and unknown in any other.
    """
    truth = np.full(maps.score.shape, 0 if maps.eye_label == 0 else -1, np.int8)
    if maps.annotation is not None:
        examined = maps.annotation != NOT_EXAMINED
        truth[examined] = maps.annotation[examined]
    return truth


def label_regions(truth: np.ndarray) -> np.ndarray:
    """Return (b, r, c) int32: numbers from 1 of the 8-connected anomalous regions in B-scans."""
    return ndimage.label(truth == 1, _IN_BSCAN, output=np.int32)[0]


def tally(values: np.ndarray, truth: np.ndarray, region: np.ndarray) -> Tally:
    """Count the finite values of a map where the truth is known; all arrays are (b, r, c).

    Exact up to `MOST_VALUES` distinct ones; of more, all but the highest are rounded down to one
    of so many.
    """
    covered = np.isfinite(values)
    normal = values[covered & (truth == 0)].astype(np.float32)  # sorts faster than float16
    marked = covered & (truth == 1)
    anomalous, of_region = values[marked].astype(np.float32), region[marked]
    part = 1 / np.bincount(of_region)[of_region] if of_region.size else np.zeros(0)

    normal, count = np.unique(normal, return_counts=True)
    distinct = _thin(np.union1d(normal, anomalous))
    place = _place(distinct, anomalous)
    counts = [
        np.bincount(_place(distinct, normal), count, len(distinct)),
        np.bincount(place, minlength=len(distinct)),
        np.bincount(place, part, len(distinct)),
    ]
    return Tally(distinct, np.array(counts, float))


def join(tallies: list[Tally]) -> tuple[np.ndarray, np.ndarray]:
    """Return (values (t,), descending; counts (3, v, t)) of the tallies of v volumes."""
    values = _thin(np.unique(np.concatenate([one.values for one in tallies])))
    counts = np.zeros((3, len(tallies), len(values)))
    for number, one in enumerate(tallies):
        place = _place(values, one.values)
        for kind, count in enumerate(one.counts):
            counts[kind, number] = np.bincount(place, count, len(values))
    return values[::-1], counts[:, :, ::-1]


def choose_threshold(tallies: list[Tally], specificity: float) -> OperatingPoint:
    """Return the threshold that the tallies of validation volumes support.

    That with the highest Dice of all pixels together when both labels occur, else the given
    `specificity` among the normal pixels; NaN when there are none.
    """
    n, n_anomalous = sum(one.n for one in tallies), sum(one.n_anomalous for one in tallies)
    if n_anomalous == n:
        return OperatingPoint(np.nan, "none", n, n_anomalous)
    values, counts = join(tallies)
    normal, anomalous, _ = counts.sum(axis=1)
    if n_anomalous == 0:
        threshold = specificity_threshold(values, specificity, normal)
        return OperatingPoint(threshold, "healthy_quantile", n, 0)
    dice = 2 * np.cumsum(anomalous) / (n_anomalous + np.cumsum(normal + anomalous))
    return OperatingPoint(float(values[np.argmax(dice)]), "dice", n, n_anomalous)


def pixel_metrics(
    values: np.ndarray, counts: np.ndarray, threshold: float, draws: np.ndarray
) -> dict[str, np.ndarray]:
    """Return AUC, average precision, AUPRO and Dice at `threshold`, (r,) each, NaN where undefined.

    `values` (t,) and `counts` (3, v, t) as `join` returns them; row r of `draws` (r, v) says how
    often each volume is in the sample.
    """
    negatives, positives, regions = (draws @ kind.sum(axis=1) for kind in counts)
    width = max(1, BLOCK // len(draws))
    blocks = (counts[:, :, start : start + width] for start in range(0, len(values), width))
    area, precision, overlap = 0, 0, 0
    with np.errstate(divide="ignore", invalid="ignore"):
        for fp, tp, found in cumulative_counts(blocks, draws):
            parts = rank_parts(tp, fp)
            area, precision = area + parts[0], precision + parts[1]
            if np.any(fp[:, 0] < FPR_LIMIT * negatives):
                overlap = overlap + aupro(found / regions[:, None], fp / negatives[:, None])
    tp, fp = (draws @ counts[kind][:, values >= threshold].sum(axis=1) for kind in (1, 0))
    no_dice = np.isnan(threshold) | (positives == 0)
    return rank_metrics(area, precision, positives, negatives) | {
        "aupro": np.where((positives > 0) & (negatives > 0), overlap, np.nan),
        "dice": np.where(no_dice, np.nan, 2 * tp / np.maximum(positives + tp + fp, 1)),
    }


def aupro(overlap: np.ndarray, fpr: np.ndarray, limit: float = FPR_LIMIT) -> np.ndarray:
    """Return (r,): the area under curves of PRO over the false-positive rate up to `limit`, in 0-1.

    `overlap` and `fpr` (r, t + 1) ascend along the curve, or a part of it, whose areas add up; it
    is linear between its points.
    """
    width = np.diff(np.minimum(fpr, limit), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        part = width / np.diff(fpr, axis=1)  # below 1 only where the limit cuts a segment
    rise = np.where(width > 0, part * np.diff(overlap, axis=1), 0)
    return np.sum(width * (overlap[:, :-1] + rise / 2), axis=1) / limit


def _thin(values: np.ndarray) -> np.ndarray:
    """Return `values` (k,), ascending, or `MOST_VALUES` of them, the lowest among them.

    All of the highest stay, as they decide on average precision, and an even spread of the others.
    """
    if len(values) <= MOST_VALUES:
        return values
    n_high = MOST_VALUES // 2
    low, high = np.split(values, [-n_high])
    return np.append(low[np.linspace(0, len(low) - 1, MOST_VALUES - n_high).astype(int)], high)


def _place(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the places of the last of `values` (k,), ascending, that are not above `wanted`."""
    return np.searchsorted(values, wanted, side="right") - 1
