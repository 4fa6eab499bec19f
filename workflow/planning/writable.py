"""Whether results can be written, asked before any work is done."""

import errno
import tempfile
from pathlib import Path

from planning.errors import PlanningError


def check_writable(folder: str) -> None:
    """Raise PlanningError unless files can be made in `folder`, which need not be there yet.

    Nothing is left behind. A location of a storage plugin, such as s3://, is left to the plugin.
    """
    if "://" in folder:
        return
    path = Path(folder).absolute()
    there = next(place for place in (path, *path.parents) if place.exists())
    if not there.is_dir():
        raise PlanningError(
            f"config: results_dir: {folder} cannot be made, as {there} is a file; move it away or "
            "set another results_dir"
        )
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0")
            file.flush()
    except OSError as error:
        remedy = "set results_dir to a folder that you may write to"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "make room there or set results_dir to another disk"
        place = folder if there == path else f"{folder} (in {there})"
        raise PlanningError(
            f"config: results_dir: {place} cannot be written ({error.strerror}); {remedy}"
        ) from None
