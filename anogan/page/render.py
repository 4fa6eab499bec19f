"""The page itself: what the templates show, and how it becomes one file without any other."""

import base64
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from anogan.evidence.cautions import about_baselines
from anogan.evidence.levels import LEVELS
from anogan.maps.pictures import HEAT_COLOURS
from anogan.page import tables
from anogan.page.budget import Detail, fit
from anogan.page.figures import main_parts
from anogan.page.inputs import Evidence, versions
from anogan.page.markers import Markers
from anogan.page.pictures import data_uri
from anogan.page.quality import flags_by_volume, summarise
from anogan.page.skipped import Skipped
from anogan.page.viewer import Packed, ranked, viewer_json
from anogan.page.words import aggregation, summary

TEMPLATES = Path(__file__).parent / "templates"
PIXELS = ("panel", "gallery", "walks")  # figures that are pictures anyway: shown as PNG
CASE_HEADS = ("AUC", "average precision", *tables.RATES.values())
PIXEL_HEADS = ("AUROC", "average precision", "AUPRO", "Dice")
POINTS = {
    "At the threshold from validation": "",
    "At the threshold of fixed specificity": "_at_specificity",
    "At the threshold that is best on the test set itself (optimistic)": "_optimistic",
}


@dataclass(frozen=True)
class Material:
    """All that the page is made of.

    Attributes
    ----------
    patches, methods : as returned by `patch_table`; the first method leads the report.
    history : of the training, empty where the model came without one.
    figures : the folder of figures that were drawn.
    qc, leave_out : paths of the qc.tsv, and which B-scans gave no patches.
    skipped : the volumes that are in nothing else here.
    sheets : contact sheets of volumes, as data URIs.
    packed : volumes for the viewer.
    markers : clusters of anomalous regions, None where there are none.
    """

    patches: pd.DataFrame
    methods: dict[str, list[str]]
    evidence: Evidence
    model: dict[str, object]
    history: pd.DataFrame
    model_folder: Path
    figures: Path
    qc: list[str]
    leave_out: str
    skipped: Skipped
    sheets: dict[str, list[str]]
    packed: list[Packed]
    markers: Markers | None
    config: str
    phantom: bool


def make_page(material: Material, drawn: set[str], max_mb: float) -> str:
    """Return the page with the figures `drawn`, not larger than `max_mb` megabytes.

    Raises InputError when it cannot be made that small.
    """
    script = (TEMPLATES / "viewer.js").read_text(encoding="utf-8")
    context = {
        "style": (TEMPLATES / "page.css").read_text(encoding="utf-8"),
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "drawn": drawn,
        "max_mb": f"{max_mb:g}",
        **_results(material),
        **_run(material),
    }
    template = _environment().get_template("report.html.j2")
    flags = flags_by_volume(material.qc)
    sheets = {
        "all": material.sheets,
        "flagged": {v: s for v, s in material.sheets.items() if flags.get(v) != "pass"},
        "none": {},
    }

    def render(detail: Detail) -> str | None:
        viewer = _viewer(material.packed, detail, max_mb)
        if viewer is None:
            return None
        return template.render(
            context,
            viewer=viewer,
            detail=detail,
            sheets=sheets[detail.sheets],
            left_out=_effective(detail, sheets, material).left_out(),
            absent=_absent(context, viewer),
        )

    return fit(render, max_mb)


def _effective(detail: Detail, sheets: dict[str, dict], material: Material) -> Detail:
    """Return a detail without the limits that nothing here exceeds."""
    packed = material.packed
    if not (material.markers and material.markers.clusters):
        detail = replace(detail, clusters=True)
    if sheets[detail.sheets] == sheets["all"]:
        detail = replace(detail, sheets="all")
    if not packed:
        return Detail(sheets=detail.sheets, clusters=detail.clusters)
    if ranked(packed, detail.volumes) == ranked(packed, None):
        detail = replace(detail, volumes=None)
    return detail


def _absent(context: dict, viewer: dict) -> list[str]:
    """Return the sections of the page that have nothing to show."""
    shown = {
        "scans": viewer["data"],
        "markers": context["markers"],
        "table": context["measured"],
        "methods": context["measured"] and context["differences"],
        "levels": context["measured"],
        "volumes": context["unlabelled"] or context["tested"],
    }
    return [section for section, content in shown.items() if not content]


def _results(material: Material) -> dict[str, object]:
    """Return what the page says of the results."""
    evidence, methods = material.evidence, list(material.methods)
    volumes = evidence.volumes
    headline, details = methods[0], evidence.details
    measured = evidence.measured("patch", headline)
    healthy = details["specificity_points"]["volume"][headline]
    in_summary = about_baselines(evidence.metrics.reset_index(), evidence.differences, headline)
    level_heads, levels = tables.level_table(evidence, methods)
    return {
        "methods": methods,
        "headline": tables.method_name(headline),
        "parts": [name.removeprefix(f"{headline}_") for name in main_parts(material.methods)],
        "summary": summary(evidence, methods) if len(measured) else [],
        "measured": measured.to_dict("index"),
        "warnings": [text for text in details["warnings"] if text not in in_summary],
        "settings": details["settings"],
        "aggregation": aggregation(details["settings"]),
        "point": details["operating_points"]["patch"][headline],
        "columns": ["AUC" if name == "auc" else name for name in tables.TABLE_COLUMNS],
        "paper_rows": tables.comparison_rows(evidence, methods, ""),
        "specificity_rows": [
            row
            for row in tables.comparison_rows(evidence, methods, "_at_specificity")
            if not row["paper"]  # whose figures are at Youden's index
        ],
        "optimistic_rows": tables.comparison_rows(evidence, methods, "_optimistic"),
        "differences": {
            name: rows
            for level, name in LEVELS.items()
            if (rows := tables.difference_rows(evidence, level))
        },
        "level_heads": level_heads,
        "levels": levels,
        "cases": tables.case_rows(evidence, headline),
        "case_heads": list(CASE_HEADS),
        "pixels": tables.pixel_rows(evidence, methods),
        "pixel_heads": list(PIXEL_HEADS),
        "everything": {title: tables.all_rows(evidence, end) for title, end in POINTS.items()},
        "n_volumes": len(volumes),
        "healthy": healthy,
        "unlabelled": tables.volume_rows(volumes, "score", headline, healthy["threshold"]),
        "tested": tables.volume_rows(volumes, "test", headline, healthy["threshold"]),
    }


def _run(material: Material) -> dict[str, object]:
    """Return what the page says of the data, the model and the run."""
    pictures = {name: material.model_folder / f"{name}.png" for name in ("samples", "real")}
    return {
        "phantom": material.phantom,
        "n_packed": len(material.packed),
        "markers": material.markers,
        "method_name": tables.method_name,
        "counts": tables.count_patches(material.patches),
        "model": material.model,
        "versions": versions(),
        "qc": summarise(material.qc, material.leave_out),
        "skipped": material.skipped,
        "config": material.config,
        "figure": lambda name: data_uri(
            material.figures / f"{name}.{'png' if name in PIXELS else 'svg'}"
        ),
        **{name: data_uri(path) if path.exists() else None for name, path in pictures.items()},
    }


def _viewer(packed: list[Packed], detail: Detail, max_mb: float) -> dict[str, object] | None:
    """Return what the template needs for the viewer; None where its data alone are too large."""
    groups = ranked(packed, detail.volumes)
    places, data, size = {}, [], 0
    for volume in (volume for volumes in groups.values() for volume in volumes):
        text = viewer_json(volume, detail.every, detail.small)
        size += len(text)
        if size > max_mb * 1e6:
            return None
        places[volume.volume] = len(data)
        data.append(text)
    colours = [f"rgb({red} {green} {blue})" for red, green, blue, _ in HEAT_COLOURS[1::9]]
    return {"groups": groups, "places": places, "data": data, "colours": colours}


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = tables.number
    return environment
