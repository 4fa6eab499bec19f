"""The figures of the report that show patches."""

from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from anogan.figures.style import (
    BLACK,
    BLUE,
    ORANGE,
    PAGE_INCHES,
    PALE_BLUE,
    RED,
    STYLE,
    VERMILION,
    YELLOW,
    new_figure,
    say_why_empty,
)
from preprocessing.volume import NOT_EXAMINED

PANEL_GAP_PX = 3
LABELS_INCHES = 2.2  # what stands beside the pictures
WIDEST_STRIP = PAGE_INCHES - LABELS_INCHES
BAR_PITCH = 0.17  # inches; its name fits beside a bar
RESIDUALS_SHOWN = (0.8, 0.998)  # quantiles: what is below the first stays uncoloured
# without the darkest colours, which a black and white print could not tell from the retina
HEAT = LinearSegmentedColormap.from_list("heat", mpl.colormaps["inferno"](np.linspace(0.3, 1, 256)))
BARS = (  # of a patch that a score calls anomalous: red and yellow as in the paper
    {"facecolor": RED},
    {"facecolor": YELLOW, "hatch": "//////"},
)


@dataclass
class PanelColumn:
    """One patch of the panel: arrays (h, w), and by which scores ("R") it is called anomalous."""

    title: str
    patch: np.ndarray
    generated: np.ndarray
    mask: np.ndarray
    called: dict[str, bool]


@mpl.rc_context(STYLE)
def panel_figure(columns: list[PanelColumn], rebuilt: str) -> Figure:
    """Draw a column a patch: input, rebuilt patch, residual over input, truth; a bar per call.

    Only the highest fifth of the residuals is coloured. Where nobody annotated anything, the row
    of the truth is left out. `rebuilt` is the symbol of the rebuilt patch; all columns have the
    same `called`; columns of a title stand together.
    """
    if not columns:
        figure, axes = new_figure(1, 4, 2)
        return say_why_empty(figure, axes[0], "no pictures of rebuilt patches were kept")
    height, width = columns[0].patch.shape
    pitch_z, pitch_x = height + PANEL_GAP_PX, width + PANEL_GAP_PX
    pixel = min(1.2, WIDEST_STRIP / len(columns)) / pitch_x  # inches
    names = _row_names(columns, rebuilt)
    end = len(names) * pitch_z
    bars = {name: end + i * BAR_PITCH / pixel for i, name in enumerate(columns[0].called)}
    extent_x, extent_z = len(columns) * pitch_x, end + len(bars) * BAR_PITCH / pixel
    figure, axes = new_figure(1, LABELS_INCHES + extent_x * pixel, 0.5 + extent_z * pixel)
    axis = axes[0]

    inputs, made = [c.patch for c in columns], [c.generated for c in columns]
    residuals = np.abs(np.subtract(inputs, made))
    low, high = np.quantile(residuals, RESIDUALS_SHOWN)
    shown = list(np.where(residuals <= low, np.nan, residuals))
    for row, images in enumerate((inputs, made, inputs, inputs)[: len(names)]):
        brightest = 3 if row == 2 else 1  # the residual is brighter than the patch below it
        _draw_strip(axis, images, row * pitch_z, cmap="gray", vmin=-1, vmax=brightest)
    heat = _draw_strip(axis, shown, 2 * pitch_z, cmap=HEAT, vmin=low, vmax=high)
    for i, column in enumerate(columns):
        left = i * pitch_x
        if len(names) > 3:
            _draw_truth(axis, column.mask, left, 3 * pitch_z)
        for (name, top), look in zip(bars.items(), BARS, strict=False):
            look = look if column.called[name] else {"facecolor": "none"}
            place = {"xy": (left, top), "width": width, "height": 0.75 * BAR_PITCH / pixel}
            axis.add_patch(Rectangle(**place, edgecolor="0.35", **look))
    for title, start, count in _runs([column.title for column in columns]):
        middle, lines = (start + count / 2) * pitch_x, title.replace(", ", "\n")
        axis.text(middle, -0.08 * height, lines, ha="center", va="bottom", fontsize=10)
        if start:
            axis.axvline(start * pitch_x - PANEL_GAP_PX / 2, color=BLACK, linewidth=1.5)
    heights = [(row + 0.5) * pitch_z for row in range(len(names))]
    heights += [top + 0.4 * BAR_PITCH / pixel for top in bars.values()]
    axis.set_yticks(heights, [*names, *(f"called by {name}" for name in bars)])
    axis.set(xticks=[], xlim=(0, extent_x), ylim=(extent_z, -0.1 * height), aspect="equal")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.colorbar(heat, ax=axis, label="residual", fraction=0.03, pad=0.01, aspect=30)
    return figure


@mpl.rc_context(STYLE)
def walks_figure(walks: np.ndarray) -> Figure:
    """Draw walks (k, steps, h, w) between points of the latent space, a row a walk."""
    k, steps, height, width = walks.shape
    if not k:
        figure, axes = new_figure(1, 4, 2)
        return say_why_empty(figure, axes[0], "no walk was made")
    pitch_z, pitch_x = height + PANEL_GAP_PX, width + PANEL_GAP_PX
    inches = min(0.82, WIDEST_STRIP / steps) / pitch_x
    figure, axes = new_figure(1, 0.8 + steps * pitch_x * inches, 0.4 + k * pitch_z * inches)
    axis = axes[0]
    for row, walk in enumerate(walks):
        _draw_strip(axis, list(walk), row * pitch_z, cmap="gray", vmin=-1, vmax=1)
    axis.set_yticks([(row + 0.5) * pitch_z for row in range(k)], range(1, k + 1))
    ends = (width / 2, (steps - 0.5) * pitch_x)
    axis.set_xticks(ends, ["from z$_1$", "to z$_2$"])
    axis.set(xlim=(0, steps * pitch_x), ylim=(k * pitch_z, 0), aspect="equal", ylabel="walk")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure


@mpl.rc_context(STYLE)
def tsne_figure(points: np.ndarray, label: np.ndarray) -> Figure:
    """Draw embedded patches `points` (n, 2) by their `label` (n,): 1 anomalous, 0 normal, -1."""
    figure, axes = new_figure(1, 4.4, 4.6)
    axis = axes[0]
    axis.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    axis.set_box_aspect(1)
    if not len(points):
        return say_why_empty(figure, axis, "too few patches to arrange,\nor all alike to D")
    for value, text, marker, look in (
        (-1, "without a label", "^", {"facecolors": "none", "edgecolors": "0.5"}),
        (0, "normal", "o", {"facecolors": PALE_BLUE, "edgecolors": BLUE}),
        (1, "anomalous", "x", {"color": VERMILION}),
    ):
        own = points[label == value]
        if len(own):
            text = f"{text} ({len(own)})"
            look |= {"s": 14, "linewidths": 0.9, "label": text, "rasterized": True}
            axis.scatter(*own.T, marker=marker, **look)
    figure.legend(loc="outside lower center", frameon=False, ncols=3)
    return figure


def _row_names(columns: list[PanelColumn], rebuilt: str) -> list[str]:
    """Return what the rows of pictures are called; the truth is one where there is any."""
    names = ["input x", f"rebuilt, {rebuilt}", f"residual |x $-$ {rebuilt}|"]
    examined = [np.any(column.mask != NOT_EXAMINED) for column in columns]
    if any(examined):
        names.append("annotation" if all(examined) else "annotation (?: none)")
    return names


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
    """Outline the marked pixels of `mask` (h, w); a question mark says that nobody looked."""
    height, width = mask.shape
    if np.all(mask == NOT_EXAMINED):
        where = left + width / 2, top + height - 3
        text = axis.text(*where, "?", ha="center", color="white", fontsize=10)
        text.set_path_effects([withStroke(linewidth=1.5, foreground=BLACK)])
    elif np.any(mask == 1):
        # a rim of zeros closes outlines at the border of the patch
        marked = np.pad(mask == 1, 1)
        x = np.clip(left - 0.5 + np.arange(width + 2), left, left + width)
        z = np.clip(top - 0.5 + np.arange(height + 2), top, top + height)
        for colour, thickness in ((BLACK, 2.4), (ORANGE, 1.3)):
            axis.contour(x, z, marked, levels=[0.5], colors=[colour], linewidths=thickness)
