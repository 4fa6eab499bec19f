"""Heat maps as pictures: on the gray B-scan, and seen from the front.

Heat runs from a dark to a light orange-yellow and hides more the hotter it is, so that it stands
out from gray for every kind of colour vision and still rises in black and white. Annotations are
outlined in sky blue (Okabe and Ito).
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from preprocessing.intensity import to_display
from preprocessing.volume import Volume

LEVELS = 64  # of heat; 0 is none
RAMP = ((200, 30, 0), (255, 130, 0), (255, 235, 90))
ALPHA = (0.1, 0.9)  # of the least and of the greatest heat
OUTLINE = (86, 180, 233)
GRAY_PERCENTILES = (5, 99.8)  # of valid pixels, become black and white
GRAY_SAMPLE = 2**20


def _heat_colours() -> np.ndarray:
    """Return uint8 (LEVELS, 4): RGBA of each level of heat."""
    share = np.linspace(0, 1, LEVELS)
    stops = np.linspace(0, 1, len(RAMP))
    colours = [np.interp(share, stops, channel) for channel in zip(*RAMP, strict=True)]
    alpha = 255 * np.interp(share, (0, 1), ALPHA)
    alpha[0] = 0
    return np.rint(np.stack([*colours, alpha], axis=1)).astype(np.uint8)


HEAT_COLOURS = _heat_colours()


@dataclass(frozen=True)
class Heat:
    """A heat map of a volume, ready to be drawn.

    Attributes
    ----------
    scale : [low, high] of the colours.
    levels : uint8 (b, z, x), the heat of each pixel of the volume as loaded.
    front : float32 (b, c), the map seen from the front, NaN unknown.
    """

    scale: list[float]
    levels: np.ndarray
    front: np.ndarray


def gray_levels(volume: Volume) -> np.ndarray:
    """Return uint8 (b, z, x): a volume as loaded, from black to white; black where invalid."""
    data = to_display(volume.data) if volume.intensity == "linear" else volume.data
    some = data[volume.valid][:: max(1, data.size // GRAY_SAMPLE)]
    black, white = np.percentile(some, GRAY_PERCENTILES) if some.size else (0, 1)
    gray = (data - np.float32(black)) * np.float32(255 / max(white - black, 1e-6))
    np.clip(gray, 0, 255, out=gray)
    gray[~volume.valid] = 0
    return gray.astype(np.uint8)


def heat_levels(values: np.ndarray, scale: list[float]) -> np.ndarray:
    """Return uint8 of the shape of `values`: 0 up to low and for NaN, `LEVELS` - 1 from high."""
    low, high = scale
    share = (values - np.float32(low)) * np.float32(1 / (high - low))
    np.clip(np.nan_to_num(share, copy=False), 0, 1, out=share)
    return np.ceil(share * (LEVELS - 1)).astype(np.uint8)


def inner_border(marked: np.ndarray) -> np.ndarray:
    """Return bool (..., h, w): the marked pixels with an unmarked neighbour, or at the edge."""
    padded = np.pad(marked, [(0, 0)] * (marked.ndim - 2) + [(1, 1), (1, 1)])
    inside = padded[..., :-2, 1:-1] & padded[..., 2:, 1:-1]
    inside &= padded[..., 1:-1, :-2] & padded[..., 1:-1, 2:]
    return marked & ~inside


def blend(gray: np.ndarray, heat: np.ndarray, outlined: np.ndarray) -> np.ndarray:
    """Return RGB uint8 (h, w, 3) of levels of gray and heat (h, w), with a bool outline (h, w)."""
    colours = HEAT_COLOURS.astype(np.uint16)
    alpha = colours[:, 3:]
    of_heat = (colours[:, :3] * alpha).astype(np.uint16)
    picture = (gray[..., None] * (255 - alpha)[heat] + of_heat[heat] + 127) // 255
    picture[outlined] = OUTLINE
    return picture.astype(np.uint8)


def webp(picture: np.ndarray | Image.Image, **options: object) -> bytes:
    """Return a picture, or uint8 pixels (h, w) or (h, w, channels), as WebP."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    content = io.BytesIO()
    picture.save(content, "WEBP", **options)
    return content.getvalue()
