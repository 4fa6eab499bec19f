import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_scores import (
    GAN_METHODS,
    LAYOUT,
    evaluate,
    evaluation_of,
    make_scores,
    score_name,
    write_scores,
)
from sklearn.metrics import roc_auc_score

from anogan.evidence.cautions import about_measured
from anogan.evidence.measures import Measured
from anogan.evidence.statistics import (
    draw_patients,
    interval,
    patient_strata,
    youden_threshold,
)
from preprocessing.cli import run_command
from preprocessing.seeds import derive_seed


def message_of_failure(paths: list[str], folder: Path, capsys, *options: str) -> str:
    arguments = ["evaluate", "--scores", *paths, "--output", f"{folder}/metrics.tsv", *options]
    assert run_command("anogan", {"evaluate": ""}, arguments) == 1
    assert not (folder / "metrics.tsv").exists()
    return capsys.readouterr().err


def evaluate_anogan(scores: pd.DataFrame, folder: Path, *options: str) -> pd.DataFrame:
    return evaluate(scores, folder, *options, methods=("anogan",))


def warnings_of(folder: Path) -> list[str]:
    """Return the warnings, less those that volumes as easy and as few as the made-up ones raise."""
    warnings = evaluation_of(folder)["warnings"]
    usual = ("without an error", "fewer than 20 healthy")
    return [text for text in warnings if not any(part in text for part in usual)]


def test_threshold_comes_from_validation_alone(tmp_path):
    scores = make_scores()
    test = scores["split"] == "test"
    changed = scores.copy()
    changed.loc[test, "label"] = 1 - scores.loc[test, "label"]
    changed.loc[test, ["anogan", "anogan_R", "anogan_D", "gan_r", "p_d"]] *= 1.5
    before, after = (
        evaluate_anogan(scores, tmp_path / "a"),
        evaluate_anogan(changed, tmp_path / "b"),
    )
    for points in ("operating_points", "specificity_points"):
        assert evaluation_of(tmp_path / "a")[points] == evaluation_of(tmp_path / "b")[points]
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
    written = [path.name for path in (tmp_path / "a").glob("*.[tj]s*")]
    assert len(written) == 6
    for name in written:
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


def test_differences_are_paired_within_the_draws(tmp_path):
    """Errors of two methods are alike, so their difference is known better than either."""
    scores = make_scores()
    metrics = evaluate(scores, tmp_path, methods=("pca", "anogan", "gan_r"))
    table = pd.read_csv(tmp_path / "differences.tsv", sep="\t")
    pairs = list(dict.fromkeys(zip(table["method"], table["other"], strict=True)))
    assert pairs == [("anogan", "gan_r"), ("anogan", "pca"), ("gan_r", "pca")]
    row = table.set_index(["method", "other", "level", "subset", "metric"]).loc[
        ("anogan", "pca", "patch", "test", "auc")
    ]
    auc = metrics.xs(("patch", "test", "auc"), level=("level", "subset", "metric"))
    assert row["value"] == pytest.approx(auc["value"]["anogan"] - auc["value"]["pca"])

    test = scores[(scores["split"] == "test")].reset_index(drop=True)
    patients, anomalous = patient_strata(test["patient"], test["label"])
    member = np.searchsorted(patients, test["patient"])
    found = []
    for draw in draw_patients(anomalous, 50, derive_seed(1, "bootstrap", "test")):
        part = test.loc[np.repeat(test.index, draw[member])]
        found.append([roc_auc_score(part["label"], part[name]) for name in ("anogan", "pca")])
    anogan, pca = np.transpose(found)
    for replicates, row_of in ((anogan - pca, row), (anogan, auc.loc["anogan"])):
        expected = interval(replicates, 6)  # patients in each group
        assert (row_of["ci_low"], row_of["ci_high"]) == pytest.approx(expected)


def test_a_baseline_that_wins_is_said_and_by_how_much(tmp_path):
    scores = make_scores()
    evaluate(scores, tmp_path / "lost", methods=("anogan", "ae"))
    assert warnings_of(tmp_path / "lost") == []
    scores["acae"] = scores["anogan"] + 0.01 * scores["p_d"]
    metrics = evaluate(scores, tmp_path / "won", methods=("anogan", "ae", "pca", "acae"))
    auc = metrics.xs(("patch", "test", "auc"), level=("level", "subset", "metric"))["value"]
    (warning,) = warnings_of(tmp_path / "won")
    assert f"anogan ({auc['anogan']:.3f}) is beaten by baselines" in warning
    assert "ae (" not in warning.replace("acae (", "")
    pca, acae = (warning[warning.index(f"{name} (") :].split(")")[0] for name in ("pca", "acae"))
    assert pca.startswith(f"pca ({auc['pca']:.3f}, {auc['pca'] - auc['anogan']:.3f} more, 95 % CI")
    assert "includes zero" not in pca
    assert acae.endswith("which includes zero")


def test_a_baseline_that_wins_without_interval_is_said(tmp_path):
    scores = make_scores(splits=(("validation", 2, 2), ("test", 1, 2)))
    evaluate(scores, tmp_path, methods=("anogan", "pca"))
    warning = warnings_of(tmp_path)[-1]
    assert "is beaten by a baseline: pca" in warning
    assert "without an interval" in warning


def test_baselines_alone_have_nothing_to_beat(tmp_path):
    evaluate(make_scores(), tmp_path, methods=("ae", "pca"))
    assert warnings_of(tmp_path) == []


def test_a_specificity_fixed_on_few_healthy_cases_is_said(tmp_path):
    """Three volumes have no 95 % quantile; their patches do."""
    evaluate(make_scores(), tmp_path, methods=("pca",))
    (said,) = [text for text in evaluation_of(tmp_path)["warnings"] if "fewer than 20" in text]
    assert said.startswith("fewer than 20 healthy volumes, patients in split validation")


def test_volumes_without_any_label_are_scored_and_nothing_is_measured(tmp_path):
    scores = make_scores(splits=(("score", 2, 2),))
    metrics = evaluate(scores, tmp_path, methods=("anogan", "pca"))
    assert metrics.empty
    volumes = pd.read_csv(tmp_path / "volumes.tsv", sep="\t")
    assert volumes["volume"].tolist() == [f"score_{i:02d}" for i in range(4)]
    assert volumes[["anogan", "anogan_R", "pca"]].notna().all(axis=None)
    (warning,) = warnings_of(tmp_path)
    assert "nothing could be measured" in warning


def test_unlabelled_volumes_have_the_threshold_of_healthy_validation_volumes(tmp_path):
    evaluate_anogan(make_scores(splits=(("validation", 3, 0), ("score", 1, 1))), tmp_path)
    assert evaluation_of(tmp_path)["specificity_points"]["volume"]["anogan"]["threshold"] > 200


def test_excluded_patches_are_counted_and_change_no_metric(tmp_path):
    scores = make_scores()
    ambiguous = scores[(scores["volume"] == "test_07")].assign(label=-1)
    ambiguous["z"] += 1000
    before = evaluate_anogan(scores, tmp_path / "a").loc[("anogan", "patch", "test")]["value"]
    both = pd.concat([scores, ambiguous])
    after = evaluate_anogan(both, tmp_path / "b").loc[("anogan", "patch", "test")]["value"]
    assert before["n_excluded"] == 0
    assert after["n_excluded"] == 40
    pd.testing.assert_series_equal(before.drop("n_excluded"), after.drop("n_excluded"))


def test_sources_of_labels_are_told_apart(tmp_path):
    scores = make_scores()
    scores.loc[scores["patient"].str[-1].isin(list("02468")), "label_source"] = "eye"
    metrics = evaluate_anogan(scores, tmp_path)
    n = metrics.xs(("anogan", "patch", "n"), level=("method", "level", "metric"))["value"]
    assert n.to_dict() == {"test": 480, "test:annotation": 240, "test:eye": 240}
    warnings = warnings_of(tmp_path)
    assert any("240 test patches carry the label of their whole eye" in text for text in warnings)


def test_healthy_eyes_belong_to_every_source(tmp_path):
    """They usually have no mask; without them a subset of annotated eyes has few normal patches."""
    scores = make_scores(splits=(("validation", 1, 1), ("test", 2, 4)))
    scores.loc[scores["volume"].isin(["test_00", "test_01"]), "label_source"] = "healthy"
    n = evaluate_anogan(scores, tmp_path).xs(
        ("anogan", "patch", "n"), level=("method", "level", "metric")
    )
    assert n["value"].to_dict() == {"test": 240}
    scores.loc[scores["volume"].isin(["test_02"]), "label_source"] = "eye"
    n = evaluate_anogan(scores, tmp_path).xs(
        ("anogan", "patch", "n"), level=("method", "level", "metric")
    )
    assert n["value"].to_dict() == {"test": 240, "test:annotation": 200, "test:eye": 120}


def test_one_class_gives_nan_and_says_so(tmp_path):
    scores = make_scores(splits=(("validation", 4, 0), ("test", 5, 0)))
    found = evaluate(scores, tmp_path, "--specificity", "0.9")
    found = found.loc[("anogan", "patch", "test")]["value"]
    assert np.isnan(found["auc"])
    assert np.isnan(found["sensitivity"])
    assert np.isnan(found["specificity_optimistic"])
    assert 0 < found["specificity"] < 1
    evaluation = evaluation_of(tmp_path)
    for said in (
        "test (patches, B-scans, volumes, patients): only normal cases",
        "no anomalous patches, B-scans, volumes, patients in split validation: the threshold is "
        "the lowest below which at least 0.9 of the normal ones lie",
    ):
        assert any(text.startswith(said) for text in evaluation["warnings"])
    assert evaluation["operating_points"]["patch"]["anogan"]["rule"] == "healthy_quantile"
    assert (tmp_path / "metrics.json").read_text().count("NaN") == 0
    values = pd.DataFrame(evaluation["differences"])["value"]
    assert values.isna().all() and len(values) == 4 * 3 * 2


def test_without_validation_there_is_no_threshold_but_an_auc(tmp_path):
    found = evaluate_anogan(make_scores(splits=(("test", 3, 3),)), tmp_path)
    found = found.loc[("anogan", "patch", "test")]["value"]
    assert np.isnan(found["threshold"])
    assert np.isnan(found["precision"])
    assert found["auc"] > 0.5
    assert found["precision_optimistic"] > 0.5
    said = [text for text in warnings_of(tmp_path) if "validation" in text]
    assert len(said) == 1
    assert "no threshold could be chosen" in said[0]
    assert evaluation_of(tmp_path)["specificity_points"]["volume"]["anogan"]["threshold"] is None


def test_a_single_patient_in_a_group_gives_no_interval(tmp_path):
    found = evaluate_anogan(make_scores(splits=(("validation", 2, 2), ("test", 1, 2))), tmp_path)
    assert np.isnan(found.loc[("anogan", "patch", "test", "auc"), "ci_low"])
    assert any("no interval" in warning for warning in warnings_of(tmp_path))


def test_few_patients_are_said(tmp_path):
    evaluate_anogan(make_scores(splits=(("validation", 2, 2), ("test", 5, 5))), tmp_path / "ten")
    assert warnings_of(tmp_path / "ten") == []
    evaluate_anogan(make_scores(splits=(("validation", 2, 2), ("test", 4, 5))), tmp_path / "nine")
    (warning,) = warnings_of(tmp_path / "nine")
    assert "test (patches, B-scans, volumes, patients): only 9 patients" in warning


def test_perfect_scores_are_not_taken_for_certain(tmp_path):
    metrics = evaluate(make_scores(), tmp_path, methods=("anogan",))
    auc = metrics.xs(("anogan", "test", "auc"), level=("method", "subset", "metric"))["value"]
    assert auc["bscan"] < auc["volume"] == auc["patient"] == 1
    warnings = evaluation_of(tmp_path)["warnings"]
    (warning,) = [text for text in warnings if "without an error" in text]
    assert warning.startswith("test (volumes, patients): some scores tell anomalous from normal")
    at_times = Measured("patch", "test", repeated={"anogan": {"auc": np.array([1, 0.9])}})
    assert about_measured([at_times]) == []


def test_the_fixed_specificity_is_that_of_healthy_validation_volumes(tmp_path):
    scores = make_scores(splits=(("validation", 4, 4), ("test", 4, 4)))
    scores.loc[scores["volume"] == "validation_00", "label"] = -1  # a grader was unsure
    metrics = evaluate_anogan(scores, tmp_path, "--specificity", "0.8")
    evaluation = evaluation_of(tmp_path)
    point = evaluation["specificity_points"]["patch"]["anogan"]
    normal = (scores["eye_label"] == 0) & (scores["label"] == 0)
    healthy = scores[(scores["split"] == "validation") & normal]["anogan"]
    assert (point["rule"], point["n"]) == ("specificity", 120)
    assert np.mean(healthy < point["threshold"]) == 0.8
    test = scores[scores["split"] == "test"]
    found = metrics.loc[("anogan", "patch", "test")]
    called = test["anogan"] >= point["threshold"]
    for name, value in (
        ("threshold", point["threshold"]),
        ("tp", np.sum(called & (test["label"] == 1))),
        ("fp", np.sum(called & (test["label"] == 0))),
        ("specificity", np.mean(~called[test["label"] == 0])),
    ):
        assert found.loc[f"{name}_at_specificity", "value"] == pytest.approx(value)
    between = found.loc["specificity_at_specificity", ["ci_low", "ci_high"]]
    assert between["ci_low"] < between["ci_high"]


def test_without_healthy_validation_volumes_no_specificity_can_be_fixed(tmp_path):
    scores = make_scores(splits=(("validation", 0, 4), ("test", 5, 5)))
    found = evaluate_anogan(scores, tmp_path).loc[("anogan", "patch", "test")]["value"]
    assert np.isnan(found["threshold_at_specificity"]) and np.isnan(found["f1_at_specificity"])
    assert np.isfinite(found["f1"])
    assert any(
        "no healthy volume in split validation: no threshold of specificity 0.95" in text
        for text in warnings_of(tmp_path)
    )


def test_patches_without_a_finite_score_are_left_out_for_every_method(tmp_path):
    scores = make_scores()
    broken = scores.copy()
    rows = scores.index[scores["split"] == "test"]
    broken.loc[rows[:3], "gan_r"] = np.nan
    broken.loc[rows[2:4], "anogan_D"] = np.inf
    found = evaluate(broken, tmp_path / "broken")
    (warning,) = warnings_of(tmp_path / "broken")
    assert warning.startswith("4 of 720 patches are left out for every method")
    assert "(anogan 2, gan_r 3)" in warning
    pd.testing.assert_frame_equal(found, evaluate(scores.drop(rows[:4]), tmp_path / "without"))


@pytest.mark.parametrize(
    ("option", "value"), [("--specificity", "1"), ("--specificity", "0"), ("--bootstrap", "0")]
)
def test_senseless_options_are_refused(tmp_path, capsys, option, value):
    paths = write_scores(make_scores(), tmp_path, ("anogan",))
    assert option in message_of_failure(paths, tmp_path, capsys, option, value)


def test_unusable_scores_are_named(tmp_path, capsys):
    scores = make_scores()
    broken = scores.copy()
    broken["gan_r_R"] = np.nan
    message = message_of_failure(write_scores(broken, tmp_path, GAN_METHODS), tmp_path, capsys)
    assert "gan_r_R: only 0 of 720 patches have a finite score" in message
    broken.loc[3:, "gan_r_R"] = 1
    broken.loc[:10, "p_d"], broken.loc[10:, "p_d"] = 1, np.nan
    broken.loc[3:, "anogan"] = np.nan
    message = message_of_failure(write_scores(broken, tmp_path, GAN_METHODS), tmp_path, capsys)
    assert "no patch has one by every method" in message
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
