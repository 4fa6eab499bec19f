"""The figures of the report that are drawn from scores and from the history of a training."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from anogan.figures.style import (
    BLACK,
    BLUE,
    DASHED,
    DOTTED,
    GREEN,
    PAGE_INCHES,
    PALE_BLUE,
    PURPLE,
    STYLE,
    VERMILION,
    Style,
    add_letter,
    new_figure,
    say_why_empty,
    styles,
)

RATES = (0, 0.01, 0.05, 0.1, 0.2, 0.5, 1)
STRIP_GROUPS = ((1, "diseased", VERMILION), (0, "healthy", BLUE), (-1, "without a label", "0.45"))
STRIP_WIDTH, LETTER_WIDTH = 5.6, 0.07  # inches
LEAST_STRIP, STRIP_HEADING = 0.17, 0.25  # inches; a name fits into the first
NAMED_STRIPS = 60  # that many volumes fill a page with their names
GOLDEN_RATIO = (1 + 5**0.5) / 2  # its multiples spread points evenly, and alike every time
NEEDS_BOTH = "needs normal and\nanomalous test patches"
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
    figure, axis = _square(len(scores), "1 $-$ specificity", "sensitivity")
    add_letter(axis, letter)
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    if not _has_both(label):
        return say_why_empty(figure, axis, NEEDS_BOTH)
    if not scores:
        return say_why_empty(figure, axis, "no method here has a score\nmade of parts")
    for name, style in styles(scores).items():
        fpr, tpr, _ = roc_curve(label, scores[name])
        point = None
        if thresholds.get(name) is not None:
            called = scores[name] >= thresholds[name]
            point = np.mean(called[label == 0]), np.mean(called[label == 1])
        _draw_curve(axis, fpr, tpr, point, style, captions[name])
    figure.legend(loc="outside lower center", frameon=False, handlelength=4.5)
    return figure


@mpl.rc_context(STYLE)
def precision_recall_figure(
    label: np.ndarray,
    scores: dict[str, np.ndarray],
    captions: dict[str, str],
    thresholds: dict[str, float | None],
) -> Figure:
    """Draw precision over recall of each of `scores` (n,), as in `roc_figure`.

    The gray line is the share of anomalous patches: the precision of a score that knows nothing.
    """
    figure, axis = _square(len(scores), "recall", "precision")
    if not _has_both(label):
        return say_why_empty(figure, axis, NEEDS_BOTH)
    axis.axhline(np.mean(label == 1), color="0.6", linewidth=0.8)
    for name, style in styles(scores).items():
        precision, recall, _ = precision_recall_curve(label, scores[name])
        precision[-1] = precision[-2]  # recall 0 is no measurement, its precision of 1 a convention
        point = None
        if thresholds.get(name) is not None:
            called = scores[name] >= thresholds[name]
            if np.any(called):
                point = np.mean(called[label == 1]), np.mean(label[called] == 1)
        _draw_curve(axis, recall, precision, point, style, captions[name], drawstyle="steps-post")
    figure.legend(loc="outside lower center", frameon=False, handlelength=4.5)
    return figure


@mpl.rc_context(STYLE)
def distribution_figure(
    label: np.ndarray, scores: dict[str, np.ndarray], thresholds: dict[str, float | None]
) -> Figure:
    """Draw how the scores (n,) of normal and anomalous test patches are distributed, c and d."""
    figure, axes = new_figure(len(scores), 3.6 * len(scores), 3.1)
    if not len(label):
        for axis in axes:
            say_why_empty(figure, axis, "no test patch carries a label")
        return figure
    for axis, letter, (name, style) in zip(axes, "cd", styles(scores).items(), strict=False):
        score = scores[name]
        add_letter(axis, letter)
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
def training_figure(history: pd.DataFrame) -> Figure:
    """Draw what history.tsv holds of the losses, D's outputs and the quality of the samples."""
    drawn = [
        (label, found)
        for label, curves in HISTORY_AXES.items()
        if (found := [c for c in curves if c[0] in history and history[c[0]].notna().any()])
    ]
    if not drawn:
        figure, axes = new_figure(1, 4, 2)
        return say_why_empty(figure, axes[0], "the model came without the history of its training")
    columns, rows = min(2, len(drawn)), -(-len(drawn) // 2)
    figure, axes = new_figure(columns, 3.6 * columns, 2.9 * rows, rows)
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


@mpl.rc_context(STYLE)
def calibration_figure(
    validation: np.ndarray, volumes: dict[str, np.ndarray], score_label: str
) -> Figure:
    """Draw which false-positive rates thresholds gave on healthy eyes that had no part in them.

    The thresholds are the quantiles of `validation`, the scores (n,) of healthy validation patches;
    `volumes` holds the scores (n,) of each healthy test volume.
    """
    labels = "nominal, healthy validation patches", "observed, healthy test patches"
    figure, axis = _square(3, *labels)
    axis.set_title(f"{score_label}: false-positive rate", loc="left")
    for of_axis in (axis.set_xscale, axis.set_yscale):  # opens up small rates, and can show 0
        of_axis("function", functions=(lambda rate: np.sqrt(np.maximum(rate, 0)), np.square))
    axis.set(xlim=(0, 1), ylim=(0, 1), xticks=RATES, yticks=RATES)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.plot([0, 1], [0, 1], color=BLACK, linestyle=DASHED, linewidth=1, label="equal")
    if not len(validation):
        return say_why_empty(figure, axis, "needs patches of\nhealthy validation volumes")
    if not volumes:
        return say_why_empty(figure, axis, "needs patches of\nhealthy test volumes")
    levels = np.linspace(0, 1, 201) ** 2  # close together where the rates are small
    quantiles = np.quantile(validation, 1 - levels, method="higher")
    thresholds = np.append(np.unique(quantiles), np.inf)
    nominal = _share_called(validation, thresholds)
    for number, scores in enumerate(volumes.values()):
        look = {"color": "0.55", "linewidth": 0.7, "label": "" if number else "each test volume"}
        axis.plot(nominal, _share_called(scores, thresholds), **look)
    pooled = _share_called(np.concatenate(list(volumes.values())), thresholds)
    look = {"color": BLUE, "linewidth": 2.4, "label": f"all of them ({len(volumes)}) together"}
    axis.plot(nominal, pooled, **look)
    figure.legend(loc="outside lower center", frameon=False, handlelength=4.5)
    return figure


@mpl.rc_context(STYLE)
def strip_figure(
    table: pd.DataFrame,
    score_label: str,
    threshold: float | None,
    volume_score: dict[str, float],
) -> Figure:
    """Draw the scores of every volume's patches as a strip, with the volume's own score.

    `table` has a row per patch: `volume`, `label` (of the volume: 1, 0 or -1) and `score`. Within a
    label, the volumes are sorted by the median of their patches.
    """
    n, n_groups = table["volume"].nunique(), table["label"].nunique()
    named = n <= NAMED_STRIPS
    height = max(LEAST_STRIP, min(0.4, 1.6 / max(1, n)))  # inches of a volume
    if not named:
        height = LEAST_STRIP * NAMED_STRIPS / n
    letters = table["volume"].str.len().max() if n and named else 0
    width = min(PAGE_INCHES, STRIP_WIDTH + LETTER_WIDTH * letters)
    figure, axes = new_figure(1, width, 1.1 + height * n + STRIP_HEADING * n_groups)
    axis = axes[0]
    axis.set_xlabel(score_label)
    if not n:
        return say_why_empty(figure, axis, "no volume has a score")
    places, end = _draw_strips(axis, table, STRIP_HEADING / height)
    look = {"linestyle": "", "marker": "D", "markersize": 5 if named else 3}
    face = {"markerfacecolor": "white", "markeredgecolor": BLACK}
    scores = [volume_score[volume] for volume in places]
    axis.plot(scores, list(places.values()), **look, **face, label="score of the volume")
    axis.plot([], [], linestyle="", marker=".", color="0.4", label="score of a patch")
    if threshold is not None:
        look = {"color": BLACK, "linestyle": "--", "linewidth": 1}
        axis.axvline(threshold, **look, label="threshold of a patch")
    axis.set_ylim(end, 0)
    axis.set_yticks([])
    if named:
        axis.set_yticks(list(places.values()), list(places), parse_math=False)
    else:
        axis.set_ylabel(f"{n} volumes, named in volumes.tsv")
    axis.tick_params(axis="y", length=0, labelsize=8)
    figure.legend(loc="outside lower center", frameon=False, ncols=3)
    return figure


def _draw_strips(axis: Axes, table: pd.DataFrame, gap: float) -> tuple[dict[str, float], float]:
    """Draw the patches of `strip_figure`, a group of volumes under its heading, `gap` high.

    Returns the height at which each volume lies, and where the last ends; a volume is 1 high.
    """
    places, end = {}, 0.0
    for label, text, colour in STRIP_GROUPS:
        rows = table[table["label"] == label]
        if rows.empty:
            continue
        order = rows.groupby("volume")["score"].median().sort_values(ascending=False).index
        place = {"va": "center", "transform": axis.get_yaxis_transform()}
        axis.text(0.01, end + gap / 2, f"{text}: {len(order)}", fontweight="bold", **place)
        own = {volume: end + gap + 0.5 + i for i, volume in enumerate(order)}
        spread = 0.7 * (np.arange(len(rows)) * GOLDEN_RATIO % 1 - 0.5)
        look = {"s": 5, "color": colour, "alpha": 0.6, "linewidths": 0, "rasterized": True}
        axis.scatter(rows["score"], rows["volume"].map(own) + spread, **look)
        places |= own
        end += gap + len(order)
    return places, end


def _draw_course(axis: Axes, course: pd.DataFrame, text: str, colour: str, line: object) -> None:
    """Draw the second column over the first, faint, and its running mean."""
    time, value = course.iloc[:, 0], course.iloc[:, 1]
    window = max(1, len(course) // 40)
    marker = "." if len(course) <= 20 else ""
    smooth = value.rolling(window, center=True, min_periods=1).mean()
    axis.plot(time, value, color=colour, linewidth=0.6, alpha=0.3)
    axis.plot(time, smooth, color=colour, linestyle=line, marker=marker, linewidth=1.6, label=text)


def _has_both(label: np.ndarray) -> bool:
    return 0 < np.sum(label == 1) < len(label)


def _share_called(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the share of `scores` (n,) at or above each of `thresholds` (k,)."""
    return 1 - np.searchsorted(np.sort(scores), thresholds, side="left") / len(scores)


def _square(n_entries: int, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Return a figure with a square plot of rates, and place for a legend below it."""
    figure, axes = new_figure(1, 4.4, 4.6 + 0.18 * n_entries)
    axes[0].set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes[0].set_box_aspect(1)
    return figure, axes[0]


def _draw_curve(
    axis: Axes,
    x: np.ndarray,
    y: np.ndarray,
    point: tuple[float, float] | None,
    style: Style,
    caption: str,
    drawstyle: str = "default",
) -> None:
    """Draw a curve, its marker at `point` where there is one, and its entry in the legend."""
    look = {"color": style.colour, "linestyle": style.line, "linewidth": 1.8}
    marker = {"marker": style.marker, "markersize": 8, "markeredgecolor": "white"}
    axis.plot(x, y, **look, drawstyle=drawstyle)
    if point:
        axis.plot(*point, color=style.colour, zorder=3, **marker)
    axis.plot([], [], **look, **marker, label=f"{style.label}: {caption}")
