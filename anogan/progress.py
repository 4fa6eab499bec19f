"""A progress bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Iterable, Iterator

from preprocessing.say import say

LOG_EVERY_S = 30.0


def progress(items: Iterable, total: int, label: str) -> Iterator:
    """Yield `items` and show on stderr how many of `total` are done."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=label)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last > LOG_EVERY_S or done == total:
            say(f"{label}: {done}/{total} after {now - start:.0f} s", sys.stderr)
            last = now
