"""The tables of the report: rows of text from metrics, scores and volumes."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from anogan.score_tables import order_methods

METHOD_NAMES = {
    "anogan": "AnoGAN, A(x)",
    "anogan_R": "AnoGAN, R(x) alone",
    "anogan_D": "AnoGAN, D(x) alone",
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
    return METHOD_NAMES.get(name, name)


def comparison_rows(metrics: pd.DataFrame, methods: Iterable[str], suffix: str) -> list[dict]:
    """Return the rows of the paper's table: every method that ran, the paper's own row after it.

    A method of the paper that did not run has the paper's row alone.
    """
    rows = []
    for name in order_methods({*methods, *PAPER}):
        if name in methods:
            values = metrics.loc[(name, "patch", "test")]
            named = [column if column == "auc" else column + suffix for column in TABLE_COLUMNS]
            cells = [(number(values.loc[n, "value"]), range_text(values.loc[n])) for n in named]
            rows.append({"name": method_name(name), "paper": False, "cells": cells})
        if name in PAPER:
            *at_threshold, auc = PAPER[name]
            cells = [(text, "") for text in (*(f"{v:.4f}" for v in at_threshold), f"{auc:.2f}")]
            rows.append({"name": method_name(name), "paper": True, "cells": cells})
    return rows


def all_rows(metrics: pd.DataFrame, names: list[str]) -> list[dict]:
    """Return every score, level and subset, with formatted cells by column heading."""
    rows = []
    for level, subset in metrics.index.droplevel(["method", "metric"]).unique():
        for name in names:
            values = metrics.loc[(name, level, subset)]
            counted = values["value"].map("{:.0f}".format)
            rows.append(
                {
                    "score": method_name(name),
                    "level": level,
                    "subset": subset,
                    "n (anomalous)": f"{counted['n']} ({counted['n_anomalous']})",
                    "patients": counted["n_patients"],
                    "excluded": counted["n_excluded"],
                    "AUC": interval_text(values.loc["auc"]),
                    "average precision": interval_text(values.loc["average_precision"]),
                    "threshold": number(values.loc["threshold", "value"], ".4g"),
                    "F1": interval_text(values.loc["f1"]),
                    "TP / FP / TN / FN": " / ".join(
                        number(values.loc[count, "value"], ".0f")
                        for count in ("tp", "fp", "tn", "fn")
                    ),
                }
            )
    return rows


def scored_volumes(volumes: pd.DataFrame, method: str, threshold: float | None) -> list[dict]:
    """Return the unlabelled volumes of split score, highest first, and whether they stand out."""
    chosen = volumes[volumes["split"] == "score"].sort_values(method, ascending=False)
    return [
        {
            "volume": row["volume"],
            "patient": row["patient"],
            "patches": row["n_patches"],
            "score": number(row[method], ".4g"),
            "above": None if threshold is None else row[method] >= threshold,
        }
        for row in chosen.to_dict("records")
    ]


def number(value: float, form: str = ".3f") -> str:
    """Return `value` in the format `form`, a dash when it is undefined."""
    return "\N{EN DASH}" if not np.isfinite(value) else format(value, form)


def range_text(row: pd.Series, digits: int = 3) -> str:
    """Return "low to high" of a row of the metrics, nothing where there is no interval."""
    if not np.isfinite(row["ci_low"]):
        return ""
    return f"{row['ci_low']:.{digits}f} to {row['ci_high']:.{digits}f}"


def interval_text(row: pd.Series, digits: int = 3) -> str:
    """Return "value (low to high)" of a row of the metrics, without what is undefined."""
    between = range_text(row, digits)
    return number(row["value"], f".{digits}f") + (f" ({between})" if between else "")
