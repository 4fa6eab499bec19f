"""Finds three surfaces in every B-scan: ILM, RPE and Bruch's membrane (BM).

A coarse search finds ILM and BM together, so that each knows where the other is; fine searches in
bands around them place them to a fraction of a pixel; BM is made smooth, because it stays flat
under drusen; the RPE is the lowest bright band above it. Every B-scan is searched on its own, as
neighbours may lie 250 um apart and a little off in depth; where its retina is unlike that of its
neighbours, once more with their thickness in mind. Lengths come from anatomy and are in
micrometres. Relatives in print: Garvin 2009 (doi:10.1109/TMI.2009.2016958), Chiu 2010
(doi:10.1364/OE.18.019413).

Inside this module arrays are (x, b, z) and a surface is a row border: k lies between rows k - 1
and k. Gray values run from 0, vitreous, to about 1, bright retina.
"""

import numpy as np
from scipy.ndimage import binary_opening

from preprocessing.layers import Layers
from preprocessing.surfaces import (
    at_path,
    best_pair,
    best_path,
    cumulate,
    smooth_columns,
    straighten,
    subpixel,
    whittaker,
    window_mean,
)

COLUMN_UM = 20  # finer columns are averaged to about this
CELL_UM = (18, 88)  # (z, x) of the coarse search
THICKNESS_UM = (90, 900)  # ILM to BM: foveal floor of a thin macula to gross oedema
SKY_UM = 220  # dark rows put on top, for an ILM that is cut off there
NEARBY_UM = 300  # B-scans further apart show another retina
FLOOR_PERIOD_UM = 4000  # the eye's wall bends no faster; wide detachments of the RPE do
LEAST_SEEN_UM = 150  # of a column; less cannot show a retina and what surrounds it
RPE_UM = 20  # thickness of the RPE with BM
ELEVATION_UM = 400  # RPE above BM: the highest detachment looked for
ILM_PERIOD_UM = 150  # ripples of the ILM that are shorter are noise
UNSURE = 0.3  # confidence below which a surface is a guess
BRIDGED_UM, EXTRAPOLATED_UM = 300, 100  # guesses that neighbouring columns make good
LEAST_INNER_UM = 80  # ILM to RPE over a detachment
CLEAR_ILM, CLEAR_RPE = 0.3, 0.2  # contrast of these layers where confidence reaches 1

Steps = tuple[float, float]  # um between rows and between columns


def find_layers(
    data: np.ndarray, valid: np.ndarray, spacing_mm: tuple[float, float, float]
) -> Layers:
    """Segment ILM, RPE and BM in gray values `data` (b, z, x), wherever they are `valid`.

    `spacing_mm` is (b, z, x). Offset and gain of the gray values do not matter and may change
    between B-scans. What cannot be told comes back as NaN: B-scans without a retina, columns
    without measurements, the optic disc. Nothing in it is random.
    """
    merge = max(1, round(COLUMN_UM / (1000 * spacing_mm[2])))
    starts = np.arange(0, data.shape[2], merge)
    steps = (1000 * spacing_mm[1], 1000 * spacing_mm[2] * merge)

    gray, seen = _working_grid(data, valid, starts)
    known = seen.sum(axis=2) > LEAST_SEEN_UM / steps[0]
    gray, visible = _scale(gray, seen, steps)
    sky = round(SKY_UM / steps[0])
    gray = np.pad(gray, ((0, 0), (0, 0), (sky, 0)))

    ilm, bm = _find_coarse(gray, known & visible, 1000 * spacing_mm[0], steps)
    ilm, ilm_contrast = _find_ilm(gray, ilm, steps)
    bm = _find_bm(gray, bm, steps)
    rpe, rpe_contrast = _find_rpe(gray, ilm, bm, steps)

    plausible = bm - ilm > THICKNESS_UM[0] / steps[0]
    sure_of_ilm = _confidence(ilm_contrast / CLEAR_ILM * plausible, steps)
    confidence = np.minimum(sure_of_ilm, _confidence(rpe_contrast / CLEAR_RPE * plausible, steps))
    known &= visible
    found = [known & ~_lost(sure, steps) for sure in (sure_of_ilm, confidence, confidence)]
    bm = np.maximum(bm, ilm)
    surfaces = [
        np.where(there, surface - sky - 0.5, np.nan)
        for surface, there in zip((ilm, np.clip(rpe, ilm, bm), bm), found, strict=True)
    ]
    surfaces.append(np.where(known, confidence, 0))
    return Layers(*(_to_columns(surface, starts, data.shape[2]) for surface in surfaces))


def _confidence(contrast: np.ndarray, steps: Steps) -> np.ndarray:
    return smooth_columns(np.clip(contrast, 0, 1), round(100 / steps[1]))


def _lost(confidence: np.ndarray, steps: Steps) -> np.ndarray:
    """Return where (x, b) a surface cannot be told: in long runs of low confidence.

    Shorter ones, as under vessels, are bridged; at the ends of a B-scan nothing can be bridged.
    """
    longest, at_end = (max(1, round(um / steps[1])) for um in (BRIDGED_UM, EXTRAPOLATED_UM))
    ends = ((longest - at_end, longest - at_end), (0, 0))
    low = np.pad(confidence < UNSURE, ends, constant_values=True)
    return binary_opening(low, np.ones((longest, 1)))[ends[0][0] : len(low) - ends[0][1]]


def _working_grid(
    data: np.ndarray, valid: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean gray values and validity as (x, b, z), columns merged from each of `starts`."""
    data, valid = (np.ascontiguousarray(a.transpose(2, 0, 1)) for a in (data, valid))
    if len(starts) == len(data):
        gray, seen = data, valid
    else:
        count = np.add.reduceat(valid, starts, axis=0, dtype=np.float32)
        gray = np.add.reduceat(np.where(valid, data, 0), starts, axis=0, dtype=np.float32)
        gray /= np.maximum(count, 1)
        seen = count > 0
    # two rows beside a wedge mix its gray with tissue
    inner = seen.copy()
    for shift in (1, 2):
        inner[..., shift:] &= seen[..., :-shift]
        inner[..., :-shift] &= seen[..., shift:]
    return np.where(inner, gray, np.float32(0)), inner


def _to_columns(surface: np.ndarray, starts: np.ndarray, n_columns: int) -> np.ndarray:
    """Return `surface` (x, b), given per group of columns from `starts`, as (b, columns)."""
    centres = starts + (np.diff(starts, append=n_columns) - 1) / 2
    return np.array([np.interp(range(n_columns), centres, row) for row in surface.T], np.float32)


def _cell_size(steps: Steps) -> tuple[int, int]:
    return tuple(max(1, round(um / step)) for um, step in zip(CELL_UM, steps, strict=True))


def _merged(image: np.ndarray, width: int) -> np.ndarray:
    """Return the means of every `width` columns of `image` (x, b, z); the last may be fewer."""
    whole = len(image) // width * width
    merged = image[:whole].reshape(-1, width, *image.shape[1:]).mean(axis=1, dtype=np.float32)
    if whole == len(image):
        return merged
    rest = image[whole:].mean(axis=0, dtype=np.float32, keepdims=True)
    return np.concatenate([merged, rest])


def _in_cells(image: np.ndarray, rows: int) -> np.ndarray:
    """Return `image` (x, b, z) as (x, b, cell, row of the cell); incomplete cells are dropped."""
    n_cells = image.shape[2] // rows
    return image[..., : n_cells * rows].reshape(*image.shape[:2], n_cells, rows)


def _scale(gray: np.ndarray, seen: np.ndarray, steps: Steps) -> tuple[np.ndarray, np.ndarray]:
    """Scale each B-scan to 0 = vitreous, 1 = bright retina, and fill in what was not seen.

    Returns the gray values (x, b, z) and whether each B-scan shows more than noise (b,).
    """
    rows, columns = _cell_size(steps)
    share = _in_cells(_merged(seen, columns), rows).mean(axis=3)
    cells = _in_cells(_merged(gray, columns), rows).mean(axis=3)
    dark, span, noise = np.zeros((3, gray.shape[1]), np.float32)
    for b in range(gray.shape[1]):
        full = share[:, b] > 0.5
        if full.any():
            dark[b], bright = np.percentile(cells[:, b][full] / share[:, b][full], (10, 97))
            span[b] = bright - dark[b]
            pairs = seen[1:, b] & seen[:-1, b]
            noise[b] = np.diff(gray[:, b], axis=0)[pairs].std() / np.sqrt(2) if pairs.any() else 0
    visible = span > np.maximum(2 * noise, 1e-6)
    scaled = (gray - dark[:, np.newaxis]) / np.where(visible, span, 1)[:, np.newaxis]
    return _filled(scaled, seen, round(60 / steps[0])), visible


def _filled(gray: np.ndarray, seen: np.ndarray, tail: int) -> np.ndarray:
    """Return `gray` (x, b, z) with its unseen rows filled in.

    Above the scan they become vitreous, so that an ILM cut off at the top is found at the cut;
    elsewhere they get the mean of the column's last `tail` rows, so that they make no edge.
    """
    n_z = gray.shape[2]
    first = seen.argmax(axis=2)[..., np.newaxis]
    end = n_z - seen[..., ::-1].argmax(axis=2)[..., np.newaxis]
    last_rows = np.maximum(end - np.arange(1, tail + 1), 0)
    weight = np.take_along_axis(seen, last_rows, 2)
    total = (np.take_along_axis(gray, last_rows, 2) * weight).sum(axis=2, keepdims=True)
    filling = total / np.maximum(weight.sum(axis=2, keepdims=True), 1)
    return np.where(seen, gray, np.where(np.arange(n_z) < first, np.float32(0), filling))


def _power(gray: np.ndarray, exponent: float) -> np.ndarray:
    """Return `gray` on a scale nearer to the signal's power, as display gray is compressed.

    On the display scale blur spreads the edges outwards, ILM and BM by about 2 um each.
    """
    return np.clip(gray, 0, 1.5) ** np.float32(exponent)


def _find_coarse(
    gray: np.ndarray, known: np.ndarray, between_um: float, steps: Steps
) -> tuple[np.ndarray, np.ndarray]:
    """Return ILM and BM (x, b), each good to about a cell.

    B-scans whose retina is far thicker or thinner than in their neighbours, `between_um` away, are
    searched once more with the neighbours' thickness in mind.
    """
    rows, columns = _cell_size(steps)
    starts = np.arange(0, len(gray), columns)
    gray = _merged(gray, columns)
    rpe, thin, thick, sky = (round(um / steps[0]) for um in (RPE_UM, 36, 90, SKY_UM))

    total = cumulate(np.minimum(gray, 0.5))  # the RPE's upper edge must not outdo the ILM
    upper = window_mean(total, 0, thick) - window_mean(total, -thick, 0)
    upper += window_mean(total, 0, thin) - window_mean(total, -thin, 0)
    haze = np.maximum.accumulate(window_mean(total, -sky, 0), axis=2)
    upper -= 3 * np.maximum(haze - 0.15, 0)  # no tissue above the ILM

    total = cumulate(_power(gray, 1.5))
    lower = 2 * window_mean(total, -rpe, 0)
    for below in (thin, thick):  # fluid, which is darker than the choroid, is no better
        lower -= np.maximum(window_mean(total, 0, below), 0.2)
    # nothing as bright as the RPE below BM, and no band as thin: the choroid is bright widely
    band = window_mean(total, -(rpe // 2), rpe // 2)
    stands_out = band - window_mean(total, -(thick // 2), thick // 2)
    lower -= 0.6 * np.minimum(_sum_below(band - 0.5) / rows, 1)
    lower -= 1.5 * np.minimum(_sum_below(stands_out - 0.25) / rows, 0.4)

    there = known[starts, :, np.newaxis]
    upper, lower = (np.where(there, _in_cells(s, rows).max(axis=3), 0) for s in (upper, lower))
    gaps = tuple(max(1, round(um / steps[0] / rows)) for um in THICKNESS_UM)
    rules = {"gaps": gaps, "max_moves": (2, 3), "move_cost": 0.1}
    pair = best_pair(upper, lower, **rules)
    gap = pair[1] - pair[0]
    usual, odd = _usual_gap(gap, known[starts], between_um, 90 / steps[0] / rows)
    if odd.any():
        unlike = np.abs(np.arange(gaps[0], gaps[1] + 1) - usual[:, odd, np.newaxis])
        bonus = -0.1 * np.minimum(unlike, 150 / steps[0] / rows).astype(np.float32)
        pair[:, :, odd] = best_pair(upper[:, odd], lower[:, odd], **rules, bonus=bonus)
    return tuple(_to_columns((path + 0.5) * rows, starts, len(known)).T for path in pair)


def _sum_below(excess: np.ndarray) -> np.ndarray:
    """Return the sum of what is positive in `excess` (x, b, row border) from each border down."""
    total = cumulate(np.maximum(excess, 0))[..., :-1]
    return total[..., -1:] - total


def _usual_gap(
    gap: np.ndarray, known: np.ndarray, between_um: float, far_off: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the median gap (x, b) of nearby B-scans, and which B-scans (b,) are unlike it.

    Unlike are B-scans that differ by more than `far_off` in over a tenth of their columns.
    """
    n_b = gap.shape[1]
    reach = min(2, int(NEARBY_UM / between_um)) if between_um else 0
    usual = gap.astype(float)
    for b in range(n_b):
        around = range(max(b - reach, 0), min(b + reach + 1, n_b))
        nearby = [c for c in around if c != b and known[:, c].any()]
        if len(nearby) > 1:
            usual[:, b] = np.median(gap[:, nearby], axis=1)
    unlike = (np.abs(gap - usual) > far_off) & known
    return usual, unlike.mean(axis=0) > 0.1


def _find_ilm(gray: np.ndarray, ilm: np.ndarray, steps: Steps) -> tuple[np.ndarray, np.ndarray]:
    """Return the ILM (x, b) near a coarse one, and the contrast there."""
    near, far = round(30 / steps[0]), round(90 / steps[0])
    ilm = smooth_columns(ilm, 2)
    contrast = np.zeros_like(ilm)
    # first so that bright spots below do not matter, then on the scale that places edges right
    for band_um, exponent, ceiling in ((100, 1, 0.6), (20, 2, 1.5)):
        band = round(band_um / steps[0])
        centre = np.rint(ilm).astype(int)
        rows = straighten(gray, centre, band + far, band + far)
        rows = _power(np.minimum(rows, ceiling), exponent)
        total = cumulate(smooth_columns(rows, 1))
        step = window_mean(total, 0, near) - window_mean(total, -near, 0)
        haze = window_mean(total, -far, 0)
        score = step + 0.5 * (window_mean(total, 0, far) - haze) - np.maximum(haze - 0.2, 0)
        score = score[..., far:-far]
        path = best_path(score, max_move=round(60 / steps[0]), move_cost=0.01 * steps[0])
        ilm = centre + subpixel(score, path) - band
        if exponent == 1:
            contrast = at_path(step, path + far)
    weight = np.clip(contrast, 0.02, 1)
    return whittaker(ilm, weight / weight.mean(axis=0), ILM_PERIOD_UM / steps[1]), contrast


def _find_bm(gray: np.ndarray, bm: np.ndarray, steps: Steps) -> np.ndarray:
    """Return BM (x, b) near a coarse one, as the smooth lower edge of the RPE."""
    near, far = round(15 / steps[0]), round(90 / steps[0])
    # under a wide detachment of the RPE the coarse BM is the RPE: there the surroundings know more
    even = np.ones_like(bm)
    floor = _bridged(bm, even, FLOOR_PERIOD_UM / steps[1], 20 / steps[0], (8, 8, 4, 4, 2, 2, 1))
    bm = np.maximum(bm, floor - 30 / steps[0])
    for band_um, exponent, period_um in ((80, 1.5, 2000), (30, 2, 1000)):
        band = round(band_um / steps[0])
        centre = np.rint(whittaker(bm, even, 600 / steps[1])).astype(int)
        rows = _power(straighten(gray, centre, band + far, band + far), exponent)
        total = cumulate(smooth_columns(rows, 1))
        score = window_mean(total, -near, 0) - window_mean(total, 0, near)
        score -= 0.5 * np.maximum(window_mean(total, near, far) - 0.5, 0)
        score = score[..., far:-far]
        path = best_path(score, max_move=max(1, round(6 / steps[0])), move_cost=0.0075 * steps[0])
        weight = np.maximum(at_path(score, path), 0.05) ** 2
        found = centre + subpixel(score, path) - band
        bm = _bridged(found, weight, period_um / steps[1], 8 / steps[0])
    return bm


def _bridged(
    found: np.ndarray,
    weight: np.ndarray,
    period: float,
    tolerance: float,
    easings: tuple[int, ...] = (8, 4, 2, 1, 1),
) -> np.ndarray:
    """Return a smooth curve through `found` (x, b) that bridges parts rising above it (drusen).

    Points off by more than `tolerance` rows lose weight, twice as soon above as below.
    """
    curve = whittaker(found, weight / weight.mean(axis=0), period)
    for easing in easings:
        rise = np.maximum(curve - found, 0) / (tolerance * easing)
        sink = np.maximum(found - curve, 0) / (2 * tolerance * easing)
        trust = weight / (1 + rise**2 + sink**2)
        curve = whittaker(found, trust / trust.mean(axis=0), period)
    return curve


def _find_rpe(
    gray: np.ndarray, ilm: np.ndarray, bm: np.ndarray, steps: Steps
) -> tuple[np.ndarray, np.ndarray]:
    """Return the RPE (x, b), where a bright band has the sharpest fall below, and its contrast."""
    above = round(ELEVATION_UM / steps[0])
    centre = np.rint(bm).astype(int)
    rows = np.minimum(straighten(gray, centre, above, round(40 / steps[0])), 1.5)
    total = cumulate(smooth_columns(rows, 1))
    half = max(1, round(6 / steps[0]))
    band = window_mean(total, -half, half)
    fall = band - window_mean(total, round(10 / steps[0]), round(31 / steps[0]))
    elevation = above - np.arange(band.shape[2])
    # drusen lift the RPE by up to 120 um; wide detachments, with a clear RPE, by more
    lift_um = steps[0] * np.abs(elevation)
    cost = 0.001 * lift_um + 0.004 * np.maximum(lift_um - 120, 0)
    score = band + fall - cost.astype(np.float32)
    # a bright band nearer to the ILM is the nerve fibre layer
    highest = ilm + np.minimum(LEAST_INNER_UM / steps[0], 0.5 * (centre - ilm))
    too_high = centre[..., np.newaxis] - elevation < highest[..., np.newaxis]
    score[(elevation < 0) | too_high] = -10
    path = best_path(score, max_move=round(40 / steps[0]), move_cost=0.005 * steps[0])
    # on the path itself, which seeks it, even noise has contrast
    steady = np.rint(smooth_columns(path.astype(np.float32), round(50 / steps[1]))).astype(int)
    return centre + subpixel(score, path) - above, at_path(fall, steady)
