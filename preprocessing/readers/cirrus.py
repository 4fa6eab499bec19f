"""Zeiss Cirrus raw cubes (`.img`, research export): bytes without a header.

What a file is, its name says (`..._Macular Cube 512x128_..._OD_..._cube_raw.img`). The order is
(B-scan, z, x), each B-scan turned by 180 degrees; a cube covers 6 x 6 mm, 2 mm deep. Masks are
drawn on the B-scans as displayed, upright: unlike the cube, a mask is not turned when it is read.
"""

import re
from pathlib import Path

import numpy as np

from preprocessing.errors import InputError
from preprocessing.readers.sidecar import described_volume, read_sidecar
from preprocessing.untrusted import check_size, parsing
from preprocessing.volume import Volume

NAME = "Cirrus"
CUBE_MM = (6.0, 2.0, 6.0)
CUBES = {"512x128": (128, 1024, 512), "200x200": (200, 1024, 200)}
EYES = {"OD": "R", "OS": "L"}


def matches(path: Path) -> bool:
    """Tell whether `path` ends in .img and is no half of an Analyze or NIfTI pair."""
    return path.suffix.lower() == ".img" and not path.with_suffix(".hdr").exists()


def read(path: Path) -> Volume:
    """Read a macular cube; its B-scans are taken to run from inferior to superior.

    Raises InputError when name, size and sidecar do not settle what the file is.
    """
    sidecar_shape = read_sidecar(path).get("shape")
    shape = sidecar_shape or _shape_by_name(path)
    check_size(path, shape, 1)
    if path.stat().st_size != np.prod(shape, dtype=object):
        raise InputError(f"{path}: its size is not that of {' x '.join(map(str, shape))} bytes")
    with parsing(path, "raw cube"):
        data = np.fromfile(path, np.uint8).reshape(shape)[:, ::-1, ::-1]
    spacing = tuple(size / n for size, n in zip(CUBE_MM, shape, strict=True))
    eye = re.search(r"(?:^|_)(OD|OS)(?:_|$)", path.stem)
    return described_volume(
        path,
        data,
        NAME,
        spacing_mm=(np.nan,) * 3 if sidecar_shape else spacing,
        eye=EYES[eye[1]] if eye else "",
        device="Zeiss Cirrus",
    )


def _shape_by_name(path: Path) -> tuple[int, int, int]:
    if "optic disc" in path.stem.lower():
        raise InputError(f"{path}: a cube of the optic disc; only scans of the macula can be used")
    cube = re.search(r"Macular Cube (\d+x\d+)", path.stem, re.IGNORECASE)
    if not cube or cube[1] not in CUBES:
        raise InputError(
            f"{path}: its name tells no known cube ('Macular Cube 512x128' or '200x200'); give "
            "'shape' and 'spacing_mm' (B-scan, z, x) in a sidecar (docs/formats.md)"
        )
    return CUBES[cube[1]]
