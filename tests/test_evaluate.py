import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_scores import GAN_METHODS, LAYOUT, evaluate, make_scores, score_name, write_scores
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from anogan.statistics import (
    bootstrap_metrics,
    choose_operating_point,
    draw_patients,
    interval,
    patient_strata,
    point_metrics,
    youden_threshold,
)
from preprocessing.cli import run_command


def message_of_failure(paths: list[str], folder: Path, capsys) -> str:
    arguments = ["evaluate", "--scores", *paths, "--output", f"{folder}/metrics.tsv"]
    assert run_command("anogan", {"evaluate": ""}, arguments) == 1
    assert not (folder / "metrics.tsv").exists()
    return capsys.readouterr().err


def evaluation_of(folder) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


@pytest.fixture
def tied(rng):
    """Label, score with many ties, and patient of 600 cases."""
    patient = rng.integers(0, 15, 600)
    label = ((rng.random(600) < 0.5) & (patient % 2 == 0)).astype(int)
    return label, np.round(rng.normal(size=600) + label, 1), patient


def test_metrics_agree_with_scikit_learn_ties_included(tied):
    label, score, _ = tied
    called = score >= 0.5
    found = point_metrics(label, score, 0.5)
    expected = {
        "auc": roc_auc_score(label, score),
        "average_precision": average_precision_score(label, score),
        "precision": precision_score(label, called),
        "sensitivity": recall_score(label, called),
        "specificity": recall_score(label, called, pos_label=0),
        "f1": f1_score(label, called),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["recall"] == found["sensitivity"]
    assert found["tp"] + found["fn"] == label.sum()
    assert sum(found[name] for name in ("tp", "fp", "tn", "fn")) == len(label)


def test_every_bootstrap_replicate_equals_scikit_learn_on_repeated_patients(tied):
    label, score, patient = tied
    draws = draw_patients(patient_strata(patient, label)[1], 20, seed=3)
    replicates = bootstrap_metrics(label, score, patient, 0.5, draws)
    for r, draw in enumerate(draws):
        repeated = np.repeat(np.arange(len(label)), draw[patient])
        expected = point_metrics(label[repeated], score[repeated], 0.5)
        for name, values in replicates.items():
            assert values[r] == pytest.approx(expected[name]), name


def test_draws_keep_the_number_of_patients_in_each_group(tied):
    label, _, patient = tied
    anomalous = patient_strata(patient, label)[1]
    draws = draw_patients(anomalous, 100, seed=1)
    assert (draws[:, anomalous].sum(axis=1) == anomalous.sum()).all()
    assert (draws[:, ~anomalous].sum(axis=1) == (~anomalous).sum()).all()


def test_interval_over_patients_is_wider_than_over_patches_when_a_patient_has_its_own_level(rng):
    patient = np.repeat(np.arange(20), 50)
    label = (patient >= 10).astype(int)
    score = rng.normal(0, 1, 20)[patient] + 0.3 * rng.normal(size=1000) + label

    def width(unit: np.ndarray) -> float:
        draws = draw_patients(patient_strata(unit, label)[1], 400, seed=1)
        low, high = interval(bootstrap_metrics(label, score, unit, 0.5, draws)["auc"])
        return high - low

    assert width(patient) > 2.5 * width(np.arange(1000))


def test_operating_point_is_youden_or_the_healthy_quantile_or_none():
    score = np.array([0.0, 1, 2, 3])
    point = choose_operating_point(np.array([0, 0, 1, 1]), score, 0.95)
    assert (point.rule, point.threshold) == ("youden", 2)
    point = choose_operating_point(np.zeros(4, int), score, 0.5)
    assert (point.rule, point.threshold) == ("healthy_quantile", 1.5)
    assert choose_operating_point(np.ones(4, int), score, 0.5).rule == "none"
    assert choose_operating_point(np.array([], int), np.array([]), 0.5).rule == "none"


def test_threshold_comes_from_validation_alone(tmp_path):
    scores = make_scores()
    test = scores["split"] == "test"
    changed = scores.copy()
    changed.loc[test, "label"] = 1 - scores.loc[test, "label"]
    changed.loc[test, ["anogan", "anogan_R", "anogan_D", "gan_r", "p_d"]] *= 1.5
    before, after = evaluate(scores, tmp_path / "a"), evaluate(changed, tmp_path / "b")
    assert (
        evaluation_of(tmp_path / "a")["operating_points"]
        == (evaluation_of(tmp_path / "b")["operating_points"])
    )
    key = ("anogan", "patch", "test")
    assert before.loc[(*key, "auc"), "value"] != after.loc[(*key, "auc"), "value"]
    validation = scores[scores["split"] == "validation"]
    expected = youden_threshold(validation["label"], validation["anogan"])
    assert before.loc[(*key, "threshold"), "value"] == pytest.approx(expected, rel=1e-5)
    optimistic = (*key, "threshold_optimistic")
    assert before.loc[optimistic, "value"] != after.loc[optimistic, "value"]


def test_order_of_rows_and_files_does_not_matter(tmp_path):
    scores = make_scores()
    evaluate(scores, tmp_path / "a")
    shuffled = scores.sample(frac=1, random_state=5)
    evaluate(shuffled, tmp_path / "b", methods=GAN_METHODS[::-1])
    for name in ("metrics.tsv", "volumes.tsv", "evaluation.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_every_column_of_every_method_is_measured_under_its_name(tmp_path):
    scores = make_scores()
    metrics = evaluate(scores, tmp_path, methods=tuple(LAYOUT))
    names = {score_name(method, column) for method in LAYOUT for column in LAYOUT[method]}
    assert set(metrics.index.get_level_values("method")) == names
    test = scores[scores["split"] == "test"]
    for name in names:
        found = metrics.loc[(name, "patch", "test", "auc")]
        assert found["value"] == pytest.approx(roc_auc_score(test["label"], test[name]), abs=1e-5)
        assert found["ci_low"] < found["value"] < found["ci_high"]


def test_a_method_that_nobody_knows_is_measured_after_the_known_ones(tmp_path):
    scores = make_scores().rename(columns={"ae": "a_new_one"})
    evaluate(scores, tmp_path, methods=("a_new_one", "pca"))
    written = pd.read_csv(tmp_path / "metrics.tsv", sep="\t")["method"]
    assert list(dict.fromkeys(written)) == ["pca", "pca_R", "a_new_one"]


def test_a_baseline_that_wins_is_said(tmp_path):
    scores = make_scores()
    evaluate(scores, tmp_path / "lost", methods=("anogan", "ae"))
    assert evaluation_of(tmp_path / "lost")["warnings"] == []
    metrics = evaluate(scores, tmp_path / "won", methods=("anogan", "ae", "pca"))
    auc = metrics.xs(("patch", "test", "auc"), level=("level", "subset", "metric"))["value"]
    (warning,) = evaluation_of(tmp_path / "won")["warnings"]
    assert f"anogan ({auc['anogan']:.3f})" in warning
    assert f"pca ({auc['pca']:.3f})" in warning
    assert "ae (" not in warning


def test_volumes_without_any_label_are_scored_and_nothing_is_measured(tmp_path):
    scores = make_scores(splits=(("score", 2, 2),))
    metrics = evaluate(scores, tmp_path, methods=("anogan", "pca"))
    assert metrics.empty
    volumes = pd.read_csv(tmp_path / "volumes.tsv", sep="\t")
    assert volumes["volume"].tolist() == [f"score_{i:02d}" for i in range(4)]
    assert volumes[["anogan", "anogan_R", "pca"]].notna().all(axis=None)
    (warning,) = evaluation_of(tmp_path)["warnings"]
    assert "nothing could be measured" in warning


def test_unlabelled_volumes_have_the_threshold_of_healthy_validation_volumes(tmp_path):
    evaluate(make_scores(splits=(("validation", 3, 0), ("score", 1, 1))), tmp_path)
    assert evaluation_of(tmp_path)["healthy_volume_threshold"]["anogan"] > 200


def test_excluded_patches_are_counted_and_change_no_metric(tmp_path):
    scores = make_scores()
    ambiguous = scores[(scores["volume"] == "test_07")].assign(label=-1)
    ambiguous["z"] += 1000
    before = evaluate(scores, tmp_path / "a").loc[("anogan", "patch", "test")]["value"]
    both = pd.concat([scores, ambiguous])
    after = evaluate(both, tmp_path / "b").loc[("anogan", "patch", "test")]["value"]
    assert before["n_excluded"] == 0
    assert after["n_excluded"] == 40
    pd.testing.assert_series_equal(before.drop("n_excluded"), after.drop("n_excluded"))


def test_volume_score_is_the_mean_of_the_highest_tenth(tmp_path):
    scores = make_scores(splits=(("validation", 2, 2), ("test", 2, 2), ("score", 1, 0)))
    metrics = evaluate(scores, tmp_path)
    volumes = pd.read_csv(tmp_path / "volumes.tsv", sep="\t").set_index("volume")
    values = np.sort(scores.loc[scores["volume"] == "test_03", "anogan"])
    assert volumes.loc["test_03", "anogan"] == pytest.approx(values[-4:].mean(), 1e-5)
    assert volumes.loc[["test_00", "test_03", "score_00"], "label"].tolist() == [0, 1, -1]
    assert metrics.loc[("anogan", "volume", "test", "n"), "value"] == 4


def test_sources_of_labels_are_told_apart(tmp_path):
    scores = make_scores()
    scores.loc[scores["patient"].str[-1].isin(list("02468")), "label_source"] = "eye"
    metrics = evaluate(scores, tmp_path)
    n = metrics.xs(("anogan", "patch", "n"), level=("method", "level", "metric"))["value"]
    assert n.to_dict() == {"test": 480, "test:annotation": 240, "test:eye": 240}
    warnings = evaluation_of(tmp_path)["warnings"]
    assert any("240 test patches carry the label of their whole eye" in text for text in warnings)


def test_healthy_eyes_belong_to_every_source(tmp_path):
    """They usually have no mask; without them a subset of annotated eyes has few normal patches."""
    scores = make_scores(splits=(("validation", 1, 1), ("test", 2, 4)))
    scores.loc[scores["volume"].isin(["test_00", "test_01"]), "label_source"] = "healthy"
    n = evaluate(scores, tmp_path).xs(("anogan", "patch", "n"), level=("method", "level", "metric"))
    assert n["value"].to_dict() == {"test": 240}
    scores.loc[scores["volume"].isin(["test_02"]), "label_source"] = "eye"
    n = evaluate(scores, tmp_path).xs(("anogan", "patch", "n"), level=("method", "level", "metric"))
    assert n["value"].to_dict() == {"test": 240, "test:annotation": 200, "test:eye": 120}


def test_one_class_gives_nan_and_says_so(tmp_path):
    scores = make_scores(splits=(("validation", 4, 0), ("test", 5, 0)))
    found = evaluate(scores, tmp_path, "--healthy-quantile", "0.9")
    found = found.loc[("anogan", "patch", "test")]["value"]
    assert np.isnan(found["auc"])
    assert np.isnan(found["sensitivity"])
    assert np.isnan(found["specificity_optimistic"])
    assert 0 < found["specificity"] < 1
    evaluation = evaluation_of(tmp_path)
    assert any("only normal cases" in warning for warning in evaluation["warnings"])
    assert evaluation["operating_points"]["patch"]["anogan"]["rule"] == "healthy_quantile"


def test_without_validation_there_is_no_threshold_but_an_auc(tmp_path):
    found = evaluate(make_scores(splits=(("test", 3, 3),)), tmp_path)
    found = found.loc[("anogan", "patch", "test")]["value"]
    assert np.isnan(found["threshold"])
    assert np.isnan(found["precision"])
    assert found["auc"] > 0.5
    assert found["precision_optimistic"] > 0.5
    assert any("no threshold" in warning for warning in evaluation_of(tmp_path)["warnings"])


def test_a_single_patient_in_a_group_gives_no_interval(tmp_path):
    found = evaluate(make_scores(splits=(("validation", 2, 2), ("test", 1, 2))), tmp_path)
    assert np.isnan(found.loc[("anogan", "patch", "test", "auc"), "ci_low"])
    assert any("no interval" in warning for warning in evaluation_of(tmp_path)["warnings"])


def test_few_patients_are_said(tmp_path):
    evaluate(make_scores(), tmp_path / "twelve")
    assert evaluation_of(tmp_path / "twelve")["warnings"] == []
    evaluate(make_scores(splits=(("validation", 2, 2), ("test", 4, 4))), tmp_path / "eight")
    assert "only 8 patients" in evaluation_of(tmp_path / "eight")["warnings"][0]


def test_unusable_scores_are_named(tmp_path, capsys):
    scores = make_scores()
    broken = scores.copy()
    broken.loc[:2, "gan_r"] = np.nan
    message = message_of_failure(write_scores(broken, tmp_path, GAN_METHODS), tmp_path, capsys)
    assert "gan_r: 3 of 720" in message
    paths = write_scores(scores, tmp_path, GAN_METHODS)
    message = message_of_failure([*paths, paths[1]], tmp_path, capsys)
    assert "validation_00" in message and "of gan_r twice" in message
    table = pd.read_parquet(paths[0])
    for columns in ("label", ["A", "R", "D"]):
        table.drop(columns=columns).to_parquet(tmp_path / "bad.parquet")
        message = message_of_failure([f"{tmp_path}/bad.parquet"], tmp_path, capsys)
        assert "bad.parquet: lacks" in message
    pd.concat([table, table.assign(method="gan_r")]).to_parquet(tmp_path / "bad.parquet")
    message = message_of_failure([f"{tmp_path}/bad.parquet"], tmp_path, capsys)
    assert "bad.parquet: holds the methods anogan, gan_r" in message
    table[:0].to_parquet(tmp_path / "bad.parquet")
    assert "no patch" in message_of_failure([f"{tmp_path}/bad.parquet"], tmp_path, capsys)


@pytest.mark.parametrize("lacking", ["anogan", "p_d"])
def test_a_patch_that_one_method_lacks_is_named(tmp_path, capsys, lacking):
    paths = write_scores(make_scores(), tmp_path, GAN_METHODS)
    path = tmp_path / f"{lacking}.parquet"
    pd.read_parquet(path)[1:].to_parquet(path)
    message = message_of_failure(paths, tmp_path, capsys)
    assert f"{lacking}: no score of patch validation_00/" in message
    assert "(1 such patches)" in message


@pytest.mark.slow
def test_a_thousand_replicates_take_seconds(tmp_path):
    scores = make_scores(patches_per_volume=250, splits=(("validation", 2, 2), ("test", 10, 10)))
    start = time.perf_counter()
    evaluate(scores, tmp_path, "--bootstrap", "1000")
    assert time.perf_counter() - start < 15
