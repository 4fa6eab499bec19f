"""The figures of the report: functions of arrays and tables that return a matplotlib figure.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; line styles and
hatches carry the same meaning on a black and white print.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

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
SKY, PURPLE = "#56B4E9", "#CC79A7"
PALE_BLUE, RED = "#B9D7E9", "#CC0000"
DASHED, DOTTED = (0, (6, 2)), (0, (1, 1.4))


class Style(NamedTuple):
    """How a score is drawn; `marker` stands at its threshold."""

    label: str
    colour: str
    line: str | tuple
    marker: str


RESIDUAL = Style("R(x), residual", VERMILION, "-", "o")
FEATURES = Style("D(x), features", BLUE, DASHED, "s")
STYLES = {
    "anogan": Style("AnoGAN, A(x)", VERMILION, "-", "o"),
    "gan_r": Style("GAN$_R$, Â(x)", BLUE, DASHED, "s"),
    "p_d": Style("P$_D$", GREEN, DOTTED, "^"),
    "acae": Style("aCAE", PURPLE, (0, (6, 1.5, 1, 1.5)), "D"),
    "ae": Style("AE", SKY, (0, (3, 1.2, 1, 1.2, 1, 1.2)), "v"),
    "pca": Style("PCA", BLACK, (0, (3, 1.5)), "P"),
    **dict.fromkeys(("anogan_R", "gan_r_R", "acae_R", "ae_R", "pca_R"), RESIDUAL),
    **dict.fromkeys(("anogan_D", "acae_D"), FEATURES),
    "gan_r_D_hat": Style("D̂(x), reference", GREEN, DOTTED, "^"),
}
OTHER_STYLES = (  # of scores that are not known: colour, line, marker
    (ORANGE, (0, (10, 1.5)), "X"),
    ("0.45", (0, (10, 2, 2, 2)), "*"),
)
HISTORY_AXES = {  # label: (column of history.tsv, name, colour, line)
    "loss": (
        ("d_loss", "discriminator", BLUE, "-"),
        ("g_loss", "generator", VERMILION, DASHED),
        ("loss", "reconstruction", BLACK, DOTTED),
    ),
    "mean output of D": (
        ("d_real", "D(x), real patches", BLUE, "-"),
        ("d_fake", "D of made patches", VERMILION, DASHED),
        ("critic_real", "critic, real patches", BLUE, "-"),
        ("critic_fake", "critic, made patches", VERMILION, DASHED),
    ),
    "diversity": (("diversity", "generated over real", GREEN, "-"),),
    "distance to real patches": (("kid", "KID", PURPLE, "-"),),
    "explained variance": (("explained_variance", "all components", BLUE, "-"),),
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
RESIDUAL_SHOWN = 0.15  # smaller residuals, |x - G(z)| of gray values in [-1, 1], stay uncoloured


@dataclass
class PanelColumn:
    """One patch of the panel: arrays (h, w), and by which scores ("R") it is called anomalous."""

    title: str
    patch: np.ndarray
    generated: np.ndarray
    mask: np.ndarray
    called: dict[str, bool]


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
    """Draw the ROC curve of each of `scores` (n,) for `label` (n,).

    `captions` end the legend entries; a marker stands at the threshold where there is one.
    """
    figure, axes = _figure(1, 4.4, 4.6 + 0.18 * len(scores))
    _letter(axes[0], letter)
    axes[0].set(
        xlabel="1 $-$ specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01)
    )
    axes[0].set_aspect("equal")
    axes[0].plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    if not 0 < np.sum(label == 1) < len(label):
        return _nothing(figure, axes[0], "a ROC curve needs normal\nand anomalous test patches")
    if not scores:
        return _nothing(figure, axes[0], "no method here has a score\nmade of parts")
    for name, style in _styles(scores).items():
        fpr, tpr, _ = roc_curve(label, scores[name])
        look = {"color": style.colour, "linestyle": style.line, "linewidth": 1.8}
        point = {"marker": style.marker, "markersize": 8, "markeredgecolor": "white"}
        axes[0].plot(fpr, tpr, **look)
        if thresholds.get(name) is not None:
            called = scores[name] >= thresholds[name]
            where = np.mean(called[label == 0]), np.mean(called[label == 1])
            axes[0].plot(*where, color=style.colour, zorder=3, **point)
        axes[0].plot([], [], **look, **point, label=f"{style.label}: {captions[name]}")
    figure.legend(loc="outside lower center", frameon=False, handlelength=4.5)
    return figure


@mpl.rc_context(STYLE)
def distribution_figure(
    label: np.ndarray, scores: dict[str, np.ndarray], thresholds: dict[str, float | None]
) -> Figure:
    """Draw how the scores (n,) of normal and anomalous test patches are distributed, c and d."""
    figure, axes = _figure(len(scores), 3.6 * len(scores), 3.1)
    if not len(label):
        for axis in axes:
            _nothing(figure, axis, "no test patch carries a label")
        return figure
    for axis, letter, (name, style) in zip(axes, "cd", _styles(scores).items(), strict=False):
        score = scores[name]
        _letter(axis, letter)
        axis.set(xlabel=style.label, ylabel="density")
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
def panel_figure(columns: list[PanelColumn], rebuilt: str) -> Figure:
    """Draw a column a patch: input, rebuilt patch, residual over input, truth; a bar per call.

    Where nobody annotated anything, the row of the truth is left out. `rebuilt` is the symbol of
    the rebuilt patch; all columns have the same `called`.
    """
    if not columns:
        figure, axes = _figure(1, 4, 2)
        return _nothing(figure, axes[0], "no pictures of rebuilt patches were kept")
    height, width = columns[0].patch.shape
    pitch_z, pitch_x = height + PANEL_GAP_PX, width + PANEL_GAP_PX
    annotated = any(np.any(column.mask != NOT_EXAMINED) for column in columns)
    names = ("input x", f"rebuilt, {rebuilt}", f"residual |x $-$ {rebuilt}|", "annotation")
    names = names if annotated else names[:3]
    end = len(names) * pitch_z
    bars = {name: end + 0.2 * i * height for i, name in enumerate(columns[0].called)}
    extent_x, extent_z = len(columns) * pitch_x, end + 0.2 * len(bars) * height
    inches = 0.82 / pitch_x
    figure, axes = _figure(1, 2.2 + extent_x * inches, 0.3 + extent_z * inches)
    axis = axes[0]

    residuals = [np.abs(column.patch - column.generated) for column in columns]
    brightest = max(float(np.quantile(residuals, 0.998)), 2 * RESIDUAL_SHOWN)
    shown = [np.where(residual < RESIDUAL_SHOWN, np.nan, residual) for residual in residuals]
    inputs = [column.patch for column in columns]
    strips = (inputs, [column.generated for column in columns], inputs, inputs)
    for row, images in enumerate(strips[: len(names)]):
        _draw_strip(axis, images, row * pitch_z, cmap="gray", vmin=-1, vmax=1)
    heat = _draw_strip(axis, shown, 2 * pitch_z, cmap="inferno", vmin=0, vmax=brightest, alpha=0.85)
    for i, column in enumerate(columns):
        left = i * pitch_x
        if annotated:
            _draw_truth(axis, column.mask, left, 3 * pitch_z)
        for (name, top), colour in zip(bars.items(), (RED, YELLOW), strict=False):
            face = colour if column.called[name] else "none"
            bar = Rectangle((left, top), width, 0.16 * height, facecolor=face, edgecolor="0.35")
            axis.add_patch(bar)
    for title, start, count in _runs([column.title for column in columns]):
        middle = (start + count / 2) * pitch_x
        axis.text(middle, -0.08 * height, title, ha="center", va="bottom", fontsize=10)
        if start:
            axis.axvline(start * pitch_x - PANEL_GAP_PX / 2, color=BLACK, linewidth=1.5)
    heights = [(row + 0.5) * pitch_z for row in range(len(names))]
    heights += [top + 0.08 * height for top in bars.values()]
    axis.set_yticks(heights, [*names, *(f"called by {name}" for name in bars)])
    axis.set(xticks=[], xlim=(0, extent_x), ylim=(extent_z, -0.1 * height), aspect="equal")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.colorbar(heat, ax=axis, label="residual", fraction=0.03, pad=0.01, aspect=30)
    return figure


@mpl.rc_context(STYLE)
def training_figure(history: pd.DataFrame) -> Figure:
    """Draw what history.tsv holds of the losses, D's outputs and the quality of the samples."""
    drawn = [
        (label, found)
        for label, curves in HISTORY_AXES.items()
        if (found := [c for c in curves if c[0] in history and history[c[0]].notna().any()])
    ]
    if not drawn:
        figure, axes = _figure(1, 4, 2)
        return _nothing(figure, axes[0], "the model came without the history of its training")
    columns, rows = min(2, len(drawn)), -(-len(drawn) // 2)
    figure, axes = _figure(columns, 3.6 * columns, 2.9 * rows, rows)
    time = "step" if "step" in history else "patches"
    for axis, (label, curves) in zip(axes, drawn, strict=False):
        for column, text, colour, line in curves:
            _draw_course(axis, history[[time, column]].dropna(), text, colour, line)
        axis.set(xlabel=time, ylabel=label)
        low, high = axis.get_ylim()
        if low > 0:
            axis.set_ylim(0, 1.05 * high)
        axis.legend(frameon=False)
    for axis in axes[len(drawn) :]:
        axis.remove()
    return figure


def _draw_course(axis: Axes, course: pd.DataFrame, text: str, colour: str, line: object) -> None:
    """Draw the second column over the first, faint, and its running mean."""
    time, value = course.iloc[:, 0], course.iloc[:, 1]
    window = max(1, len(course) // 40)
    marker = "." if len(course) <= 20 else ""
    smooth = value.rolling(window, center=True, min_periods=1).mean()
    axis.plot(time, value, color=colour, linewidth=0.6, alpha=0.3)
    axis.plot(time, smooth, color=colour, linestyle=line, marker=marker, linewidth=1.6, label=text)


def _styles(names: Iterable[str]) -> dict[str, Style]:
    """Return the style of every score; unknown ones are called by their names."""
    others = cycle(OTHER_STYLES)
    return {name: STYLES[name] if name in STYLES else Style(name, *next(others)) for name in names}


def _figure(columns: int, width: float, height: float, rows: int = 1) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


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
