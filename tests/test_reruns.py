"""What every change reruns, and that nothing else does: the table is reruns.tsv."""

import csv
from pathlib import Path

import pytest
from made_reruns import reruns

TABLE = Path(__file__).with_name("reruns.tsv")


def told() -> dict[str, str]:
    with TABLE.open(newline="") as file:
        return dict(csv.reader(file, delimiter="\t"))


@pytest.mark.long
def test_every_change_reruns_what_the_table_says(tmp_path):
    """Where the change is meant, `python tests/made_reruns.py > tests/reruns.tsv` accepts it."""
    planned = reruns(tmp_path)
    assert {change: planned.get(change) for change in told()} == told()
    assert planned == told()


def test_the_table_says_what_a_user_would_expect():
    """What must not be redone for nothing is the costly part: training and mapping."""
    table = told()
    assert table["nothing"] == table["module preprocessing.cli"] == "-"
    free = ["config gpus", "config evaluate.bootstrap", "config report.max_mb"]
    free += [c for c in table if c.startswith(("module anogan.page", "module anogan.evidence"))]
    free += ["library jinja2", "library matplotlib", "module preprocessing.qc_pictures"]
    for change in free:
        assert not {"train", "score", "heatmap", "prepare"} & set(table[change].split()), change
    for change, rules in table.items():
        if change.startswith("config map."):
            assert "train" not in rules, change
        if "load" in rules.split():
            assert rules.replace(" markers", "").endswith("evaluate report"), change
