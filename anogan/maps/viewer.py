"""viewer.zip: the B-scans of a volume with their heat maps, packed for the report's viewer.

`viewer.json` says what is in it:

    volume, patient, eye, split, eye_label, method    as in the file of heat maps
    n_bscans, width, height    of the pictures, in pixels
    spacing_um    [b, z, x] of a pixel of the pictures
    scale         {"residual": [low, high] or null, "score": [low, high]}
    enface        {"residual": name or null, "score": name}: the volume seen from the front (see
                  `anogan.maps.enface`), a row of pixels a B-scan, the last one on top; null
                  where there is no heat
    bscans        for each B-scan, inferior to superior:
      gray, residual, score    names of pictures, null where there is no heat
      layers      {"ilm": polylines, "rpe": polylines, "bm": polylines}
      outlines    polygons around what a grader marked
      max_score   of the score map, null where no patch lies

Pictures show all columns and, in every B-scan the same, the rows around the retina. Points are
[x, z] in pixels of the pictures, counted from the outer edge of the first one as in SVG: the centre
of the first pixel is [0.5, 0.5].
"""

import json
import zipfile
from pathlib import Path

import numpy as np

from anogan.maps.file import KINDS
from anogan.maps.pictures import HEAT_COLOURS, Heat, heat_levels, webp
from preprocessing.files import atomic_path
from preprocessing.geometry import Geometry
from preprocessing.volume import Volume

LAYERS = ("ilm", "rpe", "bm")
MARGIN_UM = (150, 250)  # shown above the highest ILM and below the deepest BM
GRAY = {"quality": 40, "method": 2}
HEAT = {"quality": 30, "alpha_quality": 30, "method": 2}
LINE_TOLERANCE_PX = 0.4
OUTLINE_TOLERANCE_PX = 0.3  # leaves the centre of every marked pixel inside


def write_viewer(
    path: str | Path,
    volume: Volume,
    geometry: Geometry,
    gray: np.ndarray,
    heats: dict[str, Heat],
    max_score: np.ndarray,
    facts: dict,
) -> None:
    """Pack a volume as loaded, atomically.

    `gray` (b, z, x) are levels as in `anogan.maps.pictures`, `heats` the maps by kind,
    `max_score` (b,) is NaN where unknown, `facts` what viewer.json says first.
    """
    surfaces = native_surfaces(geometry)
    rows = retina_rows(surfaces, volume)
    n_b, height, width = gray[:, rows].shape
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:

        def add(name: str, content: bytes | str) -> str:
            archive.writestr(zipfile.ZipInfo(name), content)  # without the time of writing
            return name

        def add_heat(name: str, levels: np.ndarray, **options: object) -> str | None:
            return add(name, webp(HEAT_COLOURS[levels], **options)) if levels.any() else None

        fronts = dict.fromkeys(KINDS)
        bscans = [dict.fromkeys(("gray", *KINDS)) for _ in range(n_b)]
        for b, bscan in enumerate(bscans):
            bscan["gray"] = add(f"{b:03d}-gray.webp", webp(gray[b, rows], **GRAY))
            bscan["layers"] = {
                name: polylines(surface[b] - rows.start, geometry.x_factor)
                for name, surface in surfaces.items()
            }
            marked = volume.annotation is not None and volume.annotation[b, rows] >= 0.5
            bscan["outlines"] = outlines(marked) if np.any(marked) else []
            bscan["max_score"] = None if np.isnan(max_score[b]) else float(max_score[b])
        for kind, heat in heats.items():
            front = heat_levels(heat.front[::-1], heat.scale)
            fronts[kind] = add_heat(f"enface-{kind}.webp", front, lossless=True)
            for b, bscan in enumerate(bscans):
                bscan[kind] = add_heat(f"{b:03d}-{kind}.webp", heat.levels[b, rows], **HEAT)
        description = {
            **facts,
            "n_bscans": n_b,
            "width": width,
            "height": height,
            "spacing_um": [round(1000 * step, 3) for step in volume.spacing_mm],
            "scale": {kind: heats[kind].scale if kind in heats else None for kind in KINDS},
            "enface": fronts,
            "bscans": bscans,
        }
        add("viewer.json", json.dumps(description, allow_nan=False))


def native_surfaces(geometry: Geometry) -> dict[str, np.ndarray]:
    """Return the layers (b, c) in z pixels of the volume as loaded, NaN unknown."""
    return {name: geometry.z_offset + geometry.z_scale * getattr(geometry, name) for name in LAYERS}


def retina_rows(surfaces: dict[str, np.ndarray], volume: Volume) -> slice:
    """Return the rows that show the retina of every B-scan, all rows where no layer is known."""
    n_z = volume.data.shape[1]
    ilm, bm = (surfaces[name][np.isfinite(surfaces[name])] for name in ("ilm", "bm"))
    if not (ilm.size and bm.size):
        return slice(0, n_z)
    above, below = (um / 1000 / volume.spacing_mm[1] for um in MARGIN_UM)
    first = min(max(int(ilm.min() - above), 0), n_z - 1)
    return slice(first, min(max(int(bm.max() + below), first + 1), n_z))


def polylines(z: np.ndarray, x_factor: float) -> list[list[list[float]]]:
    """Return a layer z (c,) of the flat columns as lines, with gaps where it is NaN."""
    x = (np.arange(len(z)) + 0.5) * x_factor
    points = np.column_stack([x, z + 0.5])
    known = np.flatnonzero(np.isfinite(z))
    runs = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
    return [
        simplify(points[run], LINE_TOLERANCE_PX).round(1).tolist() for run in runs if len(run) > 1
    ]


def outlines(marked: np.ndarray) -> list[list[list[float]]]:
    """Return polygons around the marked pixels (z, x), and around holes in them."""
    from skimage.measure import find_contours

    contours = find_contours(np.pad(marked, 1).astype(float), 0.5)
    polygons = [simplify(contour, OUTLINE_TOLERANCE_PX) for contour in contours]
    # one pixel of padding less half a pixel from edge to centre
    return [(polygon[:-1, ::-1] - 0.5).round(1).tolist() for polygon in polygons]


def simplify(points: np.ndarray, tolerance: float) -> np.ndarray:
    """Return some of a line's `points` (n, 2), such that it strays by at most `tolerance`.

    By Douglas and Peucker, as `skimage.measure.approximate_polygon`, but that imports scipy.signal:
    a second per job.
    """
    kept = np.zeros(len(points), bool)
    kept[[0, -1]] = True
    parts = [(0, len(points) - 1)]
    while parts:
        first, last = parts.pop()
        if last - first < 2:
            continue
        chord = points[last] - points[first]
        between = points[first + 1 : last] - points[first]
        along = np.clip(between @ chord / max(chord @ chord, 1e-12), 0, 1)
        distance = np.hypot(*(between - along[:, None] * chord).T)
        farthest = distance.argmax()
        if distance[farthest] > tolerance:
            middle = first + 1 + farthest
            kept[middle] = True
            parts += [(first, middle), (middle, last)]
    return points[kept]
