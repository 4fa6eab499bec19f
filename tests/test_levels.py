import argparse

import numpy as np
import pandas as pd
import pytest
from made_scores import evaluate, evaluation_of, make_scores

from anogan.evidence.levels import add_aggregation_arguments, aggregation, unit_tables
from preprocessing.errors import InputError


def aggregate(*options: str):
    parser = argparse.ArgumentParser()
    add_aggregation_arguments(parser)
    return aggregation(parser.parse_args(options))


def one_patch_each(**columns) -> pd.DataFrame:
    """Patches with what `unit_tables` needs, a volume, patient and B-scan of its own each."""
    n = len(next(iter(columns.values())))
    names = [f"v{i}" for i in range(n)]
    plain = {"volume": names, "patient": names, "bscan": 0, "eye": "R", "split": "test"}
    labels = {"eye_label": -1, "bscan_label": -1, "label": -1, "label_source": "none"}
    return pd.DataFrame({**plain, **labels, "s": np.arange(n), **columns})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), 19.5),  # the highest two of twenty
        (("--top-share", "0.01"), 20),
        (("--aggregation", "max"), 20),
        (("--aggregation", "mean"), 10.5),
        (("--aggregation", "percentile", "--percentile", "50"), 10.5),
    ],
)
def test_aggregations(options, expected):
    assert aggregate(*options)(np.arange(20.0, 0, -1)) == expected


@pytest.mark.parametrize("option", ["--top-share", "--percentile"])
@pytest.mark.parametrize("value", ["-1", "101"])
def test_senseless_aggregations_are_refused(option, value):
    with pytest.raises(InputError, match=option):
        aggregate(option, value)


def test_top_shares_are_not_rounded_up_by_binary_fractions():
    assert aggregate("--top-share", "0.07")(np.arange(100.0)) == 96  # the mean of 93 to 99


def test_labels_of_units():
    patches = one_patch_each(
        volume=["a", "a", "b", "b", "c", "d", "e", "f", "f"],
        bscan=[0, 1, 0, 0, 0, 0, 0, 0, 1],
        patient=["p", "p", "p", "p", "q", "r", "r", "s", "s"],
        eye_label=[1, 1, 0, 0, -1, -1, 0, -1, -1],
        bscan_label=[0, 1, -1, -1, 0, -1, 0, 0, 1],
        label=[0, 1, 0, -1, 0, -1, 0, 0, 0],  # no patch lies on what is marked in f
        label_source=[
            *("annotation", "annotation", "healthy", "eye", "annotation", "none", "eye"),
            *("annotation", "annotation"),
        ],
    )
    units = unit_tables(patches, ["s"], aggregate("--aggregation", "max"))
    bscans = units["bscan"].set_index(["volume", "bscan"])
    assert bscans["label"].to_dict() == {
        ("a", 0): 0, ("a", 1): 1, ("b", 0): -1, ("c", 0): 0, ("d", 0): -1, ("e", 0): 0,
        ("f", 0): 0, ("f", 1): 1,
    }  # fmt: skip
    volumes = units["volume"].set_index("volume")
    assert volumes["label"].to_dict() == {"a": 1, "b": 0, "c": 0, "d": -1, "e": 0, "f": 1}
    assert volumes["label_source"].to_dict() == {
        "a": "annotation", "b": "eye", "c": "annotation", "d": "none", "e": "eye",
        "f": "annotation",
    }  # fmt: skip
    patients = units["patient"].set_index("patient")
    assert patients["label"].to_dict() == {"p": 1, "q": 0, "r": 0, "s": 1}
    assert patients["n_patches"].to_dict() == {"p": 4, "q": 1, "r": 2, "s": 2}
    assert patients["s"].to_dict() == {"p": 3, "q": 4, "r": 6, "s": 8}


def test_scores_of_every_level_are_made_of_all_patches_of_the_unit(tmp_path):
    scores = make_scores(splits=(("validation", 2, 2), ("test", 2, 2), ("score", 1, 0)))
    scores.loc[scores["volume"].isin(["test_00", "test_01"]), "patient"] = "both"
    metrics = evaluate(scores, tmp_path, "--aggregation", "mean")
    for level, keys in (
        ("bscan", ["volume", "bscan"]),
        ("volume", ["volume"]),
        ("patient", ["patient"]),
    ):
        table = pd.read_csv(tmp_path / f"{level}s.tsv", sep="\t").set_index(keys)
        group = scores.groupby(keys)
        names = ["anogan", "anogan_R", "p_d"]
        pd.testing.assert_frame_equal(table[names], group[names].mean(), check_exact=False)
        assert (table["n_patches"] == group.size()).all()
        labelled = table[(table["split"] == "test") & (table["label"] >= 0)]
        assert metrics.loc[("anogan", level, "test", "n"), "value"] == len(labelled)
    assert len(table) == 8  # patients: nine volumes, two of them of one
    assert metrics.loc[("anogan", "patient", "test", "n_patients"), "value"] == 3


def test_volume_score_is_the_mean_of_the_highest_tenth(tmp_path):
    scores = make_scores(splits=(("validation", 2, 2), ("test", 2, 2), ("score", 1, 0)))
    evaluate(scores, tmp_path)
    volumes = pd.read_csv(tmp_path / "volumes.tsv", sep="\t").set_index("volume")
    values = np.sort(scores.loc[scores["volume"] == "test_03", "anogan"])
    assert volumes.loc["test_03", "anogan"] == pytest.approx(values[-4:].mean())
    assert volumes.loc[["test_00", "test_03", "score_00"], "label"].tolist() == [0, 1, -1]
    assert evaluation_of(tmp_path)["settings"]["aggregation"] == "top_mean"


def test_a_level_without_label_is_said_and_the_others_are_measured(tmp_path):
    scores = make_scores().assign(bscan_label=-1)
    metrics = evaluate(scores, tmp_path)
    assert set(metrics.index.get_level_values("level")) == {"patch", "volume", "patient"}
    warnings = evaluation_of(tmp_path)["warnings"]
    assert "test (B-scans): no case carries a label, nothing is measured" in warnings
    assert any("no normal B-scans in split validation" in text for text in warnings)
