"""A line for the log of a job; no part of `preprocessing.cli`, whose changes redo no training."""

import os
from typing import TextIO


def say(text: str, stream: TextIO) -> None:
    """Write a line to a log; one that cannot be written does not cost the work that it tells of."""
    try:
        print(text, file=stream, flush=True)
    except OSError:  # what is left in the stream would fail again when the process ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
