"""MetaImage (`.mhd` with a raw file, or `.mha`), axes (x, z, B-scan), as RETOUCH stores OCT.

The header is lines of `Key = Value`; `ElementDataFile` is the last one.
"""

from pathlib import Path

import numpy as np

from preprocessing.errors import InputError
from preprocessing.readers.sidecar import described_volume
from preprocessing.untrusted import check_file_size, check_size, inflate, parsing, quote
from preprocessing.volume import Volume

NAME = "MetaImage"
MAX_HEADER_BYTES = 2**16
DTYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
ZLIB_OR_GZIP = 47  # wbits


def matches(path: Path) -> bool:
    """Tell whether the name of `path` ends in .mhd or .mha."""
    return path.suffix.lower() in (".mhd", ".mha")


def read(path: Path) -> Volume:
    """Read an OCT volume; spacing is `ElementSpacing`, in mm, and NaN where there is none.

    Raises InputError when the header or the data file is missing or damaged.
    """
    fields, _ = _header(path)
    spacing = fields.get("ElementSpacing", fields.get("ElementSize", "nan nan nan"))
    with parsing(path, "MetaImage header"):
        step_x, step_z, step_b = (*map(float, spacing.split()), 0.0)[:3]
    return described_volume(path, read_array(path), NAME, spacing_mm=(step_b, step_z, step_x))


def read_array(path: Path) -> np.ndarray:
    """Return the values (b, z, x) in the order of the file."""
    fields, header_bytes = _header(path)
    with parsing(path, "MetaImage header"):
        sizes = [int(size) for size in fields["DimSize"].split()]
        if int(fields["NDims"]) != len(sizes) or len(sizes) not in (2, 3):
            raise ValueError("NDims and DimSize do not describe a volume")
        shape = (*sizes, 1)[:3][::-1]
        if int(fields.get("ElementNumberOfChannels", "1")) != 1:
            raise ValueError("more than one value per voxel")
        if not _is_true(fields, "BinaryData", "True"):
            raise ValueError("values written as text")
        big = _is_true(fields, "BinaryDataByteOrderMSB") or _is_true(fields, "ElementByteOrderMSB")
        dtype = np.dtype(DTYPES[fields["ElementType"]]).newbyteorder(">" if big else "<")
        offset = int(fields.get("HeaderSize", "0"))
    file = path
    if fields["ElementDataFile"] == "LOCAL":
        offset = header_bytes
    else:
        file = _beside(path, fields["ElementDataFile"])
    compressed = _is_true(fields, "CompressedData")
    length = dtype.itemsize * int(np.prod(shape, dtype=object))
    if offset == -1:  # the data are the end of the file
        offset = max(file.stat().st_size - length, 0)
    check_size(file, shape, dtype.itemsize, offset, compressed)
    with parsing(file, "MetaImage data file"), file.open("rb") as stream:
        stream.seek(offset)
        if compressed:
            check_file_size(file)
            content = inflate(stream.read(), length, ZLIB_OR_GZIP)
        else:
            content = stream.read(length)
        return np.frombuffer(content, dtype).reshape(shape)


def _header(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields and the number of bytes up to the end of the last one's line."""
    with parsing(path, "MetaImage header"), path.open("rb") as stream:
        block = stream.read(MAX_HEADER_BYTES)
        fields, end = {}, 0
        while "ElementDataFile" not in fields:
            line, newline, _ = block[end:].partition(b"\n")
            key, equals, value = line.decode("ascii").partition("=")
            if not equals:
                raise ValueError("no ElementDataFile")
            fields[key.strip()] = value.strip()
            end += len(line) + len(newline)
    return fields, end


def _is_true(fields: dict[str, str], key: str, default: str = "False") -> bool:
    return fields.get(key, default).lower() in ("true", "t", "1")


def _beside(path: Path, name: str) -> Path:
    if not name or Path(name).name != name or "\\" in name:
        raise InputError(f"{path}: ElementDataFile must name a file in the same folder")
    file = path.with_name(name)
    with parsing(path, "MetaImage header"):  # a name may be too long for a file system
        if not file.is_file():
            raise InputError(
                f"{path}: its ElementDataFile '{quote(name)}' is not in the same folder"
            )
        if file.samefile(path):
            raise InputError(f"{path}: its ElementDataFile is itself; it should be LOCAL")
    return file
