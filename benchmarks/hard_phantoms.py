"""Phantom volumes with what breaks layer segmentation, for `benchmarks/layers.py`."""

from collections.abc import Iterator

import numpy as np

from preprocessing.intensity import to_display, to_power
from preprocessing.phantom import make_phantom
from preprocessing.volume import Volume

SHAPE, SPACING_MM = (8, 496, 512), (0.24, 0.00387, 0.0117)
Truth = dict[str, np.ndarray]


def hard_phantoms(
    eyes: int = 3, shape: tuple[int, int, int] = SHAPE
) -> Iterator[tuple[str, Volume, Truth]]:
    """Yield (scenario, volume, truth): `ilm` and `bm` (b, x) in z pixels, NaN where unseen."""
    for eye in range(eyes):
        for scenario in SCENARIOS:
            yield scenario, *hard_phantom(scenario, eye, shape)


def hard_phantom(
    scenario: str, eye: int, shape: tuple[int, int, int] = SHAPE
) -> tuple[Volume, Truth]:
    """Return the volume and truth of one of `SCENARIOS` in an eye of the number `eye`."""
    reshape = {"PED": _detach, "atrophy": _waste}.get(scenario)
    volume, layers = make_phantom(
        f"hard-{eye}", 7, scenario == "lesions", shape, SPACING_MM, reshape
    )
    rng = np.random.default_rng([eye, len(scenario)])
    gray, truth = SCENARIOS[scenario](volume.data.copy(), layers, rng)
    return volume.replace(data=gray), truth


def _as_it_is(gray: np.ndarray, layers: Truth, rng: np.random.Generator) -> tuple:
    return gray, layers


def _tilt(gray: np.ndarray, layers: Truth, rng: np.random.Generator) -> tuple:
    """Shear each B-scan by up to 0.25 mm a mm, as when the beam enters off the pupil's centre."""
    slope = rng.choice([-1, 1]) * rng.uniform(0.15, 0.25) * SPACING_MM[2] / SPACING_MM[1]
    x = np.arange(gray.shape[2]) - gray.shape[2] / 2
    return _moved(gray, layers, np.rint(slope * x)[np.newaxis], rng)


def _clip_top(gray: np.ndarray, layers: Truth, rng: np.random.Generator) -> tuple:
    """Move the retina up until a third of the ILM is cut off."""
    up = np.quantile(layers["ilm"], 0.33, axis=1, keepdims=True)
    return _moved(gray, layers, -np.rint(up), rng)


def _moved(
    gray: np.ndarray, layers: Truth, shift: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, Truth]:
    """Move every column (b, x) down by whole rows; what comes in, and the wedges, is noise."""
    depth = gray.shape[1]
    rows = np.arange(depth)[np.newaxis, :, np.newaxis] - shift[:, np.newaxis].astype(int)
    rows = np.broadcast_to(rows, gray.shape)
    moved = np.take_along_axis(gray, rows.clip(0, depth - 1), axis=1)
    empty = (rows < 0) | (rows >= depth) | (moved == 0) | (moved == 1)
    return np.where(empty, _noise(gray.shape, rng), moved), {
        name: np.clip(layer + shift, -0.5, depth - 0.5) for name, layer in layers.items()
    }


def _noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return to_display(to_power(0.08) * rng.standard_exponential(shape))


def _shadows(gray: np.ndarray, layers: Truth, rng: np.random.Generator) -> tuple:
    """Dim the columns below thick vessels and floaters by 7 to 13 dB, over 100 to 300 um."""
    x = np.arange(gray.shape[2])
    loss = np.ones((len(gray), 1, gray.shape[2]))
    for b in range(len(gray)):
        for _ in range(4):
            half = rng.uniform(50, 150) / 1000 / SPACING_MM[2]
            under = np.abs(x - rng.uniform(0, gray.shape[2])) < half
            loss[b, 0, under] = rng.uniform(0.05, 0.2)
    below = np.arange(gray.shape[1])[:, np.newaxis] > layers["ilm"][:, np.newaxis] + 8
    return to_display(to_power(gray) * np.where(below, loss, 1)), layers


def _blank(gray: np.ndarray, layers: Truth, rng: np.random.Generator) -> tuple:
    """Empty one B-scan and make two adjacent ones noise, as a blink does."""
    gray[1] = 0
    gray[4:6] = _noise(gray[4:6].shape, rng)
    unseen = np.isin(np.arange(len(gray)), (1, 4, 5))[:, np.newaxis]
    return gray, {name: np.where(unseen, np.nan, layer) for name, layer in layers.items()}


def _wedges(value: float):
    def change(gray: np.ndarray, layers: Truth, rng: np.random.Generator) -> tuple:
        """Cut wedges off two corners; they take the ILM and BM of some columns."""
        z, x = np.mgrid[: gray.shape[1], : gray.shape[2]]
        x = x if rng.random() < 0.5 else x[:, ::-1]
        top = z < layers["ilm"].min() + 20 - 0.6 * x
        bottom = z > layers["bm"].max() - 10 + 0.6 * (gray.shape[2] - x)
        gray[:, top | bottom] = value
        first = (~top).argmax(axis=0)
        last = gray.shape[1] - 1 - (~bottom[::-1]).argmax(axis=0)
        seen = (layers["ilm"] > first + 3) & (layers["bm"] < last - 3)
        return gray, {name: np.where(seen, layer, np.nan) for name, layer in layers.items()}

    return change


def _detach(thickness_um: dict, y_mm: np.ndarray, x_mm: np.ndarray) -> None:
    """Lift the RPE off BM by a dome of serous fluid, 2 mm wide and 250 um high."""
    distance2 = (y_mm[:, np.newaxis] / 1.2) ** 2 + ((x_mm - 0.4) / 1.0) ** 2
    thickness_um["PED"] += 250 * np.sqrt(np.maximum(1 - distance2, 0))


def _waste(thickness_um: dict, y_mm: np.ndarray, x_mm: np.ndarray) -> None:
    """Take the photoreceptors and the RPE away within 1 mm: geographic atrophy."""
    left = np.clip((_from_atrophy(y_mm, x_mm) - 1) / 0.15, 0, 1)
    for name in ("ONL", "myoid", "EZ", "OS", "RPE"):
        thickness_um[name] *= 0.25 + 0.75 * left if name == "ONL" else left


def _from_atrophy(y_mm: np.ndarray, x_mm: np.ndarray) -> np.ndarray:
    return np.hypot(y_mm[:, np.newaxis], x_mm[np.newaxis] + 0.5)


def _transmit(gray: np.ndarray, layers: Truth, rng: np.random.Generator) -> tuple:
    """Brighten the choroid under the missing RPE threefold, as light passes unhindered."""
    y = (np.arange(len(gray)) - (len(gray) - 1) / 2) * SPACING_MM[0]
    x = (np.arange(gray.shape[2]) - (gray.shape[2] - 1) / 2) * SPACING_MM[2]
    gain = np.where(_from_atrophy(y, x) < 1, 3.0, 1.0)
    below = np.arange(gray.shape[1])[:, np.newaxis] > layers["bm"][:, np.newaxis]
    return to_display(to_power(gray) * np.where(below, gain[:, np.newaxis], 1)), layers


SCENARIOS = {
    "healthy": _as_it_is,
    "lesions": _as_it_is,
    "tilt": _tilt,
    "shadows": _shadows,
    "clipped top": _clip_top,
    "blank B-scans": _blank,
    "black wedges": _wedges(0.0),
    "white wedges": _wedges(1.0),
    "PED": _as_it_is,
    "atrophy": _transmit,
}
