"""What a reader has to know before believing the metrics: the warnings of the stage `evaluate`."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from anogan.evidence.levels import LEVELS
from anogan.evidence.measures import Measured
from anogan.evidence.score_tables import BASELINES
from anogan.evidence.statistics import OperatingPoint

FEW_HEALTHY = 20  # cases: fewer have no 95 % quantile but their highest
Points = dict[str, dict[str, OperatingPoint]]  # by level and score


def about_scores(undefined: dict[str, int], n: int, left: int) -> list[str]:
    """Say which methods left patches of the `n` without a finite score; `left` have one by all."""
    if not undefined:
        return []
    by_method = ", ".join(f"{method} {count}" for method, count in undefined.items())
    return [
        f"{n - left} of {n} patches are left out for every method, as some have no finite score "
        f"for them ({by_method}): look for a diverged model in history.tsv"
    ]


def about_labels(patches: pd.DataFrame) -> list[str]:
    """Say where test patches have no label, or only that of their whole eye."""
    test = patches[patches["split"] == "test"]
    if not (test["label"] >= 0).any():
        return [
            "no patch of split test carries a label: the volumes are scored, but nothing could be "
            "measured of how well the scores tell anomalous from normal"
        ]
    by_eye = int((test["label_source"] == "eye").sum())
    if not by_eye:
        return []
    return [
        f"{by_eye} test patches carry the label of their whole eye; many of them may show healthy "
        "retina, so the AUC by patch and by B-scan says little: give an annotation"
    ]


def about_thresholds(
    measured: list[Measured], points: Points, fixed: Points, specificity: float
) -> list[str]:
    """Say at which levels validation did not support the threshold that was asked for.

    Where nothing was measured, nobody misses a threshold.
    """
    if not any(one.metrics for one in measured):
        return []
    said = []
    none = _levels_of_rule(points, "none")
    if none:
        said.append(
            f"no normal {', '.join(none)} in split validation: no threshold could be chosen, so "
            "the metrics that need one are missing there"
        )
    quantile = _levels_of_rule(points, "healthy_quantile")
    if quantile:
        said.append(
            f"no anomalous {', '.join(quantile)} in split validation: the threshold is the lowest "
            f"below which at least {specificity:g} of the normal ones lie"
        )
    unfixed = [level for level in _levels_of_rule(fixed, "none") if level not in none]
    if unfixed:
        said.append(
            f"no healthy volume in split validation: no threshold of specificity {specificity:g} "
            f"for {', '.join(unfixed)}"
        )
    few = [
        LEVELS[level]
        for level, named in fixed.items()
        if any(point.rule == "specificity" and point.n < FEW_HEALTHY for point in named.values())
    ]
    if few:
        said.append(
            f"fewer than {FEW_HEALTHY} healthy {', '.join(few)} in split validation: of other "
            f"healthy ones many more than {1 - specificity:.0%} may lie above the threshold of "
            f"specificity {specificity:g}"
        )
    return said


def about_measured(measured: Iterable[Measured]) -> list[str]:
    """Say what weakens the metrics of each level and subset, once for all levels it is true of."""
    levels = {}
    for one in measured:
        for caution in [*one.cautions, *_without_error(one)]:
            levels.setdefault((one.subset, caution), []).append(LEVELS[one.level])
    return [
        f"{subset} ({', '.join(names)}): {caution}" for (subset, caution), names in levels.items()
    ]


def about_baselines(metrics: pd.DataFrame, differences: pd.DataFrame, leader: str) -> list[str]:
    """Say which baselines beat `leader`, which leads the report, and by how much."""
    auc = _by_patch(metrics).set_index("method")["value"]
    rows = _by_patch(differences)
    rows = rows[(rows["method"] == leader) & rows["other"].isin(BASELINES) & (rows["value"] < 0)]
    if leader in BASELINES or rows.empty:
        return []
    winners = [
        f"{row.other} ({auc[row.other]:.3f}, {_margin(-row.value, -row.ci_high, -row.ci_low)})"
        for row in rows.itertuples()
    ]
    return [
        f"by AUC over test patches {leader} ({auc[leader]:.3f}) is beaten by "
        f"{'a baseline' if len(winners) == 1 else 'baselines'}: {', '.join(winners)}"
    ]


def _without_error(one: Measured) -> list[str]:
    """Say that resampling what was told apart without an error never shows one."""
    if not any(np.all(repeated["auc"] == 1) for repeated in one.repeated.values() if repeated):
        return []
    return [
        "some scores tell anomalous from normal without an error; the interval of their AUC, 1 to "
        "1, does not say how they would do on other patients"
    ]


def _by_patch(table: pd.DataFrame) -> pd.DataFrame:
    chosen = (table["level"] == "patch") & (table["subset"] == "test") & (table["metric"] == "auc")
    return table[chosen]


def _margin(value: float, low: float, high: float) -> str:
    if not np.isfinite(low):
        return f"{value:.3f} more, without an interval"
    includes_zero = ", which includes zero" if low <= 0 else ""
    return f"{value:.3f} more, 95 % CI {low:.3f} to {high:.3f}{includes_zero}"


def _levels_of_rule(points: Points, rule: str) -> list[str]:
    """Return the names of the levels where every score has a point of that rule."""
    return [
        LEVELS[level]
        for level, named in points.items()
        if named and all(point.rule == rule for point in named.values())
    ]
