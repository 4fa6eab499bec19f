"""Heidelberg raw export, `.vol` (HSF-OCT-xxx): gray values as power, with the vendor's layers.

A header of 2048 bytes, the infrared image, then each B-scan as header, layers and float32 pixels,
as the readers of eyepy and of P. Scheibe (doi 10.5281/zenodo.3236491) describe it. Only what tells
of the scan is read of the header, so that no identity gets in. Files that eyepy wrote are read too:
there the file's field for the size of a B-scan header is wrong, the B-scan's own is right, and
early ones hold display values.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from preprocessing.errors import InputError
from preprocessing.readers.scan_lines import agreed_mm, corrected, lay_out
from preprocessing.untrusted import check_total
from preprocessing.validity import FLOAT_MAX
from preprocessing.volume import Volume, rows_within

NAME = "Heidelberg .vol"
MAGIC = (b"HSF-OCT-", b"ep-v")
EYES = {b"OD": "R", b"OS": "L"}
CIRCLE = 2  # of the header's scan patterns; the others are told by the positions
LAYERS = (
    *("ILM", "BM", "RNFL", "GCL", "IPL", "INL", "OPL", "ONL", "ELM", "IOS", "OPT", "CHO", "VIT"),
    *("ANT", "PR1", "PR2", "RPE", "IPL+", "IPL-"),
)
FILE_HEADER_BYTES, BSCAN_HEADER_BYTES = 2048, 256
# version, n_x, n_b, n_z, x, b and z spacing, width and height of the infrared image, its spacing
# (2), field and focus, eye, exam time, pattern
FILE_HEADER = struct.Struct("<12s3i3d2i16x4x8x4s8xi")
# version, size of this header, start x, start y, end x, end y, number of layers, their offset
BSCAN_HEADER = struct.Struct("<12si4d2i")
MAX_ABOVE_ONE = 0.01  # share of pixels: power lies in [0, 1]


@dataclass
class _Header:
    shape: tuple[int, int, int]  # (b, z, x)
    lateral_mm: float
    axial_mm: float
    eye: str
    circle: bool
    by_eyepy: bool
    start: int  # of the first B-scan, in bytes
    bscan_header: int  # bytes


def matches(path: Path) -> bool:
    """Tell whether the name of `path` ends in .vol."""
    return path.suffix.lower() == ".vol"


def read(path: Path) -> Volume:
    """Read a scan; `bscan_lines_mm` is None for a circle, whose spacing is its circumference's.

    A sidecar `NAME.yaml` corrects it.
    Raises InputError when the file is truncated, damaged or of another format.
    """
    with path.open("rb") as file:
        header = _read_header(path, file)
        data = np.empty(header.shape, np.float32)
        lines = np.empty((header.shape[0], 4))
        layers: dict[str, np.ndarray] = {}
        for b in range(header.shape[0]):
            lines[b], found = _read_bscan(path, file, header, b, data[b])
            for name, rows in found.items():
                layers.setdefault(name, np.full(data[:, 0].shape, np.nan, np.float32))[b] = rows
    layout = lay_out(path, lines, header.shape[2], header.circle)
    order = slice(None, None, -1 if layout.from_the_top else 1)
    intensity = _settle_intensity(path, data, header.by_eyepy)
    valid = np.isfinite(data) & (data < FLOAT_MAX)
    data[~valid] = 0
    volume = Volume(
        data=data[order],
        spacing_mm=(
            layout.between_mm,
            header.axial_mm,
            agreed_mm(layout.lateral_mm, header.lateral_mm),
        ),
        valid=valid[order],
        eye=header.eye,
        intensity=intensity,
        bscans_reversed=layout.from_the_top,
        bscan_lines_mm=None if header.circle else lines[order],
        scan_pattern=layout.pattern,
        vendor_layers={
            name: layer[order] for name, layer in layers.items() if np.isfinite(layer).any()
        },
        device="Heidelberg Engineering Spectralis",
        source_format=NAME,
    )
    return corrected(path, volume)


def _read_header(path: Path, file: BinaryIO) -> _Header:
    raw = file.read(FILE_HEADER_BYTES)
    if not raw.startswith(MAGIC):
        raise InputError(f"{path}: not a Heidelberg .vol file (it starts with {raw[:8]!r})")
    if len(raw) < FILE_HEADER_BYTES:
        raise _truncated(path)
    version, n_x, n_b, n_z, x_mm, _, z_mm, slo_x, slo_z, eye, pattern = FILE_HEADER.unpack_from(raw)
    if min(n_x, n_b, n_z) < 1 or min(slo_x, slo_z) < 0:
        raise InputError(
            f"{path}: it declares {n_b} B-scans of {n_z} x {n_x} pixels; it is damaged, export it "
            "again"
        )
    check_total(path, n_b * n_z * n_x)
    start = FILE_HEADER_BYTES + slo_x * slo_z
    file_bytes = path.stat().st_size
    if start + BSCAN_HEADER_BYTES > file_bytes:
        raise _truncated(path)
    file.seek(start)
    size = BSCAN_HEADER.unpack(file.read(BSCAN_HEADER.size))[1]
    if size < BSCAN_HEADER_BYTES:
        raise InputError(f"{path}: a B-scan header of {size} bytes; it is damaged, export it again")
    if start + n_b * (size + 4 * n_z * n_x) > file_bytes:
        raise _truncated(path)
    return _Header(
        shape=(n_b, n_z, n_x),
        lateral_mm=x_mm,
        axial_mm=z_mm,
        eye=EYES.get(eye[:2], ""),
        circle=pattern == CIRCLE,
        by_eyepy=version.startswith(b"ep-v"),
        start=start,
        bscan_header=size,
    )


def _read_bscan(
    path: Path, file: BinaryIO, header: _Header, b: int, pixels: np.ndarray
) -> tuple[tuple[float, ...], dict[str, np.ndarray]]:
    """Fill `pixels` (z, x) with B-scan `b`; return its position and its layers by name."""
    _, n_z, n_x = header.shape
    file.seek(header.start + b * (header.bscan_header + 4 * n_z * n_x))
    raw = file.read(header.bscan_header)
    _, size, *line, n_layers, offset = BSCAN_HEADER.unpack_from(raw)
    fits = n_layers >= 0 and BSCAN_HEADER.size <= offset <= size - 4 * n_x * n_layers
    if size != header.bscan_header or not (fits or n_layers == 0):
        raise InputError(f"{path}: the header of B-scan {b + 1} is damaged; export the scan again")
    rows = np.frombuffer(raw, "<f4", n_x * n_layers, offset if n_layers else 0)
    rows = rows.reshape(n_layers, n_x)
    rows = rows_within(rows, n_z)
    names = [*LAYERS, *(f"layer {n}" for n in range(len(LAYERS), n_layers))]
    pixels[:] = np.frombuffer(file.read(pixels.nbytes), "<f4").reshape(n_z, n_x)
    return tuple(line), dict(zip(names, rows, strict=False))


def _settle_intensity(path: Path, data: np.ndarray, by_eyepy: bool) -> str:
    """Return what the gray values are; display values of an early eyepy are scaled in place."""
    if ((data > 1) & (data < FLOAT_MAX)).mean() <= MAX_ABOVE_ONE:
        return "linear"
    if by_eyepy and data.min() >= 0 and data.max() <= 255:
        data /= 255
        return "display"
    raise InputError(
        f"{path}: its pixels are no power in [0, 1] as a .vol file has it; export it again"
    )


def _truncated(path: Path) -> InputError:
    return InputError(
        f"{path}: {path.stat().st_size} bytes are less than its header declares; it is truncated "
        "or damaged, copy or export it again"
    )
