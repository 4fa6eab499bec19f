"""Which volumes were skipped, for the report and for those who mend them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from preprocessing.errors import InputError
from preprocessing.files import write_text
from preprocessing.qc import read_skipped_row

MOST_SHOWN = 40  # on the page; skipped.tsv has them all


class Left(NamedTuple):
    """A volume that was skipped; `split` is empty where it is not known."""

    volume: str
    split: str
    cause: str


@dataclass(frozen=True)
class Skipped:
    """The volumes that were skipped, and the quality tables of the others.

    `n_volumes` counts both.
    """

    volumes: list[Left]
    tables: list[str]

    @property
    def n_volumes(self) -> int:
        """How many volumes there were to work on."""
        return len(self.volumes) + len(self.tables)

    @property
    def shown(self) -> list[Left]:
        """The volumes that the page has room for."""
        return self.volumes[:MOST_SHOWN]

    @property
    def by_split(self) -> list[str]:
        """How many were skipped of each split, such as "2 test"."""
        counts = Counter(left.split for left in self.volumes if left.split)
        return [f"{count} {split}" for split, count in counts.items()]

    def write(self, path: str | Path) -> None:
        """Write the volumes that were skipped as a table (TSV)."""
        lines = ["\t".join(row) for row in (Left._fields, *self.volumes)]
        write_text(path, "\n".join(lines) + "\n")


def find_skipped(tables: Sequence[str], splits: Sequence[str]) -> Skipped:
    """Return which volumes were skipped by the paths of their quality tables.

    `splits` are those of the volumes, or nothing. Raises InputError when these are not as many.
    """
    if splits and len(splits) != len(tables):
        raise InputError(f"--splits: {len(splits)} for {len(tables)} tables of --qc; give one each")
    left, others = [], []
    for path, split in zip(tables, splits or [""] * len(tables), strict=True):
        note = read_skipped_row(path)
        if note:
            left.append(Left(note.volume, split, note.cause))
        else:
            others.append(path)
    return Skipped(left, others)
