"""MATLAB's MAT-file of version 5 (to 7.2): the arrays of numbers and characters in it.

The format is MathWorks' "MAT-File Format". It is read here because `scipy.io.loadmat` crashes the
interpreter on some damaged files.
"""

import math
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocessing.untrusted import (
    MAX_DEFLATE_RATIO,
    VOXEL_BYTES,
    check_file_size,
    check_size,
    check_total,
    inflate,
)

FILE_HEADER_BYTES, TAG_BYTES = 128, 8
BYTE_ORDERS = {b"IM": "<", b"MI": ">"}
MATRIX, COMPRESSED = 14, 15
VARIABLE_HEADER_BYTES = 256  # flags, dimensions and name of any variable that is wanted
MAX_ITEMSIZE = 8
MAX_TEXT = 64
COMPLEX = 0x0800
CHARACTERS, NUMBERS = 4, range(6, 16)  # classes of arrays
DTYPES = {
    **{1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"},
    **{12: "i8", 13: "u8", 16: "u1", 17: "u2", 18: "u4"},
}


@dataclass
class _Header:
    name: str
    array_class: int
    is_complex: bool
    shape: tuple[int, ...]
    length: int  # of the header in bytes


def read_mat5(path: Path, wanted: re.Pattern) -> dict[str, np.ndarray]:
    """Return the arrays whose names match `wanted`, a text as an array of one; no empty ones.

    Raises InputError when the arrays are larger than a volume or their file, ValueError, KeyError,
    struct.error or zlib.error when the file is damaged in another way.
    """
    check_file_size(path)
    content = memoryview(path.read_bytes())
    order = BYTE_ORDERS[bytes(content[126:FILE_HEADER_BYTES])]
    variables = {}
    total = 0
    place = FILE_HEADER_BYTES
    while place < len(content):
        kind, body, place = _element(content, place, order)
        if kind == COMPRESSED:
            packed = body
            body, length = _begin_inflating(packed, order)
        elif kind != MATRIX:
            raise ValueError(f"an element of type {kind}")
        header = _variable_header(body, order)
        if not wanted.fullmatch(header.name) or 0 in header.shape:
            continue
        if header.is_complex or header.array_class not in (CHARACTERS, *NUMBERS):
            raise ValueError(f"'{header.name}' is no array of real numbers")
        check_size(path, header.shape, 1, compressed=kind == COMPRESSED)
        n_values = math.prod(header.shape)
        total += length if kind == COMPRESSED else len(body)
        check_total(path, total // VOXEL_BYTES)
        if header.array_class == CHARACTERS:
            check_text(header.name, n_values)
        if kind == COMPRESSED:
            if length > VARIABLE_HEADER_BYTES + MAX_ITEMSIZE * n_values:
                raise ValueError(f"'{header.name}' holds more than its values")
            body = memoryview(inflate(packed, length))[TAG_BYTES:]
        dtype, values, _ = _element(body, header.length, order)
        values = np.frombuffer(values, np.dtype(DTYPES[dtype]).newbyteorder(order))
        if header.array_class == CHARACTERS:
            values = np.array("".join(map(chr, values)))
        else:
            values = values.reshape(header.shape, order="F")
        variables[header.name] = values
    return variables


def check_text(name: str, n_characters: int) -> None:
    """Refuse a text longer than any that is wanted; ValueError."""
    if n_characters > MAX_TEXT:
        raise ValueError(f"'{name}' is a text of {n_characters} characters")


def _element(content: memoryview, place: int, order: str) -> tuple[int, memoryview, int]:
    """Return the type and the bytes of the element at `place`, and where the next one is."""
    kind, size = struct.unpack_from(f"{order}II", content, place)
    if kind >> 16:  # a small element has its size and data in the tag
        kind, size = kind & 0xFFFF, kind >> 16
        start, end = place + 4, place + TAG_BYTES
    else:
        start = place + TAG_BYTES
        end = start + size
        if kind != COMPRESSED:
            end += -size % 8
    if start + size > len(content):
        raise ValueError("cut off")
    return kind, content[start : start + size], end


def _begin_inflating(packed: memoryview, order: str) -> tuple[memoryview, int]:
    """Return the first bytes of the matrix in `packed`, and the length of it all with its tag."""
    first = zlib.decompressobj().decompress(packed, TAG_BYTES + VARIABLE_HEADER_BYTES)
    kind, size = struct.unpack_from(f"{order}II", first)
    if kind != MATRIX or size > MAX_DEFLATE_RATIO * len(packed):
        raise ValueError("a damaged compressed variable")
    return memoryview(first)[TAG_BYTES:], TAG_BYTES + size


def _variable_header(body: memoryview, order: str) -> _Header:
    _, flags, place = _element(body, 0, order)
    _, dimensions, place = _element(body, place, order)
    _, name, place = _element(body, place, order)
    (flag_word,) = struct.unpack_from(f"{order}I", flags)
    shape = np.frombuffer(dimensions, f"{order}i4")
    return _Header(
        name=bytes(name).decode("ascii"),
        array_class=flag_word & 0xFF,
        is_complex=bool(flag_word & COMPLEX),
        shape=tuple(map(int, shape)),
        length=place,
    )
