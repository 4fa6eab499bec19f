"""What quality control measures: of every A-scan, of the volume's orientation and of its centre.

Made to stay quiet about disease: a detachment, fluid or atrophy is no defect of a scan.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, median_filter, uniform_filter1d

from preprocessing.layers import Layers
from preprocessing.volume import Volume

JUMP_UM = 75  # more than a drusen changes the thickness, less than a layer mistaken for another
SLOPE = 0.2  # um of thickness per um along the retina: the mean over the rim of the fovea
NEAR_UM = 250  # lateral reach of the neighbourhood, half a wide drusenoid detachment
MARGIN_UM = 10  # a surface this close to the edge of the scan was cut off there
DARK = 0.5  # of the usual brightness: about 7 dB less, a fifth of the light
RIM_MM, PIT_UM = 0.7, 20  # where the rim of the foveal pit is, and how much higher at least
BESIDE_UM = (20, 80)  # distance from the outermost bright tissue, seen from outside
SPECKLE_UM = (20, 100)  # (z, x) over which gray values are averaged before they are judged


@dataclass
class Columns:
    """What is measured of each A-scan; arrays (b, x), NaN or False where layers are unknown.

    `contrast` is the gray of the retina above that of the vitreous. `light` is the gray around BM
    above the vitreous, 1 in the middle of the volume: what lies above throws its shadow there.
    `noise` (b,) is the standard deviation of speckle in the retina.
    """

    thickness_um: np.ndarray
    confidence: np.ndarray
    contrast: np.ndarray
    light: np.ndarray
    outlier: np.ndarray
    cut: np.ndarray
    dark: np.ndarray
    noise: np.ndarray


def measure(volume: Volume, layers: Layers) -> Columns:
    """Measure every A-scan of a normalised `volume` with its `layers`."""
    px = 1 / (1000 * volume.spacing_mm[1])
    ilm, bm = layers.ilm, layers.bm
    known = np.isfinite(bm - ilm)
    first, last = _extent(volume.valid)
    vitreous, retina, around_bm, top = _band_means(
        volume.data,
        volume.valid,
        (ilm - 150 * px, ilm - 30 * px),
        (ilm, bm),
        (bm - 60 * px, bm + 60 * px),
        (first, first + 40 * px),
    )
    black = row_means(vitreous, np.median)
    black = np.where(np.isnan(black), np.nan_to_num(mean_of(black), nan=-1), black)[:, np.newaxis]
    contrast, light = retina - black, around_bm - black
    usual = mean_of(contrast, np.median)

    # neighbouring columns share the layers but not the speckle
    change = np.diff(volume.data, axis=2, prepend=volume.data[..., :1])
    (power,) = _band_means(change * change, volume.valid, (ilm, bm))

    at_edge = (ilm - first < MARGIN_UM * px) | (last - bm < MARGIN_UM * px)
    return Columns(
        thickness_um=(bm - ilm) / px,
        confidence=np.where(known, layers.confidence, np.nan),
        contrast=contrast,
        light=light / np.maximum(mean_of(light, np.median), 1e-6),
        outlier=known & _outlying((bm - ilm) / px, volume.spacing_mm),
        # what lies above the zero delay comes back folded: bright at the very top
        cut=known & (at_edge | (top - black > usual / 2)),
        # a cyst darkens the retina, a drusen what lies below; a dropout both
        dark=known & _is_dark(contrast, volume) & _is_dark(light, volume),
        noise=np.sqrt(row_means(power) / 2),
    )


def choroid_glow(volume: Volume, most: int = 12) -> float:
    """Return how much lighter it is below the tissue than above it, in up to `most` B-scans.

    In units of the span of gray values: 0.1 to 0.3 in eyes, 0.01 in the dimmest, -0.25 upside down.
    Next to the bright tissue lies the dark vitreous above, and the fading choroid below; without
    layers, which would be wrong in a volume that is upside down.
    """
    step_um = 1000 * volume.spacing_mm[1]
    high, wide = SPECKLE_UM[0] / step_um, SPECKLE_UM[1] / (1000 * volume.spacing_mm[2])
    chosen = np.unique(np.linspace(0, len(volume.data) - 1, most).astype(int))
    data, valid = volume.data[chosen], volume.valid[chosen]
    gray = uniform_filter1d(np.where(valid, data, np.float32(-1)), max(1, round(high)), axis=1)
    gray = uniform_filter1d(gray, max(1, round(wide)), axis=2)
    dark, bright = np.percentile(gray, (10, 99), axis=(1, 2))
    tissue = gray > (0.4 * dark + 0.6 * bright)[:, np.newaxis, np.newaxis]
    first = np.where(tissue.any(axis=1), tissue.argmax(axis=1), np.nan)
    last = np.where(tissue.any(axis=1), data.shape[1] - 1 - tissue[:, ::-1].argmax(axis=1), np.nan)
    near, far = (um / step_um for um in BESIDE_UM)
    above, below = _band_means(data, valid, (first - far, first - near), (last + near, last + far))
    surplus = (row_means(below) - row_means(above)) / np.maximum(bright - dark, 1e-6)
    return mean_of(surplus, np.median)


def fovea_off_centre_mm(thickness_um: np.ndarray, volume: Volume) -> float:
    """Return how far from the middle of the scan the foveal pit lies, NaN when none is seen.

    A pit is thinner than its surroundings on at least three sides; the fourth may be out of sight.
    """
    step_mm = np.array([volume.spacing_mm[0], volume.spacing_mm[2]])
    if not step_mm.all() or volume.scan_pattern != "raster" or np.isnan(thickness_um).all():
        return np.nan
    filled = np.where(np.isnan(thickness_um), mean_of(thickness_um, np.median), thickness_um)
    smooth, wide = (gaussian_filter(filled, mm / step_mm, mode="nearest") for mm in (0.2, 0.8))
    pit = np.array(np.unravel_index((smooth - wide).argmin(), filled.shape))
    sides = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)]) * np.rint(RIM_MM / step_mm) + pit
    sides = sides[((sides >= 0) & (sides < filled.shape)).all(axis=1)].astype(int)
    rims_um = smooth[tuple(sides.T)] - smooth[tuple(pit)]
    if len(sides) < 3 or rims_um.min() < PIT_UM:
        return np.nan
    return float(np.hypot(*((pit - (np.array(filled.shape) - 1) / 2) * step_mm)))


def mean_of(values: np.ndarray, mean: Callable = np.mean) -> float:
    """Return the mean (or median, ...) of the known `values`, NaN when there are none."""
    known = values[np.isfinite(values)]
    return float(mean(known)) if known.size else np.nan


def row_means(values: np.ndarray, mean: Callable = np.mean) -> np.ndarray:
    """Return the mean (or median, ...) of the known values in each row of `values` (b, x)."""
    return np.array([mean_of(row, mean) for row in values])


def _extent(valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first valid row (b, x) and the row after the last one, as borders in pixels."""
    return valid.argmax(axis=1) - 0.5, valid.shape[1] - valid[:, ::-1].argmax(axis=1) - 0.5


def _band_means(
    values: np.ndarray, valid: np.ndarray, *bands: tuple[np.ndarray, np.ndarray]
) -> list[np.ndarray]:
    """Return the mean (b, x) of valid `values` (b, z, x) in each band, NaN where it has none.

    A band is (top, bottom), each (b, x) in z pixels.
    """
    n_b, n_z, n_x = values.shape
    total, count = (
        np.zeros((n_b, n_z + 1, n_x), np.float32),
        np.zeros((n_b, n_z + 1, n_x), np.int16),
    )
    np.cumsum(np.where(valid, values, 0), axis=1, out=total[:, 1:])
    np.cumsum(valid, axis=1, out=count[:, 1:])
    means = []
    for band in bands:
        rows = [np.rint(np.nan_to_num(border) + 0.5).clip(0, n_z).astype(int) for border in band]
        start, stop = (row[:, np.newaxis] for row in rows)
        n, gray = (
            (np.take_along_axis(sums, stop, 1) - np.take_along_axis(sums, start, 1))[:, 0]
            for sums in (count, total)
        )
        usable = (n > 0) & np.isfinite(band[0]) & np.isfinite(band[1])
        means.append(np.where(usable, gray / np.maximum(n, 1), np.float32(np.nan)))
    return means


def _is_dark(brightness: np.ndarray, volume: Volume) -> np.ndarray:
    """Return where `brightness` (b, x) is far below that of the better part of its own B-scan.

    Gain differs between the B-scans of a volume; what a dim one as a whole can tell is its signal.
    """
    better = row_means(brightness, lambda row: np.percentile(row, 75))[:, np.newaxis]
    width = max(1, round(SPECKLE_UM[1] / (1000 * volume.spacing_mm[2])))
    steady = uniform_filter1d(np.where(np.isnan(brightness), better, brightness), width, axis=1)
    return steady < DARK * better


def _outlying(thickness_um: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Return where the thickness (b, x) is far from that of its neighbourhood.

    The median along the B-scan shows spikes, the one over five B-scans those that are off as a
    whole; a slope, as at the fovea, and an edge, as of a detachment, change neither by much.
    """
    columns = np.arange(thickness_um.shape[1])
    filled = np.full_like(thickness_um, np.nan_to_num(mean_of(thickness_um, np.median)))
    for row, full in zip(thickness_um, filled, strict=True):
        known = np.isfinite(row)
        if known.any():
            full[:] = np.interp(columns, columns[known], row[known])
    reach = round(NEAR_UM / (1000 * spacing_mm[2]))
    along = median_filter(filled, (1, 2 * reach + 1), mode="mirror")
    far = np.abs(filled - along) > JUMP_UM
    if len(filled) > 1:
        across = median_filter(filled, (5, 5), mode="mirror")
        far |= np.abs(filled - across) > JUMP_UM + SLOPE * 1000 * spacing_mm[0]
    return far
