"""Lesions of a phantom: some change the thickness of layers, all are painted and annotated.

Sizes are those of cysts, domes, drusen and foci in diabetic macular edema and AMD. A druse and a
subretinal dome are layers that have no thickness in a healthy eye; a cyst swells its host layer;
a hyperreflective focus is too small to displace anything.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

FLUID_GRAY = 0.06
PED_GRAY = 0.25
FOCUS_GRAY = 0.88
FOCUS_PX = (5, 2)  # z, x
KINDS = ("none", "fluid", "druse", "focus")  # of a pixel; fluid lies in cysts and under the retina
FIELD_MM = 1.7  # lesions are centred within this lateral distance of the fovea

CYSTS_PER_BSCAN, CYST_WIDTH_UM, CYST_HEIGHT_UM = (1, 4), (100, 400), (40, 150)
DRUSEN_PER_BSCAN, DRUSE_WIDTH_UM, DRUSE_HEIGHT_UM = (2, 5), (100, 400), (40, 120)
SRF_WIDTH_UM, SRF_HEIGHT_UM = (500, 1500), (60, 180)
FOCI_PER_BSCAN = (2, 5)

HOSTS = ("INL", "OPL", "ONL")
PIT_MM = 0.5  # nearer to the fovea the inner layers are too thin to hold a cyst
STEEPEST = 0.4  # height / width
SWELLING = 0.8  # part of a cyst's height by which its host thickens; the rest replaces tissue
LIFT = 0.6  # part of a druse's height by which the retina above rises; the ONL gives up the rest
LEAST_ONL = 0.4  # fraction of the ONL that stays
STIFFNESS_MM = 0.12  # the inner retina rises more smoothly than the lesion below it

Edges = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass
class Lesions:
    """What is painted into the layers: heights of cysts by host layer (b, x) in um, and foci.

    A focus is (b, x, host layer, depth within the layer from 0 to 1).
    """

    cysts_um: dict[str, np.ndarray]
    foci: list[tuple[int, int, str, float]]


def add_lesions(
    thickness_um: dict[str, np.ndarray],
    y_mm: np.ndarray,
    x_mm: np.ndarray,
    rng: np.random.Generator,
) -> Lesions:
    """Change `thickness_um` (b, x by layer) in place and return the lesions to paint.

    `y_mm` (b,) and `x_mm` (x,) are distances from the fovea.
    """
    low, high = np.clip(x_mm[[0, -1]], -FIELD_MM, FIELD_MM)
    stiffness_px = STIFFNESS_MM / (x_mm[1] - x_mm[0])

    def risen(height: np.ndarray) -> np.ndarray:
        return gaussian_filter1d(height, stiffness_px, axis=1, mode="nearest")

    drusen = thickness_um["drusen"]
    for y in _per_bscan(y_mm, DRUSEN_PER_BSCAN, rng):
        centre_x, height = rng.uniform(low, high), rng.uniform(*DRUSE_HEIGHT_UM)
        dome = _ellipsoid(y, centre_x, y_mm, x_mm, DRUSE_WIDTH_UM, height, rng)
        np.maximum(drusen, dome, out=drusen)
    onl = thickness_um["ONL"]
    onl -= np.minimum(drusen - LIFT * risen(drusen), (1 - LEAST_ONL) * onl)

    y = y_mm[rng.integers(len(y_mm) // 3, len(y_mm) - len(y_mm) // 3)]
    centre_x, height = rng.uniform(low, high) / 2, rng.uniform(*SRF_HEIGHT_UM)
    dome = _ellipsoid(y, centre_x, y_mm, x_mm, SRF_WIDTH_UM, height, rng)
    thickness_um["SRF"] += risen(dome)

    cysts_um = {host: np.zeros_like(onl) for host in HOSTS}
    for y in _per_bscan(y_mm, CYSTS_PER_BSCAN, rng):
        centre_x, height = rng.uniform(low, high), rng.uniform(*CYST_HEIGHT_UM)
        host = "ONL" if abs(centre_x) < PIT_MM else HOSTS[rng.integers(len(HOSTS))]
        body = _ellipsoid(y, centre_x, y_mm, x_mm, CYST_WIDTH_UM, height, rng)
        np.maximum(cysts_um[host], body, out=cysts_um[host])
    for host, height in cysts_um.items():
        thickness_um[host] += SWELLING * risen(height)

    columns = np.flatnonzero((x_mm >= low) & (x_mm <= high))[: -FOCUS_PX[1]]
    foci = [
        (b, int(rng.choice(columns)), HOSTS[rng.integers(len(HOSTS))], rng.uniform(0.2, 0.8))
        for b in range(len(y_mm))
        for _ in range(rng.integers(*FOCI_PER_BSCAN, endpoint=True))
    ]
    return Lesions(cysts_um, foci)


def paint_lesions(
    gray: np.ndarray, edges_px: Edges, lesions: Lesions, step_z_um: float
) -> np.ndarray:
    """Paint `lesions` into `gray` (b, z, x); return what each pixel then is, a place in `KINDS`.

    `edges_px` holds top and bottom (b, x) of each layer; drusen and subretinal fluid are layers
    and already have their gray value.
    """
    z = np.arange(gray.shape[1], dtype=np.float32)[None, :, None]
    kinds = np.zeros(gray.shape, np.uint8)
    for layer, kind in (("SRF", "fluid"), ("drusen", "druse")):
        top, bottom = (edge[:, None, :] for edge in edges_px[layer])
        kinds[(z >= top) & (z < bottom)] = KINDS.index(kind)

    for b, x, host, depth in lesions.foci:
        top, bottom = (edge[b, x] for edge in edges_px[host])
        first = round(top + depth * (bottom - top)) - FOCUS_PX[0] // 2
        spot = (b, slice(first, first + FOCUS_PX[0]), slice(x, x + FOCUS_PX[1]))
        gray[spot] = FOCUS_GRAY
        kinds[spot] = KINDS.index("focus")

    highest, lowest = edges_px["NFL"][1], edges_px["myoid"][1]
    for host, height_um in lesions.cysts_um.items():
        middle, half = sum(edges_px[host]) / 2, height_um / step_z_um / 2
        top = np.clip(middle - half, highest, lowest)[:, None, :]
        bottom = np.clip(middle + half, highest, lowest)[:, None, :]
        gray += (soft_step(z, top) - soft_step(z, bottom)) * (FLUID_GRAY - gray)
        kinds[(z >= top) & (z < bottom)] = KINDS.index("fluid")
    return kinds


def soft_step(z: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """Return 0 above `edge` and 1 below it, with a transition as wide as the axial resolution."""
    return np.clip((z - edge) / np.float32(2) + np.float32(0.5), 0, 1)


def _per_bscan(
    y_mm: np.ndarray, least_most: tuple[int, int], rng: np.random.Generator
) -> Iterator[float]:
    """Yield the position of each B-scan as often as it has a lesion of one sort."""
    for y in y_mm:
        for _ in range(rng.integers(*least_most, endpoint=True)):
            yield y


def _ellipsoid(
    y: float,
    centre_x: float,
    y_mm: np.ndarray,
    x_mm: np.ndarray,
    width_um: tuple[int, int],
    height_um: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the height (b, x) in um of an ellipsoid whose centre is near B-scan `y`."""
    radius_y, radius_x = rng.uniform(*width_um, size=2) / 2000
    centre_y = y + radius_y * rng.uniform(-0.4, 0.4)
    distance2 = ((y_mm - centre_y) / radius_y)[:, None] ** 2
    distance2 = distance2 + ((x_mm - centre_x) / radius_x)[None, :] ** 2
    height_um = min(height_um, STEEPEST * 2000 * radius_x)
    return (height_um * np.sqrt(np.maximum(1 - distance2, 0))).astype(np.float32)
