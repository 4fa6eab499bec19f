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
    """Regions per B-scan of diseased and of healthy eyes, and their ratio with its interval.

    What cannot be had is NaN; `why_not` then says why the ratio or its interval is missing.
    """

    diseased: float
    healthy: float
    ratio: float
    low: float
    high: float
    why_not: str


def compare(found: pd.Series, volumes: pd.DataFrame, replicates: int, seed: int) -> Frequency:
    """Return how often regions occur per B-scan, from the number `found` in each volume (by name).

    `volumes` has a row per volume: `volume`, `patient`, `eye_label` (1, 0 or -1, which is left out)
    and `n_bscans` that were looked at. The ratio is (regions + 1/2) / B-scans of diseased eyes over
    the same of healthy ones, so that there is one where a side has no region. Its 95 % interval is
    a bootstrap over patients, as everywhere in the evidence.
    """
    labelled = volumes[(volumes["eye_label"] >= 0) & (volumes["n_bscans"] > 0)]
    counted = labelled.assign(n=found.reindex(labelled["volume"]).fillna(0).to_numpy())
    sides = [
        counted[counted["eye_label"] == side].groupby("patient")[["n", "n_bscans"]].sum()
        for side in (1, 0)
    ]
    rates = [side["n"].sum() / side["n_bscans"].sum() if len(side) else np.nan for side in sides]
    missing = [
        name for name, side in zip(("diseased", "healthy"), sides, strict=True) if side.empty
    ]
    if missing:
        nothing = (np.nan,) * 3
        return Frequency(*rates, *nothing, f"no {' and no '.join(missing)} eye")
    ratio = float(_ratio(*(side.sum().to_numpy() for side in sides)))
    fewest = min(map(len, sides))
    if fewest < FEWEST:
        of = "diseased" if len(sides[0]) == fewest else "healthy"
        why_not = f"1 patient with a {of} eye; an interval needs {FEWEST}"
        return Frequency(*rates, ratio, np.nan, np.nan, why_not)
    patients = np.unique(counted["patient"])
    draws = draw_patients(np.isin(patients, sides[0].index), replicates, derive_seed(seed, "ratio"))
    drawn = [draws @ side.reindex(patients).fillna(0).to_numpy() for side in sides]
    low, high = interval(_ratio(*(side.T for side in drawn)), fewest)
    return Frequency(*rates, ratio, low, high, "")


def _ratio(diseased: np.ndarray, healthy: np.ndarray) -> np.ndarray:
    """Return the ratio of (regions, B-scans) to (regions, B-scans), NaN without B-scans."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = (diseased[0] + HALF) / diseased[1]
        ratio = rate / ((healthy[0] + HALF) / healthy[1])
    return np.where((diseased[1] > 0) & (healthy[1] > 0), ratio, np.nan)
