"""What quality control found, for the report: what is flagged, what was left out and why."""

from io import StringIO
from itertools import groupby

import pandas as pd

from preprocessing.own_files import read_whole_lines, reading
from preprocessing.patches import LEAVE_OUT
from preprocessing.qc import FLAGS, WHOLE

MOST_VOLUMES, MOST_REASONS, MOST_RUNS = 40, 6, 10  # shown; the rest is counted


def summarise(paths: list[str], leave_out: str) -> dict[str, object]:
    """Return what the page says of the qc.tsv of all volumes, worst volume first.

    `leave_out` is the setting that the patches were cut with: none, fail or check.
    """
    tables = [_read(path) for path in paths]
    volumes = sorted(
        (_volume(table, LEAVE_OUT[leave_out]) for table in tables),
        key=lambda volume: (-FLAGS.index(volume["flag"]), -volume["n_left_out"]),
    )
    flags = {
        "volumes": [volume["flag"] for volume in volumes],
        "B-scans": [flag for table in tables for flag in table["flag"][table["bscan"] != WHOLE]],
    }
    listed = [volume for volume in volumes if volume["flag"] != "pass" or volume["n_left_out"]]
    return {
        "counts": {what: {flag: own.count(flag) for flag in FLAGS} for what, own in flags.items()},
        "n_left_out": sum(volume["n_left_out"] for volume in volumes),
        "leave_out": leave_out,
        "volumes": listed[:MOST_VOLUMES],
        "more": len(listed[MOST_VOLUMES:]),
    }


def flags_by_volume(paths: list[str]) -> dict[str, str]:
    """Return the flag of every volume as a whole by its name."""
    whole = [table[table["bscan"] == WHOLE].iloc[0] for table in map(_read, paths)]
    return {row["volume"]: row["flag"] for row in whole}


def _read(path: str) -> pd.DataFrame:
    with reading(path, "table of the quality of B-scans", "prepare"):
        text = StringIO(read_whole_lines(path))
        table = pd.read_csv(text, sep="\t", dtype=str, keep_default_na=False)
        if table["bscan"].tolist() != [WHOLE, *map(str, range(len(table) - 1))]:
            raise ValueError("B-scans are missing")
        if not {*table["flag"]} <= {*FLAGS}:
            raise ValueError("flags are missing")
        return table


def _volume(table: pd.DataFrame, unfit: tuple[str, ...]) -> dict[str, object]:
    whole = table[table["bscan"] == WHOLE].iloc[0]
    bscans = table[table["bscan"] != WHOLE]
    left_out = bscans[bscans["flag"].isin(unfit)]
    looked_at = bscans[~bscans["flag"].isin([*unfit, "pass"])]
    return {
        "volume": whole["volume"],
        "flag": whole["flag"],
        "reason": whole["reason"],
        "n_bscans": len(bscans),
        "n_left_out": len(left_out),
        "left_out": _by_reason(left_out),
        "to_check": _by_reason(looked_at),
    }


def _by_reason(bscans: pd.DataFrame) -> list[str]:
    """Return lines such as "3, 7-9: dark band", the most frequent reason first."""
    groups = sorted(bscans.groupby("reason"), key=lambda group: -len(group[1]))
    lines = [
        f"{runs([int(b) for b in group['bscan']])}: {reason}"
        for reason, group in groups[:MOST_REASONS]
    ]
    rest = sum(len(group) for _, group in groups[MOST_REASONS:])
    return [*lines, f"and {rest} more"] if rest else lines


def runs(numbers: list[int]) -> str:
    """Return rising `numbers` with neighbours drawn together, at most `MOST_RUNS` of them.

    >>> runs([1, 2, 3, 7])
    '1-3, 7'
    """
    found = [
        [number for _, number in run]
        for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    ]
    shown = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in found[:MOST_RUNS]]
    rest = sum(len(run) for run in found[MOST_RUNS:])
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
