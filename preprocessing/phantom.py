"""Stage `phantom`: a made-up OCT volume whose layers and lesions are known exactly.

It writes what a user would have: a NIfTI file with a small sidecar and an annotation mask, which
enters the pipeline through the stage `load`, plus the true layers for tests. The phantom is easier
than an eye: it serves the demonstration and the tests, never a claim about eyes. The same id and
seed give a healthy and a diseased twin with the same anatomy.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.ndimage import correlate1d, gaussian_filter

from preprocessing.files import atomic_path, write_text
from preprocessing.intensity import to_display, to_power
from preprocessing.phantom_anatomy import LAYERS, generator, make_anatomy
from preprocessing.phantom_lesions import PED_GRAY, paint_lesions, soft_step
from preprocessing.volume import Volume, companion, write_nifti

SHAPE = (12, 384, 384)
SPACING_MM = (0.24, 0.00387, 0.0117)
SCLERA_GRAY = 0.3
DEVICE = "phantom"

# Point spread of the speckle field; its power has the axial correlation 0.64, 0.26, 0.09 at lags
# 1 to 3 and the lateral correlation 0.44 at lag 1, as in Spectralis B-scans.
AXIAL_KERNEL = np.array([0.56, 1.0, 0.6, 0.51, 0.33])
LATERAL_KERNEL = np.array([1.0, 2.0, 1.0])


def make_phantom(
    volume: str,
    seed: int,
    diseased: bool,
    shape: tuple[int, int, int] = SHAPE,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
    reshape: Callable[[dict[str, np.ndarray], np.ndarray, np.ndarray], None] | None = None,
) -> tuple[Volume, dict[str, np.ndarray]]:
    """Return a volume as a device would export it and its true layers `ilm`, `rpe`, `bm`.

    Layers are (b, x) in z pixels: the upper edge of the NFL, the lower edge of the RPE and of
    Bruch's membrane. The annotation is 1 on lesion pixels. `valid` is True everywhere, as a file
    does not tell. Everything random depends on `seed` and `volume` alone. `reshape(thickness_um,
    y_mm, x_mm)` may change the thickness (b, x) of any of `LAYERS` in place, to build a disease.

    Raises InputError when the volume is empty, narrow or too shallow to hold the retina.
    """
    anatomy = make_anatomy(volume, seed, diseased, shape, spacing_mm, reshape)
    edges_px = anatomy.edges_px
    rng = generator(volume, seed, "light")
    gray = _paint_layers(edges_px, shape[1], rng)
    kinds = np.zeros(shape, np.uint8)
    if diseased:
        kinds = paint_lesions(gray, edges_px, anatomy.lesions, 1000 * spacing_mm[1])
    layers = {"ilm": edges_px["NFL"][0], "rpe": edges_px["RPE"][1], "bm": edges_px["BM"][1]}
    _light(gray, layers, edges_px["NFL"][1], anatomy.shadow, 1000 * spacing_mm[1], rng)
    gray = _display(gray, rng)
    _cut_borders(gray, layers, generator(volume, seed, "borders"))
    return (
        Volume(
            data=np.rint(gray * 255) / np.float32(255),
            spacing_mm=spacing_mm,
            valid=np.ones(shape, bool),
            volume=volume,
            eye=anatomy.eye,
            annotation=(kinds > 0).astype(np.float32),
            device=DEVICE,
            source_format=DEVICE,
        ),
        layers,
    )


def lesion_kinds(
    volume: str,
    seed: int,
    shape: tuple[int, int, int] = SHAPE,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
) -> np.ndarray:
    """Return uint8 (b, z, x): which of `KINDS` each pixel of a diseased phantom is, by its place.

    The phantom is that which `make_phantom` returns for the same volume, seed, shape and spacing.
    """
    anatomy = make_anatomy(volume, seed, True, shape, spacing_mm)
    canvas = np.zeros(shape, np.float32)
    return paint_lesions(canvas, anatomy.edges_px, anatomy.lesions, 1000 * spacing_mm[1])


def _paint_layers(
    edges_px: dict[str, tuple[np.ndarray, np.ndarray]], depth: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the gray value (b, z, x) of a retina without noise; the vitreous is 0."""
    z = np.arange(depth, dtype=np.float32)[None, :, None]
    n_bscans, n_columns = edges_px["BM"][0].shape
    gray = np.zeros((n_bscans, depth, n_columns), np.float32)
    level = 0.0
    for name, (top, _) in edges_px.items():
        own = LAYERS[name][3]
        if own > PED_GRAY:  # fluid is dark in every eye
            own += rng.uniform(-0.015, 0.015)
        gray += np.float32(own - level) * soft_step(z, top[:, None, :])
        level = own
    bottom = edges_px["choroid"][1][:, None, :]
    gray += np.float32(SCLERA_GRAY - level) * soft_step(z, bottom)
    return gray


def _light(
    gray: np.ndarray,
    layers: dict[str, np.ndarray],
    nfl_bottom: np.ndarray,
    shadow: np.ndarray,
    step_z_um: float,
    rng: np.random.Generator,
) -> None:
    """Darken and brighten `gray` (b, z, x) in place: attenuation, shadows, texture and gain."""
    z = np.arange(gray.shape[1], dtype=np.float32)[None, :, None]
    tissue = soft_step(z, layers["ilm"][:, None, :])
    choroid = soft_step(z, layers["bm"][:, None, :])

    texture = rng.standard_normal(gray.shape, np.float32)
    texture = gaussian_filter(texture, (0, 4, 3), truncate=3)
    texture /= texture.std()
    change = texture * (0.012 * tissue + 0.045 * choroid)
    below_bm_um = np.maximum(z - layers["bm"][:, None, :], 0) * step_z_um
    change -= np.float32(rng.uniform(0.0006, 0.0011)) * below_bm_um
    change -= shadow[:, None, :] * np.clip((z - nfl_bottom[:, None, :]) / 8, 0, 1)
    gain = (
        rng.uniform(0.015, 0.05)
        + rng.normal(0, 0.02, (len(gray), 1))
        + 0.15 * gaussian_filter(rng.standard_normal(layers["bm"].shape), (0, 15), mode="nearest")
    )
    change += gain[:, None, :].astype(np.float32) * tissue
    gray += change


def _display(gray: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return `gray` (b, z, x) as displayed by a device, with speckle and the noise of the detector.

    The speckle is the power of a circular Gaussian field, averaged over frames, times the power
    that `gray` stands for. The noise is not averaged, as seen in the vitreous of Spectralis scans.
    """
    n_frames = int(rng.integers(5, 7))
    power = to_power(gray) * _speckle(gray.shape, n_frames, rng)
    noise = to_power(rng.uniform(0.04, 0.15))
    # The median of an exponential variable is ln 2 times its mean.
    power += np.float32(noise / np.log(2)) * rng.standard_exponential(gray.shape, np.float32)
    return to_display(power)


def _speckle(shape: tuple[int, int, int], n_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Return speckle power (b, z, x) of mean 1."""
    axial = AXIAL_KERNEL / np.linalg.norm(AXIAL_KERNEL)
    lateral = LATERAL_KERNEL / np.linalg.norm(LATERAL_KERNEL)
    power = np.zeros(shape, np.float32)
    for _ in range(2 * n_frames):  # real and imaginary part of each frame
        field = rng.standard_normal(shape, np.float32)
        field = correlate1d(field, axial, axis=1, mode="wrap")
        field = correlate1d(field, lateral, axis=2, mode="wrap")
        power += field * field
    return power / np.float32(2 * n_frames)


def _cut_borders(gray: np.ndarray, layers: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    """Blank in place what a tilted and shifted B-scan leaves empty, black or (in some eyes) white.

    The wedges spare the retina; one eye in five has none.
    """
    kind = rng.choice(["none", "black", "white"], p=[0.2, 0.5, 0.3])
    slope = rng.choice([-1, 1]) * rng.uniform(0.03, 0.09)
    shift = rng.uniform(-15, 15) + rng.normal(0, 5, (len(gray), 1))
    n_columns = rng.integers(0, 4)
    if kind == "none":
        return
    _, depth, width = gray.shape
    tilted = shift + slope * (np.arange(width) - (width - 1) / 2)[None, :]
    top = np.minimum(tilted, layers["ilm"].min(axis=1, keepdims=True) - 12)
    bottom = np.maximum(depth + tilted, layers["bm"].max(axis=1, keepdims=True) + 40)
    z = np.arange(depth)[None, :, None]
    blank = (z < top[:, None, :]) | (z >= bottom[:, None, :])
    blank[:, :, :n_columns] = True
    gray[blank] = 0 if kind == "black" else 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    parser.add_argument("--volume", required=True, help="id, which with the seed decides the eye")
    parser.add_argument(
        "--label",
        required=True,
        choices=["healthy", "diseased", "unknown"],
        help="an eye of unknown label is made diseased",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all phantoms together")
    parser.add_argument("--bscans", type=int, default=SHAPE[0], help="number of B-scans")
    parser.add_argument("--depth", type=int, default=SHAPE[1], help="rows of a B-scan")
    parser.add_argument("--width", type=int, default=SHAPE[2], help="columns of a B-scan")
    parser.add_argument("--output", required=True, help="volume, .nii.gz; others go beside it")


def command(args: argparse.Namespace) -> str:
    """Make one phantom and write it as a user's file would be."""
    shape = (args.bscans, args.depth, args.width)
    diseased = args.label != "healthy"
    phantom, layers = make_phantom(args.volume, args.seed, diseased, shape)
    facts = {"laterality": phantom.eye, "device": phantom.device, "intensity": phantom.intensity}
    sidecar = companion(args.output, "json")
    write_nifti(np.rint(phantom.data * 255).astype(np.uint8), args.output, phantom.affine)
    write_nifti(
        phantom.annotation.astype(np.uint8), companion(args.output, "annotation"), phantom.affine
    )
    with atomic_path(sidecar.with_suffix(".truth.npz")) as temporary:
        np.savez_compressed(temporary, **layers)
    write_text(sidecar, json.dumps(facts, indent=1) + "\n")
    return (
        f"{args.volume}: {args.label} phantom, {' x '.join(map(str, shape))} (b, z, x), "
        f"eye {phantom.eye}, {phantom.annotation.mean():.1%} of the pixels in lesions, "
        f"{Path(args.output).name}"
    )
