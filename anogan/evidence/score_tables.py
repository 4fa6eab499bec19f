"""The score files of any methods -> one table of patches that knows all of their scores.

A score file is of one method: the index columns of its patches, `method`, then the method's scores,
its own first.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from preprocessing.errors import InputError
from preprocessing.own_files import reading

# the order of tables and legends; the first that ran leads the report
KNOWN = ("r_anogan", "anogan", "f_anogan_refined", "f_anogan", "gan_r", "p_d", "acae", "ae", "pca")
BASELINES = ("acae", "ae", "pca")  # trained without a GAN's search: what AnoGAN has to beat
PATCH = ["volume", "bscan", "z", "x"]
DESCRIPTION = [
    "patient",
    "eye",
    "split",
    "eye_label",
    "bscan_label",
    "label",
    "anomalous_fraction",
    "label_source",
]


def order_methods(methods: Iterable[str]) -> list[str]:
    """Return the names of methods, known ones first and the others alphabetically."""
    known = {name: place for place, name in enumerate(KNOWN)}
    return sorted(methods, key=lambda name: (known.get(name, len(known)), name))


def read_scores(paths: Iterable[str | Path]) -> dict[str, pd.DataFrame]:
    """Read score files, each of one method; return a table a method, a row per patch, in order.

    The columns after `method` are its scores, the first of them its own.
    Raises InputError when a file is unreadable, lacks a column or holds several methods.
    """
    tables = {}
    for path in paths:
        table = _read_file(path)
        if len(table):
            tables.setdefault(table["method"].iloc[0], []).append(table)
    if not tables:
        raise InputError("the score files hold no patch; look at what the stage patches left out")
    return {name: pd.concat(tables[name], ignore_index=True) for name in order_methods(tables)}


def patch_table(scores: dict[str, pd.DataFrame]) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Return (one row per patch, sorted, with a column per score; the scores' names by method).

    A method's own score comes first and bears its name, any other is `<method>_<column>`. A patch
    with a score that is not finite is left out, so that all methods are measured on the same ones.
    Raises InputError when a patch occurs twice or lacks a method, or no patch is left.
    """
    table = next(iter(scores.values()))[[*PATCH, *DESCRIPTION]].set_index(PATCH)
    names = {}
    for method, rows in scores.items():
        rows = rows.set_index(PATCH)
        _check_patches(method, rows.index, next(iter(scores)), table.index)
        own, *others = _score_columns(rows)
        columns = {method: own} | {f"{method}_{column}": column for column in others}
        for name, column in columns.items():
            table[name] = rows[column].astype(float)
        names[method] = list(columns)
    finite = np.isfinite(table[[name for own in names.values() for name in own]])
    if not finite.all(axis=1).any():
        worst = finite.sum().idxmin()
        raise InputError(
            f"{worst}: only {finite[worst].sum()} of {len(table)} patches have a finite score, and "
            "no patch has one by every method; look for a diverged model in history.tsv, then run "
            "`score` again or leave the method out"
        )
    return table[finite.all(axis=1)].sort_index().reset_index(), names


def undefined_scores(scores: dict[str, pd.DataFrame]) -> dict[str, int]:
    """Return how many patches have a score that is not finite, by method; only where there are."""
    counts = {
        method: int((~np.isfinite(rows[_score_columns(rows)])).any(axis=1).sum())
        for method, rows in scores.items()
    }
    return {method: count for method, count in counts.items() if count}


def _read_file(path: str | Path) -> pd.DataFrame:
    with reading(path, "score file", "score"):
        table = pd.read_parquet(path, page_checksum_verification=True)
    missing = sorted({*PATCH, *DESCRIPTION, "method"} - set(table.columns))
    if missing:
        raise InputError(f"{path}: lacks the columns {', '.join(missing)}; run `score` again")
    if not _score_columns(table):
        raise InputError(f"{path}: lacks a score after the column method; run `score` again")
    methods = sorted(set(table["method"]))
    if len(methods) > 1:
        raise InputError(
            f"{path}: holds the methods {', '.join(methods)}, but a score file is of one method; "
            "run `score` again"
        )
    return table


def _score_columns(table: pd.DataFrame) -> list[str]:
    return list(table.columns[table.columns.get_loc("method") + 1 :])


def _check_patches(method: str, own: pd.MultiIndex, first: str, expected: pd.MultiIndex) -> None:
    """Raise InputError unless `method` has every patch of the `first` method once, and no other."""
    if own.has_duplicates:
        raise InputError(
            f"the score files hold patch {_name(own[own.duplicated()][0])} of {method} twice; "
            "give each file once"
        )
    for lacking, missing, having in (
        (method, expected[~expected.isin(own)], first),
        (first, own[~own.isin(expected)], method),
    ):
        if len(missing):
            raise InputError(
                f"{lacking}: no score of patch {_name(missing[0])}, which {having} has "
                f"({len(missing)} such patches); give the score files of the same patches for "
                "every method"
            )


def _name(patch: tuple) -> str:
    return "/".join(map(str, patch)) + " (volume/B-scan/z/x)"
