"""Lesions of known size and contrast inserted into a healthy eye, and their sham control.

Normal and anomalous patches then share eye, device, place and noise: they differ by the lesion
alone. What is inserted is built from the B-scan next to the place: its own tissue, with its own
speckle, in which the lesion's gray value stands for the tissue's local mean:

    inserted = speckle + (1 - contrast) * local mean + contrast * gray

At contrast 0 that is the neighbour's healthy tissue as it is: the sham, which tells whether a
method sees the insertion itself. A cyst or a focus whose gray value is the host's own local mean is
a second one, "speckle": everything is done as for a lesion, and only the speckle is another.

Gray values and sizes are those of lesions of the macula in Spectralis scans: fluid 0.06,
drusen 0.62, hyperreflective foci 0.88 of a display's 0 to 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from preprocessing.geometry import Geometry
from preprocessing.patches import possible_corners
from preprocessing.phantom_lesions import FLUID_GRAY, FOCUS_GRAY, STEEPEST
from preprocessing.seeds import derive_seed
from preprocessing.volume import Volume

DRUSE_GRAY = 0.62
SPECKLE_PX = 2.0  # what varies faster than this is speckle
RPE_BAND_UM = 60  # from the ellipsoid zone to the outer edge of the RPE: what a druse lifts
LEAST_INSIDE = 0.5  # of the lesion's pixels, in a patch
MARGIN_UM = 20  # between a lesion and the layers that bound it


@dataclass(frozen=True)
class Site:
    """Where a lesion goes: centre row and column of the flat B-scan, sizes in pixels, the patch."""

    bscan: int
    z: float
    x: float
    height_px: float
    width_px: float
    corner: tuple[int, int]
    donor: int  # the neighbouring B-scan that gives the tissue


@dataclass(frozen=True)
class Kind:
    """A sort of lesion: ranges of its size in um, its gray value, what it is made of."""

    width_um: tuple[float, float]
    height_um: tuple[float, float]
    gray: float
    build: Callable


def ellipse(shape: tuple[int, int], site: Site) -> np.ndarray:
    """Return (z, x) in [0, 1]: the share of each pixel that the lesion's ellipse covers."""
    z, x = np.ogrid[: shape[0], : shape[1]]
    radius_z, radius_x = max(site.height_px / 2, 0.5), max(site.width_px / 2, 0.5)
    distance = np.hypot((z - site.z) / radius_z, (x - site.x) / radius_x)
    return np.clip((1 - distance) * min(radius_z, radius_x) + 0.5, 0, 1).astype(np.float32)


def body(
    donor: np.ndarray, site: Site, rpe: np.ndarray, gray: float, contrast: float, step_um: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tissue (z, x) of a cyst or focus, and where it goes, (z, x) in [0, 1]."""
    return of_gray(donor, gray, contrast), ellipse(donor.shape, site)


def druse(
    donor: np.ndarray, site: Site, rpe: np.ndarray, gray: float, contrast: float, step_um: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tissue (z, x) of a druse and the band that it lifts, and where they go."""
    z, x = np.arange(donor.shape[0])[:, None], np.arange(donor.shape[1])
    arc = np.clip(1 - ((x - site.x) / (site.width_px / 2)) ** 2, 0, None)
    dome = site.height_px * np.sqrt(arc)
    lift, band = np.rint(contrast * dome).astype(int), RPE_BAND_UM / step_um
    raised = np.take_along_axis(donor, np.minimum(z + lift, donor.shape[0] - 1), axis=0)
    # the speckle of what lies as far below the RPE, where no layers run
    mirrored = np.clip(2 * np.nan_to_num(rpe, posinf=0).round() - z, 0, len(donor) - 1).astype(int)
    inside = (z > rpe - lift) & (z <= rpe)
    below = np.take_along_axis(of_gray(donor, gray, 1.0), mirrored, axis=0)
    tissue = np.where(inside, below, raised)
    covered = (dome > 0.5) & (z >= rpe - band - dome) & (z <= rpe)
    return tissue, covered.astype(np.float32)


def of_gray(donor: np.ndarray, gray: float | np.ndarray, contrast: float) -> np.ndarray:
    """Return tissue (z, x) with the donor's speckle around a mean moved towards `gray`."""
    return donor + np.float32(contrast) * (gray - gaussian_filter(donor, SPECKLE_PX))


KINDS = {
    "fluid": Kind((150, 500), (40, 150), FLUID_GRAY, body),
    "drusen": Kind((100, 400), (40, 120), DRUSE_GRAY, druse),
    "foci": Kind((22, 44), (16, 36), FOCUS_GRAY, body),
}


def choose_sites(volume: Volume, geometry: Geometry, name: str, n: int, seed: int) -> list[Site]:
    """Return at most `n` sites of a kind of lesion in a flat volume, the same for the same seed.

    In its centre column the lesion lies in the retina, above the RPE's band but for drusen, which
    stand on it.
    """
    rng = np.random.default_rng(derive_seed(seed, "insertion", name, volume.volume))
    kind, size = KINDS[name], 64
    step_z, step_x = 1000 * volume.spacing_mm[1], 1000 * volume.spacing_mm[2]
    corners = possible_corners(volume, geometry, size)
    by_bscan = {b: corners[corners[:, 0] == b][:, 1:] for b in np.unique(corners[:, 0])}
    bscans = [b for b in by_bscan if b - 1 in by_bscan or b + 1 in by_bscan]
    sites = []
    for _ in range(200 * n if bscans else 0):
        if len(sites) == n:
            break
        b = int(rng.choice(bscans))
        width_um, height_um = rng.uniform(*kind.width_um), rng.uniform(*kind.height_um)
        if name == "drusen":
            height_um = min(height_um, STEEPEST * width_um)
        width, height = width_um / step_x, height_um / step_z
        x = float(rng.integers(volume.data.shape[2]))
        top, bottom = geometry.ilm[b, int(x)], geometry.rpe[b, int(x)]
        low = top + height / 2 + MARGIN_UM / step_z
        high = bottom - height / 2 - (RPE_BAND_UM + MARGIN_UM) / step_z
        if name == "drusen":
            low, high = top + height + (RPE_BAND_UM + MARGIN_UM) / step_z, bottom
        if not low < high:
            continue
        z = float(bottom if name == "drusen" else rng.uniform(low, high))
        donor = int(rng.choice([d for d in (b - 1, b + 1) if d in by_bscan]))
        reach = slice(max(int(x - width / 2), 0), int(x + width / 2) + 1)
        if not volume.valid[donor, int(z - height) : int(z + height) + 1, reach].all():
            continue
        site = Site(b, z, x, height, width, (0, 0), donor)
        z_0, z_1 = z - height / 2, z + height / 2
        if name == "drusen":
            z_0, z_1 = z - height, z
        place = by_bscan[b]
        inside_z = np.minimum(place[:, 0] + size, z_1) - np.maximum(place[:, 0], z_0)
        inside_x = np.minimum(place[:, 1] + size, x + width / 2) - np.maximum(
            place[:, 1], x - width / 2
        )
        share = inside_z.clip(0) * inside_x.clip(0) / (height * width)
        possible = place[share >= LEAST_INSIDE]
        if len(possible):
            corner = tuple(int(c) for c in possible[rng.integers(len(possible))])
            sites.append(Site(**{**vars(site), "corner": corner}))
    return sites


def insert(
    volume: Volume, geometry: Geometry, name: str, site: Site, contrast: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the patch (64, 64) of a site with the lesion in it, and the lesion's share (64, 64).

    `contrast` 1 is the lesion's own gray value, 0 the sham, None the host's local mean with the
    neighbour's speckle. A lesion as dark as fluid is clipped as normalisation clips it.
    """
    black, white = (volume.parameters["normalise"][key] for key in ("black", "white"))
    gray = 2 * (KINDS[name].gray - black) / (white - black) - 1
    if contrast is None:
        gray, contrast = gaussian_filter(volume.data[site.bscan], SPECKLE_PX), 1.0
    rpe = np.where(np.isfinite(geometry.rpe[site.bscan]), geometry.rpe[site.bscan], np.inf)
    step = 1000 * volume.spacing_mm[1]
    tissue, share = KINDS[name].build(volume.data[site.donor], site, rpe, gray, contrast, step)
    host = volume.data[site.bscan]
    changed = np.clip(host + share * (tissue - host), -1, 1)
    z, x = site.corner
    window = slice(z, z + 64), slice(x, x + 64)
    return changed[window], share[window]
