"""Files that the pipeline wrote itself: where one is missing or damaged, what makes it again.

Whatever reads such a file does so inside `reading` and names the rule of the workflow that writes
it, which is also the command to run by hand.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preprocessing.errors import InputError
from preprocessing.skipped import read_note
from preprocessing.untrusted import quote


@contextmanager
def reading(path: str | Path, kind: str, rule: str) -> Iterator[None]:
    """Turn whatever libraries raise on a damaged file into one InputError that names the `rule`.

    They raise nearly every type of exception, so the block should hold the reading and nothing
    else. An InputError of the block, which names the file already, gets the remedy as well.
    """
    again = f"delete it and run snakemake again, or make it again with the rule {rule}"
    if note := read_note(path):
        raise InputError(
            f"{path}: {note.volume} was skipped, as {note.cause}; mend that and {again}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MemoryError:
        raise
    except InputError as error:
        if str(error).endswith(again):
            raise
        raise InputError(f"{error}; {again}") from error
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: no such file; run snakemake again, or make it with the rule {rule}"
        ) from error
    except Exception as error:
        cause = quote(str(error)) or type(error).__name__
        raise InputError(f"{path}: not a readable {kind} ({cause}); {again}") from error


def read_whole_lines(path: str | Path) -> str:
    """Return the text of a table; ValueError where its last line was cut off."""
    text = Path(path).read_text(encoding="utf-8")
    if not text.endswith("\n"):
        raise ValueError("its last line is cut off")
    return text
