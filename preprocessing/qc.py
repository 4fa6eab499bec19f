"""Stage `qc`: tells which B-scans a person should look at, in a table and a picture."""

import argparse
from pathlib import Path

import numpy as np

from preprocessing.files import atomic_path, write_text
from preprocessing.layers import THICKNESS_UM, Layers, read_layers
from preprocessing.volume import Volume, read_volume

COLUMNS = ("volume", "bscan", "thickness_um", "confidence", "valid_fraction", "flag", "reason")
LOW_CONFIDENCE = 0.6
LOW_VALID = 0.5
STRETCH = 2  # of depth in the picture, as a true-scale retina is a thin band
MANY_OUTSIDE = 0.05  # share of the columns whose thickness is out of range
COLOURS = {"ilm": "#ff4040", "rpe": "#40e040", "bm": "#30c0ff"}


def assess(volume: Volume, layers: Layers) -> list[dict]:
    """Return a row of the QC table, keyed by `COLUMNS`, for each B-scan of `volume`.

    Flags: "fail" has no usable layers, "check" should be looked at, "ok" needs no attention.
    """
    thickness = (layers.bm - layers.ilm) * 1000 * volume.spacing_mm[1]
    rows = []
    for b, column in enumerate(thickness):
        found = column[np.isfinite(column)]
        facts = {
            "thickness_um": found.mean() if found.size else np.nan,
            "confidence": layers.confidence[b].mean(),
            "valid_fraction": volume.valid[b].mean(),
        }
        upsampled = volume.parameters.get("resample", {}).get("upsampled", False)
        flag, reason = _judge(found, upsampled, **facts)
        rows.append({"volume": volume.volume, "bscan": b, **facts, "flag": flag, "reason": reason})
    return rows


def _judge(
    found_um: np.ndarray,
    upsampled: bool,
    thickness_um: float,
    confidence: float,
    valid_fraction: float,
) -> tuple[str, str]:
    thinnest, thickest = THICKNESS_UM
    if not found_um.size:
        return "fail", "no retina found"
    if not thinnest <= thickness_um <= thickest:
        return "fail", f"mean thickness outside {thinnest}-{thickest} um"
    reasons = []
    if upsampled:
        reasons.append("interpolated: the scan is coarser along x than asked for")
    outside = ((found_um < thinnest) | (found_um > thickest)).mean()
    if outside > MANY_OUTSIDE:
        reasons.append(
            f"thickness outside {thinnest}-{thickest} um in {outside:.0%} of the columns"
        )
    if confidence < LOW_CONFIDENCE:
        reasons.append("low confidence")
    if valid_fraction < LOW_VALID:
        reasons.append("mostly invalid")
    return ("check" if reasons else "ok"), "; ".join(reasons)


def write_table(rows: list[dict], path: str | Path) -> None:
    """Write the rows of `assess` as TSV."""
    lines = ["\t".join(COLUMNS)]
    for row in rows:
        cells = {
            **row,
            "thickness_um": f"{row['thickness_um']:.1f}",
            "confidence": f"{row['confidence']:.3f}",
            "valid_fraction": f"{row['valid_fraction']:.3f}",
        }
        lines.append("\t".join(str(cells[name]) for name in COLUMNS))
    write_text(path, "\n".join(lines) + "\n")


def write_picture(
    volume: Volume, layers: Layers, rows: list[dict], path: str | Path, most: int = 9
) -> None:
    """Draw up to `most` B-scans, evenly spread over the volume, with their layers.

    The depth shown is that of the retina and its surroundings, stretched by `STRETCH`.
    """
    from matplotlib.figure import Figure

    n_b, _, n_x = volume.data.shape
    shown = np.unique(np.linspace(0, n_b - 1, min(n_b, most)).round().astype(int))
    top, bottom = _depth_shown(volume, layers)
    aspect = STRETCH * volume.spacing_mm[1] / volume.spacing_mm[2]
    n_wide = int(np.ceil(np.sqrt(len(shown))))
    n_high = int(np.ceil(len(shown) / n_wide))
    width = 15 / n_wide
    height = width * aspect * (bottom - top) / n_x + 0.3
    figure = Figure(figsize=(15, n_high * height + 0.7), layout="constrained")
    axes = figure.subplots(n_high, n_wide, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, b in zip(axes, shown, strict=False):
        bscan = np.where(volume.valid[b], volume.data[b], volume.data[b].min())
        black, white = np.percentile(bscan, (20, 99.5))
        axis.imshow(bscan, cmap="gray", vmin=black, vmax=white, aspect=aspect)
        for name, colour in COLOURS.items():
            axis.plot(getattr(layers, name)[b], color=colour, linewidth=0.8, label=name.upper())
        axis.set_ylim(bottom - 0.5, top - 0.5)
        row = rows[b]
        axis.set_title(
            f"B-scan {b}   {row['thickness_um']:.0f} um   {row['flag']}",
            fontsize=10,
            color="black" if row["flag"] == "ok" else "#c00000",
        )
    legend = figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    for line in legend.get_lines():
        line.set_linewidth(2.5)
    figure.suptitle(f"{volume.volume}   (depth x {STRETCH})", fontsize=14)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _depth_shown(volume: Volume, layers: Layers) -> tuple[int, int]:
    """Return the first and last row to draw: 100 um above the highest ILM, 200 um below BM."""
    n_z = volume.data.shape[1]
    above, below = (round(um / 1000 / volume.spacing_mm[1]) for um in (100, 200))
    return (
        max(int(np.nanmin(layers.ilm)) - above, 0),
        min(int(np.nanmax(layers.bm)) + below, n_z),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    parser.add_argument("--input", required=True, help="the volume that was segmented, .nii.gz")
    parser.add_argument("--layers", required=True, help="its layers, .npz")
    parser.add_argument("--table", required=True, help="quality by B-scan, .tsv")
    parser.add_argument("--picture", required=True, help="B-scans with their layers, .png")


def command(args: argparse.Namespace) -> str:
    """Judge and draw the layers of one volume."""
    volume, layers = read_volume(args.input), read_layers(args.layers)
    rows = assess(volume, layers)
    write_picture(volume, layers, rows, args.picture)
    write_table(rows, args.table)
    flags = [row["flag"] for row in rows]
    return f"{volume.volume}: {flags.count('check')} B-scans to check, {flags.count('fail')} failed"
