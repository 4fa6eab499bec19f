"""Files that appear whole or not at all, whatever happens to the process or to the disk."""

import errno
import functools
import glob
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from preprocessing.errors import InputError

ABANDONED_S = 2 * 24 * 3600  # without a change, for a file of which nothing else is known
FULL = {errno.ENOSPC: "its disk is full", errno.EDQUOT: "the quota on its disk is used up"}


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path in a temporary folder beside `path`, moved to it when the block ends well.

    When the block raises, the folder is removed, with what libraries may have put there besides,
    and an older file at `path` stays as it was. What writers of `path` that were killed have left
    is removed first. Raises InputError where the disk is full or `path` cannot be written.
    """
    path = Path(path)
    with _beside(path) as folder:
        folder.mkdir()
        yield folder / path.name
        os.replace(folder / path.name, path)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new folder beside `path` that takes its place when the block ends well.

    When the block raises, the new folder is removed and an older one at `path` stays as it was.
    """
    path = Path(path)
    with _beside(path) as temporary:
        temporary.mkdir()
        yield temporary
        if path.exists():
            with _beside(path) as old:  # removed file by file, it would be seen half there
                os.replace(path, old)
                os.replace(temporary, path)
        else:
            os.replace(temporary, path)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yield a free name beside `path`; what is there under it when the block ends is removed."""
    process = f"{_machine()}-{os.getpid()}"
    temporary = path.with_name(f".tmp-{process}-{secrets.token_hex(4)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        yield temporary
    except InputError:
        raise
    except Exception as error:
        reason = _why_not_written(error, path, temporary)
        if reason is None:
            raise
        raise InputError(f"{path}: {reason}") from error
    finally:
        _remove(temporary)


def _why_not_written(error: Exception, path: Path, temporary: Path) -> str | None:
    """Return cause and remedy where `error` says that `path` could not be written, else None."""
    # safetensors raises an exception of its own that only quotes the operating system
    quoted = re.search(r"os error (\d+)", str(error))
    number = getattr(error, "errno", None) or (int(quoted[1]) if quoted else 0)
    if number in FULL:
        there = next(folder for folder in path.absolute().parents if folder.exists())
        free = shutil.disk_usage(there).free / 1e6
        return (
            f"{FULL[number]} ({free:.1f} MB free in {there}); make room there, or write to another "
            "disk, and run it again"
        )
    place = Path(getattr(error, "filename", None) or "/")
    ours = temporary in (place, *place.parents) or place in (path, path.parent)
    if number and (number == errno.EROFS or ours):
        return (
            f"cannot be written ({os.strerror(number)}); {path.parent} must be a folder that you "
            "may write to"
        )
    return None


@functools.cache
def _machine() -> str:
    """Return what names the machine, and the container in it, in which process numbers count."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:8]


def _remove_abandoned(path: Path) -> None:
    """Remove temporary files of `path` whose process has gone.

    Of processes on other machines that share the disk nothing is known but how long ago they wrote.
    """
    name = re.compile(rf"\.tmp-([0-9a-f]{{8}})-(\d+)-[0-9a-f]{{8}}-{re.escape(path.name)}")
    for old in path.parent.glob(f".tmp-*-{glob.escape(path.name)}"):
        found = name.fullmatch(old.name)
        if not found:
            continue
        with suppress(FileNotFoundError):  # another writer may remove it as well
            written = max(part.stat().st_mtime for part in (old, *old.glob("*")))
            here, silent_s = found[1] == _machine(), time.time() - written
            if (here and not _is_running(int(found[2]))) or silent_s > ABANDONED_S:
                _remove(old)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # it is not there, or what it lies on is read-only
            path.unlink()
