"""How much more frequent regions are in diseased than in healthy eyes."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from anogan.evidence.statistics import draw_patients, interval
from preprocessing.seeds import derive_seed

HALF = 0.5  # a region, added on either side
FEWEST = 2  # patients on a side, for an interval


@dataclass(frozen=True)
class Frequency:
    """Regions per 10 mm of B-scan of diseased and of healthy eyes, their ratio and its interval.

    What cannot be had, or says nothing, is NaN; `why_not` then says why. Clusters are ranked by
    `order`: the lower end of the interval, computed also where it is not shown, else the ratio.
    """

    diseased: float
    healthy: float
    ratio: float = np.nan
    low: float = np.nan
    high: float = np.nan
    why_not: str = ""
    order: float = np.nan


def compare(found: pd.Series, volumes: pd.DataFrame, replicates: int, seed: int) -> Frequency:
    """Return how often regions occur per 10 mm of B-scan, from the number `found` by volume.

    `volumes` has a row per volume: `volume`, `patient`, `eye_label` (1, 0 or -1, which is left out)
    and `searched_mm` of B-scan. The ratio is (regions + 1/2) / mm of diseased eyes over the same of
    healthy ones, so that there is one where a side has no region. Its 95 % interval is a bootstrap
    over patients, as everywhere in the evidence; where a side has no region it knows of the other
    side's variation only, and is not shown.
    """
    labelled = volumes[(volumes["eye_label"] >= 0) & (volumes["searched_mm"] > 0)]
    counted = labelled.assign(n=found.reindex(labelled["volume"]).fillna(0).to_numpy())
    sides = {
        name: counted[counted["eye_label"] == side].groupby("patient")[["n", "searched_mm"]].sum()
        for name, side in (("diseased", 1), ("healthy", 0))
    }
    totals = [side.sum().to_numpy() for side in sides.values()]
    rates = [10 * n / searched_mm if searched_mm else np.nan for n, searched_mm in totals]
    missing = [name for name, side in sides.items() if side.empty]
    if missing:
        return Frequency(*rates, why_not=f"no {' and no '.join(missing)} eye")
    bare = [name for name, side in sides.items() if not side["n"].any()]
    if len(bare) == len(sides):
        return Frequency(*rates, why_not="no region in a diseased or a healthy eye")
    ratio = float(_ratio(*totals))
    low, high = _bounds(*sides.values(), replicates, seed)
    order = low if np.isfinite(low) else ratio
    few = [name for name, side in sides.items() if len(side) < FEWEST]
    reasons = [f"no region in a {name} eye" for name in bare]
    reasons += [f"fewer than {FEWEST} patients with a {name} eye" for name in few]
    if reasons:
        low = high = np.nan
    return Frequency(*rates, ratio, low, high, "; ".join(reasons), order)


def _bounds(
    diseased: pd.DataFrame, healthy: pd.DataFrame, replicates: int, seed: int
) -> tuple[float, float]:
    """Return the interval of the ratio, NaN for fewer than `FEWEST` patients on a side.

    Both sides have a row per patient, of `n` regions in `searched_mm`.
    """
    fewest = min(len(diseased), len(healthy))
    if fewest < FEWEST:
        return np.nan, np.nan
    patients = diseased.index.union(healthy.index)
    draws = draw_patients(patients.isin(diseased.index), replicates, derive_seed(seed, "ratio"))
    drawn = [draws @ side.reindex(patients).fillna(0).to_numpy() for side in (diseased, healthy)]
    return interval(_ratio(*(side.T for side in drawn)), fewest)


def _ratio(diseased: np.ndarray, healthy: np.ndarray) -> np.ndarray:
    """Return the ratio of (regions, mm) to (regions, mm), NaN without mm."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = (diseased[0] + HALF) / diseased[1]
        ratio = rate / ((healthy[0] + HALF) / healthy[1])
    return np.where((diseased[1] > 0) & (healthy[1] > 0), ratio, np.nan)
