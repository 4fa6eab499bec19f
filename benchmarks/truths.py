"""Patches whose truth is known: real drusen, real fluid, and inserted lesions with their sham.

Every set of positive patches comes with its own negatives (see `Truth`), so that nothing but the
lesion tells them apart wherever that is possible.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.ndimage import maximum_filter1d

from benchmarks.insertion import KINDS, choose_sites, insert
from preprocessing.geometry import Geometry, height_px
from preprocessing.patches import cut, possible_corners, window_sums
from preprocessing.seeds import derive_seed
from preprocessing.volume import Volume

SIZE = 64
RAISED_UM, LEAST_PX = 35, 40  # of the RPE above Bruch's membrane; pixels of drusen in a patch
GRADES = {"sham": 0.0, "speckle": None, "half": 0.5, "full": 1.0}  # contrasts of `insert`
PLACE = (8, 0.25, np.inf, np.inf)  # bins of `position`: patches of the same lie at the same place


@dataclass
class Eye:
    """A flat volume and its geometry."""

    flat: Volume
    geometry: Geometry


@dataclass
class Truth:
    """Patches (n, 64, 64) with labels 1 or 0 and what they are compared within.

    `index` has a row per patch: volume, bscan, z, x, label, and `group`, within which positives are
    compared with negatives.
    """

    name: str
    patches: np.ndarray
    index: pd.DataFrame

    @cached_property
    def groups(self) -> list[np.ndarray]:
        """The rows of each group."""
        return list(self.index.groupby("group").indices.values())


def _index(eye: Eye, corners: np.ndarray, label: int, group: str) -> pd.DataFrame:
    b, z, x = np.asarray(corners, int).reshape(-1, 3).T
    places = {"volume": eye.flat.volume, "bscan": b, "z": z, "x": x}
    return pd.DataFrame({**places, "label": label, "group": group})


def _random(corners: np.ndarray, n: int, seed: int, *labels: str) -> np.ndarray:
    rng = np.random.default_rng(derive_seed(seed, "truths", *labels))
    return corners[np.sort(rng.choice(len(corners), min(n, len(corners)), replace=False))]


def inserted(eye: Eye, n: int, seed: int) -> Iterator[Truth]:
    """Yield lesions of each kind and contrast, against the same places without.

    They lie where the RPE is raised neither there nor in the B-scans beside, which the tissue comes
    from, so that an eye with drusen will do as well.
    """
    raised = maximum_filter1d(_columns(_raised(eye)), 3, axis=0)
    eye = Eye(eye.flat.replace(valid=eye.flat.valid & ~raised), eye.geometry)
    for name in KINDS:
        sites = choose_sites(eye.flat, eye.geometry, name, n, seed)
        corners = np.array([(s.bscan, *s.corner) for s in sites]).reshape(-1, 3)
        before = cut(eye.flat.data, corners, SIZE)
        for grade, contrast in GRADES.items():
            if name == "drusen" and contrast is None:
                continue  # a druse is made by lifting
            after = [insert(eye.flat, eye.geometry, name, site, contrast)[0] for site in sites]
            index = [_index(eye, corners, label, "") for label in (0, 1)]
            yield Truth(
                f"inserted {name}, {grade}",
                np.concatenate([before, after]).astype(np.float16),
                pd.concat(index, ignore_index=True),
            )


def raised_rpe(rpe: np.ndarray, bm: np.ndarray, z: np.ndarray, step_mm: float) -> np.ndarray:
    """Return bool (..., z, x): between Bruch's membrane and an RPE raised by more than 35 um.

    `rpe` and `bm` (..., x) are rows of pixels `step_mm` high, `z` (k,) the rows that are asked for.
    """
    rpe, bm, z = rpe[..., None, :], bm[..., None, :], z[:, None]
    return ((bm - rpe) * 1000 * step_mm > RAISED_UM) & (z >= rpe) & (z < bm)


def _raised(eye: Eye) -> np.ndarray:
    rows, step_mm = np.arange(eye.flat.data.shape[1]), eye.flat.spacing_mm[1]
    return raised_rpe(eye.geometry.rpe, eye.geometry.bm, rows, step_mm)


def position(eye: Eye, corners: np.ndarray) -> np.ndarray:
    """Return (n, 4) of patches by their corners (n, 3): rows over BM, and where in mm, from above.

    These are the distance to the centre of the scan, where the fovea is, and the ways from there
    along x and from B-scan to B-scan.
    """
    bscan, z, x = corners.T
    step_b, _, step_x = eye.flat.spacing_mm
    bscans, _, columns = eye.flat.data.shape
    along_y = (bscan - (bscans - 1) / 2) * step_b
    along_x = (x + (SIZE - columns) / 2) * step_x
    height = height_px(eye.geometry.bm, z)
    return np.column_stack([height, np.hypot(along_y, along_x), along_x, along_y])


def _alike(
    shown: tuple[Eye, np.ndarray],
    without: tuple[Eye, np.ndarray],
    same: int,
    n: int,
    seed: int,
    label: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Return at most n corners that show a lesion, and as many of those without at the same places.

    Lesions have their places, as do vessels and a scan's edges: drawn anywhere, the place alone
    would tell one from the other. `same` says how many of `PLACE` must agree.
    """
    lesions, healthy = shown[1], without[1]
    at = [position(*side)[:, :same] // PLACE[:same] for side in (shown, without)]
    which = np.unique(np.concatenate(at), axis=0, return_inverse=True)[1].ravel()
    here, there = which[: len(lesions)], which[len(lesions) :]
    found = np.isin(here, there)
    drawn = _random(np.column_stack([here, lesions])[found], n, seed, label, "shown")
    chosen = [(lesions[:0], healthy[:0])]
    for k in np.unique(drawn[:, 0]):
        of_place = drawn[drawn[:, 0] == k, 1:], healthy[there == k]
        few = min(map(len, of_place))
        parts = enumerate(of_place)
        chosen.append([_random(some, few, seed, label, f"{k} {i}") for i, some in parts])
    positive, negative = (np.concatenate(parts) for parts in zip(*chosen, strict=True))
    return positive, negative


def _columns(mask: np.ndarray) -> np.ndarray:
    """Return bool (b, z, x): all of a column in which `mask` is anywhere True."""
    return np.broadcast_to(mask.any(axis=1, keepdims=True), mask.shape)


def drusen(diseased: Eye, healthy: Eye | None, n: int, seed: int) -> Iterator[Truth]:
    """Yield real drusen against patches of the same eye, and of a healthy one, at like places."""
    corners = possible_corners(diseased.flat, diseased.geometry, SIZE)
    raised = _raised(diseased)
    shown = corners[window_sums(raised, SIZE)[tuple(corners.T)] >= LEAST_PX]
    # a patch above a druse shows its top: free of drusen is what has none in any of its columns
    free = corners[window_sums(_columns(raised), SIZE)[tuple(corners.T)] == 0]
    others = {"drusen, same eye": (diseased, free)}
    if healthy is not None:
        elsewhere = possible_corners(healthy.flat, healthy.geometry, SIZE)
        others["drusen, healthy eye"] = healthy, elsewhere
    for name, other in others.items():
        positive, negative = _alike((diseased, shown), other, len(PLACE), n, seed, name)
        yield _joined(name, [(diseased, positive, 1, ""), (other[0], negative, 0, "")])


def fluid(name: str, eyes: list[Eye], per_bscan: int, least: float, seed: int) -> Truth:
    """Return real fluid, as marked, against patches without any, at the same places of the B-scan.

    On whichever side of the centre: there are too few of the same side.
    """
    parts = [(eyes[0], np.zeros((0, 3), int), 0, "")]
    for eye in eyes:
        corners = possible_corners(eye.flat, eye.geometry, SIZE)
        marked = np.nan_to_num(eye.flat.annotation) >= 0.5
        count = window_sums(marked, SIZE)[tuple(corners.T)]
        for b in np.unique(corners[:, 0]):
            here = corners[:, 0] == b
            shown, dry = corners[here & (count >= least * SIZE**2)], corners[here & (count == 0)]
            group = f"{eye.flat.volume}/{b}"
            of_bscan = _alike((eye, shown), (eye, dry), 2, per_bscan, seed, group)
            parts += [(eye, found, k, group) for k, found in zip((1, 0), of_bscan, strict=True)]
    return _joined(name, parts)


def _joined(name: str, parts: list[tuple[Eye, np.ndarray, int, str]]) -> Truth:
    """Return a truth of patches, by eye, corners, label and group."""
    patches = [cut(eye.flat.data, corners, SIZE) for eye, corners, *_ in parts]
    index = pd.concat([_index(*part) for part in parts], ignore_index=True)
    return Truth(name, np.concatenate(patches).astype(np.float16), index)
