from statistics import NormalDist

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from anogan.evidence.statistics import (
    bootstrap_metrics,
    choose_operating_point,
    draw_patients,
    interval,
    patient_strata,
    point_metrics,
    specificity_point,
    specificity_threshold,
)


@pytest.fixture
def tied(rng):
    """Label, score with many ties, and patient of 600 cases."""
    patient = rng.integers(0, 15, 600)
    label = ((rng.random(600) < 0.5) & (patient % 2 == 0)).astype(int)
    return label, np.round(rng.normal(size=600) + label, 1), patient


def test_metrics_agree_with_scikit_learn_ties_included(tied):
    label, score, _ = tied
    found = point_metrics(label, score, {"": 0.5, "_at_specificity": 1.5})
    for suffix, threshold in (("", 0.5), ("_at_specificity", 1.5)):
        called = score >= threshold
        expected = {
            "precision": precision_score(label, called),
            "recall": recall_score(label, called),
            "sensitivity": recall_score(label, called),
            "specificity": recall_score(label, called, pos_label=0),
            "f1": f1_score(label, called),
            "balanced_accuracy": balanced_accuracy_score(label, called),
            "threshold": threshold,
        }
        assert {name: found[name + suffix] for name in expected} == pytest.approx(expected)
        counts = {name: found[name + suffix] for name in ("tp", "fp", "tn", "fn")}
        assert counts["tp"] + counts["fn"] == label.sum()
        assert sum(counts.values()) == len(label)
    assert found["auc"] == roc_auc_score(label, score)
    assert found["average_precision"] == average_precision_score(label, score)


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_every_bootstrap_replicate_equals_scikit_learn_on_repeated_patients(
    tied, decimals, monkeypatch
):
    monkeypatch.setattr("anogan.evidence.statistics.BLOCK", 170)  # curves in several blocks
    label, score, patient = tied
    score = np.round(score + np.random.default_rng(1).normal(0, 0.1, len(score)), decimals)
    thresholds = {"": 0.5, "_at_specificity": 1.5}
    draws = draw_patients(patient_strata(patient, label)[1], 20, seed=3)
    replicates = bootstrap_metrics(label, score, patient, thresholds, draws)
    for r, draw in enumerate(draws):
        repeated = np.repeat(np.arange(len(label)), draw[patient])
        expected = point_metrics(label[repeated], score[repeated], thresholds)
        for name, values in replicates.items():
            assert values[r] == pytest.approx(expected[name]), name
    at_threshold = {"precision", "recall", "sensitivity", "specificity", "f1", "balanced_accuracy"}
    suffixes = ("", "_at_specificity", "_optimistic")
    assert set(replicates) == {"auc", "average_precision"} | {
        name + suffix for name in at_threshold for suffix in suffixes
    }


@pytest.mark.parametrize("label", [0, 1])
def test_replicates_of_one_class_have_no_ranking(label):
    draws = draw_patients(np.full(3, label == 1), 5, seed=1)
    found = bootstrap_metrics(
        np.full(6, label), np.arange(6.0), np.repeat(np.arange(3), 2), {"": 2.5}, draws
    )
    for name in ("auc", "average_precision", "specificity_optimistic"):
        assert np.isnan(found[name]).all()
    assert np.isfinite(found["sensitivity" if label else "specificity"]).all()
    assert np.isnan(found["specificity" if label else "sensitivity"]).all()


def test_draws_keep_the_number_of_patients_in_each_group(tied):
    label, _, patient = tied
    anomalous = patient_strata(patient, label)[1]
    draws = draw_patients(anomalous, 100, seed=1)
    assert (draws[:, anomalous].sum(axis=1) == anomalous.sum()).all()
    assert (draws[:, ~anomalous].sum(axis=1) == (~anomalous).sum()).all()


def test_intervals_over_patients_cover_as_often_as_they_say_and_those_over_patches_do_not():
    """Patches of a patient share two thirds of their variance, as an eye has its own noise."""
    n_patients, n_patches, studies, shift = 24, 10, 200, 1.5
    level, noise = np.sqrt([2 / 3, 1 / 3])
    truth = NormalDist().cdf(shift / np.sqrt(2))  # of patches of two patients
    patient = np.repeat(np.arange(n_patients), n_patches)
    label = (patient >= n_patients // 2).astype(int)
    rng = np.random.default_rng(7)
    covered = {"patients": 0, "patches": 0}
    for study in range(studies):
        score = rng.normal(0, level, n_patients)[patient] + rng.normal(0, noise, len(patient))
        score += shift * label
        for name, unit in (("patients", patient), ("patches", np.arange(len(patient)))):
            anomalous = patient_strata(unit, label)[1]
            draws = draw_patients(anomalous, 200, seed=study)
            replicates = bootstrap_metrics(label, score, unit, {}, draws)["auc"]
            low, high = interval(replicates, np.bincount(anomalous).min())
            covered[name] += low <= truth <= high
    assert 0.9 <= covered["patients"] / studies <= 0.99
    assert covered["patches"] / studies <= 0.65


def test_interval_leaves_undefined_replicates_out_and_widens_for_few_patients():
    replicates = np.append(np.linspace(0, 1, 1001), np.nan)
    assert interval(replicates, 10**6) == pytest.approx((0.025, 0.975), abs=1e-4)
    low, high = interval(replicates, 10)  # Student's t with 9 degrees of freedom: 2.262
    expected = NormalDist().cdf(-2.262 * np.sqrt(10 / 9))
    assert (low, high) == pytest.approx((expected, 1 - expected), abs=1e-4)
    assert np.isnan(interval(np.full(3, np.nan), 10)).all()
    assert np.isnan(interval(replicates, 1)).all()


def test_operating_point_is_youden_or_the_healthy_quantile_or_none():
    score = np.array([0.0, 1, 2, 3])
    point = choose_operating_point(np.array([0, 0, 1, 1]), score, 0.95)
    assert (point.rule, point.threshold) == ("youden", 2)
    point = choose_operating_point(np.zeros(4, int), score, 0.5)
    assert point.rule == "healthy_quantile"
    assert point.threshold == pytest.approx(1, rel=1e-6)
    assert choose_operating_point(np.ones(4, int), score, 0.5).rule == "none"
    assert choose_operating_point(np.array([], int), np.array([]), 0.5).rule == "none"
    assert specificity_point(np.array([]), 0.5).rule == "none"
    assert (specificity_point(score, 0.5).rule, specificity_point(score, 0.5).n) == (
        ("specificity", 4)
    )


@pytest.mark.parametrize(
    ("score", "reached"),
    [
        (np.arange(100.0), 0.95),
        (np.arange(3.0), 1.0),  # so few that 95 % means all of them
        (np.repeat([0.0, 1.0, 2.0], [90, 9, 1]), 0.99),  # 95 % would be within the tie
        (-np.geomspace(1e-3, 1e3, 40), 0.95),
    ],
)
def test_fixed_specificity_is_reached_and_not_by_more_than_needed(score, reached):
    threshold = specificity_threshold(score, 0.95)
    assert np.mean(score < threshold) == reached
    assert np.mean(score < float(f"{threshold:.9g}")) == reached
    values, count = np.unique(score, return_counts=True)
    assert specificity_threshold(values, 0.95, count) == threshold
