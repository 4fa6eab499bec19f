"""Volumes that an earlier run skipped, which a run that skips none must not take for prepared."""

from collections.abc import Iterable
from pathlib import Path

from planning.errors import PlanningError

START = b'{"skipped": '  # of the note in place of a file, see preprocessing/skipped.py


def refuse_skipped(results_dir: str, volumes: Iterable[str]) -> None:
    """Raise PlanningError where one of `volumes` was skipped; nothing is known of results in S3."""
    folders = (Path(results_dir, "volumes", volume) for volume in volumes)
    skipped = [str(folder) for folder in folders if _is_note(folder / "flat.json")]
    if skipped:
        raise PlanningError(
            f"config: on_volume_error is fail, but an earlier run skipped {len(skipped)} of the "
            "volumes (their qc.tsv says why); set it to skip, or delete their folders to try them "
            f"again: {' '.join(skipped)}"
        )


def _is_note(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(START)) == START
    except FileNotFoundError:
        return False
