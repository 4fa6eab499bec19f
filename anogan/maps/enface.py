"""Heat maps seen from the front, to scale."""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from anogan.maps.pictures import HEAT_COLOURS, OUTLINE, Heat, heat_levels, inner_border
from preprocessing.files import atomic_path
from preprocessing.volume import Volume

BAND_UM = 50
TITLES = {"residual": "Residual |x - rebuilt|", "score": "Score of the patches"}
PANEL_PX, GAP_PX, HEAD_PX, FOOT_PX = 560, 40, 64, 96
STRIP_PX = 24  # of a B-scan where B-scans are not parallel, so that there is no scale
TALLEST_PX = 4 * PANEL_PX  # a wrong spacing must not exhaust the memory
PAPER, INK, COLD, UNCOVERED = (255, 255, 255), (0, 0, 0), 30, (200, 200, 200)


def from_the_front(flat_map: np.ndarray, pixel_um: float) -> np.ndarray:
    """Return float32 (b, c): the mean of the highest `BAND_UM` of each A-scan of a map (b, r, c).

    The highest pixels need not lie together: the mean of so many leaves single pixels of speckle
    behind, and a lesion shines whether it is thick and faint or thin and bright. NaN where no patch
    lies; `pixel_um` is the height of a pixel.
    """
    n_rows = flat_map.shape[1]
    count = min(n_rows, max(1, round(BAND_UM / pixel_um)))
    values = np.where(np.isnan(flat_map), -np.inf, flat_map.astype(np.float32))
    highest = np.partition(values, n_rows - count, axis=1)[:, n_rows - count :].mean(axis=1)
    return np.where(np.isfinite(highest), highest, np.float32(np.nan))


def draw_enface(
    volume: Volume, method: str, heats: dict[str, Heat], marked: np.ndarray | None, path: str | Path
) -> None:
    """Draw the maps of a volume beside each other, the inferior B-scan at the bottom.

    `heats` are the maps by kind. They show the mean of the highest 50 um of each A-scan
    (`from_the_front`); dark is up to `low`. A-scans with a pixel of `marked` (b, z, x) are
    outlined, those without a patch light gray. Where the B-scans are not parallel, each is a strip
    of the same height and only x is to scale.
    """
    n_b = len(volume.data)
    step_b, _, step_x = volume.spacing_mm
    width_mm = step_x * volume.data.shape[2]
    to_scale = volume.scan_pattern == "raster" and step_b > 0
    height = PANEL_PX * n_b * step_b / width_mm if to_scale else n_b * STRIP_PX
    height = max(1, min(round(height), TALLEST_PX))
    size = (GAP_PX + len(heats) * (PANEL_PX + GAP_PX), HEAD_PX + height + FOOT_PX)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    columns = None if marked is None else marked.any(axis=1)
    marks = "; outlined: annotated" if np.any(columns) else ""
    what = f"mean of the highest {BAND_UM} um of each A-scan{marks}"
    _write(draw, (GAP_PX, 8), f"{volume.volume}   {method}   {what}", "la")
    for k, (kind, heat) in enumerate(heats.items()):
        left, foot = GAP_PX + k * (PANEL_PX + GAP_PX), HEAD_PX + height
        _write(draw, (left, HEAD_PX - 8), TITLES[kind], "ls")
        sheet.paste(_map(heat, columns, (PANEL_PX, height)), (left, HEAD_PX))
        _write_directions(draw, volume, to_scale, (left, HEAD_PX, left + PANEL_PX, foot))
        _draw_scale_bar(draw, (left, foot + 20), width_mm)
        _draw_colours(sheet, draw, heat.scale, (left + PANEL_PX // 2, foot + 12))
    with atomic_path(path) as temporary:
        sheet.save(temporary)


def _map(heat: Heat, marked: np.ndarray | None, size: tuple[int, int]) -> Image.Image:
    """Return a map at the size (width, height) in pixels of the sheet."""
    colours = _opaque(heat_levels(heat.front, heat.scale))
    colours[np.isnan(heat.front)] = UNCOVERED
    picture = Image.fromarray(colours[::-1]).resize(size, Image.Resampling.NEAREST)
    if marked is not None:
        large = Image.fromarray(marked[::-1]).resize(size, Image.Resampling.NEAREST)
        pixels = np.array(picture)
        pixels[inner_border(np.asarray(large))] = OUTLINE
        picture = Image.fromarray(pixels)
    return picture


def _opaque(heat: np.ndarray) -> np.ndarray:
    """Return RGB (..., 3) of levels of heat, on dark gray."""
    alpha = HEAT_COLOURS[:, 3:] / 255
    colours = alpha * HEAT_COLOURS[:, :3] + (1 - alpha) * COLD
    return np.rint(colours).astype(np.uint8)[heat]


def _write_directions(
    draw: ImageDraw.ImageDraw, volume: Volume, to_scale: bool, box: tuple[int, int, int, int]
) -> None:
    """Write which way is superior, inferior, temporal and nasal, as far as that is known."""
    if not to_scale:
        return
    left, top, right, bottom = box
    middle = (left + right) // 2, (top + bottom) // 2
    letters = {"S": (middle[0], top + 4, "ma"), "I": (middle[0], bottom - 4, "md")}
    if volume.eye:
        sides = "TN" if volume.eye == "R" or volume.mirrored else "NT"
        letters |= {sides[0]: (left + 4, middle[1], "lm"), sides[1]: (right - 4, middle[1], "rm")}
    for letter, (x, y, anchor) in letters.items():
        outline = {"stroke_width": 2, "stroke_fill": INK}
        draw.text((x, y), letter, PAPER, ImageFont.load_default(16), anchor, **outline)


def _draw_scale_bar(draw: ImageDraw.ImageDraw, at: tuple[int, int], width_mm: float) -> None:
    x, y = at
    length_mm = min(1, 10 ** math.floor(math.log10(0.45 * width_mm)))  # beside the colours
    draw.rectangle((x, y, x + round(PANEL_PX * length_mm / width_mm) - 1, y + 5), fill=INK)
    _write(draw, (x, y + 12), f"{length_mm:g} mm", "la")


def _draw_colours(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, scale: list[float], at: tuple[int, int]
) -> None:
    x, y = at
    width, height = PANEL_PX // 2, 16
    level = np.linspace(0, len(HEAT_COLOURS) - 1, width).round().astype(int)
    sheet.paste(Image.fromarray(np.repeat(_opaque(level)[None], height, axis=0)), at)
    _write(draw, (x, y + height + 4), f"up to {scale[0]:.4g}", "la")
    _write(draw, (x + width, y + height + 4), f"{scale[1]:.4g} and more", "ra")


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, anchor: str) -> None:
    draw.text(at, text, INK, ImageFont.load_default(15), anchor)
