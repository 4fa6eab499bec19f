"""Volumes that cannot be used: with `--on-error skip`, a note of the cause stands in for each file.

Stages of one volume pass the note on, those of many leave the volume out, the report lists it; what
takes one for a volume raises InputError.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from preprocessing.errors import InputError
from preprocessing.files import write_text
from preprocessing.untrusted import printable

START = '{"skipped": '  # of a note; no other file of the pipeline begins so
MAX_CHARACTERS = 2**16


class Note(NamedTuple):
    """Which volume was skipped, and the cause in one sentence."""

    volume: str
    cause: str


def add_skip_option(parser: argparse.ArgumentParser) -> None:
    """Declare the option that `note_of` heeds."""
    parser.add_argument(
        "--on-error",
        choices=["fail", "skip"],
        default="fail",
        help="a volume that cannot be used is an error, or a note stands in for all of its files",
    )


def note_of(error: InputError, volume: str, on_error: str) -> Note:
    """Return the note of a volume that `error` makes useless; raise it again where that is wrong.

    That is where nothing is to be skipped, and where not the volume is to blame but this machine:
    a missing package, a disk that cannot be read.
    """
    if on_error == "fail" or _is_of_the_machine(error):
        raise error
    return Note(volume, " ".join(printable(str(error)).split()))


def write_notes(note: Note, paths: Iterable[str | Path]) -> None:
    """Write `note` in place of each of the files at `paths`."""
    for path in paths:
        write_text(path, json.dumps({"skipped": note.cause, "volume": note.volume}) + "\n")


def read_note(path: str | Path) -> Note | None:
    """Return the note that stands in for the file at `path`, None where there is no note.

    Raises InputError when the note is damaged.
    """
    if not Path(path).is_file():
        return None
    with open(path, encoding="utf-8", errors="replace") as file:
        if file.read(len(START)) != START:
            return None
        text = START + file.read(MAX_CHARACTERS)
    try:
        note = json.loads(text)
        return Note(note["volume"], note["skipped"])
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{path}: a note of a skipped volume that is cut off or damaged; delete it and run "
            "snakemake again"
        ) from error


def _is_of_the_machine(error: BaseException | None) -> bool:
    while error is not None:
        number = getattr(error, "errno", None)
        if isinstance(error, ImportError) or (
            number and not isinstance(error, FileNotFoundError | PermissionError)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False
