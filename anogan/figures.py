"""The figures of the report: functions of arrays and tables that return a matplotlib figure.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; line styles and
hatches carry the same meaning on a black and white print.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from preprocessing.files import atomic_path

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
STYLES = {  # by method: label, colour, line
    "anogan": ("AnoGAN, A(x)", VERMILION, "-"),
    "gan_r": ("GAN$_R$, Â(x)", BLUE, (0, (6, 2))),
    "p_d": ("P$_D$", GREEN, (0, (1, 1.4))),
    "anogan_R": ("R(x), residual", VERMILION, "-"),
    "anogan_D": ("D(x), features", BLUE, (0, (6, 2))),
    "gan_r_D_hat": ("D̂(x), reference", GREEN, (0, (1, 1.4))),
}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 10,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "oct-anogan",
    "svg.fonttype": "path",  # looks the same on every machine
    "figure.dpi": 100,
}
PIXELS_PER_INCH = 300
RESIDUAL_SHOWN = 0.15  # smaller residuals, |x - G(z)| of gray values in [-1, 1], stay uncoloured


@dataclass
class PanelColumn:
    """One patch of the panel: arrays (h, w), and what R and D say of it (None: no threshold)."""

    title: str
    patch: np.ndarray
    generated: np.ndarray
    mask: np.ndarray
    called_by_r: bool | None
    called_by_d: bool | None


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write `name`.svg and `name`.png; the same figure gives the same bytes."""
    with mpl.rc_context(STYLE):
        for suffix, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
            with atomic_path(folder / f"{name}.{suffix}") as temporary:
                figure.savefig(temporary, dpi=PIXELS_PER_INCH, metadata=metadata)


@mpl.rc_context(STYLE)
def roc_figure(
    label: np.ndarray,
    scores: dict[str, np.ndarray],
    captions: dict[str, str],
    thresholds: dict[str, float | None],
    letter: str,
) -> Figure:
    """Draw the ROC curve of each method's `scores` (n,) for `label` (n,).

    `captions` end the legend entries; a circle marks the threshold where there is one.
    """
    figure, axes = _figure(1, 4.4, 4.4)
    _letter(axes[0], letter)
    axes[0].set(
        xlabel="1 − specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01)
    )
    axes[0].set_aspect("equal")
    axes[0].plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    if not 0 < np.sum(label == 1) < len(label):
        return _nothing(figure, axes[0], "a ROC curve needs normal\nand anomalous test patches")
    for name, score in scores.items():
        text, colour, line = STYLES[name]
        fpr, tpr, _ = roc_curve(label, score)
        text = f"{text}: {captions[name]}"
        axes[0].plot(fpr, tpr, color=colour, linestyle=line, linewidth=1.8, label=text)
        if thresholds.get(name) is not None:
            called = score >= thresholds[name]
            where = np.mean(called[label == 0]), np.mean(called[label == 1])
            axes[0].plot(*where, "o", color=colour, markersize=6, markeredgecolor="white")
    axes[0].legend(loc="lower right", frameon=False)
    return figure


@mpl.rc_context(STYLE)
def distribution_figure(
    label: np.ndarray, scores: dict[str, np.ndarray], thresholds: dict[str, float | None]
) -> Figure:
    """Draw how the scores (n,) of normal and anomalous test patches are distributed, c and d."""
    figure, axes = _figure(len(scores), 3.6 * len(scores), 3.1)
    for axis, letter, (name, score) in zip(axes, "cd", scores.items(), strict=True):
        _letter(axis, letter)
        axis.set(xlabel=STYLES[name][0], ylabel="density")
        edges = np.histogram_bin_edges(score, 40)
        for value, text, colour, hatch in (
            (0, "normal", BLUE, ""),
            (1, "anomalous", VERMILION, "////"),
        ):
            if np.any(label == value):
                axis.hist(
                    score[label == value],
                    edges,
                    density=True,
                    histtype="stepfilled",
                    facecolor=(*mpl.colors.to_rgb(colour), 0.35),
                    edgecolor=colour,
                    linewidth=1.3,
                    hatch=hatch,
                    label=text,
                )
        if thresholds.get(name) is not None:
            axis.axvline(thresholds[name], color=BLACK, linestyle="--", linewidth=1, label="threshold")
    axes[0].legend(frameon=False)
    return figure


@mpl.rc_context(STYLE)
def panel_figure(columns: list[PanelColumn]) -> Figure:
    """Draw a column a patch: input, generated, residual over input, truth; bars by R and D."""
    if not columns:
        figure, axes = _figure(1, 4, 2)
        return _nothing(figure, axes[0], "no residuals were kept")
    rows = ("input x", "generated G(z)", "residual |x − G(z)|", "annotation")
    figure = Figure(figsize=(0.9 + 0.82 * len(columns), 3.95), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    grid = figure.subplots(
        5, len(columns), squeeze=False, gridspec_kw={"height_ratios": [1, 1, 1, 1, 0.32]}
    )
    residuals = np.stack([np.abs(c.patch - c.generated) for c in columns])
    brightest = max(float(np.quantile(residuals, 0.998)), 2 * RESIDUAL_SHOWN)
    for axes, column, residual in zip(grid.T, columns, residuals, strict=True):
        for axis, image in zip(axes[:4], _gray_rows(column), strict=True):
            axis.imshow(image, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axes[0].set_title(column.title, fontsize=8)
        overlay = np.ma.masked_less(residual, RESIDUAL_SHOWN)
        heat = axes[2].imshow(
            overlay, cmap="inferno", vmin=0, vmax=brightest, alpha=0.85, interpolation="nearest"
        )
        _draw_truth(axes[3], column.mask)
        _draw_bars(axes[4], column)
    for axis, text in zip(grid[:4, 0], rows, strict=True):
        axis.set_ylabel(text, fontsize=8)
    grid[4, 0].set_ylabel("R\nD", rotation=0, ha="right", va="center", fontsize=8)
    for axis in grid.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    bar = figure.colorbar(heat, ax=grid[:, -1], fraction=0.08, pad=0.04, aspect=30)
    bar.set_label("residual", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


@mpl.rc_context(STYLE)
def training_figure(history: pd.DataFrame) -> Figure:
    """Draw the losses and D's mean outputs by step, from the columns of history.tsv."""
    figure, axes = _figure(2, 7.2, 2.9)
    curves = (
        (axes[0], "d_loss", "discriminator", BLUE, "-"),
        (axes[0], "g_loss", "generator", VERMILION, (0, (5, 1.5))),
        (axes[1], "d_real", "D(x), real patches", BLUE, "-"),
        (axes[1], "d_fake", "D(G(z)), generated", VERMILION, (0, (5, 1.5))),
    )
    window = max(1, len(history) // 40)
    for axis, column, text, colour, line in curves:
        axis.plot(history["step"], history[column], color=colour, linewidth=0.6, alpha=0.3)
        smooth = history[column].rolling(window, center=True, min_periods=1).mean()
        axis.plot(history["step"], smooth, color=colour, linestyle=line, linewidth=1.6, label=text)
        axis.set(xlabel="step")
        axis.legend(frameon=False)
    axes[0].set(ylabel="loss", ylim=(0, None))
    axes[1].set(ylabel="mean output of D", ylim=(0, 1))
    axes[1].axhline(0.5, color="0.6", linewidth=0.8)
    return figure


def _figure(columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _letter(axis: Axes, letter: str) -> None:
    axis.set_title(f"({letter})", loc="left", fontweight="bold")


def _nothing(figure: Figure, axis: Axes, reason: str) -> Figure:
    axis.text(0.5, 0.5, reason, ha="center", va="center", transform=axis.transAxes)
    axis.set(xticks=[], yticks=[])
    return figure


def _gray_rows(column: PanelColumn) -> tuple[np.ndarray, ...]:
    return column.patch, column.generated, column.patch, column.patch


def _draw_truth(axis: Axes, mask: np.ndarray) -> None:
    if np.all(mask == 255):
        axis.text(0.5, 0.08, "not annotated", ha="center", color="white", fontsize=6,
                  transform=axis.transAxes)  # fmt: skip
    elif np.any(mask == 1):
        marked = mask == 1
        axis.contour(marked, levels=[0.5], colors=[BLACK], linewidths=2.2)
        axis.contour(marked, levels=[0.5], colors=[ORANGE], linewidths=1.2)


def _draw_bars(axis: Axes, column: PanelColumn) -> None:
    """Fill a bar, red for R above yellow for D, where that score calls the patch anomalous."""
    axis.set(xlim=(0, 1), ylim=(0, 1))
    for bottom, called, colour in ((0.54, column.called_by_r, "#D00000"), (0.04, column.called_by_d, YELLOW)):
        face = colour if called else "none"
        axis.add_patch(mpl.patches.Rectangle(
            (0.06, bottom), 0.88, 0.4, facecolor=face, edgecolor="0.35", linewidth=0.7
        ))  # fmt: skip
