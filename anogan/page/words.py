"""The result in words: sentences made from the numbers, whichever way these turned out."""

import numpy as np
import pandas as pd

from anogan.evidence.score_tables import BASELINES
from anogan.page.inputs import Evidence
from anogan.page.tables import CASES, method_name

WIDE = 0.15  # an interval of an AUC that spans more leaves open whether a method is good
FEW_PATIENTS = 20
AGGREGATIONS = {
    "top_mean": "the mean of the highest {percent:g}% of its patch scores",
    "max": "the highest of its patch scores",
    "percentile": "the {percentile:g}th percentile of its patch scores",
    "mean": "the mean of its patch scores",
}


def summary(evidence: Evidence, methods: list[str]) -> list[str]:
    """Return the result of the method that leads the report, `methods[0]`, sentence by sentence."""
    values = evidence.measured("patch", methods[0])
    sentences = _ranking(values, method_name(methods[0]))
    sentences += _at_threshold(values, evidence.details["operating_points"]["patch"][methods[0]])
    sentences += _other_levels(evidence, methods[0])
    sentences += _baselines(evidence, methods)
    return sentences + _certainty(values)


def aggregation(settings: dict) -> str:
    """Return how the score of a volume, a B-scan or a patient is made from patch scores."""
    form = AGGREGATIONS[settings["aggregation"]]
    return _spaced(form.format(percent=100 * settings["top_share"], **settings))


def percent(row: pd.Series) -> str:
    """Return a share and its interval in percent."""
    if not np.isfinite(row["value"]):
        return "an undefined share"
    text = f"{row['value']:.0%}"
    if np.isfinite(row["ci_low"]):
        text += f" ({row['ci_low']:.0%} to {row['ci_high']:.0%})"
    return _spaced(text)


def _spaced(text: str) -> str:
    return text.replace("%", "\N{NO-BREAK SPACE}%")


def _ranking(values: pd.DataFrame, name: str) -> list[str]:
    n, anomalous, patients = (values.loc[f, "value"] for f in ("n", "n_anomalous", "n_patients"))
    cases = f"{n:.0f} labelled test patches of {patients:.0f} patients, {anomalous:.0f} anomalous"
    auc = values.loc["auc"]
    if not np.isfinite(auc["value"]):
        return [f"{name} scored {cases}; with one class alone no AUC can be given."]
    return [
        f"Over {cases}, {name} reaches an AUC of {auc['value']:.3f}{_interval(auc)}: of 100 pairs "
        f"of an anomalous and a normal patch the anomalous one scores higher in "
        f"about {100 * auc['value']:.0f}; guessing gives 50."
    ]


def _at_threshold(values: pd.DataFrame, point: dict) -> list[str]:
    if point["threshold"] is None:
        return ["Validation gave no threshold, so nothing is called anomalous or normal."]
    said = []
    if values.loc["n_anomalous", "value"]:
        said.append(
            f"finds {percent(values.loc['sensitivity'])} of the anomalous patches and misses "
            f"{values.loc['fn', 'value']:.0f}"
        )
    if values.loc["n_anomalous", "value"] < values.loc["n", "value"]:
        said.append(
            f"leaves {percent(values.loc['specificity'])} of the normal ones alone and wrongly "
            f"calls {values.loc['fp', 'value']:.0f} anomalous"
        )
    return [f"At the threshold fixed on validation it {'; it '.join(said)}."]


def _other_levels(evidence: Evidence, score: str) -> list[str]:
    """Say how well volumes, patients (once where each has one volume) and pixels are told apart."""
    said = {}
    for level in ("volume", "patient"):
        values = evidence.measured(level, score)
        if len(values) and np.isfinite(values.loc["auc", "value"]):
            auc, n = values.loc["auc"], values["value"]
            cases = f"{n['n']:.0f} %s ({n['n_anomalous']:.0f} anomalous)"
            sure = " (without an error, so no interval)" if auc["value"] == 1 else _interval(auc)
            reached = f" with an AUC of {auc['value']:.3f}{sure}"
            said.setdefault((cases, reached), CASES[level])
    listed = [cases % name + reached for (cases, reached), name in said.items()]
    sentences = [f"It tells apart {' and '.join(listed)}."] if said else []
    pixels = evidence.measured("pixel", f"{score}_residual")
    if len(pixels) and np.isfinite(pixels.loc["aupro", "value"]):
        aupro = pixels.loc["aupro"]
        sentences.append(
            f"Its residual maps find marked regions with an AUPRO of {aupro['value']:.3f}"
            f"{_interval(aupro)}; guessing gives 0.15."
        )
    return sentences


def _baselines(evidence: Evidence, methods: list[str]) -> list[str]:
    """Say by how much the baselines are better or worse, whichever it is."""
    headline, others = methods[0], [name for name in methods[1:] if name in BASELINES]
    if headline in BASELINES:
        return ["It is itself a baseline: no method with a search in latent space ran."]
    table = evidence.differences
    table = table[
        (table["method"] == headline)
        & table["other"].isin(others)
        & (table["level"] == "patch")
        & (table["subset"] == "test")
        & (table["metric"] == "auc")
        & table["value"].notna()
    ].sort_values("value")
    if not others:
        return ["No baseline ran beside it, so it is open whether one would do better."]
    if table.empty:  # of one class alone
        return []
    ahead = table[table["value"] < 0]
    if ahead.empty:
        nearest = table.iloc[0]
        name = method_name(nearest["other"])
        if not nearest["value"]:
            return [f"No baseline does better, but {name} does as well."]
        return [
            f"It is ahead of every baseline; the nearest, {name}, is {nearest['value']:.3f} "
            f"of AUC behind{_interval(nearest)}{_open(nearest)}."
        ]
    listed = ", ".join(
        f"{method_name(row['other'])} by {-row['value']:.3f} of AUC{_interval(_turned(row))}"
        f"{_open(row)}"
        for row in ahead.to_dict("records")
    )
    kind = "A baseline does" if len(ahead) == 1 else "Baselines do"
    return [f"{kind} better: {listed}."]


def _certainty(values: pd.DataFrame) -> list[str]:
    auc, patients = values.loc["auc"], values.loc["n_patients", "value"]
    if not np.isfinite(auc["ci_low"]):
        return ["No interval can be given, so how far chance moved these numbers is unknown."]
    if auc["ci_high"] - auc["ci_low"] > WIDE:
        return [
            f"The interval is wide: with {patients:.0f} patients the data leave open how good "
            "the score is."
        ]
    if patients < FEW_PATIENTS:
        return [
            f"All of it rests on {patients:.0f} patients: other eyes may well give other numbers."
        ]
    return []


def _interval(row: pd.Series | dict) -> str:
    """Return the interval; nothing where there is none, or none of any width."""
    if not row["ci_low"] < row["ci_high"]:
        return ""
    return f" (95\N{NO-BREAK SPACE}% interval {row['ci_low']:.3f} to {row['ci_high']:.3f})"


def _open(row: pd.Series | dict) -> str:
    """Say so where the interval of a difference holds zero."""
    unclear = row["ci_low"] <= 0 <= row["ci_high"]
    return ", which chance alone may explain" if unclear else ""


def _turned(row: dict) -> dict:
    return row | {"ci_low": -row["ci_high"], "ci_high": -row["ci_low"]}
