"""Numerics of layer segmentation: best paths through scores, and smooth curves.

Everything works on all B-scans at once and has axes (x, b, z): a path walks along x, and z is
contiguous because every filter runs along it.
"""

import numpy as np

BLOCK = 8  # B-scans searched at a time, so that the states of a column stay in the cache


def straighten(image: np.ndarray, centre: np.ndarray, above: int, below: int) -> np.ndarray:
    """Return rows `centre - above` to `centre + below` of each column, (x, b, above + below + 1).

    `centre` (x, b) holds whole rows; rows outside `image` (x, b, z) repeat its border.
    """
    rows = centre[..., np.newaxis] + np.arange(-above, below + 1)
    return np.take_along_axis(image, np.clip(rows, 0, image.shape[2] - 1), axis=2)


def cumulate(image: np.ndarray) -> np.ndarray:
    """Return the cumulative sum of `image` (x, b, z) along z, starting with 0: (x, b, z + 1)."""
    total = np.zeros((*image.shape[:2], image.shape[2] + 1), np.float32)
    np.cumsum(image, axis=2, out=total[..., 1:])
    return total


def window_mean(total: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Return the mean of rows [k + start, k + stop) for every row border k of `cumulate`'s result.

    Border k lies between rows k - 1 and k; windows are cut off at the ends of the image.
    """
    n = total.shape[2]
    first, last = (np.clip(np.arange(n) + shift, 0, n - 1) for shift in (start, stop))
    mean = _shifted(total, stop)
    mean -= _shifted(total, start)
    mean *= (1 / np.maximum(last - first, 1)).astype(np.float32)
    return mean


def _shifted(total: np.ndarray, shift: int) -> np.ndarray:
    """Return `total` at `k + shift` for every k of the last axis, the ends repeated."""
    n = total.shape[2]
    shift = min(max(shift, -n), n)
    moved = np.empty_like(total)
    if shift >= 0:
        moved[..., : n - shift] = total[..., shift:]
        moved[..., n - shift :] = total[..., -1:]
    else:
        moved[..., -shift:] = total[..., :shift]
        moved[..., :-shift] = total[..., :1]
    return moved


def smooth_columns(image: np.ndarray, radius: int) -> np.ndarray:
    """Return the mean over `2 * radius + 1` columns of `image` (x, ...); fewer at the ends."""
    n = len(image)
    total = np.concatenate([np.zeros_like(image[:1]), np.cumsum(image, axis=0)])
    first = np.clip(np.arange(n) - radius, 0, n)
    last = np.clip(np.arange(n) + radius + 1, 0, n)
    width = (last - first).astype(np.float32).reshape(-1, *[1] * (image.ndim - 1))
    return (total[last] - total[first]) / width


def best_path(score: np.ndarray, max_move: int, move_cost: float) -> np.ndarray:
    """Return the path (x, b) through `score` (x, b, z) with the highest sum (Viterbi).

    From column to column it moves by at most `max_move` rows, at `move_cost` a row.
    """
    n_x, n_b, n_z = score.shape
    total = np.array(score)
    for x in range(1, n_x):
        total[x] += _after_move(total[x - 1], 1, max_move, move_cost)
    moves = np.arange(-max_move, max_move + 1)
    cost = (move_cost * np.abs(moves)).astype(np.float32)
    b = np.arange(n_b)[:, np.newaxis]
    path = np.empty((n_x, n_b), np.intp)
    path[-1] = total[-1].argmax(axis=1)
    for x in range(n_x - 2, -1, -1):
        origins = path[x + 1][:, np.newaxis] + moves
        value = total[x, b, origins.clip(0, n_z - 1)] - cost
        value[(origins < 0) | (origins >= n_z)] = -np.inf
        path[x] = path[x + 1] + moves[value.argmax(axis=1)]
    return path


def best_pair(
    upper: np.ndarray,
    lower: np.ndarray,
    gaps: tuple[int, int],
    max_moves: tuple[int, int],
    move_cost: float,
    bonus: np.ndarray | None = None,
) -> np.ndarray:
    """Return two paths (2, x, b), found together, that maximise the sum of `upper` and `lower`.

    Scores are (x, b, z), and `bonus` (x, b, gap) is one for the distance of the paths. The lower
    path stays `gaps[0]` to `gaps[1]` rows below the upper one. From column to column it moves by at
    most `max_moves[0]` rows and the gap changes by at most `max_moves[1]`, each row at `move_cost`.
    """
    if bonus is None:
        bonus = np.zeros((*lower.shape[:2], gaps[1] - gaps[0] + 1), np.float32)
    blocks = [slice(start, start + BLOCK) for start in range(0, lower.shape[1], BLOCK)]
    paths = [
        _best_pair(upper[:, b], lower[:, b], bonus[:, b], gaps, max_moves, move_cost)
        for b in blocks
    ]
    return np.concatenate(paths, axis=2)


def _best_pair(
    upper: np.ndarray,
    lower: np.ndarray,
    bonus: np.ndarray,
    gaps: tuple[int, int],
    max_moves: tuple[int, int],
    move_cost: float,
) -> np.ndarray:
    n_x, n_b, n_z = lower.shape
    gap = np.arange(gaps[0], gaps[1] + 1)
    upper_row = np.arange(n_z) - gap[:, np.newaxis]  # of state (gap, lower row)
    outside = np.where(upper_row < 0, np.float32(-1e6), np.float32(0))
    upper_row = np.maximum(upper_row, 0)
    total = np.empty((n_x, n_b, *upper_row.shape), np.float32)
    for x in range(n_x):
        np.add(upper[x][:, upper_row], outside, out=total[x])
        total[x] += lower[x][:, np.newaxis] + bonus[x][..., np.newaxis]
        if x:
            before = _after_move(total[x - 1], 2, max_moves[0], move_cost)
            total[x] += _after_move(before, 1, max_moves[1], move_cost)

    row_moves, gap_moves = np.mgrid[
        -max_moves[0] : max_moves[0] + 1, -max_moves[1] : max_moves[1] + 1
    ].reshape(2, -1)
    cost = (move_cost * (np.abs(row_moves) + np.abs(gap_moves))).astype(np.float32)
    b = np.arange(n_b)
    g, row = np.unravel_index(total[-1].reshape(n_b, -1).argmax(axis=1), upper_row.shape)
    paths = np.empty((2, n_x, n_b), np.intp)
    for x in range(n_x - 1, -1, -1):
        paths[:, x] = np.maximum(row - gap[g], 0), row
        if x == 0:
            break
        rows, gs = row[:, np.newaxis] + row_moves, g[:, np.newaxis] + gap_moves
        beyond = (rows < 0) | (rows >= n_z) | (gs < 0) | (gs >= len(gap))
        place = (b[:, np.newaxis], gs.clip(0, len(gap) - 1), rows.clip(0, n_z - 1))
        choice = np.where(beyond, -np.inf, total[x - 1][place] - cost).argmax(axis=1)
        row, g = rows[b, choice], gs[b, choice]
    return paths


def _after_move(total: np.ndarray, axis: int, max_move: int, move_cost: float) -> np.ndarray:
    """Return the best of `total` within `max_move` along `axis`, less the cost of the move."""
    best = total.copy()
    for move in range(1, min(max_move, total.shape[axis] - 1) + 1):
        start, end = ((slice(None),) * axis + (s,) for s in (slice(None, -move), slice(move, None)))
        dearer = total - np.float32(move_cost * move)
        np.maximum(best[start], dearer[end], out=best[start])
        np.maximum(best[end], dearer[start], out=best[end])
    return best


def at_path(score: np.ndarray, path: np.ndarray) -> np.ndarray:
    """Return the values (x, b) of `score` (x, b, z) along `path` (x, b)."""
    return np.take_along_axis(score, path[..., np.newaxis], 2)[..., 0]


def subpixel(score: np.ndarray, path: np.ndarray) -> np.ndarray:
    """Return `path` (x, b) moved by at most half a row to the vertex of a parabola on `score`."""
    middle = np.clip(path, 1, score.shape[2] - 2)
    left, peak, right = (at_path(score, middle + k) for k in (-1, 0, 1))
    bend = left - 2 * peak + right
    shift = np.where(bend < -1e-6, 0.5 * (left - right) / np.minimum(bend, -1e-6), 0.0)
    return path + np.where(path == middle, np.clip(shift, -0.5, 0.5), 0.0)


def whittaker(curve: np.ndarray, weight: np.ndarray, period: float) -> np.ndarray:
    """Return the smooth curve (x, b) nearest to `curve` under `weight`.

    Second differences are penalised (Eilers 2003, doi:10.1021/ac034173t); `period` is the wave
    length, in columns, whose amplitude is halved where the weight is 1.
    """
    from scipy.linalg import solveh_banded

    n = len(curve)
    if n < 3:
        return curve.copy()
    stiffness = (period / (2 * np.pi)) ** 4
    difference = np.diff(np.eye(n), 2, axis=0)
    square = stiffness * difference.T @ difference
    bands = np.stack([np.pad(np.diagonal(square, k), (0, k)) for k in range(3)])
    smooth = np.empty(curve.shape)
    for b in range(curve.shape[1]):
        system = bands.copy()
        system[0] += weight[:, b] + 1e-6
        smooth[:, b] = solveh_banded(system, (weight[:, b] + 1e-6) * curve[:, b], lower=True)
    return smooth
