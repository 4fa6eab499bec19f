"""Stage `qc_pictures`: all B-scans of a volume with their layers, and en-face maps, to look at.

Colours are those of Okabe and Ito, told apart by the colour-blind; lines and frames also differ in
style, for print in black and white.
"""

import argparse
import textwrap
from pathlib import Path

import numpy as np

from preprocessing.errors import InputError
from preprocessing.files import atomic_path
from preprocessing.layers import Layers
from preprocessing.qc import read_segmented, read_table
from preprocessing.qc_measures import Columns, measure
from preprocessing.skipped import Note, read_note
from preprocessing.volume import Volume

LAYER_STYLES = {  # colour, columns drawn and left out in turn
    "ilm": ("#f0e442", (1, 0)),
    "rpe": ("#d55e00", (2, 2)),
    "bm": ("#56b4e9", (6, 3)),
}
FLAG_STYLES = {  # colour and width of a B-scan's frame, mark beside a map
    "pass": ("#999999", 1, ""),
    "check": ("#e69f00", 3, ">"),
    "fail": ("#d55e00", 6, "X"),
}
MOST_PANELS = 64
SHEET_PX = 2100  # width of the contact sheet
PANEL_PX = (240, 900)  # narrowest and widest panel
HEAD_PX, LABEL_PX, GAP_PX, LEGEND_PX = 72, 20, 8, 280
STRETCH = 3  # of depth, as a true-scale retina is a thin band
FRAME_UM = (80, 150)  # shown above the ILM and below BM
PAPER, WHITE = 240, 190  # gray of the sheet and of the brightest tissue, darker than the lines
DPI, MOST_LETTERS = 110, 120  # of the en-face maps and of their heading
THICKNESS_UM = ((100, 500), (100, 900))  # colour scale, and the one for oedema


def draw_contact_sheet(
    volume: Volume, layers: Layers, whole: dict, rows: list[dict], path: str | Path
) -> None:
    """Draw the B-scans of `volume` with their layers and flags, each around its own retina.

    `whole` and `rows` are the rows of the QC table. Of more than `MOST_PANELS` B-scans every panel
    stands for a run of neighbours and shows the one with the worst flag.
    """
    from PIL import Image, ImageDraw

    shown = _panels([row["flag"] for row in rows])
    n_x = volume.data.shape[2]
    n_wide = int(np.ceil(np.sqrt(len(shown))))
    width = int(np.clip(SHEET_PX // n_wide - GAP_PX, *PANEL_PX))
    tops, n_rows = _depths(volume, layers, shown)
    stretched = STRETCH * n_rows * volume.spacing_mm[1] / volume.spacing_mm[2] * width / n_x
    height = int(np.clip(stretched, 8, 0.75 * width))
    step_x, step_y = width + GAP_PX, height + LABEL_PX + GAP_PX
    corners = [
        (k % n_wide * step_x + GAP_PX // 2, k // n_wide * step_y + HEAD_PX + LABEL_PX)
        for k in range(len(shown))
    ]
    n_high = -(-len(shown) // n_wide)
    size = (HEAD_PX + n_high * step_y, max(n_wide * step_x, SHEET_PX // 2))
    sheet = np.full(size, PAPER, np.uint8)
    for b, z, (left, top) in zip(shown, tops, corners, strict=True):
        gray = _panel(volume, b, slice(z, z + n_rows), (width, height))
        sheet[top : top + height, left : left + width] = gray

    picture = Image.fromarray(sheet)
    draw = ImageDraw.Draw(picture)
    facts = "1 B-scan" if len(rows) == 1 else f"{len(rows)} B-scans"
    if len(shown) < len(rows):
        facts += f", {len(shown)} shown: of each run of neighbours the worst"
    facts += f"; depth stretched {STRETCH * height / stretched:.1f} times"
    _write(draw, (GAP_PX, 6), f"{volume.volume}   {_verdict(whole)}", 20, size[1])
    _write(draw, (GAP_PX, 38), facts, 14, size[1] - LEGEND_PX)
    for b, (left, top) in zip(shown, corners, strict=True):
        row = rows[b]
        verdict = f"{row['thickness_um']:.0f} um" if row["flag"] == "pass" else _verdict(row)
        _write(draw, (left, top - LABEL_PX + 2), f"{b}   {verdict}", 14, width)

    inks = _add_colours(picture)
    draw = ImageDraw.Draw(picture)
    x = (np.arange(n_x) + 0.5) * width / n_x
    for b, z, (left, top) in zip(shown, tops, corners, strict=True):
        for name, (colour, dashes) in LAYER_STYLES.items():
            depth = (getattr(layers, name)[b] - z + 0.5) * height / n_rows
            depth = np.where((depth >= 0) & (depth <= height), top + depth, np.nan)
            _draw_curve(draw, left + x, depth, inks[colour], dashes)
        colour, stroke, _ = FLAG_STYLES[rows[b]["flag"]]
        draw.rectangle(
            (left, top, left + width - 1, top + height - 1), outline=inks[colour], width=stroke
        )
    _draw_legend(draw, size[1] - LEGEND_PX, inks)
    with atomic_path(path) as temporary:
        picture.save(temporary)


def draw_enface(
    volume: Volume, columns: Columns, whole: dict, rows: list[dict], path: str | Path
) -> None:
    """Draw thickness, light and confidence of every A-scan as seen from the front, to scale.

    Flagged B-scans are marked beside the maps. A single B-scan gives curves.
    """
    from matplotlib.figure import Figure

    thick = np.isfinite(columns.thickness_um)
    scale = THICKNESS_UM[0]
    if thick.any() and np.percentile(columns.thickness_um[thick], 99) > scale[1]:
        scale = THICKNESS_UM[1]
    maps = (
        ("Thickness, ILM to BM (µm)", columns.thickness_um, "viridis", scale),
        ("Light at BM (1 = median of the volume)", columns.light, "gray", (0, 1.5)),
        ("Confidence of the layers", columns.confidence, "cividis", (0, 1)),
    )
    figure = Figure(figsize=(14, 5.4), dpi=DPI)
    for k, (title, values, colours, limits) in enumerate(maps):
        axis = figure.add_axes((0.045 + 0.325 * k, 0.2, 0.28, 0.64))
        axis.set_title(title, fontsize=11, y=1.01)
        if len(rows) > 1:
            picture = _draw_map(axis, values, colours, limits, volume)
            _mark_flags(axis, [row["flag"] for row in rows])
            bar = figure.add_axes((0.065 + 0.325 * k, 0.09, 0.24, 0.03))
            figure.colorbar(picture, cax=bar, orientation="horizontal")
        else:
            x_mm = (np.arange(values.shape[1]) + 0.5) * volume.spacing_mm[2]
            axis.plot(x_mm, values[0], color="black", linewidth=1)
            axis.set(ylim=(limits[0], 1.05 * limits[1]), xlim=(0, x_mm[-1]), xlabel="mm")
    marks, flags = axis.get_legend_handles_labels()
    if marks:
        figure.legend(marks, flags, loc="upper right", ncols=2, frameon=False)
    head = f"{volume.volume}   {_verdict(whole)}"
    figure.text(0.03, 0.94, head[:MOST_LETTERS], fontsize=12)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI)


def _panels(flags: list[str], most: int = MOST_PANELS) -> list[int]:
    """Return which B-scans to draw: of each run of neighbours the worst, else the middle one."""
    order = list(FLAG_STYLES)
    runs = np.array_split(np.arange(len(flags)), min(len(flags), most))
    return [
        int(max(run, key=lambda b: (order.index(flags[b]), -abs(b - run.mean())))) for run in runs
    ]


def _depths(volume: Volume, layers: Layers, shown: list[int]) -> tuple[list[int], int]:
    """Return the first row to draw of each B-scan and how many rows hold the highest retina."""
    n_z = volume.data.shape[1]
    above, below = (um / 1000 / volume.spacing_mm[1] for um in FRAME_UM)
    span = np.full((len(shown), 2), np.nan)
    for k, b in enumerate(shown):
        if np.isfinite(layers.bm[b]).any():
            span[k] = np.nanmin(layers.ilm[b]) - above, np.nanmax(layers.bm[b]) + below
    known = np.isfinite(span[:, 0])
    if not known.any():
        return [0] * len(shown), n_z
    n_rows = int(min(np.ceil((span[:, 1] - span[:, 0])[known].max()), n_z))
    middle = np.where(known, span.mean(axis=1), np.median(span[known].mean(axis=1)))
    tops = np.clip(np.rint(middle - n_rows / 2), 0, n_z - n_rows)
    return tops.astype(int).tolist(), n_rows


def _panel(volume: Volume, b: int, depth: slice, size: tuple[int, int]) -> np.ndarray:
    """Return a B-scan's rows `depth` as gray levels (height, width); a dim B-scan looks dim."""
    from PIL import Image

    gray = np.where(volume.valid[b, depth], volume.data[b, depth].clip(-1, 1) + 1, 0)
    picture = Image.fromarray(np.rint(WHITE / 2 * gray).astype(np.uint8))
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))


def _verdict(row: dict) -> str:
    return f"{row['flag']}: {row['reason']}" if row["reason"] else row["flag"]


def _write(draw, at: tuple[int, int], text: str, size: int, most_px: int) -> None:
    """Write one line of black text, cut off where it would be longer than `most_px`."""
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    while font.getlength(text) > most_px and len(text) > 4:
        text = text[:-4] + "..."
    draw.text(at, text, fill=0, font=font)


def _add_colours(picture) -> dict[str, int]:
    """Give a picture of gray levels 0 to `PAPER` a palette; return the level of each colour.

    A third of the size of RGB, and of the time to write it.
    """
    from PIL import ImageColor

    grays = np.linspace(0, 255, PAPER + 1).round().astype(int)
    styles = [*LAYER_STYLES.values(), *FLAG_STYLES.values()]
    colours = list(dict.fromkeys(style[0] for style in styles))
    codes = [code for colour in colours for code in ImageColor.getrgb(colour)]
    picture.putpalette([*np.repeat(grays, 3).tolist(), *codes])
    return {colour: PAPER + 1 + i for i, colour in enumerate(colours)}


def draw_note(note: Note, path: str | Path) -> None:
    """Draw why a volume was skipped, in place of its pictures."""
    from PIL import Image, ImageDraw

    text = textwrap.fill(f"{note.volume} was skipped: {note.cause}", MOST_LETTERS)
    picture = Image.new("L", (SHEET_PX // 2, HEAD_PX + 24 * text.count("\n")), PAPER)
    ImageDraw.Draw(picture).multiline_text((GAP_PX, GAP_PX), text, fill=0, font_size=16)
    with atomic_path(path) as temporary:
        picture.save(temporary)


def _draw_curve(draw, x: np.ndarray, z: np.ndarray, ink: int, dashes: tuple[int, int]) -> None:
    """Draw z over x in dashes of so many columns on and off, with gaps where z is NaN."""
    on, off = dashes
    for start in range(0, len(x) - 1, on + off):
        part = slice(start, start + on + 1)
        if np.isfinite(z[part]).all():
            draw.line(np.column_stack([x[part], z[part]]).ravel().tolist(), fill=ink, width=2)


def _draw_legend(draw, left: int, inks: dict[str, int]) -> None:
    draw.rectangle((left, 36, left + LEGEND_PX - GAP_PX, 60), fill=PAPER // 3)
    for k, (name, (colour, dashes)) in enumerate(LAYER_STYLES.items()):
        start = left + 10 + 90 * k
        _draw_curve(draw, np.arange(start, start + 40), np.full(40, 48), inks[colour], dashes)
        draw.text((start + 46, 42), name.upper(), fill=PAPER)


def _draw_map(axis, values: np.ndarray, colours: str, limits: tuple[float, float], volume: Volume):
    """Draw `values` (b, x), the inferior B-scan at the bottom; to scale where B-scans are a raster.

    Returns what a colour bar needs. Unknown places are hatched.
    """
    step_b, _, step_x = volume.spacing_mm
    to_scale = step_b > 0 and volume.scan_pattern == "raster"
    extent = (0, values.shape[1] * step_x, 0, len(values) * (step_b if to_scale else 1))
    axis.patch.set(facecolor="white", hatch="////", edgecolor="#b0b0b0")
    picture = axis.imshow(
        np.ma.masked_invalid(values),
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        origin="lower",
        extent=extent,
        aspect="equal" if to_scale else "auto",
        interpolation="nearest",
    )
    axis.set_ylabel("mm" if to_scale else "B-scan")
    _name_directions(axis, volume, to_scale)
    return picture


def _mark_flags(axis, flags: list[str]) -> None:
    """Mark the flagged B-scans on the right of a map."""
    bottom, top = axis.get_ylim()
    place = bottom + (np.arange(len(flags)) + 0.5) * (top - bottom) / len(flags)
    for flag, (colour, _, mark) in FLAG_STYLES.items():
        flagged = place[np.array(flags) == flag]
        if mark and flagged.size:
            style = {"color": colour, "markersize": 5, "clip_on": False, "label": flag}
            right = np.full(flagged.size, 1.03)
            axis.plot(right, flagged, mark, transform=axis.get_yaxis_transform(), **style)


def _name_directions(axis, volume: Volume, to_scale: bool) -> None:
    """Write which way is superior, inferior, temporal and nasal, as far as that is known."""
    letters = {}
    if to_scale:
        letters |= {(0.5, 0.97, "center", "top"): "S", (0.5, 0.03, "center", "bottom"): "I"}
        if volume.eye:
            sides = "TN" if volume.eye == "R" or volume.mirrored else "NT"
            letters |= {
                (0.02, 0.5, "left", "center"): sides[0],
                (0.98, 0.5, "right", "center"): sides[1],
            }
    for (x, y, across, along), letter in letters.items():
        axis.text(
            x,
            y,
            letter,
            transform=axis.transAxes,
            ha=across,
            va=along,
            fontsize=10,
            weight="bold",
            color="white",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "black", "alpha": 0.5, "lw": 0},
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    parser.add_argument("--input", required=True, help="the volume that was segmented, .nii.gz")
    parser.add_argument("--layers", required=True, help="its layers, .npz")
    parser.add_argument("--qc", required=True, help="its table of the stage qc, .tsv")
    parser.add_argument("--picture", required=True, help="B-scans with their layers, .png")
    parser.add_argument("--enface", required=True, help="maps seen from the front, .png")


def command(args: argparse.Namespace) -> str:
    """Draw one volume."""
    if note := read_note(args.input):
        for path in (args.picture, args.enface):
            draw_note(note, path)
        return f"{note.volume} was skipped"
    volume, layers = read_segmented(args.input, args.layers)
    whole, rows = read_table(args.qc)
    if len(rows) != len(volume.data):
        raise InputError(
            f"{args.qc}: made for another volume than {args.input}; "
            "make it again with the rule prepare"
        )
    draw_contact_sheet(volume, layers, whole, rows, args.picture)
    draw_enface(volume, measure(volume, layers), whole, rows, args.enface)
    return f"{volume.volume}: {len(rows)} B-scans drawn"
