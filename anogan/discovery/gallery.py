"""Contact sheets: regions of a cluster on the B-scans as loaded, to scale in z and x."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_fill_holes, map_coordinates

from anogan.discovery.regions import Region
from anogan.maps.pictures import inner_border
from preprocessing.geometry import Geometry
from preprocessing.seeds import derive_seed

CENTRAL, RANDOM = 6, 6  # regions of a sheet
TILE_UM = (600, 1200)  # z, x
PIXEL_UM = 3
COLUMNS = 3
HEAD_PX, FOOT_PX, GAP_PX = 24, 20, 8
BAR_UM = 200
OUTLINE = (255, 190, 40)
PAPER, INK = (255, 255, 255), (0, 0, 0)
FONT = ImageFont.load_default(13)


@dataclass(frozen=True)
class Tile:
    """A piece of a B-scan around a region, RGB (h, w, 3), and what is written below it."""

    picture: np.ndarray
    title: str


def choose(regions: pd.DataFrame, seed: int) -> dict[str, list[str]]:
    """Return the regions of a cluster to show: the nearest to its middle, then random others."""
    ranked = regions.sort_values(["distance", "region"])["region"].to_numpy()
    rng = np.random.default_rng(derive_seed(seed, "gallery", *ranked[:1]))
    others = ranked[CENTRAL:]
    drawn = rng.permutation(len(others))[:RANDOM]
    return {"central": [*ranked[:CENTRAL]], "random": [*others[np.sort(drawn)]]}


def tile_title(volume: str, rest: str) -> str:
    """Return a volume's id and the `rest` of a title, the id cut in its middle until both fit."""
    shown, kept = volume, len(volume)
    while kept and FONT.getlength(shown + rest) > TILE_UM[1] / PIXEL_UM:
        kept -= 1
        first, last = volume[: kept - kept // 2], volume[len(volume) - kept // 2 :]
        shown = f"{first}\N{HORIZONTAL ELLIPSIS}{last}"
    return shown + rest


def draw_tile(
    gray: np.ndarray,
    region: Region,
    geometry: Geometry,
    spacing_um: tuple[float, float],
    centre: tuple[float, float],
    title: str,
) -> Tile:
    """Return the piece of a B-scan as loaded, `gray` uint8 (z, x), around a region, outlined.

    `centre` is the region's place (z, x) in pixels of that B-scan, `spacing_um` their size.
    """
    # a pixel more on every side, so that the edge of the tile is not taken for that of the region
    height, width = (round(um / PIXEL_UM) + 2 for um in TILE_UM)
    z = centre[0] + (np.arange(height) - (height - 1) / 2)[:, None] * PIXEL_UM / spacing_um[0]
    x = centre[1] + (np.arange(width) - (width - 1) / 2)[None, :] * PIXEL_UM / spacing_um[1]
    places = np.broadcast_arrays(z, x)
    shown = map_coordinates(gray.astype(np.float32), places, order=1, cval=0)
    picture = np.repeat(np.rint(shown).astype(np.uint8)[..., None], 3, axis=2)
    picture[inner_border(_covered(region, geometry, z, x))] = OUTLINE
    return Tile(picture[1:-1, 1:-1], title)


def _covered(region: Region, geometry: Geometry, z: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return bool of the shape of z and x, native pixels, together: True in the region, filled."""
    _, row, column = geometry.to_flat(region.bscan, z, x)
    row = np.floor(row + 0.5) - region.corner[0]
    column = np.broadcast_to(column - region.corner[1], row.shape)
    height, width = region.mask.shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    outside_scan = (x < -0.5) | (x > geometry.z_offset.shape[1] * geometry.x_factor - 0.5)
    inside &= ~outside_scan
    covered = np.zeros(row.shape, bool)
    filled = binary_fill_holes(region.mask)
    covered[inside] = filled[row[inside].astype(int), column[inside]]
    return covered


def draw_sheet(title: str, rows: dict[str, Sequence[Tile]], path: str | Path) -> None:
    """Write tiles in rows of `COLUMNS`, each kind of `rows` below its name, with a scale bar."""
    height, width = (round(um / PIXEL_UM) for um in TILE_UM)
    step = height + FOOT_PX + GAP_PX
    kinds = {name: tiles for name, tiles in rows.items() if tiles}
    lines = {name: -(-len(tiles) // COLUMNS) for name, tiles in kinds.items()}
    whole = (
        GAP_PX + COLUMNS * (width + GAP_PX),
        2 * HEAD_PX + len(kinds) * HEAD_PX + sum(lines.values()) * step,
    )
    sheet = Image.new("RGB", whole, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP_PX, 5), title, INK, FONT)
    top = HEAD_PX
    for name, tiles in kinds.items():
        draw.text((GAP_PX, top + 5), name, INK, FONT)
        top += HEAD_PX
        for i, tile in enumerate(tiles):
            left = GAP_PX + i % COLUMNS * (width + GAP_PX)
            upper = top + i // COLUMNS * step
            sheet.paste(Image.fromarray(tile.picture), (left, upper))
            draw.text((left, upper + height + 3), tile.title, INK, FONT)
        top += lines[name] * step
    bar_px = round(BAR_UM / PIXEL_UM)
    draw.rectangle((GAP_PX, top + 8, GAP_PX + bar_px, top + 11), fill=INK)
    wide, high = TILE_UM[1], TILE_UM[0]
    text = f"{BAR_UM} um, in z and in x; a piece is {wide} um wide and {high} um high"
    draw.text((2 * GAP_PX + bar_px, top + 2), text, INK, FONT)
    sheet.save(path)
