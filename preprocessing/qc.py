"""Stage `qc`: tells which volumes and B-scans a person should look at, in a table.

A flag is "pass", "check" (a person should look) or "fail" (not to be used). Disease alone must not
fail a B-scan, or the eyes that matter most would drop out: only what no eye looks like does.

The table has a row for the whole volume, where column bscan says "all" and a number is the mean
over the B-scans, then one for each B-scan: `table[table["bscan"] != "all"]`. Its columns are

    thickness_um          mean distance from ILM to BM
    confidence            mean confidence of the layers, 0 to 1, where they are known
    valid_fraction        share of pixels that the device measured
    signal                gray of the retina above the vitreous, in standard deviations of speckle
    outliers              share of columns whose thickness jumps against the neighbourhood
    unknown_fraction      share of columns without layers
    cut_fraction          share of columns with the retina at the edge of the scan, or folded there
    dark_fraction         share of columns with hardly any light
    vendor_difference_um  mean distance of ILM and BM to the vendor's; empty without such layers
    flag, reason          reasons are separated by "; "

Of a volume that was skipped there is one row, with the flag "skipped" and the cause as its reason.
A share is one of the columns with layers, but for unknown_fraction; unknown numbers are empty.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from preprocessing.errors import InputError
from preprocessing.files import write_text
from preprocessing.layers import Layers, read_layers
from preprocessing.own_files import read_whole_lines, reading
from preprocessing.qc_measures import (
    Columns,
    choroid_glow,
    fovea_off_centre_mm,
    mean_of,
    measure,
    row_means,
)
from preprocessing.skipped import Note
from preprocessing.volume import Volume, read_volume

WHOLE = "all"  # in column bscan: the row of the whole volume
FIGURES = {  # columns of the table that hold a number, and its format
    "thickness_um": ".1f",
    "confidence": ".3f",
    "valid_fraction": ".3f",
    "signal": ".2f",
    "outliers": ".3f",
    "unknown_fraction": ".3f",
    "cut_fraction": ".3f",
    "dark_fraction": ".3f",
    "vendor_difference_um": ".1f",
}
COLUMNS = ("volume", "bscan", *FIGURES, "flag", "reason")
FLAGS = ("pass", "check", "fail")  # from good to bad
SKIPPED = "skipped"  # in column flag: of a volume that nothing could be made of

# Mean ILM-BM distance of a B-scan: healthy maculae have 250-360 um, end-stage atrophy about 150,
# gross oedema up to 600; beyond the outer limits something else was taken for the retina.
USUAL_UM, POSSIBLE_UM = (150, 600), (100, 900)
# figure: (check above, fail above, reason)
TOO_HIGH = {
    "unknown_fraction": (0.25, 0.75, "no layers in many columns"),
    "cut_fraction": (0.05, 0.5, "retina cut off or folded at the edge of the scan"),
    "dark_fraction": (0.15, 0.35, "dark band"),
    "outliers": (0.05, 0.5, "thickness jumps"),
}
# figure: (check below, fail below, reason). Spectralis B-scans have a signal of 5 to 13, a loss of
# 10 dB leaves 3, and of 15 dB 1.3, where layers are found by luck. At 2 the gray values of retina
# and vitreous overlap.
TOO_LOW = {
    "confidence": (0.6, 0.25, "low confidence"),
    "signal": (2.5, 1.25, "low signal"),
}
UPSIDE_DOWN = "the volume is upside down or folded: more light above the retina than below"
NO_GLOW = (-0.02, -0.1)  # of the choroid: check below, fail below
MANY_BSCANS = 0.1  # of a volume, flagged
MANY_OUTLIERS = 0.02  # of the columns of a volume

OFF_CENTRE_MM = 1.0  # of the fovea: as wide as the centre field of the ETDRS grid


def assess(volume: Volume, layers: Layers, columns: Columns) -> list[dict]:
    """Return the rows of the QC table, keyed by `COLUMNS`: the whole volume, then each B-scan."""
    known = np.isfinite(columns.thickness_um)
    n_known = known.sum(axis=1)

    def share(flagged: np.ndarray) -> np.ndarray:
        return np.where(n_known > 0, flagged.sum(axis=1) / np.maximum(n_known, 1), np.nan)

    figures = {
        "thickness_um": row_means(columns.thickness_um),
        "confidence": row_means(columns.confidence),
        "valid_fraction": volume.valid.mean(axis=(1, 2)),
        "signal": row_means(columns.contrast) / np.maximum(columns.noise, 1e-6),
        "outliers": share(columns.outlier),
        "unknown_fraction": 1 - known.mean(axis=1),
        "cut_fraction": share(columns.cut),
        "dark_fraction": share(columns.dark),
        "vendor_difference_um": vendor_difference_um(volume, layers),
    }
    rows = []
    glow = choroid_glow(volume)
    for b in range(len(known)):
        own = {name: float(values[b]) for name, values in figures.items()}
        flag, reason = ("fail", UPSIDE_DOWN) if glow < NO_GLOW[1] else judge_bscan(own)
        rows.append({"volume": volume.volume, "bscan": b, **own, "flag": flag, "reason": reason})
    means = {name: mean_of(values) for name, values in figures.items()}
    flag, reason = judge_volume(volume, columns, means, glow, [row["flag"] for row in rows])
    whole = {"volume": volume.volume, "bscan": WHOLE, **means, "flag": flag, "reason": reason}
    return [whole, *rows]


def judge_bscan(figures: dict[str, float]) -> tuple[str, str]:
    """Return flag and reason of a B-scan with these `figures`, by name as in `FIGURES`."""
    if figures["unknown_fraction"] == 1:
        return "fail", "no retina found"
    found = []
    thickness = figures["thickness_um"]
    for flag, (low, high) in (("fail", POSSIBLE_UM), ("check", USUAL_UM)):
        if not low <= thickness <= high:
            found.append((flag, f"mean thickness outside {low}-{high} um"))
            break
    for name, (check, fail, reason) in TOO_HIGH.items():
        if figures[name] > check:
            found.append(("fail" if figures[name] > fail else "check", reason))
    for name, (check, fail, reason) in TOO_LOW.items():
        if figures[name] < check:
            found.append(("fail" if figures[name] < fail else "check", reason))
    worst = max((flag for flag, _ in found), key=FLAGS.index, default="pass")
    return worst, "; ".join(reason for _, reason in found)


def judge_volume(
    volume: Volume, columns: Columns, means: dict[str, float], glow: float, flags: list[str]
) -> tuple[str, str]:
    """Return flag and reason of a volume with these `means` over and `flags` of its B-scans.

    `glow` is its `choroid_glow`.
    """
    failed, to_check = flags.count("fail"), flags.count("check")
    reasons = []
    if failed or to_check > MANY_BSCANS * len(flags):
        reasons.append(f"{failed} of {len(flags)} B-scans fail, {to_check} to check")
    if means["outliers"] > MANY_OUTLIERS:
        reasons.append("thickness jumps")
    if NO_GLOW[1] <= glow < NO_GLOW[0]:
        reasons.append("as light above the retina as below: look whether it is upside down")
    if volume.scan_pattern not in ("raster", "line"):
        reasons.append(f"{volume.scan_pattern} scan")
    if len(flags) == 1:
        reasons.append("a single B-scan: no neighbours to compare with")
    if volume.parameters.get("resample", {}).get("upsampled", False):
        reasons.append("interpolated: the scan is coarser along x than asked for")
    off_mm = fovea_off_centre_mm(columns.thickness_um, volume)
    if off_mm > OFF_CENTRE_MM:
        reasons.append(f"fovea {off_mm:.1f} mm off the centre")
    if 2 * failed > len(flags):
        return "fail", "; ".join(reasons)
    return ("check" if reasons else "pass"), "; ".join(reasons)


def vendor_difference_um(volume: Volume, layers: Layers) -> np.ndarray:
    """Return (b,) the mean distance to the vendor's ILM and BM, NaN where there are none."""
    vendor = volume.vendor_layers
    if not {"ILM", "BM"} <= set(vendor):
        return np.full(len(layers.bm), np.nan)
    distance = np.abs(layers.ilm - vendor["ILM"]) + np.abs(layers.bm - vendor["BM"])
    return row_means(distance / 2) * 1000 * volume.spacing_mm[1]


def skipped_row(note: Note) -> dict:
    """Return the only row of the table of a volume that was skipped."""
    unknown = dict.fromkeys(FIGURES, np.nan)
    return {"volume": note.volume, "bscan": WHOLE, **unknown, "flag": SKIPPED, "reason": note.cause}


def write_table(rows: list[dict], path: str | Path) -> None:
    """Write the rows of `assess` as TSV; an unknown number is left empty."""
    lines = ["\t".join(COLUMNS)]
    for row in rows:
        numbers = {
            name: "" if np.isnan(row[name]) else format(row[name], form)
            for name, form in FIGURES.items()
        }
        cells = {**row, **numbers}
        lines.append("\t".join(str(cells[name]) for name in COLUMNS))
    write_text(path, "\n".join(lines) + "\n")


def read_table(path: str | Path) -> tuple[dict, list[dict]]:
    """Return what `write_table` wrote: the row of the volume, and those of its B-scans.

    Raises InputError when the table is missing or not one of B-scans in their order.
    """
    with reading(path, "table of the quality of B-scans", "prepare"):
        lines = read_whole_lines(path).splitlines()
        whole, *rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        for row in (whole, *rows):
            row.update({name: float(row[name] or "nan") for name in FIGURES})
        bscans = [row["bscan"] for row in rows]
        flags = {row["flag"] for row in (whole, *rows)}
        if bscans != [str(b) for b in range(len(rows))] or not flags <= set(FLAGS):
            raise ValueError("B-scans or flags are missing")
    return whole, rows


def read_skipped_row(path: str | Path) -> Note | None:
    """Return the note of a volume whose table says that it was skipped, None of any other."""
    with (
        reading(path, "table of the quality of B-scans", "prepare"),
        open(path, newline="", encoding="utf-8") as file,
    ):
        row = next(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE), {})
    return Note(row["volume"], row["reason"]) if row.get("flag") == SKIPPED else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    parser.add_argument("--input", required=True, help="the volume that was segmented, .nii.gz")
    parser.add_argument("--layers", required=True, help="its layers, .npz")
    parser.add_argument("--output", required=True, help="quality of volume and B-scans, .tsv")


def command(args: argparse.Namespace) -> str:
    """Judge the layers of one volume."""
    volume, layers = read_segmented(args.input, args.layers)
    whole, *rows = assess(volume, layers, measure(volume, layers))
    write_table([whole, *rows], args.output)
    return f"{volume.volume}: {whole['flag']}; B-scans: {flag_counts(rows)}"


def flag_counts(rows: list[dict]) -> str:
    """Return how many B-scans have each flag, in words."""
    flags = [row["flag"] for row in rows]
    return ", ".join(f"{flags.count(flag)} {flag}" for flag in FLAGS)


def read_segmented(volume_path: str, layers_path: str) -> tuple[Volume, Layers]:
    """Return a volume and its layers; raises InputError when they do not belong together."""
    volume, layers = read_volume(volume_path), read_layers(layers_path)
    if "flatten" in volume.parameters:
        raise InputError(f"{volume_path}: flattened; give the volume that was segmented")
    if layers.bm.shape != (len(volume.data), volume.data.shape[2]):
        raise InputError(
            f"{layers_path}: made for another volume than {volume_path}; segment again"
        )
    return volume, layers
