"""Finds three surfaces in every B-scan: ILM, RPE and Bruch's membrane (BM).

In short: a coarse search finds ILM and BM together, so that each knows where the other is; a fine
search in a band around it places them to a fraction of a pixel; BM is made smooth, because it lies
flat under drusen; the RPE is then the lowest bright band above BM. All lengths come from anatomy
and are in micrometres. Published relatives: Garvin 2009 (doi:10.1109/TMI.2009.2016958), Chiu 2010
(doi:10.1364/OE.18.019413).
"""

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from preprocessing.errors import InputError
from preprocessing.files import atomic_path
from preprocessing.surfaces import (
    best_pair,
    best_path,
    cumulate,
    smooth_columns,
    straighten,
    subpixel,
    whittaker,
    window_mean,
)

COLUMN_UM = 20  # lateral grid of the fine search; finer columns are averaged to about this
CELL_UM = (18, 88)  # (z, x) of the coarse search
THICKNESS_UM = (90, 900)  # ILM to BM: foveal floor of a thin macula to gross oedema
SKY_UM = 220  # dark rows put on top, for an ILM that is cut off there


@dataclass
class Layers:
    """Three surfaces; each (b, x) float32, z in pixels, whole numbers at pixel centres, NaN unknown.

    `confidence` (b, x) runs from 0 (nothing seen) to 1 (edges as in a clear scan).
    """

    ilm: np.ndarray
    rpe: np.ndarray
    bm: np.ndarray
    confidence: np.ndarray


def find_layers(
    data: np.ndarray, valid: np.ndarray, spacing_mm: tuple[float, float, float]
) -> Layers:
    """Segment ILM, RPE and BM in gray values `data` (b, z, x), wherever `valid`.

    `spacing_mm` is (b, z, x), b 0 for a single B-scan. Only the order of gray values and the
    ratios of their differences matter. B-scans without a retina come back as NaN.
    """
    spacing_um = tuple(1000 * step for step in spacing_mm)
    merge = max(1, round(COLUMN_UM / spacing_um[2]))
    step_um = (spacing_um[0], spacing_um[1], spacing_um[2] * merge)
    starts = np.arange(0, data.shape[2], merge)
    gray, seen = _working_grid(data, valid, starts)
    gray, visible = _scale(gray, seen, step_um)
    sky = round(SKY_UM / step_um[1])
    gray = np.pad(gray, ((0, 0), (0, 0), (sky, 0)))
    ilm, bm = _coarse(gray, seen.any(axis=2), visible, step_um)
    ilm, ilm_step = _fine_ilm(gray, ilm, step_um)
    bm = _fine_bm(gray, bm, step_um)
    rpe, rpe_step = _fine_rpe(gray, ilm, bm, step_um)
    bm = np.maximum(bm, ilm + THICKNESS_UM[0] / 2 / step_um[1])

    ilm, rpe, bm = ilm - sky, rpe - sky, bm - sky
    known = seen.mean(axis=2) > 0.2
    known &= visible
    strength = np.clip(np.minimum(ilm_step / 0.3, rpe_step / 0.2), 0, 1)
    strength = smooth_columns(strength, max(1, round(100 / step_um[2])))
    centres = np.diff(np.append(starts, data.shape[2])) / 2 + starts - 0.5
    surfaces = [np.where(known, surface, np.nan) for surface in (ilm, rpe, bm)]
    surfaces.append(np.where(known, strength, 0))
    return Layers(*(_to_columns(surface, centres, data.shape[2]) for surface in surfaces))


def _working_grid(
    data: np.ndarray, valid: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean gray values and validity with axes (x, b, z), columns merged at `starts`."""
    count = np.add.reduceat(valid, starts, axis=2, dtype=np.float32)
    total = np.add.reduceat(np.where(valid, data, 0), starts, axis=2, dtype=np.float32)
    gray = total / np.maximum(count, 1)
    from scipy.ndimage import binary_erosion
    # the rows beside a wedge mix it with tissue
    seen = binary_erosion(count > 0, np.ones((1, 5, 1)), border_value=1)
    return np.ascontiguousarray(gray.transpose(2, 0, 1)), seen.transpose(2, 0, 1)


def _to_columns(surface: np.ndarray, centres: np.ndarray, n_columns: int) -> np.ndarray:
    """Return `surface` (x, b) given at `centres` as (b, `n_columns`) float32."""
    columns = np.arange(n_columns)
    rows = [np.interp(columns, centres, row) for row in surface.T]
    return np.array(rows, np.float32)


def _cell_size(step_um: tuple[float, float, float]) -> tuple[int, int]:
    return tuple(max(1, round(um / step)) for um, step in zip(CELL_UM, step_um[1:], strict=True))


def _merged(image: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the means of the columns of `image` (x, ...) from each of `starts` to the next."""
    width = np.diff(np.append(starts, len(image))).astype(np.float32)
    total = np.add.reduceat(image, starts, axis=0, dtype=np.float32)
    return total / width.reshape(-1, *[1] * (image.ndim - 1))


def _cells(image: np.ndarray, step_um: tuple[float, float, float]) -> np.ndarray:
    """Return the means of `image` (x, b, z) over coarse cells."""
    rows, columns = _cell_size(step_um)
    n_z = image.shape[2] // rows
    cells = image[..., : n_z * rows].reshape(*image.shape[:2], n_z, rows).mean(axis=3)
    return _merged(cells, np.arange(0, len(image), columns))


def _scale(
    gray: np.ndarray, seen: np.ndarray, step_um: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Scale each B-scan to 0 = vitreous, 1 = bright retina, and fill in what was not seen.

    Returns the gray values (x, b, z) and whether each B-scan shows a retina at all (b,). Unseen
    rows above the scan become vitreous, so that an ILM cut off at the top is found at the cut;
    those below repeat the column's last tissue, so that they make no edge.
    """
    cells = _cells(np.where(seen, gray, 0), step_um)
    share = _cells(seen.astype(np.float32), step_um)
    dark, bright = np.zeros((2, gray.shape[1]), np.float32)
    for b in range(gray.shape[1]):
        full = share[:, b] > 0.5
        if full.any():
            dark[b], bright[b] = np.percentile(cells[:, b][full] / share[:, b][full], [10, 97])
    span = bright - dark
    visible = span > 0.1 * np.quantile(span, 0.75) if span.any() else span > 0
    scaled = (gray - dark[:, None]) / np.where(visible, span, 1)[:, None]
    n_z = gray.shape[2]
    last = n_z - 1 - seen[..., ::-1].argmax(axis=2)
    total, count = cumulate(np.where(seen, scaled, 0)), cumulate(seen)
    tail = np.maximum(last + 1 - round(60 / step_um[1]), 0)[..., np.newaxis]
    ends = [np.take_along_axis(t, last[..., np.newaxis] + 1, 2) - np.take_along_axis(t, tail, 2)
            for t in (total, count)]
    above = np.arange(n_z) < seen.argmax(axis=2)[..., np.newaxis]
    filling = np.where(above, 0, ends[0] / np.maximum(ends[1], 1))
    return np.where(seen, scaled, filling).astype(np.float32), visible


def _coarse(
    gray: np.ndarray, seen: np.ndarray, visible: np.ndarray, step_um: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return ILM and BM (x, b) as row borders, good to about a cell."""
    rows, columns = _cell_size(step_um)
    starts = np.arange(0, len(gray), columns)
    gray = _merged(gray, starts)
    thin, thick, sky = (round(um / step_um[1]) for um in (36, 90, SKY_UM))
    total = cumulate(np.minimum(gray, 0.5))  # the RPE's edge must not outdo the ILM's
    upper = window_mean(total, 0, thick) - window_mean(total, -thick, 0)
    upper += window_mean(total, 0, thin) - window_mean(total, -thin, 0)
    haze = np.maximum.accumulate(window_mean(total, -sky, 0), axis=2)
    upper -= 3 * np.maximum(haze - 0.15, 0)
    import os; PW, TH, WT = eval(os.environ.get("CC", "1.5,.5,.6")); total = cumulate(_power(gray, PW))
    lower = 2 * window_mean(total, -thin, 0) - window_mean(total, 0, thin)
    lower -= window_mean(total, 0, thick)
    bright = cumulate(np.maximum(window_mean(total, -thin // 2, thin // 2) - TH, 0))[..., :-1]
    lower -= WT * (bright[..., -1:] - bright) / rows

    there = seen[starts, :, np.newaxis]
    upper, lower = (np.where(there, _pooled(score, rows), 0) for score in (upper, lower))
    gap = tuple(max(1, round(um / step_um[1] / rows)) for um in THICKNESS_UM)
    ilm, bm = best_pair(upper, lower, gap, moves=(2, 3), cost=0.1)
    centres = starts + (np.diff(np.append(starts, len(seen))) - 1) / 2
    return tuple(
        _to_columns((line + 0.5) * rows, centres, len(seen)).T for line in (ilm, bm)
    )


def _pooled(score: np.ndarray, rows: int) -> np.ndarray:
    """Return the maximum of `score` (x, b, z) over each cell of `rows`."""
    n_z = score.shape[2] // rows
    return score[..., : n_z * rows].reshape(*score.shape[:2], n_z, rows).max(axis=3)


def _fine_ilm(
    gray: np.ndarray, ilm: np.ndarray, step_um: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ILM (x, b) in pixels and the height of its step (x, b)."""
    near, far = round(30 / step_um[1]), round(90 / step_um[1])
    for band_um, power in ((100, 1), (20, 2)):
        band = round(band_um / step_um[1])
        centre = np.rint(smooth_columns(ilm, 2) if power == 1 else ilm).astype(int)
        rows = _power(straighten(gray, centre, band + far, band + far), power)
        total = cumulate(smooth_columns(rows, 1))
        step = window_mean(total, 0, near) - window_mean(total, -near, 0)
        score = step + 0.5 * (window_mean(total, 0, far) - window_mean(total, -far, 0))
        score -= np.maximum(window_mean(total, -far, 0) - 0.2, 0)
        score = score[..., far : far + 2 * band + 1]
        path = best_path(score, max_move=round(60 / step_um[1]), move_cost=0.02 * step_um[1] / 4)
        if power == 1:
            height = np.take_along_axis(step, (path + far)[..., np.newaxis], 2)[..., 0]
        ilm = centre + subpixel(score, path) - band
    return ilm - 0.5, height


def _power(gray, power):
    return np.clip(gray, 0, 1.5) ** power


def _fine_bm(
    gray: np.ndarray, bm: np.ndarray, step_um: tuple[float, float, float]
) -> np.ndarray:
    """Return BM (x, b) in pixels, as the smooth lower edge of the RPE."""
    per_um = 1 / step_um[1]
    for band_um, period_um, power in ((80, 2000, 1), (30, 1000, 2)):
        bm = whittaker(bm, np.ones_like(bm), 600 / step_um[2])
        centre = np.rint(bm).astype(int)
        near, band = round(20 * per_um), round(band_um * per_um)
        far = round(90 * per_um)
        total = cumulate(smooth_columns(_power(straighten(gray, centre, band + far, band + far), power), 1))
        score = window_mean(total, -near, 0) - window_mean(total, 0, near)
        score -= 0.5 * np.maximum(window_mean(total, near, far) - 0.5, 0)
        score = score[..., far : far + 2 * band + 1]
        path = best_path(score, max_move=max(1, round(6 * per_um)), move_cost=0.03 * step_um[1] / 4)
        found = centre + subpixel(score, path) - band
        weight = np.maximum(np.take_along_axis(score, path[..., np.newaxis], 2)[..., 0], 0.01)
        bm = _lower_envelope(found, weight, period_um / step_um[2], 8 * per_um)
    return bm - 0.5


def _lower_envelope(found, weight, period, tolerance):
    """Return a smooth curve through `found` (x, b), bridging parts that rise above it."""
    weight = weight / weight.mean(axis=0)
    smooth = whittaker(found, weight, period)
    for easing in (8, 4, 2, 1, 1):
        rise = np.maximum(smooth - found, 0) / (tolerance * easing)
        sink = np.maximum(found - smooth, 0) / (2 * tolerance * easing)
        trust = weight / (1 + rise**2 + sink**2)
        smooth = whittaker(found, trust / trust.mean(axis=0), period)
    return smooth


def _fine_rpe(
    gray: np.ndarray, ilm: np.ndarray, bm: np.ndarray, step_um: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bright peak of the RPE (x, b) in pixels and its contrast to what is below."""
    per_um = 1 / step_um[1]
    reach, margin = round(400 * per_um), round(40 * per_um)
    centre = np.rint(bm + 0.5).astype(int)
    rows = straighten(gray, centre, reach, margin)
    total = cumulate(smooth_columns(np.minimum(rows, 1.2), 1))
    half = max(1, round(6 * per_um))
    peak = window_mean(total, -half, half)
    drop = peak - window_mean(total, half + round(4 * per_um), half + round(25 * per_um))
    score = peak + drop
    height_um = (reach - np.arange(score.shape[2])) * step_um[1]
    score -= 0.001 * np.abs(height_um)
    score[height_um[None, None, :] < 0 * np.ones_like(score)] = -10
    too_high = centre[..., None] - reach + np.arange(score.shape[2]) < ilm[..., None] + 30 * per_um
    score[too_high] = -10
    path = best_path(score, max_move=round(40 * per_um), move_cost=0.03 * step_um[1] / 4)
    contrast = np.take_along_axis(drop, path[..., np.newaxis], 2)[..., 0]
    return np.minimum(centre + subpixel(score, path) - reach - 0.5, bm), contrast
