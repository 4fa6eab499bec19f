"""How detection is judged: areas under ROC curves, their intervals, and what they are held to."""

import numpy as np

from benchmarks.truths import Truth
from preprocessing.seeds import derive_seed

BASELINES = ("pca", "ae", "acae")
RESTORED = ("pca_S", "ae_S")  # two of them, scored as r_anogan scores
BOOTSTRAP = 1000


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


def resampled(truth: Truth, seed: int) -> np.ndarray:
    """Return (1 + BOOTSTRAP, n): how often each patch counts; once, then by drawing B-scans.

    They are drawn within their eye; those of eyes with a single one, among each other.
    """
    rng = np.random.default_rng(derive_seed(seed, "bootstrap", truth.name))
    bscans = truth.index["volume"] + "/" + truth.index["bscan"].astype(str)
    is_single = bscans.groupby(truth.index["volume"]).transform("nunique") == 1
    strata = truth.index["volume"].mask(is_single, "")
    weights = np.ones((1 + BOOTSTRAP, len(bscans)))
    for rows in strata.groupby(strata).indices.values():
        which, inverse = np.unique(bscans.to_numpy(str)[rows], return_inverse=True)
        drawn = rng.multinomial(len(which), np.full(len(which), 1 / len(which)), BOOTSTRAP)
        weights[1:, rows] = drawn[:, inverse]
    return weights


def evaluate(truth: Truth, scores: dict[str, np.ndarray], seed: int) -> list[dict]:
    """Return a row per score: AUC with interval, and the difference to the best baseline.

    The best baseline is the best of all scores of `BASELINES`; the best of `RESTORED` is compared
    with separately.
    """
    weights = resampled(truth, seed)
    areas = {name: auc(truth, values, weights) for name, values in scores.items()}
    plain = [name for name in areas if name.split("_")[0] in BASELINES and name not in RESTORED]
    best, restored = (max(some, key=lambda name: areas[name][0]) for some in (plain, RESTORED))
    rows = []
    for name, area in areas.items():
        low, high = np.nanquantile(area[1:], (0.025, 0.975))
        d_low, d_high = np.nanquantile((area - areas[best])[1:], (0.025, 0.975))
        s_low, s_high = np.nanquantile((area - areas[restored])[1:], (0.025, 0.975))
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
                "difference": area[0] - areas[best][0],
                "difference_low": d_low,
                "difference_high": d_high,
                "best_restored": restored,
                "restored_auc": areas[restored][0],
                "restored_difference": area[0] - areas[restored][0],
                "restored_difference_low": s_low,
                "restored_difference_high": s_high,
            }
        )
    return rows
