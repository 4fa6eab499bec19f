"""Eyes with hot places in their heat maps, and the stage markers run on them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from made_maps import SIZE, X_UM, native_volume, run, write_flat, write_model

from anogan.discovery.regions import Region, find_regions
from anogan.maps.file import VolumeMaps, write_maps
from preprocessing.flatten import flat_geometry
from preprocessing.geometry import Geometry
from preprocessing.layers import Layers
from preprocessing.resample import resample

PIXEL = (4.0, 22.0)  # um
SHAPE = (3, 110, 72)  # of the flat volumes, whose retina takes the rows 30 to 80
PIXEL_UM2 = np.full(SHAPE[::2], PIXEL[0] * PIXEL[1])
BLOCK = (0, slice(50, 62), slice(20, 33))
SPECK = (1, slice(40, 46), slice(50, 52))
VOLUMES = {  # name: split, label of the eye, what is hot
    "v": ("validation", 0, []),
    "h1": ("test", 0, [SPECK]),
    "h2": ("test", 0, []),
    "d1": ("test", 1, [BLOCK, SPECK]),
    "d2": ("test", 1, [BLOCK]),
    "s": ("score", -1, [SPECK]),
}
SPLITS = ("validation", "test", "score")
MIRRORED, REVERSED = "d2", "d1"  # a left eye; an eye whose B-scans were reversed


def made_maps(name: str, split: str, label: int, hot: list) -> VolumeMaps:
    """Maps of a volume: noise, and 0.8 more where it is hot."""
    rng = np.random.default_rng(sum(name.encode()))
    residual = rng.uniform(0, 0.1, SHAPE).astype(np.float32)
    for place in hot:
        residual[place] += 0.8
    residual[:, 100:] = np.nan
    eye = "L" if name == MIRRORED else "R"
    return VolumeMaps(name, f"p-{name}", eye, split, label, 9, residual, residual)


def write_eyes(folder: Path) -> Path:
    """Write `VOLUMES`, their maps, one file a split, and a model."""
    for name in VOLUMES:
        (folder / name).mkdir()
        native = native_volume(name, "L" if name == MIRRORED else "R", name == MIRRORED)
        write_flat(native.replace(bscans_reversed=name == REVERSED), folder / name)
    for split in SPLITS:
        with write_maps(folder / f"{split}.h5", "pca", 16, SIZE) as writer:
            for name, facts in VOLUMES.items():
                if facts[0] == split:
                    writer.append(made_maps(name, *facts))
    write_model(folder / "gan", "gan")
    return folder


def arguments(folder: Path, splits: tuple = SPLITS, names: tuple = tuple(VOLUMES)) -> list:
    """Return the arguments of the stage but its output."""
    return [
        *("--maps", *(folder / f"{split}.h5" for split in splits)),
        *("--flats", *(folder / name / "flat.nii.gz" for name in names)),
        *("--images", *(folder / name / "volume.nii.gz" for name in names)),
        *("--model", folder / "gan", "--bootstrap", 50),
    ]


def markers(
    folder: Path, output: Path, *extra: object, **given: tuple
) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """Run the stage; return its tables and what markers.json says."""
    assert run("markers", *arguments(folder, **given), "--output", output, *extra) == 0
    tables = [
        pd.read_csv(output / f"{name}.tsv", sep="\t", na_values="n.a.", keep_default_na=False)
        for name in ("regions", "clusters")
    ]
    return *tables, json.loads((output / "markers.json").read_text())


def region_at(*place: object) -> Region:
    """Return the region of all pixels at a place (b, rows, columns) of a flat volume."""
    heat = np.zeros(SHAPE, np.float32)
    heat[place] = 1
    (region,) = find_regions(heat, 0.5, PIXEL_UM2, 0)
    return region


def thickening() -> Geometry:
    """Geometry in flatten mode `both` of an eye whose retina is 25 to 75 rows thick."""
    thin = resample(native_volume("d1"), X_UM)
    bm = np.tile(115 + 0.3 * np.arange(SHAPE[2], dtype=np.float32), (SHAPE[0], 1))
    thickness = np.tile(np.linspace(25, 75, SHAPE[2], dtype=np.float32), (SHAPE[0], 1))
    layers = Layers(ilm=bm - thickness, rpe=bm - 5, bm=bm, confidence=np.ones_like(bm))
    return flat_geometry(layers, thin, "both", above_um=320, thickness_um=200)
