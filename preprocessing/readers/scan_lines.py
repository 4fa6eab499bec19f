"""How the B-scans of a scan lie on the fundus: their pattern, order and spacing, and corrections.

Positions are (b, 4) start x, start y, end x, end y in mm; x points right and y down the fundus
image, as in the files of Heidelberg Engineering.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocessing.errors import InputError
from preprocessing.readers.sidecar import read_sidecar
from preprocessing.volume import Volume

MAX_POSITION_MM = 100.0  # farther out is no fundus: a damaged file
PARALLEL_COS = 0.99  # 8 degrees
SAME_CENTRE = 0.1  # of the length of a B-scan, between the middles of a star
SAME_LENGTH = 0.02
MAX_STEP = 1.5  # times the usual step: beyond, a B-scan is missing
ROUNDING_MM = 0.002
DECLARED_TOLERANCE = 0.1  # a declared pixel width may be rounded, never this far off

CORRECTABLE = {"laterality": "eye", "device": "device", "spacing_mm": "spacing_mm"}


@dataclass(frozen=True)
class Layout:
    """Pattern (see `SCAN_PATTERNS`), whether the B-scans run from the top of the fundus, spacing.

    `between_mm` is 0 where B-scans are not parallel or there is only one.
    """

    pattern: str
    from_the_top: bool
    between_mm: float
    lateral_mm: float


def lay_out(path: Path, lines_mm: np.ndarray, n_x: int, circle: bool = False) -> Layout:
    """Return the layout of B-scans `n_x` pixels wide; a `circle` is given by start and centre.

    Raises InputError where a position is missing or the B-scans would be read in a wrong order.
    """
    if not (np.abs(lines_mm) < MAX_POSITION_MM).all():  # also when it is NaN
        raise InputError(f"{path}: a B-scan has no position on the fundus; export the scan again")
    vectors = lines_mm[:, 2:] - lines_mm[:, :2]
    lengths = np.linalg.norm(vectors, axis=1)
    if not lengths.all():
        raise InputError(f"{path}: a B-scan of no length on the fundus; export the scan again")
    length = float(np.median(lengths))
    if circle:
        if np.ptp(lengths) > SAME_LENGTH * length:
            raise InputError(f"{path}: circles of different radius; export each apart")
        return Layout("circle", False, 0.0, 2 * np.pi * length / n_x)
    directions = vectors / lengths[:, np.newaxis]
    middles = (lines_mm[:, :2] + lines_mm[:, 2:]) / 2
    cosines = directions @ directions[0]
    if np.abs(cosines).min() < PARALLEL_COS:
        if np.linalg.norm(middles - middles.mean(axis=0), axis=1).max() > SAME_CENTRE * length:
            raise InputError(
                f"{path}: its B-scans are neither parallel nor a star; export each pattern apart"
            )
        return Layout("radial", False, 0.0, length / n_x)
    right, down = directions[0]
    vertical = abs(down) > abs(right)
    if cosines.min() < 0 or (right < 0 and not vertical):
        raise InputError(
            f"{path}: its B-scans run from right to left; scan them from left to right, or convert "
            "the scan to NIfTI"
        )
    if len(lines_mm) == 1:
        return Layout("vertical" if vertical else "line", False, 0.0, length / n_x)
    steps = np.diff(middles @ (-down, right))
    _check_steps(path, steps)
    return Layout(
        pattern="vertical" if vertical else "raster",
        from_the_top=bool(steps[0] > 0) and not vertical,
        between_mm=float(abs(steps.mean())),  # positions are rounded, so not one step
        lateral_mm=length / n_x,
    )


def _check_steps(path: Path, steps: np.ndarray) -> None:
    """Refuse B-scans out of order or lost, `steps` being from each B-scan to the next, in mm."""
    back = np.flatnonzero(np.sign(steps) * np.sign(steps[0]) <= 0)
    far = np.flatnonzero(np.abs(steps) > MAX_STEP * np.median(np.abs(steps)) + ROUNDING_MM)
    for wrong, what in ((back, "are not in order on the fundus"), (far, "lie too far apart")):
        if wrong.size:
            raise InputError(
                f"{path}: B-scans {wrong[0] + 1} and {wrong[0] + 2} {what}; export the scan again"
            )


def agreed_mm(measured: float, declared: float) -> float:
    """Return the pixel width `measured` on the fundus, or NaN where the file declares another.

    They differ in scans that a program cropped: which of the two is true, only the user can know.

    >>> agreed_mm(0.01169, 0.0117), agreed_mm(0.1210, 0.0118)
    (0.01169, nan)
    """
    agree = abs(measured - declared) <= DECLARED_TOLERANCE * measured
    return measured if agree else float("nan")


def corrected(path: Path, volume: Volume) -> Volume:
    """Return `volume` with the eye, device and spacing that the sidecar of `path` gives instead.

    Raises InputError when it gives more: order and pattern follow from the positions in the file,
    and its intensity from the format.
    """
    facts = read_sidecar(path)
    for key in facts:
        if key not in CORRECTABLE:
            raise InputError(
                f"{path}: its sidecar gives '{key}', which the file itself tells; only "
                f"{', '.join(CORRECTABLE)} can be corrected"
            )
    return volume.replace(**{CORRECTABLE[key]: value for key, value in facts.items()})
