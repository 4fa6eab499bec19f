"""Anomalous regions: connected pixels of a heat map above what healthy eyes reach."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import find_objects, gaussian_filter, label, maximum_filter

from anogan.maps.file import VolumeMaps
from preprocessing.geometry import Geometry

SMOOTHING_UM = 8  # less than a hyperreflective focus, more than the axial grain of speckle
NEIGHBOURS = np.array([[[0] * 3] * 3, [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[0] * 3] * 3])
RING_UM = (16, 44)  # how far a region's surroundings reach, in z and x


@dataclass(frozen=True)
class Region:
    """Connected pixels of one B-scan of a flat volume.

    Attributes
    ----------
    bscan : its number.
    corner : row and column of the first pixel of `mask`.
    mask : bool (h, w), the region's own pixels.
    peak : row and column of the pixel with the highest value.
    excess : by how much that value exceeds the threshold.
    """

    bscan: int
    corner: tuple[int, int]
    mask: np.ndarray
    peak: tuple[int, int]
    excess: float

    @property
    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns (n,) of its pixels in the flat B-scan."""
        rows, columns = np.nonzero(self.mask)
        return rows + self.corner[0], columns + self.corner[1]

    @property
    def centroid(self) -> tuple[float, float]:
        """Mean row and column of its pixels."""
        rows, columns = self.pixels
        return float(rows.mean()), float(columns.mean())

    def drawn(self, shape: tuple[int, int]) -> np.ndarray:
        """Return bool of `shape`, that of the flat B-scan: True on its pixels."""
        return _placed(self.mask, self.corner, shape)

    def surroundings(self, shape: tuple[int, int], pixel_um: tuple[float, float]) -> np.ndarray:
        """Return bool of `shape`: True within `RING_UM` of its pixels but not on them."""
        reach = [max(1, round(um / pixel)) for um, pixel in zip(RING_UM, pixel_um, strict=True)]
        wide = np.pad(self.mask, [(pixels, pixels) for pixels in reach])
        ring = maximum_filter(wide, [2 * pixels + 1 for pixels in reach]) & ~wide
        return _placed(ring, (self.corner[0] - reach[0], self.corner[1] - reach[1]), shape)


def _placed(mask: np.ndarray, corner: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Return bool of `shape`: True where `mask` is, whose first pixel lies at `corner`."""
    places = np.argwhere(mask) + corner
    rows, columns = places[((places >= 0) & (places < shape)).all(axis=1)].T
    found = np.zeros(shape, bool)
    found[rows, columns] = True
    return found


def within_retina(geometry: Geometry, n_rows: int) -> np.ndarray:
    """Return bool (b, r, c) of a flat volume: True from ILM to Bruch's membrane."""
    rows = np.arange(n_rows)[None, :, None]
    return (rows >= geometry.ilm[:, None]) & (rows <= geometry.bm[:, None])


def retinal_heat(
    maps: VolumeMaps, geometry: Geometry, pixel_um: tuple[float, float]
) -> tuple[str, np.ndarray]:
    """Return the map that is looked at, "residual" or "score", and its values (b, r, c).

    They are smoothed by `SMOOTHING_UM` within each B-scan, and NaN outside the retina and where no
    patch lies. `pixel_um` is the height and width of a pixel. The score takes the residual's place
    where nothing was rebuilt.
    """
    kind = "score" if maps.residual is None else "residual"
    values = getattr(maps, kind).astype(np.float32)
    covered = np.isfinite(values)
    sigma = (0, SMOOTHING_UM / pixel_um[0], SMOOTHING_UM / pixel_um[1])
    weight = gaussian_filter(covered.astype(np.float32), sigma)
    heat = gaussian_filter(np.where(covered, values, 0), sigma) / np.maximum(weight, 1e-6)
    heat[~(covered & within_retina(geometry, values.shape[1]))] = np.nan
    return kind, heat


def some_values(heat: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` of the known values of a map, evenly spaced."""
    known = heat[np.isfinite(heat)]
    return known[:: max(1, -(-len(known) // count))]


def find_regions(
    heat: np.ndarray, threshold: float, pixel_um2: np.ndarray, smallest_um2: float
) -> list[Region]:
    """Return the regions of `heat` (b, r, c) above `threshold` that have `smallest_um2`, in order.

    Pixels belong together that share an edge; `pixel_um2` (b, c) is the area of one in the eye.
    """
    with np.errstate(invalid="ignore"):
        labels, n = label(heat > threshold, NEIGHBOURS)
    b, r, c = np.nonzero(labels)
    area_um2 = np.bincount(labels[b, r, c] - 1, pixel_um2[b, c], n)
    boxes = find_objects(labels)
    large = np.flatnonzero(area_um2 >= smallest_um2)
    return [_region(heat, labels, boxes[i], i + 1, threshold) for i in large]


def hottest(regions: list[Region], count: int) -> np.ndarray:
    """Return bool (n,): True for the `count` regions with the highest peak, of equals the first."""
    found = np.zeros(len(regions), bool)
    found[np.argsort([-region.excess for region in regions], kind="stable")[:count]] = True
    return found


def _region(
    heat: np.ndarray, labels: np.ndarray, box: tuple[slice, ...], own: int, threshold: float
) -> Region:
    corner = box[1].start, box[2].start
    mask = labels[box][0] == own
    values = np.where(mask, heat[box][0], -np.inf)
    row, column = np.unravel_index(values.argmax(), mask.shape)
    peak = int(corner[0] + row), int(corner[1] + column)
    return Region(box[0].start, corner, mask, peak, float(values.max() - threshold))


def native_outline(region: Region, geometry: Geometry) -> dict[str, float]:
    """Return where a region lies in the volume as loaded.

    `z`, `x` are the centroid in pixel centres; the pixels whose centres lie within its edges are
    `z0` up to but not including `z1`, and likewise along x.
    """
    rows, columns = region.pixels
    _, top, left = geometry.to_native(region.bscan, rows - 0.5, columns)
    _, bottom, right = geometry.to_native(region.bscan, rows + 0.5, columns)
    _, z, x = geometry.to_native(region.bscan, rows, columns)
    half = geometry.x_factor / 2
    first = int(np.ceil(top.min())), int(np.ceil((left - half).min()))
    last = int(np.ceil(bottom.max())), int(np.ceil((right + half).max()))
    return {
        "z": float(z.mean()),
        "x": float(x.mean()),
        "z0": first[0],
        "z1": max(last[0], first[0] + 1),
        "x0": first[1],
        "x1": max(last[1], first[1] + 1),
    }


def measures(
    region: Region,
    gray: np.ndarray,
    valid: np.ndarray,
    geometry: Geometry,
    pixel_um: tuple[float, float],
) -> dict[str, float]:
    """Return size, depth and gray value of a region of a flat B-scan `gray` (r, c).

    `depth` is the mean place of its pixels between ILM (0) and Bruch's membrane (1), `above_bm_um`
    their mean height above the latter; `gray_outside` is the mean of the valid pixels around it.
    """
    rows, columns = region.pixels
    ilm, bm = geometry.ilm[region.bscan, columns], geometry.bm[region.bscan, columns]
    outside = region.surroundings(gray.shape, pixel_um) & valid
    step_um = pixel_um[0] * float(geometry.z_scale[region.bscan, columns].mean())
    return {
        "width_um": region.mask.shape[1] * pixel_um[1],
        "height_um": region.mask.shape[0] * step_um,
        "area_um2": len(rows) * step_um * pixel_um[1],
        "depth": float(np.mean((rows - ilm) / np.maximum(bm - ilm, 1))),
        "above_bm_um": float(np.mean(bm - rows)) * step_um,
        "gray_inside": float(gray[rows, columns].mean()),
        "gray_outside": float(gray[outside].mean()) if outside.any() else np.nan,
    }
