"""How well ILM, RPE and Bruch's membrane (BM) are found, by data set: the accuracy record.

Usage: python benchmarks/layers.py [--sets SET ...] [--pictures FOLDER]

Each volume goes through the stages load, normalise, resample (22 um) and segment; the layers are
compared on the columns of the file. Real data is looked for in OCT_TEST_DATA; without it only the
phantoms are measured. Prints a TSV table, measure value unit baseline ratio: the baseline is the
goal set for that measure (empty where there is none), the ratio how many times better the value is.
"""

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

sys.path[0] = str(Path(__file__).parents[1])  # so that preprocessing is the package

from benchmarks.hard_phantoms import hard_phantoms
from preprocessing.layer_search import find_layers
from preprocessing.load import canonical
from preprocessing.normalise import normalise
from preprocessing.readers import read_vendor_volume
from preprocessing.readers.sidecar import described_volume
from preprocessing.resample import resample
from preprocessing.volume import Volume

COLOURS = {"ilm": (255, 60, 60), "rpe": (60, 255, 60), "bm": (60, 190, 255)}
X_UM = 22.0
PIXELS = {  # of a row
    "manual_layers": (0.0, 0.003, 0.008),  # the files tell none: those of a Cirrus line scan
    "dme_fluid": (0.123, 0.00387, 0.0115),
    "amd_fluid": (0.0, 0.0077, 0.0115),  # letterboxed to 512 rows, so about half the resolution
}
ANATOMY_UM = (200, 450)  # mean ILM to BM of a B-scan outside fluid, from atrophy to oedema


@dataclass
class Case:
    """A volume with what is known about it; surfaces are (b, x) in z pixels of the file."""

    data_set: str
    name: str
    volume: Volume
    surfaces: dict[str, np.ndarray] = field(default_factory=dict)
    fluid: dict[str, np.ndarray] = field(default_factory=dict)
    zones_um: dict[str, float] = field(default_factory=dict)
    pixel_um: float | None = None  # errors are told in um instead of pixels


def manual_layers(data: Path) -> Iterator[Case]:
    """Yield healthy B-scans with the layers of a person, drawn as coloured areas."""
    for path in sorted((data / "manual_layers").glob("*/*.png")):
        if not path.parent.name.endswith("_labels"):
            labels = np.asarray(
                Image.open(path.parent.parent / f"{path.parent.name}_labels" / path.name)
            )
            first, last = (
                (labels[..., :3] == colour).all(axis=2) for colour in ((255, 0, 0), (255, 0, 255))
            )
            ilm = first.argmax(axis=0) - 0.5
            bm = len(labels) - 0.5 - last[::-1].argmax(axis=0)
            truth = {
                "ilm": np.where(first.any(axis=0), ilm, np.nan)[np.newaxis],
                "bm": np.where(last.any(axis=0), bm, np.nan)[np.newaxis],
            }
            yield Case(
                "manual_layers", path.stem, _from_images(path, [path], "manual_layers"), truth
            )


def circle(data: Path) -> Iterator[Case]:
    """Yield a circle scan around the optic disc with nine boundaries of a person."""
    from scipy.io import loadmat

    path = data / "circular_9boundaries" / "circularScan.mat"
    lines = loadmat(path.with_name("circularScan_0_coordinates.mat"))["interpolation"] - 1
    truth = {"ilm": lines[:1], "bm": lines[8:9]}
    yield Case("circle", "circularScan", read_vendor_volume(path), truth)


def vol(data: Path) -> Iterator[Case]:
    """Yield Heidelberg .vol files with the lines that the device itself drew."""
    for path in sorted((data / "spectralis_vol").glob("*.vol")):
        volume = read_vendor_volume(path)
        truth = {name.lower(): volume.vendor_layers[name] for name in ("ILM", "BM")}
        yield Case("vol", path.stem, volume, truth)


def heyex(data: Path) -> Iterator[Case]:
    """Yield Spectralis volumes with the device's mean thickness of nine ETDRS zones."""
    from defusedxml.ElementTree import parse

    for folder in sorted((data / "heyex_volumes").iterdir()):
        grid = parse(next(folder.glob("*.xml"))).getroot().find(".//ThicknessGrid")
        zones = {
            z.findtext("Name"): 1000 * float(z.findtext("AvgThickness")) for z in grid.iter("Zone")
        }
        zones["centre_px"] = tuple(float(grid.findtext(f"CenterPos/Coord/{axis}")) for axis in "XY")
        yield Case("heyex", folder.name, read_vendor_volume(folder), zones_um=zones)


def dme_fluid(data: Path) -> Iterator[Case]:
    """Yield B-scans of diabetic macular edema, by eye, with the fluid that two graders marked."""
    folder = data / "dme_fluid"
    for subject in ("01", "02", "03", "10"):
        files = sorted((folder / "image").glob(f"subject{subject}*.png"))
        fluid = {
            grader: np.stack(
                [np.asarray(Image.open(folder / grader / f.name).convert("L")) for f in files]
            )
            > 0
            for grader in ("grader1_fluid", "grader2_fluid")
        }
        yield Case(
            "dme_fluid", f"subject{subject}", _from_images(folder, files, "dme_fluid"), fluid=fluid
        )


def amd_fluid(data: Path) -> Iterator[Case]:
    """Yield B-scans of AMD with marked fluid; the files have axes (channel, x, z)."""
    import nibabel as nib

    folder = data / "amd_fluid" / "nifti"
    for path in sorted((folder / "images").glob("*.nii.gz")):
        name = path.name.removesuffix("_0000.nii.gz")
        gray, mask = (
            np.asarray(nib.load(file).dataobj).squeeze()
            for file in (path, folder / "labels" / f"{name}.nii.gz")
        )
        gray, mask = (
            a[0] if a.shape[0] == 3 else a[..., 0] if a.ndim == 3 else a for a in (gray, mask)
        )
        volume = described_volume(path, gray.T[np.newaxis], "NIfTI", PIXELS["amd_fluid"])
        yield Case("amd_fluid", name, volume, fluid={"label": mask.T[np.newaxis] > 0})


def phantoms(_: Path | None) -> Iterator[Case]:
    """Yield phantoms with what breaks segmentation; see `hard_phantoms`."""
    for k, (scenario, volume, truth) in enumerate(hard_phantoms()):
        surfaces = {name: truth[name] for name in ("ilm", "bm")}
        um = 1000 * volume.spacing_mm[1]
        yield Case(f"phantom, {scenario}", f"{scenario}-{k}", volume, surfaces, pixel_um=um)


SETS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "manual_layers": manual_layers,
    "circle": circle,
    "vol": vol,
    "heyex": heyex,
    "dme_fluid": dme_fluid,
    "amd_fluid": amd_fluid,
    "phantoms": phantoms,
}
GOALS = {
    ("manual_layers", "ILM, mean absolute error"): 0.6,
    ("manual_layers", "BM, mean absolute error"): 1.0,
    ("circle", "ILM, mean absolute error"): 1.5,
    ("circle", "BM, mean absolute error"): 2.0,
    ("heyex", "ETDRS zones, largest mean error of an eye"): 4.0,
    ("heyex", "ETDRS zones, largest error"): 12.0,
    ("dme_fluid", "fluid outside ILM to BM"): 0.1,
    ("amd_fluid", "fluid outside ILM to BM"): 0.1,
}
PHANTOM_GOALS = {"ILM, mean absolute error": 2.0, "BM, mean absolute error": 6.0}


def _from_images(path: Path, files: list[Path], data_set: str) -> Volume:
    gray = np.stack([np.asarray(Image.open(file).convert("L")) for file in files])
    return described_volume(path, gray, data_set, PIXELS[data_set])


def segmented(volume: Volume) -> tuple[dict[str, np.ndarray], float]:
    """Return the layers (b, x) on the columns of `volume`, and the CPU seconds of the search."""
    ready = resample(normalise(canonical(volume, False), (1, 99)), X_UM)
    start = time.process_time()
    layers = find_layers(ready.data, ready.valid, ready.spacing_mm)
    seconds = time.process_time() - start
    n_in, n_out = volume.data.shape[2], ready.data.shape[2]
    columns = (np.arange(n_in) + 0.5) * n_out / n_in - 0.5
    return {
        name: np.stack([np.interp(columns, range(n_out), row) for row in getattr(layers, name)])
        for name in COLOURS
    }, seconds


def judge(case: Case, found: dict[str, np.ndarray]) -> dict[tuple[str, str], float]:
    """Return by (measure, unit) how well the layers of a case were found."""
    results = {}
    unit = "um" if case.pixel_um else "px"
    for name, truth in case.surfaces.items():
        error = (found[name] - truth) * (case.pixel_um or 1)
        results[f"{name.upper()}, mean absolute error", unit] = np.nanmean(np.abs(error))
        results[f"{name.upper()}, bias", unit] = np.nanmean(error)
    step_um = 1000 * case.volume.spacing_mm[1]
    thickness_um = (found["bm"] - found["ilm"]) * step_um
    if case.zones_um:
        errors = zone_errors_um(case, thickness_um)
        results["ETDRS zones, largest mean error of an eye", "um"] = abs(np.mean(errors))
        results["ETDRS zones, largest error", "um"] = np.abs(errors).max()
    z = np.arange(case.volume.data.shape[1])[np.newaxis, :, np.newaxis]
    inside = (z >= found["ilm"][:, np.newaxis] - 0.5) & (z <= found["bm"][:, np.newaxis] + 0.5)
    for mask in case.fluid.values():
        share = 100 * (mask & ~inside).sum() / max(mask.sum(), 1)
        key = ("fluid outside ILM to BM", "%")
        results[key] = max(results.get(key, 0.0), share)
    if case.fluid:
        dry = ~np.any([mask.any(axis=1) for mask in case.fluid.values()], axis=0)
        means = np.array(
            [np.nanmean(row[there]) for row, there in zip(thickness_um, dry, strict=True)]
        )
        odd = (means < ANATOMY_UM[0]) | (means > ANATOMY_UM[1])
        results["ILM to BM outside fluid, mean", "um"] = means.mean()
        results["B-scans with an implausible mean", "count"] = odd.sum()
    return results


def zone_errors_um(case: Case, thickness_um: np.ndarray) -> np.ndarray:
    """Return the errors of the mean thickness of the nine ETDRS zones.

    The grid's centre is given in pixels of the fundus image, which has the lateral spacing of the
    B-scans.
    """
    zones = dict(case.zones_um)
    scale = case.volume.spacing_mm[2]
    centre_x, centre_y = (scale * px for px in zones.pop("centre_px"))
    n_x = thickness_um.shape[1]
    start_x, start_y, end_x, end_y = case.volume.bscan_lines_mm.T[:, :, np.newaxis]
    along = (np.arange(n_x) + 0.5) / n_x
    right = start_x + (end_x - start_x) * along - centre_x
    up = centre_y - (start_y + (end_y - start_y) * along)  # y points down the fundus image
    nasal = right if case.volume.eye == "R" else -right
    radius = np.hypot(right, up)
    quarter = np.where(
        np.abs(up) > np.abs(nasal), np.where(up > 0, "S", "I"), np.where(nasal > 0, "N", "T")
    )
    errors = []
    for name, vendor_um in zones.items():
        inner, outer = {"0": (-1, 0.5), "1": (0.5, 1.5), "2": (1.5, 3)}[name[1]]
        zone = (radius > inner) & (radius <= outer) & ((name[0] == "C") | (quarter == name[0]))
        errors.append(np.nanmean(thickness_um[zone]) - vendor_um)
    return np.array(errors)


def draw(case: Case, found: dict[str, np.ndarray], folder: Path) -> None:
    """Write every B-scan with its layers, one picture each."""
    folder.mkdir(parents=True, exist_ok=True)
    for b, bscan in enumerate(case.volume.data):
        low, high = np.nanpercentile(bscan, (5, 99.5))
        gray = np.uint8(255 * np.clip((bscan - low) / max(high - low, 1e-6), 0, 1))
        picture = Image.fromarray(gray).convert("RGB")
        pen = ImageDraw.Draw(picture)
        for name, colour in COLOURS.items():
            known = np.flatnonzero(np.isfinite(found[name][b]))
            pen.point([(int(x), round(float(found[name][b, x]))) for x in known], fill=colour)
        picture.save(folder / f"{case.data_set}_{case.name}_{b:03d}.png".replace(" ", "_"))


def main() -> int:
    """Measure the data sets that are there and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--pictures", type=Path, help="folder for every B-scan with its layers")
    args = parser.parse_args()
    data = Path(os.environ["OCT_TEST_DATA"]) if "OCT_TEST_DATA" in os.environ else None
    print("measure\tvalue\tunit\tbaseline\tratio")
    for name in args.sets:
        if data is None and name != "phantoms":
            print(f"{name}: skipped, OCT_TEST_DATA is not set", file=sys.stderr)
            continue
        results, seconds = defaultdict(lambda: defaultdict(list)), defaultdict(list)
        for case in SETS[name](data):
            found, cost = segmented(case.volume)
            seconds[case.data_set].append(cost / len(case.volume.data))
            for key, value in judge(case, found).items():
                results[case.data_set][key].append(value)
            if args.pictures:
                draw(case, found, args.pictures)
        for data_set, measures in results.items():
            report(data_set, measures, np.mean(seconds[data_set]))
    return 0


def report(data_set: str, measures: dict, seconds: float) -> None:
    """Print the rows of one data set: means over its volumes, or the worst where the name says."""
    for (measure, unit), values in measures.items():
        value = max(values) if "largest" in measure or "outside ILM" in measure else np.mean(values)
        goal = GOALS.get((data_set, measure))
        if data_set.startswith("phantom"):
            goal = PHANTOM_GOALS.get(measure)
        ratio = "" if goal is None else f"{goal / max(value, 1e-3):.2f}"
        print(
            f"{data_set}: {measure}\t{value:.3f}\t{unit}\t{'' if goal is None else goal}\t{ratio}"
        )
    print(f"{data_set}: CPU time per B-scan\t{seconds:.3f}\ts\t\t", flush=True)


if __name__ == "__main__":
    sys.exit(main())
