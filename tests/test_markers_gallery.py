"""Marker discovery: contact sheets, their tiles, and which regions they show."""

import numpy as np
import pandas as pd
import pytest
from made_maps import native_volume, write_flat
from made_markers import BLOCK, SHAPE, region_at, thickening
from PIL import Image

from anogan.discovery.gallery import (
    CENTRAL,
    FONT,
    OUTLINE,
    PIXEL_UM,
    RANDOM,
    TILE_UM,
    Tile,
    choose,
    draw_sheet,
    draw_tile,
    tile_title,
)
from anogan.discovery.regions import Region, native_outline
from anogan.discovery.sources import Source
from anogan.markers import draw_gallery
from preprocessing.geometry import Geometry
from preprocessing.native import to_native_map
from preprocessing.volume import write_volume

SPACING_UM = (4.0, 11.0)
NATIVE = (3, 180, 144)


@pytest.fixture(scope="module")
def geometry(tmp_path_factory) -> Geometry:
    return write_flat(native_volume("d1"), tmp_path_factory.mktemp("d1"))


def native_mask(region: Region, geometry: Geometry) -> np.ndarray:
    """Where a region lies on the B-scans as loaded, bool (b, z, x)."""
    flat = np.zeros(SHAPE, np.float32)
    flat[region.bscan] = region.drawn(SHAPE[1:])
    return to_native_map(flat, geometry, NATIVE) == 1


def draw(region: Region, geometry: Geometry) -> np.ndarray:
    """The tile of a region that is white on a black B-scan, (h, w, 3)."""
    gray = 255 * native_mask(region, geometry)[region.bscan].astype(np.uint8)
    place = native_outline(region, geometry)
    return draw_tile(gray, region, geometry, SPACING_UM, (place["z"], place["x"]), "").picture


def is_outline(picture: np.ndarray) -> np.ndarray:
    return (picture == OUTLINE).all(axis=2)


@pytest.mark.parametrize("mode", ["bm", "both"])
def test_a_region_is_outlined_where_it_lies_and_to_scale(geometry, mode):
    geometry = thickening() if mode == "both" else geometry
    region = region_at(*BLOCK)
    picture = draw(region, geometry)
    place = native_outline(region, geometry)
    outline = is_outline(picture)
    rows, columns = np.nonzero(outline)
    height_um = (place["z1"] - place["z0"]) * SPACING_UM[0]
    assert np.ptp(columns) * PIXEL_UM == pytest.approx(13 * 22, abs=2 * PIXEL_UM)
    assert np.ptp(rows) * PIXEL_UM == pytest.approx(height_um, abs=3 * PIXEL_UM)
    # all that is bright lies inside the outline, but for its soft edge and pixels cut by it
    bright = (picture[..., 0] > 200) & ~outline
    assert bright.any()
    z, x = np.nonzero(bright)
    assert rows.min() <= z.min() and z.max() <= rows.max() + 1
    assert columns.min() <= x.min() and x.max() <= columns.max()


def test_a_region_that_is_larger_than_the_tile_ends_without_an_outline(geometry):
    wide = region_at(0, slice(50, 62), slice(0, 72))  # 1.6 mm
    picture = draw(wide, geometry)
    assert picture.shape == (TILE_UM[0] / PIXEL_UM, TILE_UM[1] / PIXEL_UM, 3)
    outline = is_outline(picture)
    assert outline[:, 0].sum() == outline[:, -1].sum() == 2  # above and below
    assert outline.any(axis=0).all()


def test_holes_of_a_region_are_not_outlined(geometry):
    whole = region_at(*BLOCK)
    mask = whole.mask.copy()
    mask[3:6, 4:9] = False
    holed = Region(whole.bscan, whole.corner, mask, whole.peak, whole.excess)
    gray, args = np.zeros(NATIVE[1:], np.uint8), (geometry, SPACING_UM, (100, 52), "")
    shown, expected = (draw_tile(gray, region, *args).picture for region in (holed, whole))
    np.testing.assert_array_equal(shown, expected)


@pytest.mark.parametrize("mirrored", [False, True])
def test_tiles_show_the_volume_and_the_bscan_of_their_region(tmp_path, monkeypatch, mirrored):
    """Every region is as gray as no other, on black, so that a tile of another place shows."""
    shown, sources, rows, found, level = {}, [], [], {}, {}
    for i, name in enumerate(("p", "q")):
        (tmp_path / name).mkdir()
        native = native_volume(name, mirrored=mirrored)
        geometry = write_flat(native, tmp_path / name)
        native.data[:] = 0
        native.data[:, :40] = 1  # so that gray levels reach from 0 to 1
        for b in range(3):
            region = region_at(b, *BLOCK[1:])
            key = f"{name}-{b}"
            level[key] = 0.2 + 0.1 * (3 * i + b)
            native.data[native_mask(region, geometry)] = level[key]
            found[key] = region
            place = native_outline(region, geometry)
            row = {"region": key, "cluster": 1, "volume": name, "bscan": b, "distance": 0}
            rows.append({**row, "eye_label": "healthy", "z": place["z"], "x": place["x"]})
        image = tmp_path / name / "volume.nii.gz"
        write_volume(native, image)
        flat = str(tmp_path / name / "flat.nii.gz")
        sources.append(Source({"volume": name}, "", flat, str(image)))
    monkeypatch.setattr("anogan.markers.draw_sheet", lambda title, kinds, path: shown.update(kinds))
    clusters = pd.DataFrame({"cluster": [1], "regions": 6, "volumes": 2})
    draw_gallery(tmp_path, clusters, pd.DataFrame(rows), found, sources, 1)
    (tiles,) = (tiles for tiles in shown.values() if tiles)
    assert len(tiles) == 6
    for key, tile in zip(level, tiles, strict=True):
        name, b = key.split("-")
        told = ", mirrored" if mirrored else ""
        assert tile.title == f"{name}, B-scan {b}, healthy eye{told}"
        gray = tile.picture.max(axis=2).astype(int)
        middle = tuple(n // 2 for n in gray.shape)
        assert gray[middle] == pytest.approx(255 * level[key], abs=2)
        z, x = np.nonzero(is_outline(tile.picture))
        assert np.ptp(x) * PIXEL_UM == pytest.approx(13 * 22, abs=2 * PIXEL_UM)
        gray[z.min() - 4 : z.max() + 5, x.min() - 9 : x.max() + 10] = 0  # but for its soft edge
        assert gray[70:].max() == 0


def test_the_nearest_regions_are_shown_and_random_others():
    rng = np.random.default_rng(3)
    names = np.array([f"r{i:02d}" for i in range(40)])
    regions = pd.DataFrame({"region": rng.permutation(names), "distance": rng.uniform(size=40)})
    found = choose(regions, 1)
    ranked = regions.sort_values("distance")["region"].tolist()
    assert found["central"] == ranked[:CENTRAL]
    assert len(set(found["random"])) == RANDOM
    assert not set(found["random"]) & set(found["central"])
    assert found["random"] != ranked[CENTRAL : CENTRAL + RANDOM] != ranked[-RANDOM:]
    assert found == choose(regions.sample(frac=1, random_state=1), 1)
    assert choose(regions[:4], 1)["random"] == []


@pytest.mark.parametrize(
    "volume", ["v", "an-id-of-" + "many-letters-" * 5 + "and-an-end", "W" * 64]
)
def test_a_title_fits_below_its_tile(volume):
    rest = ", B-scan 127, diseased eye, mirrored"
    title = tile_title(volume, rest)
    assert FONT.getlength(title) <= TILE_UM[1] / PIXEL_UM
    first, cut, last = title.removesuffix(rest).partition("\N{HORIZONTAL ELLIPSIS}")
    assert volume.startswith(first) and volume.endswith(last) and title.endswith(rest)
    assert bool(cut) == (volume != "v")
    assert not cut or 0 <= len(first) - len(last) <= 1
    wider = f"{volume[: len(first) + 1]}{cut}{volume[len(volume) - len(last) - 1 :]}"
    assert not cut or FONT.getlength(wider + rest) > TILE_UM[1] / PIXEL_UM


def test_a_sheet_is_a_picture_of_its_tiles(tmp_path):
    height, width = (round(um / PIXEL_UM) for um in TILE_UM)
    tiles = [Tile(np.full((height, width, 3), 20 * i, np.uint8), "t") for i in range(1, 6)]
    draw_sheet("Cluster 1", {"near": tiles[:4], "other": tiles[4:]}, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.mode == "RGB" and sheet.width > 3 * width
        pixels = np.asarray(sheet)
    for i in range(1, 6):
        assert (pixels == 20 * i).all(axis=2).sum() >= height * width
