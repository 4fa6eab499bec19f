"""How the figures of the report look, and how they are written.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; line styles, markers
and hatches carry the same meaning on a black and white print.
"""

from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from preprocessing.files import atomic_path

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
WITH_FEATURES = ("anogan", "f_anogan_refined", "f_anogan", "acae")  # methods that have R and D
STYLES = {
    "r_anogan": Style("Restoring AnoGAN, S(x)", BLUE, "-", "h"),
    "r_anogan_S_fine": Style("S(x), fine scale", GREEN, DOTTED, "^"),
    "r_anogan_S_coarse": Style("S(x), coarse scale", PURPLE, (0, (6, 1.5, 1, 1.5)), "D"),
    "r_anogan_S_whole": Style("S(x), whole patch", SKY, (0, (3, 1.2, 1, 1.2, 1, 1.2)), "v"),
    "r_anogan_L2": Style("L2 of the residual", BLACK, (0, (3, 1.5)), "P"),
    "anogan": Style("AnoGAN, A(x)", VERMILION, "-", "o"),
    "f_anogan_refined": Style("f-AnoGAN refined, A(x)", ORANGE, (0, (8, 1.5)), "<"),
    "f_anogan": Style("f-AnoGAN, A(x)", ORANGE, (0, (2, 1)), ">"),
    "gan_r": Style("GAN$_R$, Â(x)", BLUE, DASHED, "s"),
    "p_d": Style("P$_D$", GREEN, DOTTED, "^"),
    "acae": Style("aCAE", PURPLE, (0, (6, 1.5, 1, 1.5)), "D"),
    "ae": Style("AE", SKY, (0, (3, 1.2, 1, 1.2, 1, 1.2)), "v"),
    "pca": Style("PCA", BLACK, (0, (3, 1.5)), "P"),
    **{f"{name}_R": RESIDUAL for name in (*WITH_FEATURES, "r_anogan", "gan_r", "ae", "pca")},
    **{f"{name}_D": FEATURES for name in WITH_FEATURES},
    "gan_r_D_hat": Style("D̂(x), reference", GREEN, DOTTED, "^"),
}
OTHER_STYLES = (  # of scores that are not known: colour, line, marker
    (ORANGE, (0, (10, 1.5)), "X"),
    ("0.45", (0, (10, 2, 2, 2)), "*"),
)
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
PAGE_INCHES = 9.3  # no figure is wider, so that a page shows it at its size


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Return the style of every score; unknown ones are called by their names."""
    others = cycle(OTHER_STYLES)
    return {name: STYLES[name] if name in STYLES else Style(name, *next(others)) for name in names}


def new_figure(
    columns: int, width: float, height: float, rows: int = 1
) -> tuple[Figure, np.ndarray]:
    """Return a figure of `width` by `height` inches and its axes (rows * columns,)."""
    figure = Figure(figsize=(width, height), layout="compressed")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False).ravel()


def add_letter(axis: Axes, letter: str) -> None:
    """Write the letter of a panel, as in the paper, above its left corner."""
    axis.set_title(f"({letter})", loc="left", fontweight="bold")


def say_why_empty(figure: Figure, axis: Axes, reason: str) -> Figure:
    """Write into `axis` why nothing is drawn; return the figure."""
    place = {"ha": "center", "va": "center", "transform": axis.transAxes}
    axis.text(0.5, 0.5, reason, bbox={"facecolor": "white", "edgecolor": "none"}, **place)
    axis.set(xticks=[], yticks=[])
    return figure


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write `name`.svg and `name`.png; the same figure gives the same bytes."""
    with mpl.rc_context(STYLE):
        for suffix, unset in (("svg", ("Date", "Creator")), ("png", ("Software",))):
            with atomic_path(folder / f"{name}.{suffix}") as temporary:
                metadata = dict.fromkeys(unset)
                figure.savefig(temporary, dpi=PIXELS_PER_INCH, metadata=metadata)
