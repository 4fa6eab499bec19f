from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_scores import evaluate, evaluation_of, make_scores, write_scores
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from anogan.evidence import pixels
from anogan.evidence.measures import bootstrap_seed
from anogan.evidence.pixel_level import measure_pixels
from anogan.evidence.pixels import (
    aupro,
    choose_threshold,
    join,
    label_regions,
    pixel_metrics,
    pixel_truth,
    tally,
)
from anogan.evidence.statistics import draw_patients
from anogan.maps.file import VolumeMaps, write_maps
from preprocessing.cli import run_command

SPLITS = (("validation", 2, 2), ("test", 3, 3))


def make_maps(
    seed: int = 0, strength: float = 0.3, splits: tuple[tuple[str, int, int], ...] = SPLITS
) -> list[VolumeMaps]:
    """Maps of made-up volumes, 3 B-scans of 20 x 30 pixels with a lesion or two in each sick one.

    The truth is the same for every `seed`; patches cover rows 4 to 16; healthy eyes have no mask.
    """
    rng = np.random.default_rng(seed)
    made = []
    for split, healthy, sick in splits:
        for number in range(healthy + sick):
            marked = np.zeros((3, 20, 30), bool)
            if number >= healthy:
                marked[0, 6:10, 5 + number : 12 + number] = True
                marked[1, 12:18, 3:6] = marked[1, 8:10, 20:29] = True
            covered = np.zeros(marked.shape, bool)
            covered[:, 4:16] = True
            residual = np.abs(rng.normal(0.2 + 0.05 * rng.random(), 0.1, marked.shape))
            residual = np.where(covered, residual + strength * marked, np.nan).astype(np.float16)
            score = ndimage.uniform_filter(np.nan_to_num(residual).astype(np.float32), (0, 3, 3))
            annotation = marked.astype(np.uint8)
            annotation[2, :, :10] = 255
            made.append(
                VolumeMaps(
                    volume=f"{split}_{number}",
                    patient=f"p_{split}_{number // 2}",
                    eye="R",
                    split=split,
                    eye_label=int(number >= healthy),
                    n_patches=9,
                    score=np.where(covered, np.round(1000 * score), np.nan).astype(np.float32),
                    residual=residual,
                    annotation=annotation if number >= healthy else None,
                )
            )
    return made


def write(path: Path, method: str, maps: list[VolumeMaps]) -> str:
    with write_maps(path, method, stride=16, size=64) as writer:
        for one in maps:
            writer.append(one)
    return str(path)


def labelled(maps: list[VolumeMaps], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (values, truth), (n,), of all pixels that count."""
    values = np.concatenate([getattr(one, kind).ravel() for one in maps]).astype(float)
    truth = np.concatenate([pixel_truth(one).ravel() for one in maps])
    counts = np.isfinite(values) & (truth >= 0)
    return values[counts], truth[counts]


def plain_aupro(maps: list[VolumeMaps], kind: str) -> float:
    """The definition written out: every threshold, every region of every B-scan, one by one."""
    values, truth = labelled(maps, kind)
    regions = []
    for one in maps:
        for bscan, marked in zip(getattr(one, kind), pixel_truth(one) == 1, strict=True):
            numbered, count = ndimage.label(marked, np.ones((3, 3)))
            for number in range(1, count + 1):
                inside = bscan[numbered == number]
                regions.append(inside[np.isfinite(inside)].astype(float))
    points = [(0.0, 0.0)]
    for threshold in np.unique(values)[::-1]:
        overlap = np.mean([np.mean(region >= threshold) for region in regions])
        points.append((np.mean(values[truth == 0] >= threshold), overlap))
    area = 0.0
    for (left, low), (right, high) in pairwise(points):
        if right > 0.3:
            if left < 0.3:
                high = low + (high - low) * (0.3 - left) / (right - left)
                area += (0.3 - left) * (low + high) / 2
            break
        area += (right - left) * (low + high) / 2
    return area / 0.3


def tallied(maps: list[VolumeMaps], kind: str) -> list[pixels.Tally]:
    found = []
    for one in maps:
        truth = pixel_truth(one)
        found.append(tally(getattr(one, kind), truth, label_regions(truth)))
    return found


def test_pixels_nobody_examined_are_normal_in_healthy_eyes_alone():
    one = make_maps(splits=(("test", 0, 1),))[0]
    truth = pixel_truth(one)
    assert (truth[2, :, :10] == -1).all()
    np.testing.assert_array_equal(truth[:2], one.annotation[:2])
    for eye_label, expected in ((0, 0), (1, -1), (-1, -1)):
        changed = replace(one, annotation=None, eye_label=eye_label)
        assert (pixel_truth(changed) == expected).all()


def test_regions_are_connected_by_corners_within_a_bscan():
    truth = np.zeros((3, 6, 6), np.int8)
    truth[0, 1, 1] = truth[0, 2, 2] = truth[1, 2, 2] = truth[1, 5, 5] = 1
    truth[2] = -1
    found = label_regions(truth)
    assert found[0, 1, 1] == found[0, 2, 2] > 0
    assert len({found[0, 2, 2], found[1, 2, 2], found[1, 5, 5], 0}) == 4
    assert not found[2].any()


@pytest.mark.parametrize("kind", ["residual", "score"])
@pytest.mark.parametrize("block", [50, 10**6])
def test_metrics_of_maps_equal_those_of_the_plain_pixels(kind, block, monkeypatch):
    monkeypatch.setattr(pixels, "BLOCK", block)
    maps = make_maps(splits=(("test", 2, 3),))
    values, counts = join(tallied(maps, kind))
    threshold = float(np.quantile(labelled(maps, kind)[0], 0.8))
    draws = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 0, 2], [0, 2, 3, 0, 0]])
    found = pixel_metrics(values, counts, threshold, draws)
    for r, draw in enumerate(draws):
        sample = [one for one, times in zip(maps, draw, strict=True) for _ in range(times)]
        value, label = labelled(sample, kind)
        assert found["auc"][r] == pytest.approx(roc_auc_score(label, value))
        expected = average_precision_score(label, value)
        assert found["average_precision"][r] == pytest.approx(expected)
        assert found["dice"][r] == pytest.approx(f1_score(label, value >= threshold))
        assert found["aupro"][r] == pytest.approx(plain_aupro(sample, kind))


def test_aupro_by_hand():
    fpr = np.array([[0, 0.1, 0.1, 0.5, 1]])
    overlap = np.array([[0, 0.2, 0.6, 1, 1]])  # at 0.3 it is 0.8
    assert aupro(overlap, fpr) == pytest.approx((0.1 * 0.1 + 0.2 * 0.7) / 0.3)
    assert aupro(np.array([[0, 1, 1.0]]), np.array([[0, 0, 1.0]])) == pytest.approx(1)


@pytest.mark.parametrize(("healthy", "sick"), [(3, 0), (0, 3)])
def test_one_class_of_pixels_has_no_ranking(healthy, sick):
    maps = make_maps(splits=(("test", healthy, sick),))
    if sick:
        for one in maps:
            one.annotation[:] = 1
    values, counts = join(tallied(maps, "residual"))
    found = pixel_metrics(values, counts, 0.3, np.ones((2, 3)))
    for name in ("auc", "average_precision", "aupro"):
        assert np.isnan(found[name]).all()
    assert np.isfinite(found["dice"]).all() == bool(sick)


def test_threshold_has_the_highest_dice_of_all_validation_pixels():
    maps = make_maps(splits=(("validation", 2, 2),))
    point = choose_threshold(tallied(maps, "residual"), 0.95)
    values, truth = labelled(maps, "residual")
    thresholds = np.unique(values)[::-1]
    called = np.array([[np.sum(values >= t), np.sum(truth[values >= t])] for t in thresholds])
    dice = 2 * called[:, 1] / (called[:, 0] + truth.sum())
    assert point.threshold == thresholds[np.argmax(dice)]
    assert (point.rule, point.n, point.n_anomalous) == ("dice", len(truth), truth.sum())


def test_threshold_without_anomalous_pixels_is_the_healthy_quantile():
    maps = make_maps(splits=(("validation", 2, 0),))
    point = choose_threshold(tallied(maps, "residual"), 0.95)
    values, _ = labelled(maps, "residual")
    assert point.rule == "healthy_quantile"
    assert 0.95 <= np.mean(values < point.threshold) < 0.96
    assert choose_threshold([], 0.95).rule == "none"


@pytest.mark.parametrize("share", [0.2, 0.01])
def test_more_distinct_values_than_are_kept_change_little(rng, monkeypatch, share):
    truth = (rng.random((3, 40, 50)) < share).astype(np.int8)
    values = (rng.normal(size=truth.shape) + truth).astype(np.float32)
    region = label_regions(truth)
    monkeypatch.setattr(pixels, "MOST_VALUES", 500)
    joined, counts = join([tally(values, truth, region), tally(values + 0.001, truth, region)])
    assert len(joined) <= 500
    assert counts[0].sum() == 2 * np.sum(truth == 0)
    assert counts[2].sum() == pytest.approx(2 * region.max())
    found = pixel_metrics(joined, counts, np.nan, np.ones((1, 2)))
    assert found["auc"] == pytest.approx(roc_auc_score(truth.ravel(), values.ravel()), abs=1e-3)
    value = np.concatenate([values.ravel(), values.ravel() + np.float32(0.001)])
    expected = average_precision_score(np.tile(truth.ravel(), 2), value)
    assert found["average_precision"] == pytest.approx(expected, rel=0.01)
    assert np.isnan(found["dice"])


def pixel_rows(metrics: pd.DataFrame) -> pd.DataFrame:
    return metrics.xs("pixel", level="level").droplevel("subset")


def evaluate_maps(folder: Path, *paths: str) -> pd.DataFrame:
    scores = make_scores(patches_per_volume=10)
    return evaluate(scores, folder, "--maps", *paths, methods=("anogan",))


def test_pixel_level_of_the_command(tmp_path):
    splits = (("validation", 2, 2), ("test", 6, 6))
    maps = {
        "anogan": make_maps(splits=splits),
        "pca": make_maps(seed=1, strength=0.1, splits=splits),
    }
    unlike = [replace(one, residual=None) for one in maps["pca"]]
    paths = [write(tmp_path / f"{method}.h5", method, maps[method]) for method in maps]
    paths.append(write(tmp_path / "p_d.h5", "p_d", unlike))
    scores = ("anogan", "pca", "p_d")
    metrics = evaluate(make_scores(), tmp_path / "a", "--maps", *paths, methods=scores)
    rows = pixel_rows(metrics)
    names = {"anogan", "anogan_residual", "pca", "pca_residual", "p_d"}
    assert set(rows.index.get_level_values("method")) == names
    test = [one for one in maps["anogan"] if one.split == "test"]
    value, label = labelled(test, "residual")
    found = rows.loc["anogan_residual"]
    assert found.loc["auc", "value"] == pytest.approx(roc_auc_score(label, value))
    assert found.loc["aupro", "value"] == pytest.approx(plain_aupro(test, "residual"))
    counts = {"n": len(label), "n_anomalous": label.sum(), "n_regions": 18, "n_patients": 6}
    assert {name: found.loc[name, "value"] for name in counts} == counts
    between = found.loc[["auc", "average_precision", "aupro", "dice"]]
    assert (between["ci_low"] < between["value"]).all()
    assert (between["value"] < between["ci_high"]).all()

    evaluation = evaluation_of(tmp_path / "a")
    point = evaluation["operating_points"]["pixel"]["anogan_residual"]
    assert point["rule"] == "dice"
    assert found.loc["threshold", "value"] == pytest.approx(point["threshold"])
    pairs = pd.read_csv(tmp_path / "a" / "differences.tsv", sep="\t").query("level == 'pixel'")
    assert set(zip(pairs["method"], pairs["other"], strict=True)) == {
        ("anogan_residual", "pca_residual")
    }
    assert (pairs["ci_low"] > 0).all()
    assert any("(pixels): only 6 patients" in text for text in evaluation["warnings"])

    evaluate(make_scores(), tmp_path / "b", "--maps", *paths[::-1], methods=scores)
    for name in ("metrics.json", "metrics.tsv", "differences.tsv"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_maps_may_come_in_any_number_of_files(tmp_path):
    maps = make_maps(splits=(*SPLITS, ("score", 1, 1)))
    whole = write(tmp_path / "whole.h5", "anogan", maps)
    parts = [write(tmp_path / f"{i}.h5", "anogan", maps[i::3]) for i in range(3)]
    measured, points = measure_pixels([whole], 0.95, 50, seed=1)
    again, points_again = measure_pixels(parts[::-1], 0.95, 50, seed=1)
    pd.testing.assert_frame_equal(pd.DataFrame(measured.rows()), pd.DataFrame(again.rows()))
    assert points == points_again


def test_replicates_hold_all_volumes_of_the_patients_drawn(tmp_path):
    maps = make_maps(splits=(("test", 4, 4),))  # two of each patient
    measured, _ = measure_pixels([write(tmp_path / "a.h5", "anogan", maps)], 0.95, 5, seed=1)
    patients = sorted({one.patient for one in maps})
    draws = draw_patients(np.array([False, False, True, True]), 5, bootstrap_seed(1, "test"))
    for draw, found in zip(draws, measured.repeated["anogan"]["auc"], strict=True):
        times = dict(zip(patients, draw, strict=True))
        value, label = labelled([one for one in maps for _ in range(times[one.patient])], "score")
        assert found == pytest.approx(roc_auc_score(label, value))


def test_validation_without_marked_pixels_is_said(tmp_path):
    maps = make_maps(splits=(("validation", 2, 0), ("test", 4, 4)))
    evaluate_maps(tmp_path, write(tmp_path / "a.h5", "anogan", maps))
    evaluation = evaluation_of(tmp_path)
    rule = evaluation["operating_points"]["pixel"]["anogan"]["rule"]
    assert rule == "healthy_quantile"
    assert any("no anomalous pixels in split validation" in t for t in evaluation["warnings"])


def test_without_maps_of_validation_there_is_no_dice(tmp_path):
    maps = make_maps(splits=(("test", 4, 4),))
    rows = pixel_rows(evaluate_maps(tmp_path, write(tmp_path / "a.h5", "anogan", maps)))
    assert np.isnan(rows.loc[("anogan", "dice"), "value"])
    assert np.isfinite(rows.loc[("anogan", "aupro"), "value"])
    warnings = evaluation_of(tmp_path)["warnings"]
    assert any("no normal pixels in split validation: no threshold" in text for text in warnings)


def test_maps_without_any_label_are_said(tmp_path):
    maps = [replace(one, annotation=None, eye_label=-1) for one in make_maps()]
    metrics = evaluate_maps(tmp_path, write(tmp_path / "a.h5", "anogan", maps))
    assert "pixel" not in metrics.index.get_level_values("level")
    assert (
        "test (pixels): no pixel carries a label, nothing is measured"
        in (evaluation_of(tmp_path)["warnings"])
    )
    scores = make_scores(splits=(("score", 2, 2),))
    evaluate(scores, tmp_path / "b", "--maps", f"{tmp_path}/a.h5", methods=("anogan",))
    said = " ".join(evaluation_of(tmp_path / "b")["warnings"])
    assert "nothing is measured" in said and "threshold" not in said


def test_a_single_patient_with_lesions_gives_no_interval_of_pixels(tmp_path):
    maps = make_maps(splits=(("validation", 2, 2), ("test", 4, 1)))
    path = write(tmp_path / "a.h5", "anogan", maps)
    measured, _ = measure_pixels([path], 0.95, 50, seed=1)
    assert np.isfinite(measured.metrics["anogan"]["auc"])
    assert not any(measured.repeated.values())
    assert measured.cautions[0].startswith("a group of patients")


def test_methods_that_cover_other_pixels_are_said(tmp_path):
    maps, other = make_maps(), make_maps(seed=1)
    other[-1].score[0, 4:6] = np.nan
    paths = [write(tmp_path / "a.h5", "anogan", maps), write(tmp_path / "b.h5", "pca", other)]
    cautions = measure_pixels(paths, 0.95, 50, seed=1)[0].cautions
    assert [text.split()[0] for text in cautions if "comparable" in text] == ["pca"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("twice", "b.h5: test_0 of anogan is also in"),
        ("lacking", "test_5: anogan and pca do not both have maps of it"),
        ("uncovered", "pca: its maps cover pixels of other patients than those of anogan_residual"),
        ("damaged", "b.h5: not a readable HDF5 file"),
    ],
)
def test_maps_that_do_not_fit_are_named(tmp_path, capsys, fault, message):
    maps, other = make_maps(), make_maps(seed=1)
    method = "anogan" if fault == "twice" else "pca"
    if fault == "lacking":
        other.pop()
    elif fault == "uncovered":
        for one in other:
            if one.patient == "p_test_2":
                one.score[:] = np.nan
    paths = [write(tmp_path / "a.h5", "anogan", maps), write(tmp_path / "b.h5", method, other)]
    if fault == "damaged":
        (tmp_path / "b.h5").write_bytes(b"x")
    scores = write_scores(make_scores(), tmp_path / "s", ("anogan",))
    arguments = ["evaluate", "--scores", *scores, "--output", f"{tmp_path}/out/metrics.tsv"]
    assert run_command("anogan", {"evaluate": ""}, [*arguments, "--maps", *paths]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
