"""Small volumes, models that have learned nothing, heat maps, and commands run on them."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anogan.maps.file import VolumeMaps, write_maps
from anogan.model import save_model, weights_of
from anogan.networks import Discriminator, Generator
from preprocessing.cli import run_command
from preprocessing.flatten import flat_geometry, flatten
from preprocessing.geometry import Geometry, geometry_path, write_geometry
from preprocessing.layers import Layers
from preprocessing.resample import resample
from preprocessing.volume import Volume, write_volume

SIZE = 32
X_UM = 22.0
BM_ROW, BM_TILT = 115, 0.3  # of the first column, and rows a column
CHANNELS, LATENT = (16, 8, 8), 6


def write_model(folder: Path, kind: str) -> Path:
    """Write an untrained model "gan" or "pca" of patches that were resampled to `X_UM`."""
    torch.manual_seed(1)
    if kind == "gan":
        parts = {"generator": Generator(CHANNELS, LATENT), "discriminator": Discriminator(CHANNELS)}
        for weight in parts["generator"].parameters():
            weight.data *= 5  # untrained, it makes nearly the same of every z
        weights = weights_of(**parts)
        sizes = {"channels": CHANNELS, "latent": LATENT, "norm": "batch"}
    else:
        components = torch.linalg.qr(torch.randn(SIZE**2, 4)).Q.T
        weights = {"mean": torch.zeros(SIZE**2), "components": components.contiguous()}
        sizes = {"components": 4}
    data = {"preprocessing": {"resample": {"x_um": X_UM}}}
    architecture = {**sizes, "patch_size": SIZE}
    save_model(folder, weights, {"model": kind, "architecture": architecture, "data": data})
    return folder


def native_volume(name: str, eye: str = "R", mirrored: bool = False, n_x: int = 144) -> Volume:
    """A volume as loaded: 3 B-scans of noise; a block is marked, B-scan 2 was not examined."""
    rng = np.random.default_rng(sum(name.encode()))
    data = rng.uniform(0, 1, (3, 180, n_x)).astype(np.float32)
    annotation = np.zeros(data.shape, np.float32)
    annotation[1, 100:112, 40:64] = 1
    annotation[2] = np.nan
    return Volume(
        data=data,
        spacing_mm=(0.2, 0.004, 0.011),
        valid=np.ones(data.shape, bool),
        volume=name,
        patient=f"p-{name}",
        eye=eye,
        mirrored=mirrored,
        annotation=annotation,
    )


def write_flat(native: Volume, folder: Path) -> Geometry:
    """Write `native` and what it is when flat: a tilted retina of 50 rows, half the columns."""
    write_volume(native, folder / "volume.nii.gz")
    scaled = native.replace(data=2 * native.data - 1, intensity="normalised")
    thin = resample(scaled, X_UM)
    thin.parameters["resample"] = {"x_um": X_UM}
    columns = np.arange(thin.data.shape[2], dtype=np.float32)
    bm = np.tile(BM_ROW + BM_TILT * columns, (3, 1))
    layers = Layers(ilm=bm - 50, rpe=bm - 5, bm=bm, confidence=np.ones_like(bm))
    geometry = flat_geometry(layers, thin, "bm", above_um=320, thickness_um=200)
    write_volume(flatten(thin, geometry, 110), folder / "flat.nii.gz")
    write_geometry(geometry, geometry_path(folder / "flat.nii.gz"))
    return geometry


def run(*arguments: object) -> int:
    """Run a command of anogan; return its exit status."""
    return run_command("anogan", {str(arguments[0]): ""}, [str(part) for part in arguments])


def make_maps(model: Path, flats: list[Path], output: Path, *extra: object) -> int:
    """Run the stage heatmap; the last volume is diseased, the others are healthy."""
    labels = [*["healthy"] * (len(flats) - 1), "diseased"]
    given = ["--inputs", *flats, "--labels", *labels, "--split", "test", "--model", model]
    return run("heatmap", *given, "--stride", 16, "--steps", 3, "--output", output, *extra)


BLOCK = (0, slice(50, 62), slice(20, 33))  # of the flat volume, all that is hot
LOW, HIGH = 0.2, 0.6


def flat_maps(name: str, residual: bool = True, shape: tuple = (3, 110, 72)) -> VolumeMaps:
    """Maps of a volume that are 0 but for `BLOCK`, and bare in the last rows."""
    score = np.zeros(shape, np.float32)
    score[BLOCK] = 1
    score[:, 105:] = np.nan
    rebuilt = score if residual else None
    return VolumeMaps(name, f"p-{name}", "R", "test", 1, 3, score, rebuilt)


def write_scale(path: Path, method: str = "pca", residual: bool = True) -> None:
    """Write the scale of a method from `LOW` to `HIGH`."""
    scale = f"[{LOW}, {HIGH}]"
    path.write_text(
        f'{{"method": "{method}", "from": "all", "residual": {scale if residual else "null"},'
        f' "score": {scale}}}'
    )


def prepare(
    folder: Path, method: str = "pca", residual: bool = True, columns: int = 72, **native: object
) -> Geometry:
    """Write a volume "v", its maps and their scale; return its geometry."""
    folder.mkdir(exist_ok=True)
    geometry = write_flat(native_volume("v", **native), folder)
    with write_maps(folder / f"{method}.h5", method, 16, 32) as writer:
        writer.append(flat_maps("v", residual, (3, 110, columns)))
    write_scale(folder / f"{method}.json", method, residual)
    return geometry


def overlay(
    folder: Path, methods: tuple[str, ...] = ("pca",), viewer: str = "", output: str = "out"
) -> int:
    """Run the stage overlay on what `prepare` wrote; return its exit status."""
    files = [
        *("--maps", *(folder / f"{method}.h5" for method in methods)),
        *("--scales", *(folder / f"{method}.json" for method in methods)),
        *("--volume-image", folder / "volume.nii.gz", "--geometry", folder / "flat.geometry.npz"),
        *("--viewer-method", viewer or methods[0], "--output", folder / output),
    ]
    return run("overlay", *files)


def hot_pixels(volume: Volume, columns: int = 72) -> np.ndarray:
    """The pixels (b, z, x) of a volume as loaded that `BLOCK` lies on, when flat in `columns`."""
    hot = np.zeros(volume.data.shape, bool)
    width = volume.data.shape[2] / columns
    b, rows, block_columns = BLOCK
    for c in range(block_columns.start, block_columns.stop):
        bm = round(BM_ROW + BM_TILT * c)  # which lies on row 80 of the flat volume
        centres = np.arange(volume.data.shape[2]) + 0.5
        x = (centres >= c * width) & (centres < (c + 1) * width)
        hot[b, rows.start - 80 + bm : rows.stop - 80 + bm, x] = True
    return hot


def viewer_of(folder: Path) -> tuple[dict, dict[str, Image.Image]]:
    """Return viewer.json and the pictures by name of a volume that was drawn."""
    with zipfile.ZipFile(folder / "out" / "viewer.zip") as archive:
        pictures = {
            name: Image.open(io.BytesIO(archive.read(name)))
            for name in archive.namelist()
            if name.endswith(".webp")
        }
        assert all(item.compress_type == zipfile.ZIP_STORED for item in archive.infolist())
        return json.loads(archive.read("viewer.json")), pictures
