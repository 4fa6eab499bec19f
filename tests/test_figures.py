"""The figures: what they draw, that it can be read, and what they say where there is nothing."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from made_scores import LAYOUT
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image
from sklearn.metrics import average_precision_score

from anogan.figures.curves import (
    NAMED_STRIPS,
    calibration_figure,
    distribution_figure,
    precision_recall_figure,
    roc_figure,
    strip_figure,
    training_figure,
)
from anogan.figures.pictures import PanelColumn, panel_figure, tsne_figure, walks_figure
from anogan.figures.style import PAGE_INCHES, save_figure

NO_PATCHES = pd.DataFrame({"volume": [], "label": [], "score": []})
NONE = np.zeros(0)


def column(title: str, called: dict[str, bool], mask: int = 0) -> PanelColumn:
    rng = np.random.default_rng(0)
    pictures = rng.uniform(-1, 1, (2, 64, 64)).astype(np.float32)
    return PanelColumn(title, *pictures, np.full((64, 64), mask, np.uint8), called)


def gallery(each: int) -> list[PanelColumn]:
    called = {"R": True, "D_hat": False}
    return [
        column(title, called, 255 * (i % 2))
        for title in ("normal, scored highest", "anomalous, scored lowest")
        for i in range(each)
    ]


def strips(n: int) -> tuple[pd.DataFrame, dict[str, float]]:
    """Patches of `n` volumes with the longest names, whose scores rise with the volume's number."""
    volumes = [f"{i:03d}-of-the-longest-name-$".ljust(64, "x") for i in range(n)]
    rows = [(name, i % 3 - 1, i + j / 30) for i, name in enumerate(volumes) for j in range(20)]
    table = pd.DataFrame(rows, columns=["volume", "label", "score"])
    return table, {name: float(i) for i, name in enumerate(volumes)}


def methods(rng: np.random.Generator, names: list[str]) -> tuple:
    """What both curves take, with scores that rise with the label."""
    label = rng.integers(0, 2, 200)
    scores = {name: rng.normal(size=200) + label for name in names}
    captions = dict.fromkeys(names, "AUC 0.83 (0.71 to 0.93)")
    return label, scores, captions, dict.fromkeys(names, 0.5)


def figures(rng: np.random.Generator) -> dict[str, Figure]:
    """All figures as a report may need them: few and many methods, volumes and patches."""
    label = np.repeat([0, 1], 100)
    score = {"anogan_R": rng.gamma(2, 300, 200), "anogan_D": rng.gamma(2, 4000, 200)}
    volumes = {f"v{i}": rng.normal(size=40) for i in range(60)}
    drawn = {
        "roc": roc_figure(*methods(rng, list(LAYOUT)), "a"),
        "precision_recall": precision_recall_figure(*methods(rng, list(LAYOUT))),
        "distributions": distribution_figure(label, score, dict.fromkeys(score, 700.0)),
        "calibration": calibration_figure(rng.normal(size=90), volumes, "AnoGAN, A(x)"),
        "walks": walks_figure(rng.uniform(-1, 1, (6, 10, 64, 64))),
        "tsne": tsne_figure(rng.normal(size=(90, 2)), rng.integers(-1, 2, 90)),
    }
    drawn |= {f"gallery of {2 * n}": panel_figure(gallery(n), "G(z)") for n in (1, 6, 8)}
    for n in (1, 2, NAMED_STRIPS, NAMED_STRIPS + 1):
        table, scores = strips(n)
        drawn[f"strip of {n}"] = strip_figure(table, "A(x)", None if n == 2 else 1.0, scores)
    return drawn


def written(figure: Figure) -> list[Text]:
    """All texts that are seen in a figure."""
    figure.draw_without_rendering()
    texts = [*figure.texts, *(text for legend in figure.legends for text in legend.texts)]
    for axes in figure.axes:
        texts += [*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        texts += axes.legend_.texts if axes.legend_ else []
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            places = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
            texts += [text for place, text in places if low <= place <= high]
    return [text for text in texts if text.get_text()]


def test_everything_written_can_be_read_at_the_size_of_a_page(rng):
    for name, figure in figures(rng).items():
        assert figure.get_figwidth() <= PAGE_INCHES, name
        texts = written(figure)
        boxes = [text.get_window_extent() for text in texts]
        for text, box in zip(texts, boxes, strict=True):
            assert text.get_fontsize() >= 8, (name, text)
            assert box.x0 >= -1, (name, text)
            assert box.x1 <= figure.bbox.x1 + 1, (name, text)
        for (text, one), (other, two) in combinations(zip(texts, boxes, strict=True), 2):
            apart = one.x1 <= two.x0 or two.x1 <= one.x0 or one.y1 <= two.y0 or two.y1 <= one.y0
            assert apart, (name, text, other)


def test_figures_are_the_same_bytes_every_time(rng, tmp_path):
    table, scores = strips(2)
    for name in ("one", "two"):
        save_figure(strip_figure(table, "A(x)", 1.0, scores), tmp_path, name)
    for kind in ("svg", "png"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()


@pytest.mark.parametrize(
    ("figure", "reason"),
    [
        (roc_figure(np.zeros(9), {}, {}, {}, "a"), "needs normal"),
        (precision_recall_figure(np.ones(9), {}, {}, {}), "needs normal"),
        (precision_recall_figure(NONE, {}, {}, {}), "needs normal"),
        (distribution_figure(NONE, {"pca_R": NONE}, {}), "no test patch"),
        (calibration_figure(NONE, {"v": np.ones(3)}, "A(x)"), "healthy validation"),
        (calibration_figure(np.ones(3), {}, "A(x)"), "healthy test"),
        (strip_figure(NO_PATCHES, "A(x)", None, {}), "no volume"),
        (training_figure(pd.DataFrame()), "without the history"),
        (panel_figure([], "G(z)"), "no pictures"),
        (walks_figure(np.zeros((0, 10, 64, 64))), "no walk"),
        (tsne_figure(np.zeros((0, 2)), NONE), "too few patches"),
    ],
)
def test_a_figure_says_why_it_is_empty(figure, reason):
    assert any(reason in text.get_text() for text in written(figure))


@pytest.mark.parametrize(
    ("columns", "labels"),
    [
        (("step", "loss"), {"loss"}),
        (("step", "loss", "d_loss", "d_real", "d_fake"), {"loss", "mean output of D"}),
        (("patches", "explained_variance"), {"explained variance"}),
        (("step", "d_loss", "g_loss", "critic_real"), {"loss", "mean output of D"}),
    ],
)
def test_training_figure_draws_what_the_history_has(columns, labels):
    history = pd.DataFrame({name: np.linspace(1, 2, 30) for name in columns})
    history["kid"] = np.nan
    figure = training_figure(history)
    assert {axis.get_ylabel() for axis in figure.axes} == labels
    assert {axis.get_xlabel() for axis in figure.axes} == {columns[0]}


@pytest.mark.parametrize("draw", [lambda *known: roc_figure(*known, "a"), precision_recall_figure])
def test_curves_of_eight_methods_can_be_told_apart_without_colour(rng, draw):
    names = [*LAYOUT, "one", "two"]
    (legend,) = draw(*methods(rng, names)).legends
    entries = [
        (line.get_linestyle(), line._dash_pattern, line.get_marker()) for line in legend.get_lines()
    ]
    assert len({str(entry) for entry in entries}) == len(names)


def test_the_area_below_precision_is_the_average_precision(rng):
    label, scores, captions, _ = methods(rng, ["anogan"])
    figure = precision_recall_figure(label, scores, captions, {"anogan": 0.5})
    chance, curve, point, _ = figure.axes[0].get_lines()
    recall, precision = curve.get_data()
    area = -np.sum(np.diff(recall) * precision[:-1])
    assert area == pytest.approx(average_precision_score(label, scores["anogan"]))
    called = scores["anogan"] >= 0.5
    (at_recall,), (at_precision,) = point.get_data()
    assert (at_recall, at_precision) == (called[label == 1].mean(), label[called].mean())
    assert set(chance.get_ydata()) == {label.mean()}


def test_calibration_is_the_rate_above_a_quantile_of_validation(rng):
    validation = rng.normal(size=1000)
    volumes = {"same": validation, "brighter": validation + 1}
    _, same, brighter, pooled = calibration_figure(validation, volumes, "A").axes[0].lines
    np.testing.assert_allclose(same.get_ydata(), same.get_xdata())
    nominal = brighter.get_xdata()
    thresholds = np.sort(validation)[::-1][np.rint(1000 * nominal[nominal > 0]).astype(int) - 1]
    observed = [np.mean(validation + 1 >= threshold) for threshold in thresholds]
    np.testing.assert_allclose(brighter.get_ydata()[nominal > 0], observed)
    assert np.any(np.abs(nominal - 0.05) < 0.003)
    both = (same.get_ydata() + brighter.get_ydata()) / 2
    np.testing.assert_allclose(pooled.get_ydata(), both)
    assert pooled.get_linewidth() > 2 * same.get_linewidth()


def test_strips_stand_by_label_then_by_median():
    table, scores = strips(9)
    (axis,) = strip_figure(table, "A(x)", 3.0, scores).axes
    headings = [text.get_text() for text in axis.texts]
    assert headings == ["diseased: 3", "healthy: 3", "without a label: 3"]
    order = [8, 5, 2, 7, 4, 1, 6, 3, 0]
    own_scores, *_ = axis.get_lines()
    np.testing.assert_array_equal(own_scores.get_xdata(), order)
    names = [text.get_text() for text in axis.get_yticklabels()]
    assert names == [list(scores)[number] for number in order]


def test_calls_by_two_scores_can_be_told_apart_in_black_and_white():
    calls = {"R": True, "D": False}, {"R": False, "D": True}
    (axis, _) = panel_figure([column("normal", call) for call in calls], "G(z)").axes
    bars = sorted(
        (bar for bar in axis.patches if isinstance(bar, Rectangle)), key=lambda bar: bar.get_xy()
    )
    (by_r, no_d), (no_r, by_d) = bars[:2], bars[2:]
    assert by_r.get_y() == no_r.get_y() < by_d.get_y() == no_d.get_y()
    assert [bar.get_facecolor()[3] for bar in (by_r, by_d, no_r, no_d)] == [1, 1, 0, 0]
    red, yellow = (to_rgb(bar.get_facecolor()) for bar in (by_r, by_d))
    assert red[0] > 0.7 > max(red[1:])
    assert min(yellow[:2]) > 0.7 > yellow[2]
    assert by_d.get_hatch()  # as pale as an empty one without colour
    assert not (by_r.get_hatch() or no_d.get_hatch())
    names = [text.get_text() for text in axis.get_yticklabels()]
    assert names[-2:] == ["called by R", "called by D"]


def test_the_highest_residuals_are_the_brightest_without_colour(tmp_path):
    """A lesion that the model did not rebuild, in a bright retina."""
    dark = np.zeros((64, 64), np.float32)
    dark[:32] = 0.9
    patch = dark.copy()
    patch[44:52, 20:44] = 0.9
    shown = PanelColumn("anomalous", patch, dark, np.full(patch.shape, 255, np.uint8), {})
    save_figure(panel_figure([shown], "G(z)"), tmp_path, "panel")
    gray = np.asarray(Image.open(tmp_path / "panel.png").convert("L"), float)
    figure = panel_figure([shown], "G(z)")
    figure.draw_without_rendering()
    axis = figure.axes[0]
    pixels = axis.transData.transform([(32, 2 * 67 + 48), (32, 2 * 67 + 10)]) * 2
    lesion, retina = (gray[int(gray.shape[0] - z), int(x)] for x, z in pixels)
    assert lesion > retina + 50
