"""Numerics of layer segmentation: best paths through scores, and smooth curves.

Everything works on all B-scans at once and has axes (x, b, z): a path walks along x, and z is
contiguous because every filter runs along it.
"""

import numpy as np


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
    borders = np.arange(total.shape[2])
    first = np.clip(borders + start, 0, total.shape[2] - 1)
    last = np.clip(borders + stop, 0, total.shape[2] - 1)
    return (total[..., last] - total[..., first]) / np.maximum(last - first, 1).astype(np.float32)


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
    n_x, n_b, _ = score.shape
    origin = np.zeros(score.shape, np.int8)
    total = score[0]
    for x in range(1, n_x):
        total = _after_move(total, 1, max_move, move_cost, origin[x]) + score[x]
    path = np.empty((n_x, n_b), np.intp)
    path[-1] = total.argmax(axis=1)
    for x in range(n_x - 1, 0, -1):
        path[x - 1] = path[x] + origin[x, np.arange(n_b), path[x]]
    return path


def best_pair(
    upper: np.ndarray,
    lower: np.ndarray,
    gaps: tuple[int, int],
    max_moves: tuple[int, int],
    move_cost: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return two paths (x, b), found together, that maximise the sum of `upper` and `lower`.

    Scores are (x, b, z). The lower path stays `gaps[0]` to `gaps[1]` rows below the upper one.
    From column to column it moves by at most `max_moves[0]` rows and the gap changes by at most
    `max_moves[1]`, each row at `move_cost`.
    """
    n_x, n_b, n_z = lower.shape
    gap = np.arange(gaps[0], gaps[1] + 1)
    upper_row = np.arange(n_z)[:, np.newaxis] - gap  # of state (lower row, gap)
    outside = np.where(upper_row < 0, np.float32(-1e6), np.float32(0))
    upper_row = np.maximum(upper_row, 0)
    origin = np.zeros((2, n_x, n_b, *upper_row.shape), np.int8)
    total = np.zeros((n_b, *upper_row.shape), np.float32)
    for x in range(n_x):
        for axis in (0, 1):
            total = _after_move(total, axis + 1, max_moves[axis], move_cost, origin[axis, x])
        total += upper[x][:, upper_row] + lower[x][:, :, np.newaxis] + outside
    b = np.arange(n_b)
    row, g = np.unravel_index(total.reshape(n_b, -1).argmax(axis=1), upper_row.shape)
    paths = np.empty((2, n_x, n_b), np.intp)
    for x in range(n_x - 1, -1, -1):
        paths[:, x] = np.maximum(row - gap[g], 0), row
        g = g + origin[1, x, b, row, g]
        row = row + origin[0, x, b, row, g]
    return paths[0], paths[1]


def _after_move(
    total: np.ndarray, axis: int, max_move: int, move_cost: float, origin: np.ndarray
) -> np.ndarray:
    """Return the best of `total` within `max_move` along `axis`; its offset goes to `origin`."""
    best = total.copy()
    for move in range(1, min(max_move, total.shape[axis] - 1) + 1):
        start, end = ((slice(None),) * axis + (s,) for s in (slice(None, -move), slice(move, None)))
        for here, there, offset in ((start, end, move), (end, start, -move)):
            candidate = total[there] - np.float32(move_cost * move)
            better = candidate > best[here]
            np.copyto(best[here], candidate, where=better)
            np.copyto(origin[here], np.int8(offset), where=better)
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
