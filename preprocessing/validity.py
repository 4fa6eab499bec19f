"""Which pixels the device measured: a registered scan has empty wedges at its borders."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

MIN_RUN_PX = 8  # shorter runs of black at a border are speckle of the vitreous, which is not white
MIN_WEDGE_HEIGHT = 1 / 8  # of the depth of the scan, about 0.25 mm: no saturated layer is as thick
TISSUE_GRAY = 0.3  # of display values; the noise of a vitreous is darker
FLOAT_MAX = 1e30  # vendors mark missing linear values by FLT_MAX


def find_valid(data: np.ndarray, intensity: str) -> np.ndarray:
    """Return a bool array (b, z, x), False for pixels without a measurement.

    Invalid are values that are not finite or FLT_MAX, and runs of pure black or (in display
    values) pure white of at least `MIN_RUN_PX` that touch the border of the B-scan along z or x;
    along z also shorter ones of white, as a wedge tapers off. Runs along x count only where they
    begin on a stretch of border as high as a wedge's: a layer that is saturated, or dark and
    clipped to black, may leave the picture at its side. Where the device shows the whole vitreous
    black, black is what it measured, but for columns without anything else.
    """
    valid = np.stack([np.abs(bscan) < FLOAT_MAX for bscan in data])
    blanks = (0, 1) if intensity == "display" else (0,)
    if intensity == "display" and _vitreous_is_black(data):
        valid &= data.any(axis=1, keepdims=True)
        blanks = (1,)
    for step in (1, -1):
        _mark_along_z(data[:, ::step], valid[:, ::step], blanks)
        _mark_along_x(data[:, :, ::step], valid[:, :, ::step], blanks)
    return valid


def _vitreous_is_black(data: np.ndarray) -> bool:
    """Tell whether the black at the top of most columns (b, z, x) ends at tissue or in more black.

    A wedge of a registered scan ends in the noise of the vitreous.
    """
    first = (data != 0).argmax(axis=1)[:, np.newaxis]
    rows = np.minimum(first + np.arange(1, MIN_RUN_PX + 1)[:, np.newaxis], data.shape[1] - 1)
    below = np.take_along_axis(data, rows, axis=1)
    no_noise = (below == 0).mean(axis=1) >= 0.5
    no_noise |= below.mean(axis=1) > TISSUE_GRAY
    return (no_noise & (first[:, 0] >= MIN_RUN_PX)).mean() > 0.5


def _mark_along_z(data: np.ndarray, valid: np.ndarray, blanks: tuple[int, ...]) -> None:
    """Set `valid` False where a column begins with a long run of one blank value."""
    edge = data[:, 0]
    running = np.isin(edge, blanks)
    length = np.zeros(edge.shape, np.int32)
    for row in range(data.shape[1]):
        running &= data[:, row] == edge
        if not running.any():
            break
        length += running
    length[(length < MIN_RUN_PX) & (edge == 0)] = 0
    for row in range(length.max()):
        valid[:, row] &= length <= row


def _mark_along_x(data: np.ndarray, valid: np.ndarray, blanks: tuple[int, ...]) -> None:
    """Set `valid` False where a row begins with a long run of one blank value."""
    edge = data[:, :, :MIN_RUN_PX]
    rows = np.zeros(edge.shape[:2], bool)
    for blank in blanks:
        rows |= (edge == blank).all(axis=2) & _high_enough(edge[:, :, 0] == blank)
    lines = data[rows]
    differs = lines != lines[:, :1]
    length = np.where(differs.any(axis=1), differs.argmax(axis=1), lines.shape[1])
    valid[rows] &= np.arange(lines.shape[1]) >= length[:, np.newaxis]


def _high_enough(border: np.ndarray) -> np.ndarray:
    """Return which True of `border` (b, z) belong to a high stretch, or to one up to a corner."""
    height = int(np.ceil(MIN_WEDGE_HEIGHT * border.shape[1]))
    padded = np.pad(border, ((0, 0), (height, height)), constant_values=True)
    begins = sliding_window_view(padded, height, axis=1).all(axis=2)
    begins = np.pad(begins, ((0, 0), (height - 1, height - 1)))
    return sliding_window_view(begins, height, axis=1).any(axis=2)[:, height:-height]
