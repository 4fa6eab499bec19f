"""Pictures as data URIs, so that the page holds all it shows."""

import base64
import io
from pathlib import Path

from PIL import Image

from anogan.maps.pictures import webp

SHEET_WIDTH_PX = 1400  # the small print of a contact sheet can still be read


def data_uri(path: str | Path) -> str:
    """Return an SVG or PNG file as a data URI."""
    kind = {".svg": "svg+xml", ".png": "png"}[Path(path).suffix]
    return as_uri(Path(path).read_bytes(), kind)


def as_uri(picture: bytes, kind: str) -> str:
    """Return a picture of a kind such as "webp" as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def sheets_by_volume(paths: list[str]) -> dict[str, list[str]]:
    """Return contact sheets as data URIs by the folder they lie in, which is the volume's name."""
    found = {}
    for path in paths:
        found.setdefault(Path(path).parent.name, []).append(sheet(path))
    return found


def shrink(picture: bytes, factor: int) -> bytes:
    """Return a picture as WebP with `factor` times fewer columns and rows."""
    with Image.open(io.BytesIO(picture), formats=["WEBP"]) as opened:
        return webp(opened.reduce(factor), quality=50)


def sheet(path: str | Path) -> str:
    """Return a PNG contact sheet as a data URI, no wider than `SHEET_WIDTH_PX`."""
    with Image.open(path, formats=["PNG"]) as picture:
        small = picture.convert("RGB")
    small.thumbnail((SHEET_WIDTH_PX, 4 * SHEET_WIDTH_PX))
    return as_uri(webp(small, quality=60), "webp")
