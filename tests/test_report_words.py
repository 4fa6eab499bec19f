import numpy as np
import pandas as pd
import pytest

from anogan.evidence.measures import DIFFERENCE_COLUMNS, METRIC_COLUMNS
from anogan.page.inputs import Evidence
from anogan.page.words import aggregation, summary


@pytest.mark.parametrize(
    ("aggregation_name", "said"),
    [
        ("top_mean", "the mean of the highest 0.5\N{NO-BREAK SPACE}% of its patch scores"),
        ("percentile", "the 95th percentile of its patch scores"),
    ],
)
def test_the_aggregation_is_said_with_its_number(aggregation_name, said):
    settings = {"aggregation": aggregation_name, "top_share": 0.005, "percentile": 95.0}
    assert aggregation(settings) == said


def evidence_of(auc: tuple, difference: tuple, n_patients: int) -> Evidence:
    """What `evaluate` would find of anogan and pca, a triple being value and interval."""
    counts = {"n": 100, "n_anomalous": 40, "n_patients": n_patients, "fp": 3, "fn": 9}
    found = {"auc": auc, "sensitivity": (0.8, 0.7, 0.9), "specificity": (0.9, 0.8, 0.95)}
    found |= {name: (value, np.nan, np.nan) for name, value in counts.items()}
    return Evidence(
        metrics=pd.DataFrame(
            [("anogan", "patch", "test", name, *row) for name, row in found.items()],
            columns=METRIC_COLUMNS,
        ).set_index(METRIC_COLUMNS[:4]),
        differences=pd.DataFrame(
            [("anogan", "pca", "patch", "test", "auc", *difference)], columns=DIFFERENCE_COLUMNS
        ),
        volumes=pd.DataFrame(),
        details={"operating_points": {"patch": {"anogan": {"threshold": 1.0}}}},
    )


@pytest.mark.parametrize(
    ("auc", "difference", "n_patients", "said"),
    [
        (
            (0.9, 0.88, 0.92),
            (0.05, 0.02, 0.08),
            40,
            "the nearest, PCA, is 0.050 of AUC behind (95 % interval 0.020 to 0.080).",
        ),
        (
            (1.0, 1.0, 1.0),
            (0.0, 0.0, 0.0),
            40,
            "No baseline does better, but PCA does as well.",
        ),
        (
            (0.9, 0.85, 0.95),
            (0.02, -0.01, 0.05),
            12,
            "(95 % interval -0.010 to 0.050), which chance alone may explain. "
            "All of it rests on 12 patients",
        ),
        (
            (0.9, 0.7, 0.99),
            (-0.03, -0.05, 0.01),
            40,
            "PCA by 0.030 of AUC (95 % interval -0.010 to 0.050), which chance alone may explain. "
            "The interval is wide",
        ),
        (
            (0.9, np.nan, np.nan),
            (-0.03, np.nan, np.nan),
            3,
            "A baseline does better: PCA by 0.030 of AUC. No interval can be given",
        ),
    ],
)
def test_the_summary_is_honest_about_baselines_and_chance(auc, difference, n_patients, said):
    words = " ".join(summary(evidence_of(auc, difference, n_patients), ["anogan", "pca"]))
    words = words.replace("\N{NO-BREAK SPACE}", " ")
    assert said in words
    assert "finds 80 % (70 % to 90 %) of the anomalous patches and misses 9" in words
