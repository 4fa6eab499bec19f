"""Scores and metrics -> figures and one self-contained page that explains them."""

import argparse
import base64
import io
import json
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from anogan import figures
from anogan.report_qc import summarise
from anogan.report_tables import (
    TABLE_COLUMNS,
    all_rows,
    comparison_rows,
    count_patches,
    interval_text,
    method_name,
    number,
    scored_volumes,
)
from anogan.score_tables import DESCRIPTION, PATCH, patch_table, read_scores
from preprocessing.errors import InputError
from preprocessing.files import write_text
from preprocessing.patch_file import open_patches, read_index
from preprocessing.patches import LEAVE_OUT

GAN_METHODS = ("anogan", "gan_r")  # that rebuild a patch as G(z)
PANEL_PATCHES = 12
PICTURE_WIDTH_PX = 1400  # the small print of the contact sheet can still be read
PACKAGES = ("oct-anogan", "torch", "numpy", "scipy", "scikit-learn", "matplotlib", "snakemake")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `python -m anogan report`."""
    parser.add_argument("--scores", nargs="+", required=True, help="score files of all methods")
    parser.add_argument(
        "--residuals",
        nargs="+",
        required=True,
        help="files *.residuals.h5 of the method that leads the report",
    )
    parser.add_argument(
        "--metrics", required=True, help="metrics.tsv, with what `evaluate` wrote beside it"
    )
    parser.add_argument("--model", required=True, help="folder of the model of that method")
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
    metrics, evaluation, volumes = read_evaluation(Path(args.metrics))
    headline = next(iter(methods))
    names = [name for own in methods.values() for name in own]
    if set(names) != set(evaluation["operating_points"]["patch"]):
        raise InputError(
            f"{args.metrics}: not made from these score files; run `evaluate` on them first"
        )
    points = evaluation["operating_points"]["patch"]
    thresholds = {name: point["threshold"] for name, point in points.items()}
    healthy_threshold = evaluation["healthy_volume_threshold"][headline]
    history, config = read_history(model), _text(Path(args.config))
    facts = model_facts(model, history)
    panel = panel_columns(args.residuals, patches, methods, thresholds)
    pictures = draw_figures(patches, methods, metrics, thresholds, panel, history)
    for name, figure in pictures.items():
        figures.save_figure(figure, output.parent / "figures", name)

    page = _template().render(
        phantom=args.phantom,
        methods=list(methods),
        headline=method_name(headline),
        parts=[name.removeprefix(f"{headline}_") for name in main_parts(methods)],
        measured=metrics.loc[(headline, "patch", "test")].to_dict("index") if len(metrics) else {},
        point=points[headline],
        has_panel=bool(panel),
        evaluation=evaluation,
        counts=count_patches(patches),
        n_volumes=len(volumes),
        model=facts,
        versions=versions(),
        columns=TABLE_COLUMNS,
        paper_rows=comparison_rows(metrics, methods, "") if len(metrics) else [],
        optimistic_rows=comparison_rows(metrics, methods, "_optimistic") if len(metrics) else [],
        all_rows=all_rows(metrics, names),
        scored=scored_volumes(volumes, headline, healthy_threshold),
        healthy_threshold=healthy_threshold,
        qc=summarise(args.qc, args.leave_out),
        figure=lambda name: _figure_uri(output.parent / "figures", name),
        samples=picture_uri(model / "samples.png"),
        real=picture_uri(model / "real.png"),
        qc_pictures=pictures_by_volume(args.qc_pictures),
        config=config,
    )
    write_text(output, page)
    return f"{output}: {len(pictures)} figures, {len(page) / 1e6:.1f} MB"


def read_evaluation(path: Path) -> tuple[pd.DataFrame, dict, pd.DataFrame]:
    """Return metrics by (score, level, subset, metric), evaluation.json and the volumes' scores."""
    metrics = pd.read_csv(path, sep="\t")
    metrics = metrics.set_index(["method", "level", "subset", "metric"]).sort_index()
    evaluation = json.loads(_text(path.with_name("evaluation.json")))
    volumes = pd.read_csv(
        path.with_name("volumes.tsv"),
        sep="\t",
        dtype={"volume": str, "patient": str},
        na_values="nan",
        keep_default_na=False,  # a volume may be called NA
    )
    return metrics, evaluation, volumes


def main_parts(methods: dict[str, list[str]]) -> list[str]:
    """Return the two scores that the first method's own is made of; its own where there are none.

    `methods` holds the names of each method's scores, its own first.
    """
    own, *parts = next(iter(methods.values()))
    return parts[:2] or [own]


def draw_figures(
    patches: pd.DataFrame,
    methods: dict[str, list[str]],
    metrics: pd.DataFrame,
    thresholds: dict[str, float | None],
    panel: list[figures.PanelColumn],
    history: pd.DataFrame,
) -> dict[str, figures.Figure]:
    """Return the figures of the report by the name of their files."""
    test = patches[(patches["split"] == "test") & (patches["label"] >= 0)]
    label = test["label"].to_numpy()
    parts = main_parts(methods)
    made_of = [name for name in dict.fromkeys([*parts, "gan_r_D_hat"]) if name not in methods]

    def roc(names: Iterable[str], letter: str) -> figures.Figure:
        scores = {name: test[name].to_numpy() for name in names if name in test}
        auc = {name: metrics.loc[(name, "patch", "test", "auc")] for name in scores if len(test)}
        captions = {name: "AUC " + interval_text(row, 2) for name, row in auc.items()}
        return figures.roc_figure(label, scores, captions, thresholds, letter)

    return {
        "roc_methods": roc(methods, "a"),
        "roc_scores": roc(made_of, "b"),
        "distributions": figures.distribution_figure(
            label, {name: test[name].to_numpy() for name in parts}, thresholds
        ),
        "panel": figures.panel_figure(
            panel, "G(z)" if next(iter(methods)) in GAN_METHODS else r"$\hat{x}$"
        ),
        "training": figures.training_figure(history),
    }


def panel_columns(
    paths: list[str],
    patches: pd.DataFrame,
    methods: dict[str, list[str]],
    thresholds: dict[str, float | None],
) -> list[figures.PanelColumn]:
    """Return the panel's patches, spread evenly over the ranks of the first method's score.

    So the panel shows failures as well as successes: labelled test patches, half of them normal;
    where there are none, unlabelled ones.
    """
    headline = next(iter(methods))
    called_by = {
        name.removeprefix(f"{headline}_"): (name, thresholds[name])
        for name in main_parts(methods)
        if thresholds[name] is not None
    }
    index = pd.concat([_residual_index(path) for path in paths], ignore_index=True)
    found = index.merge(patches.drop(columns=DESCRIPTION), on=PATCH, how="inner")
    test = found[(found["split"] == "test") & (found["label"] >= 0)]
    shown = {"anomalous": test[test["label"] == 1], "normal": test[test["label"] == 0]}
    if test.empty:
        shown = {"unlabelled": found[(found["split"] != "validation") & (found["label"] < 0)]}
    return [
        _panel_column(row, title, called_by)
        for title, rows in shown.items()
        for row in _spread(
            rows.sort_values([headline, *PATCH], ascending=False), PANEL_PATCHES // len(shown)
        )
    ]


def read_history(model: Path) -> pd.DataFrame:
    """Return the history of a model's training; an empty table where it came without one."""
    path = model / "history.tsv"
    return pd.read_csv(path, sep="\t") if path.exists() else pd.DataFrame()


def model_facts(folder: Path, history: pd.DataFrame) -> dict[str, object]:
    """Return what the page says of the model, by name."""
    facts = json.loads(_text(folder / "model.json"))
    data, steps = facts.get("data", {}), facts.get("training", {}).get("steps")
    if {"step", "epoch"} <= set(history) and len(history):
        last = history.iloc[-1]
        steps = f"{last['step']:.0f} ({last['epoch']:.3g} epochs)"
    named = {
        "model": facts.get("model"),
        **{key.replace("_", " "): _listed(v) for key, v in facts.get("architecture", {}).items()},
        "training volumes": data.get("n_volumes"),
        "training patients": data.get("n_patients"),
        "training patches": data.get("n_patches"),
        "steps": steps,
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


def pictures_by_volume(paths: list[str]) -> dict[str, list[str]]:
    """Return the pictures, as data URIs, by the folder they lie in, which is the volume's name."""
    found = {}
    for path in paths:
        found.setdefault(Path(path).parent.name, []).append(thumbnail(path))
    return found


def data_uri(path: str | Path) -> str:
    """Return an SVG or PNG file as a data URI."""
    kind = {".svg": "svg+xml", ".png": "png"}[Path(path).suffix]
    return _uri(Path(path).read_bytes(), kind)


def picture_uri(path: Path) -> str | None:
    """Return a picture of the model as a data URI, None where it came without one."""
    return data_uri(path) if path.exists() else None


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


def _residual_index(path: str) -> pd.DataFrame:
    with open_patches(path) as file:
        return read_index(file).reset_index(names="row").assign(path=path)


def _spread(ranked: pd.DataFrame, count: int) -> list[dict]:
    """Return at most `count` rows at even distances, the first and the last among them."""
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked)))
    return ranked.iloc[np.rint(places).astype(int)].to_dict("records")


def _panel_column(
    row: dict, title: str, called_by: dict[str, tuple[str, float]]
) -> figures.PanelColumn:
    with open_patches(row["path"]) as file:
        return figures.PanelColumn(
            title=title,
            patch=file["patches"][row["row"]].astype(np.float32),
            generated=file["generated"][row["row"]].astype(np.float32),
            mask=file["masks"][row["row"]],
            called={text: row[name] >= threshold for text, (name, threshold) in called_by.items()},
        )


def _listed(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


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
