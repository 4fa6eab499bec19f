"""Files that nobody has checked: damaged, cut off, or made to exhaust the machine.

A reader asks `check_size` before it reads what a header declares, `check_file_size` before it reads
a whole file, and lets libraries look into a file only inside `parsing`.
"""

import math
import textwrap
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.errors import InputError

if TYPE_CHECKING:
    from h5py import File

MAX_VOXELS = 2**28  # 1 GB as float32; the largest structural cubes of the macula have half of it
VOXEL_BYTES = 4  # float32, in which volumes are held
MAX_FILE_BYTES = 8 * MAX_VOXELS
MAX_QUOTE = 80
MAX_DEFLATE_RATIO = 1032  # https://zlib.net/zlib_tech.html


def check_size(
    path: str | Path,
    shape: tuple[int, ...],
    itemsize: int,
    offset: int = 0,
    compressed: bool = False,
) -> None:
    """Refuse an array whose declared size is empty, no OCT volume's or more than its file holds.

    `itemsize` and `offset` are bytes; with `compressed`, the file may hold as much more as deflate
    can pack into it. Raises InputError.
    """
    size = quote(" x ".join(map(str, shape)))
    if min(shape, default=0) < 1 or offset < 0:
        raise InputError(f"{path}: declares an empty array ({size}); export it again")
    voxels = math.prod(map(int, shape))
    check_total(path, voxels, size)
    held = Path(path).stat().st_size * (MAX_DEFLATE_RATIO if compressed else 1)
    if offset + voxels * itemsize > held:
        raise InputError(
            f"{path}: declares {size} values, more than the file holds; it is cut off or damaged, "
            "copy or export it again"
        )


def check_total(path: str | Path, voxels: int, size: str = "") -> None:
    """Refuse a file whose arrays have more than `MAX_VOXELS` values in all; InputError."""
    if voxels > MAX_VOXELS:
        raise InputError(
            f"{path}: declares {size or voxels} voxels, more than can be read ({MAX_VOXELS}); it "
            "is damaged, or export a smaller part of the scan"
        )


def check_file_size(path: str | Path) -> None:
    """Refuse a file longer than any volume, before the whole of it is read; InputError."""
    size = Path(path).stat().st_size
    if size > MAX_FILE_BYTES:
        raise InputError(
            f"{path}: {size} bytes, more than can be read ({MAX_FILE_BYTES}); it is damaged, or "
            "export a smaller part of the scan"
        )


def check_self_contained(file: "File") -> None:
    """Refuse an open HDF5 file that takes values from other files; InputError.

    HDF5 follows external links, reads external storage (whole files of any kind, by absolute path)
    and maps virtual datasets without a word.
    """
    from h5py import h5d, h5l, h5o

    def leads_away(name: bytes, info: h5l.LinkInfo) -> bytes | None:
        return name if info.type not in (h5l.TYPE_HARD, h5l.TYPE_SOFT) else None

    def lies_elsewhere(name: bytes, info: h5o.ObjInfo) -> bytes | None:
        if info.type != h5o.TYPE_DATASET:
            return None
        layout = h5d.open(file.id, name).get_create_plist()
        elsewhere = layout.get_external_count() or layout.get_layout() == h5d.VIRTUAL
        return name if elsewhere else None

    with parsing(file.filename, "HDF5 file"):
        found = file.id.links.visit(leads_away, info=True)
        found = found or h5o.visit(file.id, lies_elsewhere, info=True)
    if found:
        raise InputError(
            f"{file.filename}: '{quote(found.decode(errors='replace'))}' takes its values from "
            "another file; give a file that holds all of them"
        )


def printable(text: str) -> str:
    """Return text without what would steer a terminal, such as control and direction characters."""
    return "".join(character if character.isprintable() else " " for character in text)


def quote(text: str) -> str:
    """Return foreign text fit for one line of a terminal: printable and short."""
    return textwrap.shorten(printable(text), MAX_QUOTE, placeholder="...")


@contextmanager
def parsing(path: str | Path, kind: str) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into one InputError; mute its warnings.

    Libraries raise nearly every type of exception on damaged input, so the block should hold the
    library's calls and nothing else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (InputError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except Exception as error:
        cause = quote(str(error)) or type(error).__name__
        raise InputError(
            f"{path}: not a readable {kind} ({cause}); it is damaged or has another format"
        ) from error


def inflate(packed: bytes | memoryview, length: int, wbits: int = zlib.MAX_WBITS) -> bytes:
    """Return the `length` bytes in `packed`; ValueError or zlib.error where there are not as many.

    Unlike a plain `decompress` with a limit, it reads on to the checksum.
    """
    inflater = zlib.decompressobj(wbits)
    content = inflater.decompress(packed, length)
    rest = inflater.decompress(inflater.unconsumed_tail, 1)
    if len(content) < length or rest or not inflater.eof:
        raise ValueError("compressed data that are cut off or of another length")
    return content
