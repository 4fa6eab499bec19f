"""The tables of the report: rows of text from metrics, scores and volumes.

A cell of a metric is (value, interval), the latter empty where there is none.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from anogan.evidence.levels import LEVELS
from anogan.evidence.pixel_level import MAPS
from anogan.evidence.score_tables import order_methods
from anogan.page.inputs import Evidence

METHOD_NAMES = {
    "anogan": "AnoGAN, A(x)",
    "anogan_R": "AnoGAN, R(x) alone",
    "anogan_D": "AnoGAN, D(x) alone",
    "r_anogan": "Restoring AnoGAN, S(x)",
    "r_anogan_S_fine": "its finest scale alone",
    "r_anogan_S_coarse": "its coarsest scale alone",
    "r_anogan_S_whole": "its whole patch alone",
    "r_anogan_L2": "its residual alone, L2",
    "r_anogan_R": "its residual alone, R(x)",
    "f_anogan_refined": "f-AnoGAN refined, A(x)",
    "f_anogan_refined_R": "f-AnoGAN refined, R(x) alone",
    "f_anogan_refined_D": "f-AnoGAN refined, D(x) alone",
    "f_anogan": "f-AnoGAN, A(x)",
    "f_anogan_R": "f-AnoGAN, R(x) alone",
    "f_anogan_D": "f-AnoGAN, D(x) alone",
    "gan_r": "GAN_R, Â(x)",
    "gan_r_R": "GAN_R, R(x) alone",
    "gan_r_D_hat": "GAN_R, D̂(x) alone",
    "p_d": "P_D",
    "acae": "aCAE",
    "acae_R": "aCAE, R(x) alone",
    "acae_D": "aCAE, D(x) alone",
    "ae": "AE",
    "ae_R": "AE, R(x) alone",
    "pca": "PCA",
    "pca_R": "PCA, R(x) alone",
}
TABLE_COLUMNS = ("precision", "recall", "sensitivity", "specificity", "auc")
PAPER = {  # Schlegl et al. 2017, image level
    "acae": (0.7005, 0.7009, 0.7011, 0.6659, 0.73),
    "p_d": (0.8471, 0.5119, 0.5124, 0.8970, 0.72),
    "gan_r": (0.8482, 0.7631, 0.7634, 0.8477, 0.88),
    "anogan": (0.8834, 0.7277, 0.7279, 0.8928, 0.89),
}
CASES = {level: name for level, name in LEVELS.items() if level != "pixel"}
RATES = {
    "precision": "precision",
    "sensitivity": "sensitivity = recall",
    "specificity": "specificity",
    "f1": "F1",
    "balanced_accuracy": "balanced accuracy",
}
CASE_COLUMNS = ("auc", "average_precision", *RATES)
PIXEL_COLUMNS = ("auc", "average_precision", "aupro", "dice")
LABELS = {1: "diseased", 0: "healthy", -1: "no label"}
SPLITS = ("validation", "test", "score")


def count_patches(patches: pd.DataFrame) -> list[dict]:
    """Return volumes, patients and patches by label of each split that was mapped."""
    rows = []
    for split in SPLITS:
        part = patches[patches["split"] == split]
        if len(part):
            rows.append(
                {
                    "split": split,
                    "volumes": part["volume"].nunique(),
                    "patients": part["patient"].nunique(),
                    "normal": int((part["label"] == 0).sum()),
                    "anomalous": int((part["label"] == 1).sum()),
                    "unlabelled": int((part["label"] < 0).sum()),
                }
            )
    return rows


def method_name(name: str) -> str:
    """Return what the page calls a score: its plain name where it is not known."""
    method, _, kind = name.rpartition("_")
    if kind == "residual":  # the residual maps of a method, at pixel level
        return f"{method_name(method)}: residual"
    return METHOD_NAMES.get(name, name)


def comparison_rows(evidence: Evidence, methods: Iterable[str], suffix: str) -> list[dict]:
    """Return the rows of the paper's table: every method that ran, the paper's own row after it.

    `suffix` ends the names of the metrics at the operating point. A method of the paper that did
    not run has the paper's row alone.
    """
    rows = []
    for name in order_methods({*methods, *PAPER}):
        values = evidence.measured("patch", name)
        if len(values):
            named = [column if column == "auc" else column + suffix for column in TABLE_COLUMNS]
            cells = [_cell(values, metric) for metric in named]
            rows.append({"score": name, "name": method_name(name), "paper": False, "cells": cells})
        if name in PAPER:
            *at_threshold, auc = PAPER[name]
            cells = [(text, "") for text in (*(f"{v:.4f}" for v in at_threshold), f"{auc:.2f}")]
            rows.append({"score": name, "name": method_name(name), "paper": True, "cells": cells})
    return rows


def level_table(evidence: Evidence, methods: list[str]) -> tuple[list[str], list[dict]]:
    """Return (headings, rows) of the AUC of every method at every level that was measured."""
    columns = [(level, "{}", heading) for level, heading in CASES.items()]
    columns += [("pixel", name, f"pixels by {kind}") for kind, name in MAPS.items()]
    columns = [
        (level, name, heading)
        for level, name, heading in columns
        if any(len(evidence.measured(level, name.format(method))) for method in methods)
    ]
    rows = [
        {
            "name": method_name(method),
            "cells": [
                _cell(evidence.measured(level, name.format(method)), "auc")
                for level, name, _ in columns
            ],
        }
        for method in methods
    ]
    return [heading for *_, heading in columns], rows


def case_rows(evidence: Evidence, score: str) -> list[dict]:
    """Return what one score reaches at each level of cases, at the threshold from validation."""
    return [
        {
            "level": name,
            "n": f"{_count(values, 'n')} ({_count(values, 'n_anomalous')})",
            "cells": [_cell(values, metric) for metric in CASE_COLUMNS],
        }
        for level, name in CASES.items()
        if len(values := evidence.measured(level, score))
    ]


def pixel_rows(evidence: Evidence, methods: Iterable[str]) -> list[dict]:
    """Return how well each method's maps mark annotated pixels."""
    return [
        {
            "name": method_name(method),
            "map": kind,
            "n": _count(values, "n_regions"),
            "cells": [_cell(values, metric) for metric in PIXEL_COLUMNS],
        }
        for method in methods
        for kind, name in MAPS.items()
        if len(values := evidence.measured("pixel", name.format(method)))
    ]


def difference_rows(evidence: Evidence, level: str = "patch") -> list[dict]:
    """Return a row per pair of methods: differences of AUC and average precision, and a verdict."""
    chosen = evidence.differences
    chosen = chosen[(chosen["level"] == level) & (chosen["subset"] == "test")]
    rows = []
    for (method, other), pair in chosen.groupby(["method", "other"], sort=False):
        by_metric = pair.set_index("metric")
        rows.append(
            {
                "name": f"{method_name(method)} \N{MINUS SIGN} {method_name(other)}",
                "cells": [_cell(by_metric, m, "+.3f") for m in ("auc", "average_precision")],
                "verdict": _verdict(by_metric, method_name(method), method_name(other)),
            }
        )
    return rows


def all_rows(evidence: Evidence, suffix: str) -> list[dict]:
    """Return every score, level of cases and subset at one operating point, by column heading."""
    rows = []
    for level, subset, name in _cases(evidence):
        values = evidence.measured(level, name, subset)
        counts = " / ".join(_count(values, count + suffix) for count in ("tp", "fp", "tn", "fn"))
        rows.append(
            {
                "level": CASES[level],
                "subset": subset,
                "score": method_name(name),
                "n (anomalous)": f"{_count(values, 'n')} ({_count(values, 'n_anomalous')})",
                "patients": _count(values, "n_patients"),
                "excluded": _count(values, "n_excluded"),
                "AUC": interval_text(values.loc["auc"]),
                "average precision": interval_text(values.loc["average_precision"]),
                "threshold": number(values.loc["threshold" + suffix, "value"], ".4g"),
                "TP / FP / TN / FN": counts,
            }
            | {
                heading: interval_text(values.loc[metric + suffix])
                for metric, heading in RATES.items()
            }
        )
    return rows


def volume_rows(
    volumes: pd.DataFrame, split: str, method: str, threshold: float | None
) -> list[dict]:
    """Return the volumes of a split, highest score first, and whether they stand out."""
    chosen = volumes[volumes["split"] == split].sort_values(method, ascending=False)
    return [
        {
            "volume": row["volume"],
            "patient": row["patient"],
            "label": LABELS[row["label"]],
            "patches": row["n_patches"],
            "score": number(row[method], ".4g"),
            "above": None if threshold is None else row[method] >= threshold,
        }
        for row in chosen.to_dict("records")
    ]


def number(value: float, form: str = ".3f") -> str:
    """Return `value` in the format `form`, a dash when it is undefined."""
    if not np.isfinite(value):
        return "\N{EN DASH}"
    return format(value, form).replace("-", "\N{MINUS SIGN}")


def range_text(row: pd.Series, form: str = ".3f") -> str:
    """Return "low to high" of a row of the metrics, nothing where there is no interval."""
    if not np.isfinite(row["ci_low"]):
        return ""
    return f"{number(row['ci_low'], form)} to {number(row['ci_high'], form)}"


def interval_text(row: pd.Series, form: str = ".3f") -> str:
    """Return "value (low to high)" of a row of the metrics, without what is undefined."""
    between = range_text(row, form)
    return number(row["value"], form) + (f" ({between})" if between else "")


def _cell(values: pd.DataFrame, metric: str, form: str = ".3f") -> tuple[str, str]:
    """Return (value, interval) of a metric, dashes where it was not measured."""
    if metric not in values.index:
        return number(np.nan), ""
    return number(values.loc[metric, "value"], form), range_text(values.loc[metric], form)


def _count(values: pd.DataFrame, metric: str) -> str:
    return number(values.loc[metric, "value"], ".0f") if metric in values.index else number(np.nan)


def _verdict(pair: pd.DataFrame, method: str, other: str) -> str:
    """Return which of two methods has the higher AUC, if its interval says so."""
    low, high = pair.loc["auc", ["ci_low", "ci_high"]]
    if not np.isfinite(low):
        return "no interval"
    return f"{method} higher" if low > 0 else f"{other} higher" if high < 0 else "not told apart"


def _cases(evidence: Evidence) -> list[tuple[str, str, str]]:
    """Return (level, subset, score) of all that was measured on cases, in the order of tables."""
    levels, known = list(CASES), list(METHOD_NAMES)
    return sorted(
        ((level, subset, name) for name, level, subset in evidence.cases() if level in CASES),
        key=lambda case: (
            levels.index(case[0]),
            case[1],
            known.index(case[2]) if case[2] in known else len(known),
            case[2],
        ),
    )
