"""Which figures the report has, and what is drawn in them."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from anogan.evidence.score_tables import DESCRIPTION, PATCH
from anogan.figures.curves import (
    calibration_figure,
    distribution_figure,
    precision_recall_figure,
    roc_figure,
    strip_figure,
    training_figure,
)
from anogan.figures.pictures import PanelColumn, panel_figure, tsne_figure, walks_figure
from anogan.page.inputs import Evidence, read_latent
from anogan.page.tables import interval_text, method_name
from preprocessing.own_files import reading
from preprocessing.patch_file import open_patches, read_index

GAN_METHODS = ("anogan", "f_anogan_refined", "f_anogan", "gan_r")  # that rebuild a patch as G(z)
PANEL_PATCHES = 12
GALLERY_PATCHES = 6  # of each kind of failure


def main_parts(methods: dict[str, list[str]]) -> list[str]:
    """Return the two scores that the first method's own is made of; its own where there are none.

    `methods` holds the names of each method's scores, its own first.
    """
    own, *parts = next(iter(methods.values()))
    return parts[:2] or [own]


def score_figures(
    patches: pd.DataFrame, methods: dict[str, list[str]], evidence: Evidence
) -> dict[str, Figure]:
    """Return the figures drawn from scores, by the name of their files."""
    headline = next(iter(methods))
    test = patches[patches["split"] == "test"]
    labelled = test[test["label"] >= 0]
    label = labelled["label"].to_numpy()
    thresholds = thresholds_of(evidence)
    parts = main_parts(methods)
    made_of = [name for name in dict.fromkeys([*parts, "gan_r_D_hat"]) if name not in methods]

    def scores(names: Iterable[str]) -> dict[str, np.ndarray]:
        return {name: labelled[name].to_numpy() for name in names if name in labelled}

    def captions(names: Iterable[str], metric: str, text: str) -> dict[str, str]:
        rows = {name: evidence.measured("patch", name) for name in names}
        return {
            name: f"{text} {interval_text(row.loc[metric], '.2f')}"
            for name, row in rows.items()
            if len(row)
        }

    return {
        "roc_methods": roc_figure(
            label, scores(methods), captions(methods, "auc", "AUC"), thresholds, "a"
        ),
        "roc_scores": roc_figure(
            label, scores(made_of), captions(made_of, "auc", "AUC"), thresholds, "b"
        ),
        "distributions": distribution_figure(label, scores(parts), thresholds),
        "precision_recall": precision_recall_figure(
            label, scores(methods), captions(methods, "average_precision", "AP"), thresholds
        ),
        "calibration": calibration_figure(
            _healthy(patches, "validation")[headline].to_numpy(),
            {
                volume: rows[headline].to_numpy()
                for volume, rows in _healthy(patches, "test").groupby("volume")
            },
            method_name(headline),
        ),
        "strip": _strip(patches, evidence, headline, thresholds[headline]),
    }


def picture_figures(
    residuals: list[str], patches: pd.DataFrame, methods: dict[str, list[str]], evidence: Evidence
) -> dict[str, Figure]:
    """Return the panel and the gallery of failures by the name of their files."""
    headline = next(iter(methods))
    thresholds = thresholds_of(evidence)
    called_by = {
        name.removeprefix(f"{headline}_"): (name, thresholds[name])
        for name in main_parts(methods)
        if thresholds[name] is not None
    }
    index = pd.concat([_residual_index(path) for path in residuals], ignore_index=True)
    found = index.merge(patches.drop(columns=DESCRIPTION), on=PATCH, how="inner")
    found = found.sort_values([headline, *PATCH], ascending=False)
    rebuilt = "G(z)" if headline in GAN_METHODS else r"$\hat{x}$"
    chosen = {"panel": _panel(found[found["random"]]), "gallery": _failures(found)}
    return {
        name: panel_figure(
            [
                _panel_column(row, title, called_by)
                for title, rows in titled.items()
                for row in rows.to_dict("records")
            ],
            rebuilt,
        )
        for name, titled in chosen.items()
    }


def model_figures(history: pd.DataFrame, latent: str | None) -> dict[str, Figure]:
    """Return the figures of the model by the name of their files."""
    drawn = {"training": training_figure(history)}
    if latent:
        points, label, walks = read_latent(latent)
        drawn |= {"tsne": tsne_figure(points, label), "walks": walks_figure(walks)}
    return drawn


def thresholds_of(evidence: Evidence) -> dict[str, float | None]:
    """Return the threshold of each score that validation gave for patches."""
    points = evidence.details["operating_points"]["patch"]
    return {name: point["threshold"] for name, point in points.items()}


def _healthy(patches: pd.DataFrame, split: str) -> pd.DataFrame:
    return patches[(patches["split"] == split) & (patches["eye_label"] == 0)]


def _strip(
    patches: pd.DataFrame, evidence: Evidence, headline: str, threshold: float | None
) -> Figure:
    """Draw the test volumes; those without a label where there are no test volumes."""
    volumes = evidence.volumes.set_index("volume")
    shown = patches[patches["split"] == "test"]
    shown = shown if len(shown) else patches[patches["split"] == "score"]
    label = volumes["label"].reindex(shown["volume"]).to_numpy()
    table = pd.DataFrame({"volume": shown["volume"], "label": label, "score": shown[headline]})
    score = volumes[headline].reindex(shown["volume"].unique()).to_dict()
    return strip_figure(table, method_name(headline), threshold, score)


def _panel(found: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Choose patches spread evenly over the ranks, so that failures stand beside successes.

    Labelled test patches, half of them normal; where there are none, unlabelled ones. `found` is
    sorted by rank.
    """
    test = found[(found["split"] == "test") & (found["label"] >= 0)]
    shown = {"anomalous": test[test["label"] == 1], "normal": test[test["label"] == 0]}
    if test.empty:
        shown = {"unlabelled": found[(found["split"] != "validation") & (found["label"] < 0)]}
    return {title: _spread(rows, PANEL_PATCHES // len(shown)) for title, rows in shown.items()}


def _failures(found: pd.DataFrame) -> dict[str, pd.DataFrame]:
    test = found[found["split"] == "test"]
    return {
        "normal, scored highest": test[test["label"] == 0].head(GALLERY_PATCHES),
        "anomalous, scored lowest": test[test["label"] == 1].tail(GALLERY_PATCHES)[::-1],
    }


def _residual_index(path: str) -> pd.DataFrame:
    with open_patches(path, "score") as file, reading(path, "file of residuals", "score"):
        kept = read_index(file).reset_index(names="row")
        return kept.assign(path=path, random=file["random"][:])


def _spread(ranked: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return at most `count` rows at even distances, the first and the last among them."""
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked)))
    return ranked.iloc[np.rint(places).astype(int)]


def _panel_column(row: dict, title: str, called_by: dict[str, tuple[str, float]]) -> PanelColumn:
    path, place = row["path"], row["row"]
    with open_patches(path, "score") as file, reading(path, "file of residuals", "score"):
        return PanelColumn(
            title=title,
            patch=file["patches"][place].astype(np.float32),
            generated=file["generated"][place].astype(np.float32),
            mask=file["masks"][place],
            called={text: row[name] >= threshold for text, (name, threshold) in called_by.items()},
        )
