"""Scores and metrics -> figures and one self-contained page that explains them."""

import argparse
import base64
import io
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from anogan import figures
from anogan.evaluate import DESCRIPTION, PATCH, patch_table, read_scores
from anogan.report_qc import summarise
from preprocessing.errors import InputError
from preprocessing.files import write_text
from preprocessing.patch_file import open_patches, read_index
from preprocessing.patches import LEAVE_OUT

METHOD_NAMES = {
    "anogan": "AnoGAN, A(x)",
    "gan_r": "GAN_R, Â(x)",
    "p_d": "P_D",
    "anogan_R": "R(x) alone",
    "anogan_D": "D(x) alone",
    "gan_r_D_hat": "D̂(x) alone",
}
TABLE_COLUMNS = ("precision", "recall", "sensitivity", "specificity", "auc")
PAPER = {  # Schlegl et al. 2017, image level
    "acae": (0.7005, 0.7009, 0.7011, 0.6659, 0.73),
    "p_d": (0.8471, 0.5119, 0.5124, 0.8970, 0.72),
    "gan_r": (0.8482, 0.7631, 0.7634, 0.8477, 0.88),
    "anogan": (0.8834, 0.7277, 0.7279, 0.8928, 0.89),
}
PANEL_PATCHES = 6  # of each label
PICTURE_WIDTH_PX = 1400  # the small print of the contact sheet can still be read
SPLITS = ("validation", "test", "score")
PACKAGES = ("oct-anogan", "torch", "numpy", "scipy", "scikit-learn", "matplotlib", "snakemake")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `python -m anogan report`."""
    parser.add_argument("--scores", nargs="+", required=True, help="score files (.parquet)")
    parser.add_argument("--residuals", nargs="+", required=True, help="files *.residuals.h5")
    parser.add_argument(
        "--metrics", required=True, help="metrics.tsv, with what `evaluate` wrote beside it"
    )
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--qc", nargs="*", default=[], help="qc.tsv of the volumes")
    parser.add_argument(
        "--leave-out",
        choices=list(LEAVE_OUT),
        default="fail",
        help="which B-scans gave no patches, as told to the stage patches",
    )
    parser.add_argument(
        "--qc-pictures", nargs="*", default=[], help="VOLUME/layers.png and VOLUME/enface.png"
    )
    parser.add_argument("--config", required=True, help="the resolved config")
    parser.add_argument("--phantom", action="store_true", help="say that the eyes are synthetic")
    parser.add_argument("--output", required=True, help="index.html to write")


def command(args: argparse.Namespace) -> str:
    """Draw the figures, write them beside the page, then write the page."""
    output, model = Path(args.output), Path(args.model)
    patches, methods = patch_table(read_scores(args.scores))
    metrics = pd.read_csv(args.metrics, sep="\t")
    metrics = metrics.set_index(["method", "level", "subset", "metric"]).sort_index()
    evaluation = json.loads(_text(Path(args.metrics).with_name("evaluation.json")))
    volumes = pd.read_csv(
        Path(args.metrics).with_name("volumes.tsv"),
        sep="\t",
        dtype={"volume": str, "patient": str},
        na_values="nan",
        keep_default_na=False,  # a volume may be called NA
    )
    thresholds = {
        name: point["threshold"] for name, point in evaluation["operating_points"]["patch"].items()
    }
    history = pd.read_csv(model / "history.tsv", sep="\t")
    facts, config = model_facts(model, history), _text(Path(args.config))
    pictures = draw_figures(patches, methods, metrics, thresholds, args.residuals, history)
    for name, figure in pictures.items():
        figures.save_figure(figure, output.parent / "figures", name)

    points = evaluation["operating_points"]["patch"]
    page = _template().render(
        phantom=args.phantom,
        anogan=metrics.loc[("anogan", "patch", "test")].to_dict("index"),
        point=points["anogan"],
        evaluation=evaluation,
        counts=count_patches(patches),
        model=facts,
        versions=versions(),
        columns=TABLE_COLUMNS,
        paper_rows=comparison_rows(metrics, methods, ""),
        optimistic_rows=comparison_rows(metrics, methods, "_optimistic"),
        all_rows=all_rows(metrics, methods),
        scored=scored_volumes(volumes, evaluation["healthy_volume_threshold"]["anogan"]),
        qc=summarise(args.qc, args.leave_out),
        figure=lambda name: _figure_uri(output.parent / "figures", name),
        samples=data_uri(model / "samples.png"),
        real=data_uri(model / "real.png"),
        qc_pictures=pictures_by_volume(args.qc_pictures),
        config=config,
    )
    write_text(output, page)
    return f"{output}: {len(pictures)} figures, {len(page) / 1e6:.1f} MB"


def draw_figures(
    patches: pd.DataFrame,
    methods: list[str],
    metrics: pd.DataFrame,
    thresholds: dict[str, float | None],
    residuals: list[str],
    history: pd.DataFrame,
) -> dict[str, figures.Figure]:
    """Return the figures of the report by the name of their files."""
    test = patches[(patches["split"] == "test") & (patches["label"] >= 0)]
    label = test["label"].to_numpy()
    captions = {
        name: "AUC " + interval_text(metrics.loc[(name, "patch", "test", "auc")], 2)
        for name in methods
    }

    def chosen(names: tuple[str, ...]) -> dict[str, np.ndarray]:
        return {name: test[name].to_numpy() for name in names if name in methods}

    compared, parts = ("anogan", "gan_r", "p_d"), ("anogan_R", "anogan_D", "gan_r_D_hat")
    return {
        "roc_methods": figures.roc_figure(label, chosen(compared), captions, thresholds, "a"),
        "roc_scores": figures.roc_figure(label, chosen(parts), captions, thresholds, "b"),
        "distributions": figures.distribution_figure(label, chosen(parts[:2]), thresholds),
        "panel": figures.panel_figure(panel_columns(residuals, patches, thresholds)),
        "training": figures.training_figure(history),
    }


def panel_columns(
    paths: list[str], patches: pd.DataFrame, thresholds: dict[str, float | None]
) -> list[figures.PanelColumn]:
    """Return the panel's patches: test patches spread evenly over the ranks of A in each label.

    So the panel shows failures as well as successes.
    """
    index = pd.concat([_residual_index(path) for path in paths], ignore_index=True)
    found = index.merge(patches.drop(columns=DESCRIPTION), on=PATCH, how="inner")
    found = found[(found["split"] == "test") & (found["label"] >= 0)]
    columns = []
    for value, text in ((1, "anomalous"), (0, "normal")):
        ranked = found[found["label"] == value].sort_values(["anogan", *PATCH], ascending=False)
        places = np.linspace(0, len(ranked) - 1, min(PANEL_PATCHES, len(ranked)))
        for row in ranked.iloc[np.rint(places).astype(int)].itertuples():
            columns.append(_panel_column(row, text, thresholds))
    return columns


def count_patches(patches: pd.DataFrame) -> list[dict]:
    """Return volumes, patients and patches by label of each split that was mapped."""
    rows = []
    for split in SPLITS:
        part = patches[patches["split"] == split]
        if len(part):
            rows.append(
                {
                    "split": split,
                    "volumes": part["volume"].nunique(),
                    "patients": part["patient"].nunique(),
                    "normal": int((part["label"] == 0).sum()),
                    "anomalous": int((part["label"] == 1).sum()),
                    "unlabelled": int((part["label"] < 0).sum()),
                }
            )
    return rows


def model_facts(folder: Path, history: pd.DataFrame) -> dict[str, object]:
    """Return what the page says of the model, by name."""
    facts = json.loads(_text(folder / "model.json"))
    architecture, data = facts.get("architecture", {}), facts.get("data", {})
    last = history.iloc[-1]
    named = {
        "channels, coarse to fine": ", ".join(map(str, architecture.get("channels", []))),
        "size of z": architecture.get("latent"),
        "training volumes": data.get("n_volumes"),
        "training patients": data.get("n_patients"),
        "training patches": data.get("n_patches"),
        "steps": f"{last['step']:.0f} ({last['epoch']:.3g} epochs)",
        "seed": facts.get("seed"),
    }
    return {name: value for name, value in named.items() if value not in (None, "")}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that made the results."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def comparison_rows(metrics: pd.DataFrame, methods: list[str], suffix: str) -> list[dict]:
    """Return the rows of the paper's table: ours, each followed by the paper's own."""
    rows = []
    for name in ("anogan", "gan_r", "p_d"):
        if name in methods:
            values = metrics.loc[(name, "patch", "test")]
            named = [column if column == "auc" else column + suffix for column in TABLE_COLUMNS]
            cells = [(number(values.loc[n, "value"]), range_text(values.loc[n])) for n in named]
            rows.append({"name": METHOD_NAMES[name], "paper": False, "cells": cells})
        rows.append(_paper_row(METHOD_NAMES[name], name))
    return [*rows, _paper_row("aCAE", "acae")]


def all_rows(metrics: pd.DataFrame, methods: list[str]) -> list[dict]:
    """Return every method, level and subset, with formatted cells by column heading."""
    rows = []
    for level, subset in metrics.index.droplevel(["method", "metric"]).unique():
        for name in methods:
            values = metrics.loc[(name, level, subset)]
            counted = values["value"].map("{:.0f}".format)
            rows.append(
                {
                    "method": METHOD_NAMES[name],
                    "level": level,
                    "subset": subset,
                    "n (anomalous)": f"{counted['n']} ({counted['n_anomalous']})",
                    "patients": counted["n_patients"],
                    "excluded": counted["n_excluded"],
                    "AUC": interval_text(values.loc["auc"]),
                    "average precision": interval_text(values.loc["average_precision"]),
                    "threshold": number(values.loc["threshold", "value"], ".4g"),
                    "F1": interval_text(values.loc["f1"]),
                    "TP / FP / TN / FN": " / ".join(
                        number(values.loc[count, "value"], ".0f")
                        for count in ("tp", "fp", "tn", "fn")
                    ),
                }
            )
    return rows


def scored_volumes(volumes: pd.DataFrame, threshold: float | None) -> list[dict]:
    """Return the unlabelled volumes of split score, highest first, and whether they stand out."""
    chosen = volumes[volumes["split"] == "score"].sort_values("anogan", ascending=False)
    return [
        {
            "volume": row.volume,
            "patient": row.patient,
            "patches": row.n_patches,
            "score": number(row.anogan, ".4g"),
            "above": None if threshold is None else row.anogan >= threshold,
        }
        for row in chosen.itertuples()
    ]


def pictures_by_volume(paths: list[str]) -> dict[str, list[str]]:
    """Return the pictures, as data URIs, by the folder they lie in, which is the volume's name."""
    found = {}
    for path in paths:
        found.setdefault(Path(path).parent.name, []).append(thumbnail(path))
    return found


def number(value: float, form: str = ".3f") -> str:
    """Return `value` in the format `form`, a dash when it is undefined."""
    return "\N{EN DASH}" if not np.isfinite(value) else format(value, form)


def range_text(row: pd.Series, digits: int = 3) -> str:
    """Return "low to high" of a row of the metrics, nothing where there is no interval."""
    if not np.isfinite(row["ci_low"]):
        return ""
    return f"{row['ci_low']:.{digits}f} to {row['ci_high']:.{digits}f}"


def interval_text(row: pd.Series, digits: int = 3) -> str:
    """Return "value (low to high)" of a row of the metrics, without what is undefined."""
    between = range_text(row, digits)
    return number(row["value"], f".{digits}f") + (f" ({between})" if between else "")


def data_uri(path: str | Path) -> str:
    """Return an SVG, PNG or JPEG file as a data URI."""
    kind = {".svg": "svg+xml", ".png": "png"}[Path(path).suffix]
    return _uri(Path(path).read_bytes(), kind)


def thumbnail(path: str | Path) -> str:
    """Return a picture as a WebP data URI, no wider than `PICTURE_WIDTH_PX`."""
    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((PICTURE_WIDTH_PX, 4 * PICTURE_WIDTH_PX))
    data = io.BytesIO()
    small.save(data, "WEBP", quality=60)
    return _uri(data.getvalue(), "webp")


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _figure_uri(folder: Path, name: str) -> str:
    """Return the drawing of a curve, but the pixels of the panel, which is pictures anyway."""
    return data_uri(folder / f"{name}.{'png' if name == 'panel' else 'svg'}")


def _paper_row(name: str, key: str) -> dict:
    *at_threshold, auc = PAPER[key]
    cells = [*(f"{value:.4f}" for value in at_threshold), f"{auc:.2f}"]
    return {"name": name, "paper": True, "cells": [(cell, "") for cell in cells]}


def _residual_index(path: str) -> pd.DataFrame:
    with open_patches(path) as file:
        return read_index(file).reset_index(names="row").assign(path=path)


def _panel_column(
    row: tuple, text: str, thresholds: dict[str, float | None]
) -> figures.PanelColumn:
    def called(name: str) -> bool | None:
        return None if thresholds[name] is None else getattr(row, name) >= thresholds[name]

    with open_patches(row.path) as file:
        return figures.PanelColumn(
            title=text,
            patch=file["patches"][row.row].astype(np.float32),
            generated=file["generated"][row.row].astype(np.float32),
            mask=file["masks"][row.row],
            called_by_r=called("anogan_R"),
            called_by_d=called("anogan_D"),
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; run the stage that writes it first") from error


def _template():
    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template("report.html.j2")
