"""The anatomy of a phantom: layers, vessels and lesions of one made-up eye, before light."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from preprocessing.errors import InputError
from preprocessing.phantom_lesions import FLUID_GRAY, PED_GRAY, Lesions, add_lesions
from preprocessing.seeds import derive_seed

MIN_WIDTH = 32

# From vitreous to choroid: thickness in um at the fovea, at 1 mm and at 2.5 mm from it, and gray.
LAYERS = {
    "NFL": (4, 12, 18, 0.73),
    "GCL+IPL": (8, 90, 65, 0.55),
    "INL": (5, 40, 33, 0.45),
    "OPL": (7, 25, 25, 0.52),
    "ONL": (92, 68, 56, 0.33),
    "myoid": (28, 28, 28, 0.37),
    "EZ": (14, 14, 14, 0.85),
    "OS": (38, 22, 22, 0.74),
    "SRF": (0, 0, 0, FLUID_GRAY),
    "RPE": (15, 15, 15, 0.85),
    "drusen": (0, 0, 0, 0.62),
    "PED": (0, 0, 0, PED_GRAY),
    "BM": (4, 4, 4, 0.85),
    "choriocapillaris": (12, 12, 12, 0.58),
    "choroid": (250, 250, 250, 0.40),
}
EYE_RADIUS_MM = 22.0


def generator(volume: str, seed: int, part: str) -> np.random.Generator:
    """Return the random numbers of one part of a phantom."""
    return np.random.default_rng(derive_seed(seed, "phantom", volume, part))


@dataclass(frozen=True)
class Anatomy:
    """An eye before light falls on it: `edges_px` of its layers, `shadow` (b, x) of its vessels."""

    eye: str
    edges_px: dict[str, tuple[np.ndarray, np.ndarray]]
    shadow: np.ndarray
    lesions: Lesions | None


def make_anatomy(
    volume: str,
    seed: int,
    diseased: bool,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    reshape: Callable[[dict[str, np.ndarray], np.ndarray, np.ndarray], None] | None = None,
) -> Anatomy:
    """Return one eye; the arguments are those of `make_phantom`, which says what it raises."""
    if shape[0] < 1 or shape[2] < MIN_WIDTH:
        raise InputError(
            f"a phantom of {shape[0]} B-scans with {shape[2]} columns is too small; "
            f"give at least 1 with --bscans and {MIN_WIDTH} with --width"
        )
    rng = generator(volume, seed, "anatomy")
    eye = "RL"[rng.integers(2)]
    y_mm, x_mm = _positions_mm(shape, spacing_mm, rng)
    nasal_mm = x_mm if eye == "R" else -x_mm
    thickness_um = _thickness_um(y_mm, nasal_mm, rng)
    bm_um = _bm_um(y_mm, x_mm, rng)
    shadow = _vessel_shadow(y_mm, x_mm, rng)
    lesions = None
    if diseased:
        lesions = add_lesions(thickness_um, y_mm, x_mm, generator(volume, seed, "lesions"))
    if reshape:
        reshape(thickness_um, y_mm, x_mm)
    edges_px = _edges_px(thickness_um, bm_um, shape[1], 1000 * spacing_mm[1])
    return Anatomy(eye, edges_px, shadow, lesions)


def _positions_mm(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return y (b,) and x (x,) as distances from a fovea that is a little off the centre."""
    off_y, off_x = np.clip(rng.normal(0, 0.12, 2), -0.25, 0.25)
    y = (np.arange(shape[0]) - (shape[0] - 1) / 2) * spacing_mm[0] - off_y
    x = (np.arange(shape[2]) - (shape[2] - 1) / 2) * spacing_mm[2] - off_x
    return y.astype(np.float32), x.astype(np.float32)


def _thickness_um(
    y_mm: np.ndarray, nasal_mm: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return the thickness (b, x) of each layer of one individual's healthy eye."""
    radius = np.hypot(y_mm[:, None], nasal_mm[None, :])
    pit = np.exp(-((radius / rng.uniform(0.38, 0.52)) ** 2))
    far = np.clip((radius - 0.8) / 1.7, 0, 1)
    far = far * far * (3 - 2 * far)
    whole_eye = rng.uniform(0.94, 1.06)
    thickness_um = {}
    for name, (fovea, at_1mm, at_2_5mm, _) in LAYERS.items():
        healthy = at_1mm + (at_2_5mm - at_1mm) * far + (fovea - at_1mm) * pit
        healthy = healthy * np.clip(whole_eye * rng.uniform(0.95, 1.05), 0.92, 1.08)
        waves = gaussian_filter(rng.standard_normal(radius.shape), (1, 20), mode="nearest")
        thickness_um[name] = (healthy * (1 + 0.25 * waves)).astype(np.float32)
    thickness_um["NFL"] *= 1 + 0.5 * np.clip(nasal_mm, -1, 2.5)
    return thickness_um


def _bm_um(y_mm: np.ndarray, x_mm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the depth (b, x) of Bruch's membrane: curved, tilted, each B-scan a little off."""
    sag = (y_mm[:, None] ** 2 + x_mm[None, :] ** 2) / (2 * EYE_RADIUS_MM)
    tilt_y, tilt_x = rng.uniform(-0.04, 0.04, 2)
    jitter_um = rng.uniform(8, 30) * np.clip(rng.standard_normal(len(y_mm)), -2, 2)
    surface_mm = tilt_y * y_mm[:, None] + tilt_x * x_mm[None, :] - sag
    return (1000 * surface_mm + jitter_um[:, None]).astype(np.float32)


def _vessel_shadow(y_mm: np.ndarray, x_mm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return by how much gray (b, x) 2 to 5 vessels darken what lies under them."""
    shadow = np.zeros((len(y_mm), len(x_mm)), np.float32)
    for _ in range(rng.integers(2, 5, endpoint=True)):
        side = rng.choice([-1, 1])
        slope, bend = rng.uniform(-0.4, 0.4), rng.uniform(-0.15, 0.05)
        course = side * (rng.uniform(0.8, 2.1) + slope * y_mm + bend * y_mm**2)
        distance = (x_mm[None, :] - course[:, None]) / rng.uniform(0.03, 0.06)
        shadow += rng.uniform(0.06, 0.16) * np.exp(-(distance**2))
    return shadow


def _edges_px(
    thickness_um: dict[str, np.ndarray], bm_um: np.ndarray, depth: int, step_z_um: float
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return top and bottom (b, x) of each layer, in z pixels of a B-scan with `depth` rows."""
    names = list(thickness_um)
    below = names.index("BM") + 1
    edge = bm_um - sum(thickness_um[name] for name in names[:below])
    highest, lowest = float(edge.min()), float(bm_um.max())
    free_um = depth * step_z_um - (lowest - highest)
    if free_um < 100:
        raise InputError(
            f"a B-scan of {depth} rows is {depth * step_z_um:.0f} um deep, this phantom's retina "
            f"takes {lowest - highest:.0f} um; give more rows with --depth"
        )
    edge = edge - highest + 0.45 * free_um
    edges_px = {}
    for name in names:
        bottom = edge + thickness_um[name]
        edges_px[name] = (edge / step_z_um, bottom / step_z_um)
        edge = bottom
    return edges_px
