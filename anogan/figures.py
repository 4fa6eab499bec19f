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
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from sklearn.metrics import roc_curve

from preprocessing.files import atomic_path
from preprocessing.volume import NOT_EXAMINED

BLACK, ORANGE, GREEN = "#000000", "#E69F00", "#009E73"
YELLOW, BLUE, VERMILION = "#F0E442", "#0072B2", "#D55E00"
PALE_BLUE, RED = "#B9D7E9", "#CC0000"
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
    "hatch.linewidth": 0.8,
    "svg.hashsalt": "oct-anogan",
    "svg.fonttype": "path",  # looks the same on every machine
    "figure.dpi": 100,
}
PIXELS_PER_INCH = 200
PANEL_GAP_PX = 3
PANEL_ROWS = (
    "input x",
    "generated G(z)",
    "residual |x $-$ G(z)|",
    "annotation",
    "called by R",
    "by D",
)
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
        for suffix, unset in (("svg", ("Date", "Creator")), ("png", ("Software",))):
            with atomic_path(folder / f"{name}.{suffix}") as temporary:
                metadata = dict.fromkeys(unset)
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
        xlabel="1 $-$ specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01)
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
        edges = np.histogram_bin_edges(score, 30)
        for value, text, colour, face, hatch in (
            (0, "normal", BLUE, PALE_BLUE, ""),
            (1, "anomalous", VERMILION, "none", "////"),
        ):
            if np.any(label == value):
                axis.hist(
                    score[label == value],
                    edges,
                    density=True,
                    histtype="stepfilled",
                    facecolor=face,
                    edgecolor=colour,
                    linewidth=1.3,
                    hatch=hatch,
                    label=text,
                )
        if thresholds.get(name) is not None:
            axis.axvline(
                thresholds[name], color=BLACK, linestyle="--", linewidth=1, label="threshold"
            )
    axes[0].legend(frameon=False)
    return figure


@mpl.rc_context(STYLE)
def panel_figure(columns: list[PanelColumn]) -> Figure:
    """Draw a column a patch: input, generated, residual over input, truth; bars by R and D."""
    if not columns:
        figure, axes = _figure(1, 4, 2)
        return _nothing(figure, axes[0], "no residuals of labelled test patches were kept")
    height, width = columns[0].patch.shape
    pitch_z, pitch_x = height + PANEL_GAP_PX, width + PANEL_GAP_PX
    bars = [4 * pitch_z + offset * height for offset in (0, 0.2)]
    extent_x, extent_z = len(columns) * pitch_x, bars[1] + 0.2 * height
    inches = 0.82 / pitch_x
    figure, axes = _figure(1, 1.8 + extent_x * inches, 0.3 + extent_z * inches)
    axis = axes[0]

    residuals = [np.abs(column.patch - column.generated) for column in columns]
    brightest = max(float(np.quantile(residuals, 0.998)), 2 * RESIDUAL_SHOWN)
    shown = [np.where(residual < RESIDUAL_SHOWN, np.nan, residual) for residual in residuals]
    inputs = [column.patch for column in columns]
    for row, images in enumerate((inputs, [c.generated for c in columns], inputs, inputs)):
        _draw_strip(axis, images, row * pitch_z, cmap="gray", vmin=-1, vmax=1)
    heat = _draw_strip(axis, shown, 2 * pitch_z, cmap="inferno", vmin=0, vmax=brightest, alpha=0.85)
    for i, column in enumerate(columns):
        left = i * pitch_x
        _draw_truth(axis, column.mask, left, 3 * pitch_z)
        for top, called, colour in zip(
            bars, (column.called_by_r, column.called_by_d), (RED, YELLOW), strict=True
        ):
            face = colour if called else "none"
            bar = Rectangle((left, top), width, 0.16 * height, facecolor=face, edgecolor="0.35")
            axis.add_patch(bar)
    for title, start, count in _runs([column.title for column in columns]):
        middle = (start + count / 2) * pitch_x
        axis.text(middle, -0.08 * height, title, ha="center", va="bottom", fontsize=10)
        if start:
            axis.axvline(start * pitch_x - PANEL_GAP_PX / 2, color=BLACK, linewidth=1.5)
    heights = [(row + 0.5) * pitch_z for row in range(4)] + [top + 0.08 * height for top in bars]
    axis.set_yticks(heights, PANEL_ROWS)
    axis.set(xticks=[], xlim=(0, extent_x), ylim=(extent_z, -0.1 * height), aspect="equal")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.colorbar(heat, ax=axis, label="residual", fraction=0.03, pad=0.01, aspect=30)
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


def _runs(titles: list[str]) -> list[tuple[str, int, int]]:
    """Return (title, first column, number of columns) of each run of equal titles."""
    return [(title, titles.index(title), titles.count(title)) for title in dict.fromkeys(titles)]


def _draw_strip(axis: Axes, images: list[np.ndarray], top: float, **style: object) -> AxesImage:
    """Show `images` (h, w) side by side from row `top`, with gaps; NaN is transparent."""
    height = len(images[0])
    gap = np.full((height, PANEL_GAP_PX), np.nan)
    strip = np.hstack([part for image in images for part in (image, gap)])
    extent = (0, strip.shape[1], top + height, top)
    return axis.imshow(strip, extent=extent, interpolation="nearest", **style)


def _draw_truth(axis: Axes, mask: np.ndarray, left: float, top: float) -> None:
    """Outline the marked pixels of `mask` (h, w), or say that nobody looked."""
    height, width = mask.shape
    if np.all(mask == NOT_EXAMINED):
        where = left + width / 2, top + height - 3
        text = axis.text(*where, "not annotated", ha="center", color="white", fontsize=6)
        text.set_path_effects([withStroke(linewidth=1.5, foreground=BLACK)])
    elif np.any(mask == 1):
        # a rim of zeros closes outlines at the border of the patch
        marked = np.pad(mask == 1, 1)
        x = np.clip(left - 0.5 + np.arange(width + 2), left, left + width)
        z = np.clip(top - 0.5 + np.arange(height + 2), top, top + height)
        for colour, thickness in ((BLACK, 2.4), (ORANGE, 1.3)):
            axis.contour(x, z, marked, levels=[0.5], colors=[colour], linewidths=thickness)
