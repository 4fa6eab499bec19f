"""Plain images: one multi-page TIFF, one image, or a folder of images in natural order.

An image says nothing about the eye, so spacing and laterality come from the sample sheet or a
sidecar.
"""

import re
import warnings
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from preprocessing.errors import InputError
from preprocessing.readers.sidecar import described_volume
from preprocessing.untrusted import check_size, parsing
from preprocessing.volume import Volume

if TYPE_CHECKING:
    from PIL import Image

NAME = "images"
FORMATS = {
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".png": "PNG",
    ".bmp": "BMP",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
}
GRAY_MODES = ("1", "L", "I", "F", "I;16", "I;16L", "I;16B")
INVERTED_BY_PIL = ("1", "L")
PHOTOMETRIC_TAG = 262
MAX_PAGES = 4096


def matches(path: Path) -> bool:
    """Tell whether `path` is an image or a folder that holds some and no XML."""
    if not path.is_dir():
        return path.suffix.lower() in FORMATS
    suffixes = {file.suffix.lower() for file in path.iterdir()}
    return ".xml" not in suffixes and not suffixes.isdisjoint(FORMATS)


def read(path: Path) -> Volume:
    """Read a stack; spacing is not known.

    Raises InputError when an image is missing, damaged, coloured or of another size.
    """
    return described_volume(path, _read_stack(path, labels=False), NAME)


def read_array(path: Path) -> np.ndarray:
    """Return a mask (b, z, x) in the order of the pages or names.

    A label is a gray value or, where an image has a palette of colours, the index of one.
    """
    return _read_stack(path, labels=True)


def _read_stack(path: Path, labels: bool) -> np.ndarray:
    if not path.is_dir():
        return _stack(path, _pages(path, labels))
    images = []
    for file in _series(path):
        pages = _pages(file, labels)
        if len(pages) > 1:
            raise InputError(f"{file}: several pages; in a folder, an image is one B-scan")
        images += pages
        check_size(path, (len(images), *pages[0].shape), 0)
    return _stack(path, images)


def _stack(path: Path, images: list[np.ndarray]) -> np.ndarray:
    kinds = {f"{image.shape[1]} x {image.shape[0]} {image.dtype}" for image in images}
    if len(kinds) > 1:
        raise InputError(f"{path}: images of different sizes or types, {', '.join(sorted(kinds))}")
    return np.stack(images)


def _pages(file: Path, labels: bool) -> list[np.ndarray]:
    """Return the gray values or `labels` (z, x) of each page."""
    from PIL import Image

    file_format = FORMATS[file.suffix.lower()]
    images = []
    with parsing(file, f"{file_format} image"):
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=[file_format]) as image:
            while _has_page(image, len(images)):
                # how far an image compresses is not bounded, so its file size proves nothing
                check_size(file, (len(images) + 1, image.height, image.width), 0)
                images.append(_gray(file, image, labels))
    return images


def _has_page(image: "Image.Image", page: int) -> bool:
    if page > MAX_PAGES:
        raise ValueError(f"more than {MAX_PAGES} pages")
    try:
        image.seek(page)
    except EOFError:
        return False
    return True


def _gray(file: Path, image: "Image.Image", labels: bool) -> np.ndarray:
    if image.mode in GRAY_MODES:
        white_is_zero = getattr(image, "tag_v2", {}).get(PHOTOMETRIC_TAG) == 0
        if white_is_zero and image.mode not in INVERTED_BY_PIL:
            raise InputError(f"{file}: in this TIFF 0 is white; convert it so that 0 is black")
        pixels = np.asarray(image)
        return pixels * np.uint8(255) if pixels.dtype == bool else pixels
    colours = np.asarray(image.convert("RGB"))
    if (colours == colours[:, :, :1]).all():
        return np.ascontiguousarray(colours[:, :, 0])
    if labels and image.mode == "P":
        return np.asarray(image)
    raise InputError(f"{file}: a colour picture; a B-scan has one gray value per pixel")


def _series(folder: Path) -> list[Path]:
    """Return the images of a folder, scan2 before scan10; refuse mixtures and gaps."""
    files = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in FORMATS and not file.name.startswith(".")
    ]
    formats = sorted({FORMATS[file.suffix.lower()] for file in files})
    if len(formats) != 1:
        found = " and ".join(formats) or "no"
        raise InputError(f"{folder}: {found} images; a volume is a folder of one image format")
    if len(files) > MAX_PAGES:
        raise InputError(f"{folder}: more than {MAX_PAGES} images; a volume has fewer B-scans")
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: not a file, though named like an image; take it out")
    files.sort(key=lambda file: (_natural(file), file.name))
    for place, (step, usual) in enumerate(_steps([_natural(file) for file in files])):
        between = f"{files[place].name} and {files[place + 1].name}"
        if step == 0:
            raise InputError(f"{folder}: {between} have the same number; keep one")
        if step != usual:
            raise InputError(f"{folder}: an image is missing between {between}; export again")
    return files


def _natural(file: Path) -> tuple:
    """Split a name into texts (even places) and numbers (odd places)."""
    parts = re.split(r"(\d+)", file.stem.lower())
    return tuple(int(part) if place % 2 else part for place, part in enumerate(parts))


def _steps(names: list[tuple]) -> list[tuple[int, int]]:
    """Return, for a numbered series, the step from each name to the next and the usual one.

    A series is names that differ in one number at most, and in it mostly by the smallest step.
    """
    if len({len(name) for name in names}) > 1:
        return []
    differing = [place for place, parts in enumerate(zip(*names, strict=True)) if len({*parts}) > 1]
    if len(names) < 2 or len(differing) > 1 or any(place % 2 == 0 for place in differing):
        return []
    numbers = [name[differing[0]] if differing else 0 for name in names]
    steps = [after - before for before, after in pairwise(numbers)]
    usual, often = min(Counter(steps).items())
    if usual > 0 and often <= len(steps) / 2:
        return []
    return [(step, usual or step) for step in steps]
