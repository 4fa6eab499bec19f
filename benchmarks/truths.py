"""Patches whose truth is known: real drusen, real fluid, and inserted lesions with their sham.

Every set of positive patches comes with its own negatives (see `Truth`), so that nothing but the
lesion tells them apart wherever that is possible.
"""

from collections import Counter
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
BIN_PX = 8  # of heights above Bruch's membrane, within which drusen have their negatives


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


def _height_bins(eye: Eye, corners: np.ndarray) -> np.ndarray:
    return (height_px(eye.geometry.bm, corners[:, 1]) // BIN_PX).astype(int)


def _columns(mask: np.ndarray) -> np.ndarray:
    """Return bool (b, z, x): all of a column in which `mask` is anywhere True."""
    return np.broadcast_to(mask.any(axis=1, keepdims=True), mask.shape)


def drusen(diseased: Eye, healthy: Eye | None, n: int, seed: int) -> Iterator[Truth]:
    """Yield real drusen against others of the same eye, and against patches of a healthy eye.

    As many of these as there are drusen, where there are that many, lie at each height, which would
    tell them apart by itself.
    """
    corners = possible_corners(diseased.flat, diseased.geometry, SIZE)
    raised = _raised(diseased)
    count = window_sums(raised, SIZE)[tuple(corners.T)]
    # a patch above a druse shows its top: free of drusen is what has none in any of its columns
    free = corners[window_sums(_columns(raised), SIZE)[tuple(corners.T)] == 0]
    shown = _random(corners[count >= LEAST_PX], n, seed, diseased.flat.volume, "drusen")
    wanted = Counter(_height_bins(diseased, shown))
    others = {"drusen, same eye": (diseased, free)}
    if healthy is not None:
        elsewhere = possible_corners(healthy.flat, healthy.geometry, SIZE)
        others["drusen, healthy eye"] = healthy, elsewhere
    for name, (eye, without) in others.items():
        bins = _height_bins(eye, without)
        drawn = [
            _random(without[bins == k], m, seed, eye.flat.volume, "free", str(k))
            for k, m in sorted(wanted.items())
        ]
        negative = np.concatenate([without[:0], *drawn])
        patches = [cut(diseased.flat.data, shown, SIZE), cut(eye.flat.data, negative, SIZE)]
        index = [_index(diseased, shown, 1, ""), _index(eye, negative, 0, "")]
        yield Truth(
            name,
            np.concatenate(patches).astype(np.float16),
            pd.concat(index, ignore_index=True),
        )


def fluid(name: str, eyes: list[Eye], per_bscan: int, least: float, seed: int) -> Truth:
    """Return real fluid, as marked, against patches without any of the same B-scan."""
    patches = [np.zeros((0, SIZE, SIZE), np.float32)]
    index = [_index(eyes[0], np.zeros((0, 3)), 0, "")]
    for eye in eyes:
        corners = possible_corners(eye.flat, eye.geometry, SIZE)
        marked = np.nan_to_num(eye.flat.annotation) >= 0.5
        count = window_sums(marked, SIZE)[tuple(corners.T)]
        for b in np.unique(corners[:, 0]):
            here = corners[:, 0] == b
            shown, dry = corners[here & (count >= least * SIZE**2)], corners[here & (count == 0)]
            if not len(shown) or not len(dry):
                continue
            for label, of in ((1, shown), (0, dry)):
                chosen = _random(of, per_bscan, seed, eye.flat.volume, str(b), str(label))
                patches.append(cut(eye.flat.data, chosen, SIZE))
                index.append(_index(eye, chosen, label, f"{eye.flat.volume}/{b}"))
    return Truth(
        name, np.concatenate(patches).astype(np.float16), pd.concat(index, ignore_index=True)
    )
