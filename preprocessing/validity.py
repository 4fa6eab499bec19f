"""Which pixels the device measured: a registered scan has empty wedges at its borders."""

import numpy as np

MIN_RUN_PX = 8  # shorter runs of black at a border are speckle of the vitreous
FLOAT_MAX = 1e30  # vendors mark missing linear values by FLT_MAX


def find_valid(data: np.ndarray, intensity: str) -> np.ndarray:
    """Return a bool array (b, z, x), False for pixels without a measurement.

    Invalid are values that are not finite or FLT_MAX, and runs of pure black or (in display
    values) pure white of at least `MIN_RUN_PX` that touch the border of the B-scan along z or x.
    """
    valid = np.isfinite(data) & (data < FLOAT_MAX)
    blanks = [0.0, 1.0] if intensity == "display" else [0.0]
    for value in blanks:
        blank = data == np.float32(value)
        for axis in (1, 2):
            valid &= ~_border_runs(blank, axis)
    return valid


def _border_runs(blank: np.ndarray, axis: int) -> np.ndarray:
    """Return which True pixels belong to a long run along `axis` that starts at either end."""
    marked = np.zeros_like(blank)
    for direction in (1, -1):
        order = [slice(None)] * 3
        order[axis] = slice(None, None, direction)
        order = tuple(order)
        run = np.logical_and.accumulate(blank[order], axis=axis)
        long_enough = run.sum(axis=axis, keepdims=True) >= MIN_RUN_PX
        marked[order] |= run & long_enough
    return marked
