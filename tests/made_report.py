"""Made-up inputs of the stage report, and the page that it makes of them."""

import io
import json
import zipfile
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pandas as pd
from made_scores import GAN_METHODS, evaluate
from matplotlib.figure import Figure
from PIL import Image

from anogan.discovery.tables import cluster_table, tsv
from preprocessing.cli import run_command
from preprocessing.patch_file import INDEX_DTYPE

EMPTY_SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="400" height="300"></svg>'
HOSTILE = "<script>alert(1)</script>"


def textured(rng: np.random.Generator, n: int, size: int = 64) -> np.ndarray:
    """Bands of layers under speckle, (n, size, size) in [-1, 1]."""
    z = np.arange(size)[None, :, None]
    bands = 0.7 * np.sin(z / rng.uniform(4, 7, (n, 1, 1)) + rng.uniform(0, 6, (n, 1, 1))) - 0.1
    return np.clip(bands + rng.normal(0, 0.12, (n, size, size)), -1, 1)


def write_residuals(scores: pd.DataFrame, path: Path, count: int) -> None:
    """Keep the pictures of `count` patches of each label; the anomalous ones hold a lesion."""
    rng = np.random.default_rng(1)
    rows = scores[scores["split"] != "validation"]
    rows = pd.concat([rows[rows["label"] == value][:count] for value in (0, 1, -1)])
    generated = textured(rng, len(rows))
    patches = np.clip(generated + rng.normal(0, 0.08, generated.shape), -1, 1)
    masks = np.zeros(patches.shape, np.uint8)
    z, x = np.mgrid[:64, :64]
    for patch, mask, label in zip(patches, masks, rows["label"], strict=True):
        if label == 1:
            row, column = rng.integers(20, 44, 2)
            mask[:] = ((z - row) / 8) ** 2 + ((x - column) / 14) ** 2 < 1
            patch[mask == 1] = -0.9
    masks[:1] = 255  # nobody looked at the first
    masks[rows["label"] < 0] = 255
    index = np.zeros(len(rows), INDEX_DTYPE)
    for name in INDEX_DTYPE.names:
        index[name] = rows[name].to_numpy()
    with h5py.File(path, "w") as file:
        file["patches"] = patches.astype(np.float16)
        file["generated"] = generated.astype(np.float16)
        file["masks"] = masks
        file["random"] = np.arange(len(rows)) % 5 > 0  # the others were kept as extremes
        file.create_dataset("index", data=index, dtype=INDEX_DTYPE)


def gan_history(rng: np.random.Generator) -> pd.DataFrame:
    step = np.arange(10, 1510, 10)
    assessed = step % 100 == 0
    return pd.DataFrame(
        {
            "step": step,
            "epoch": step * 64 / 24000,
            "d_loss": 0.9 + 0.4 * np.exp(-step / 200) + rng.normal(0, 0.06, 150),
            "g_loss": 1.4 - 0.5 * np.exp(-step / 300) + rng.normal(0, 0.1, 150),
            "d_real": 0.62 + rng.normal(0, 0.03, 150),
            "d_fake": 0.38 + rng.normal(0, 0.03, 150),
            "patches_per_s": 900.0,
            "peak_fraction": np.nan,
            "diversity": np.where(assessed, 1 - 0.6 * np.exp(-step / 400), np.nan),
            "kid": np.where(assessed, 5 * np.exp(-step / 300), np.nan),
        }
    )


def write_model(folder: Path) -> None:
    """Write what a trained GAN's folder holds beside the weights."""
    folder.mkdir()
    gan_history(np.random.default_rng(2)).to_csv(folder / "history.tsv", sep="\t", index=False)
    for name in ("samples.png", "real.png"):
        Image.new("L", (528, 528), 100).save(folder / name)
    description = {
        "model": "gan",
        "architecture": {"channels": [128, 64, 32, 16], "latent": 64, "patch_size": 64},
        "training": {"steps": 1500},
        "data": {"n_patches": 24000, "n_volumes": 12, "n_patients": 12},
        "seed": 1,
    }
    (folder / "model.json").write_text(json.dumps(description))


def make_inputs(
    folder: Path,
    scores: pd.DataFrame,
    residuals: int = 20,
    methods: tuple[str, ...] = GAN_METHODS,
) -> list[str]:
    """Write everything that `report` reads; return its arguments but the output."""
    evaluate(scores, folder, methods=methods)
    write_residuals(scores, folder / "scores.residuals.h5", residuals)
    write_model(folder / "model")
    (folder / "config.yaml").write_text(f"seed: 1\nnote: '{HOSTILE}'\n")
    write_table(folder / "qc.tsv", "test_01", "check", ["pass", "fail", "fail", "check", "fail"])
    (folder / "v1").mkdir()
    speckle = np.random.default_rng(3).integers(0, 255, (300, 2100), dtype=np.uint8)
    for name in ("layers", "enface"):
        Image.fromarray(speckle).save(folder / "v1" / f"{name}.png")
    named = {
        "residuals": "scores.residuals.h5",
        "metrics": "metrics.tsv",
        "model": "model",
        "qc": "qc.tsv",
        "config": "config.yaml",
    }
    arguments = [part for name, file in named.items() for part in (f"--{name}", f"{folder}/{file}")]
    arguments += ["--scores", *(f"{folder}/{method}.parquet" for method in methods)]
    return [*arguments, "--qc-pictures", f"{folder}/v1/layers.png", f"{folder}/v1/enface.png"]


def write_latent(path: Path, n: int = 60) -> str:
    """Write what the stage latent makes of a GAN."""
    rng = np.random.default_rng(4)
    index = np.zeros(n, INDEX_DTYPE)
    index["label"] = np.arange(n) % 2
    with h5py.File(path, "w") as file:
        file["tsne"] = rng.normal(0, 1, (n, 2)).astype(np.float32) + 3 * index["label"][:, None]
        file.create_dataset("index", data=index, dtype=INDEX_DTYPE)
        file["walks"] = textured(rng, 60).reshape(6, 10, 64, 64).astype(np.float16)
    return str(path)


def write_overlay(
    folder: Path, volume: str, split: str, eye_label: int, n_bscans: int = 7, seed: int = 5
) -> str:
    """Write the viewer.zip of a volume as the stage overlay does; diseased ones hold a lesion."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    height, width = 150, 256
    z, x = np.mgrid[:height, :width]
    bscans, front = [], np.zeros((n_bscans, width, 4), np.uint8)
    with zipfile.ZipFile(folder / "viewer.zip", "w") as archive:

        def add(name: str, pixels: np.ndarray) -> str:
            data = io.BytesIO()
            Image.fromarray(pixels).save(data, "WEBP", quality=40)
            archive.writestr(name, data.getvalue())
            return name

        for b in range(n_bscans):
            ilm = 40 + 8 * np.cos((x[0] - 128) / 50) + b
            retina = (z > ilm) & (z < ilm + 70)
            bands = np.where(retina, 110 + 60 * np.sin((z - ilm) / 6), 20) + 10 * (z > ilm + 70)
            gray = np.clip(bands * rng.gamma(8, 1 / 8, z.shape), 0, 255)
            lesion = ((z - 75) / 9) ** 2 + ((x - 90 - 10 * b) / 20) ** 2 < 1
            lesion &= (eye_label == 1) & (b in (2, 3, 4))
            gray[lesion] *= 0.2
            glow = np.zeros((height, width, 4), np.uint8)
            glow[lesion] = (255, 130, 0, 150)
            front[-1 - b] = glow.max(axis=0)
            marked = lesion.any()
            points = [[90 + 10 * b + 20 * np.cos(t), 75 + 9 * np.sin(t)] for t in range(7)]
            edges = {"ilm": ilm, "rpe": ilm + 65, "bm": ilm + 70}
            bscans.append(
                {
                    "gray": add(f"{b:03d}-gray.webp", gray.astype(np.uint8)),
                    "residual": add(f"{b:03d}-residual.webp", glow) if marked else None,
                    "score": add(f"{b:03d}-score.webp", glow) if marked else None,
                    "layers": {
                        name: [[[i, float(edge[i])] for i in range(0, width, 8)]]
                        for name, edge in edges.items()
                    },
                    "outlines": [points] if marked else [],
                    "max_score": 600.0 + (100 if marked else 0) + b,
                }
            )
        facts = {
            "volume": volume,
            "patient": f"p_{volume}",
            "eye": "R",
            "split": split,
            "eye_label": eye_label,
            "n_bscans": n_bscans,
            "width": width,
            "height": height,
            "spacing_um": [120.0, 3.9, 11.3],
            "method": "anogan",
            "scale": {"residual": [0.2, 0.9], "score": [500.0, 800.0]},
            "enface": {kind: add(f"{kind}.webp", front) for kind in ("residual", "score")},
            "bscans": bscans,
        }
        archive.writestr("viewer.json", json.dumps(facts))
    return str(folder)


def write_markers(folder: Path) -> str:
    """Write what the stage markers does: two clusters, one in diseased eyes alone."""
    folder.mkdir()
    rows = [(1, f"d{n % 3}", f"p{n % 3}", "diseased") for n in range(7)] + [
        (2, "h1", "q", "healthy")
    ]
    regions = pd.DataFrame(rows, columns=["cluster", "volume", "patient", "eye_label"])
    sizes = {"width_um": 220.0, "height_um": 40.0, "depth": 0.7, "above_bm_um": 90.0}
    regions = regions.assign(**sizes, gray_inside=-0.8, gray_outside=-0.1)
    volumes = regions.drop_duplicates("volume").assign(searched_mm=5)
    volumes["eye_label"] = volumes["eye_label"].map({"diseased": 1, "healthy": 0})
    clusters = cluster_table(regions, volumes, 20, 1)
    (folder / "clusters.tsv").write_text(tsv(clusters))
    facts = {"method": "anogan", "map": "residual", "quantile": 0.995, "smallest_um2": 300}
    facts |= {"from": "healthy validation volumes", "regions_per_volume": 100, "regions": 8}
    facts |= {"volumes": 4}
    (folder / "markers.json").write_text(json.dumps(facts))
    speckle = np.random.default_rng(6).integers(0, 255, (400, 900), dtype=np.uint8)
    for number in clusters["cluster"]:
        Image.fromarray(speckle).save(folder / f"cluster-{number}.png")
    return str(folder)


def write_table(path: Path, volume: str, verdict: str, flags: list[str]) -> Path:
    """Write a table as the stage qc does, with a hostile reason for every flag but "pass"."""
    rows = [("all", verdict), *enumerate(flags)]
    reasons = {"pass": "", "check": f"dim {HOSTILE}", "fail": "no retina found"}
    path.write_text(
        "volume\tbscan\tthickness_um\tflag\treason\n"
        + "".join(f"{volume}\t{b}\t290.0\t{flag}\t{reasons[flag]}\n" for b, flag in rows)
    )
    return path


def report(arguments: list[str], output: Path, *options: str, draw: bool = True) -> str:
    """Run the stage and return its page; with `draw` unset all figures are one empty picture."""
    arguments = ["report", *arguments, "--output", str(output), *options]
    with nullcontext() if draw else mock.patch("anogan.report.save_figure", save_nothing):
        assert run_command("anogan", {"report": ""}, arguments) == 0
    return output.read_text(encoding="utf-8")


def save_nothing(figure: Figure, folder: Path, name: str) -> None:
    """Write empty pictures where a figure would be: drawing takes most of the time of a report."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.svg").write_text(EMPTY_SVG)
    Image.new("L", (400, 100), 255).save(folder / f"{name}.png")
