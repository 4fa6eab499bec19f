"""Whether clusters of regions tell the lesions of phantoms apart: a finished run against its truth.

Usage: python benchmarks/markers.py [results] [seed]

A phantom's lesions are fluid, drusen and foci, known to the pixel (`lesion_kinds`; `seed` is that
of the run's config, 1 if not given). A region lies on a lesion where at least a fifth of its pixels
do, and is of the kind that most of these are of; the kind of the others is "none". Prints a TSV
table, measure value unit baseline ratio: the adjusted Rand index of clusters against kinds, over
the regions on lesions and over all regions of diseased eyes, the baseline being as many clusters of
size and depth alone, or of raw gray patches; the share of the regions of a kind that lie in
clusters of mostly that kind, the baseline being their share of all; and, without a baseline, the
share of lesions that a region touches.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import label
from sklearn.metrics import adjusted_rand_score

sys.path[0] = str(Path(__file__).parents[1])  # so that preprocessing is the package

from anogan.discovery.clusters import cluster
from anogan.discovery.embedding import reduce, windows
from anogan.discovery.regions import NEIGHBOURS, find_regions
from anogan.discovery.sources import Source, find_sources
from anogan.maps.file import open_maps
from preprocessing.errors import InputError
from preprocessing.native import to_native_map
from preprocessing.phantom import DEVICE, lesion_kinds
from preprocessing.phantom_lesions import KINDS
from preprocessing.volume import Volume, read_volume

LEAST_SHARE = 0.2
LEAST_PX = 10  # smaller pieces are the rim of a lesion in the next B-scan


def read_sources(results: Path) -> tuple[dict, int, list[Source]]:
    """Return what markers.json says, the size of a patch, and the volumes that were searched."""
    path = results / "markers" / "markers.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts["threshold"] is None:
        raise InputError(f"{path}: no heat was there to find regions in; draw heat maps first")
    maps = sorted((results / "heatmaps" / facts["method"]).glob("*-*.h5"))
    maps = [str(path) for path in maps if path.name.split("-")[0] in ("test", "score")]
    volumes = results / "volumes"
    flats = [str(path) for path in sorted(volumes.glob("*/flat.nii.gz"))]
    images = [str(path) for path in sorted(volumes.glob("*/volume.nii.gz"))]
    if not maps:
        raise InputError(f"{results}: no heat maps of {facts['method']}; run the rule heatmap")
    with open_maps(maps[0]) as file:
        size = file.size
    return facts, size, find_sources(maps, flats, images, size)[1]


def kinds_of(volume: Volume, diseased: bool, seed: int) -> np.ndarray:
    """Return which of `KINDS` the pixels (b, z, x) of a phantom as loaded are."""
    if volume.device != DEVICE:
        raise InputError(f"{volume.volume}: no phantom, so that its lesions are not known")
    if not diseased:
        return np.zeros(volume.data.shape, np.uint8)
    spacing_mm = tuple(round(step, 7) for step in volume.spacing_mm)
    kinds = lesion_kinds(volume.volume, seed, volume.data.shape, spacing_mm)
    kinds = kinds[:, :, ::-1] if volume.mirrored else kinds
    if not np.array_equal(kinds > 0, volume.annotation > 0.5):
        raise InputError(f"{volume.volume}: another phantom than that of the seed {seed}")
    return kinds


def of_volume(
    source: Source, facts: dict, size: int, seed: int
) -> tuple[pd.DataFrame, np.ndarray, dict[str, list[bool]]]:
    """Return the kind of each region of a volume, its window of `size`, and which lesions it found.

    The kind is "none" where a region lies on no lesion; lesions are connected pixels of a B-scan.
    """
    heat, flat = source.heat(), read_volume(source.flat)
    rule = facts["threshold"], heat.pixel_um2, facts["smallest_um2"]
    regions = find_regions(heat.map, *rule)
    kinds = kinds_of(read_volume(source.image), source.facts["eye_label"] != 0, seed)
    numbers = np.zeros(heat.map.shape, np.float32)
    for number, region in enumerate(regions, 1):
        numbers[region.bscan][region.pixels] = number
    native = np.nan_to_num(to_native_map(numbers, heat.geometry, kinds.shape)).astype(int)
    cases = native * len(KINDS) + kinds
    counts = np.bincount(cases.ravel(), minlength=(len(regions) + 1) * len(KINDS))
    counts = counts.reshape(-1, len(KINDS))[1:]
    on = counts[:, 1:].sum(axis=1) >= LEAST_SHARE * np.maximum(counts.sum(axis=1), 1)
    kind = np.where(on, 1 + counts[:, 1:].argmax(axis=1), 0)
    names = [f"{flat.volume}-{number:03d}" for number in range(len(regions))]
    table = pd.DataFrame({"region": names, "kind": [KINDS[k] for k in kind]})
    lesions = {}
    for k, name in enumerate(KINDS[1:], 1):
        pieces, n = label(kinds == k, NEIGHBOURS)
        large = np.bincount(pieces.ravel(), minlength=n + 1)[1:] >= LEAST_PX
        hit = np.isin(np.arange(1, n + 1), pieces[native > 0])
        lesions[name] = hit[large].tolist()
    return table, windows(regions, flat, size)[0], lesions


def measure(results: Path, seed: int) -> list[tuple[str, float, float]]:
    """Return measure, value and baseline (NaN where there is none)."""
    facts, size, sources = read_sources(results)
    regions = pd.read_csv(results / "markers" / "regions.tsv", sep="\t", na_values="n.a.")
    tables, gray, lesions_hit = [], [], {name: [] for name in KINDS[1:]}
    for source in sources:
        table, patches, lesions = of_volume(source, facts, size, seed)
        tables.append(table)
        gray.append(patches.reshape(len(patches), -1).astype(np.float32))
        for name, hits in lesions.items():
            lesions_hit[name] += hits
    truth, pixels = pd.concat(tables, ignore_index=True), np.concatenate(gray)
    if sorted(truth["region"]) != sorted(regions["region"]):
        raise InputError(f"{results}: markers/ is not of these heat maps; run the rule markers")
    order = pd.Index(truth["region"]).get_indexer(regions["region"])
    kind, pixels = truth["kind"].to_numpy()[order], pixels[order]
    on = kind != "none"
    if len(np.unique(kind[on])) < 2:
        raise InputError(f"{results}: regions lie on fewer than two kinds of lesions")
    simple = regions[["width_um", "height_um", "area_um2"]].apply(np.log)
    simple = simple.join(regions[["depth", "above_bm_um"]]).to_numpy(float)
    k, fitted = facts["clusters"], regions["fitted"].to_numpy(bool)
    seen = {"size and depth": (simple, [3, 2]), "raw gray patches": (pixels, [pixels.shape[1]])}
    others = {
        name: cluster(reduce(values, fitted, widths), fitted, k, seed).label
        for name, (values, widths) in seen.items()
    }
    diseased = (regions["eye_label"] != "healthy").to_numpy()
    rows = []
    for among, some in (("regions on lesions", on), ("all of diseased eyes", diseased)):
        own = adjusted_rand_score(kind[some], regions["cluster"][some])
        for name, found in others.items():
            base = adjusted_rand_score(kind[some], found[some])
            measure = f"adjusted Rand index, {among} ({some.sum()}), beside {name}"
            rows.append((measure, own, base))
    mostly = pd.crosstab(regions["cluster"], kind).idxmax(axis=1)[regions["cluster"]].to_numpy()
    for name, base in pd.Series(kind).value_counts(normalize=True).items():
        its = kind == name
        measure = f"regions on {name} ({its.sum()}) in clusters of mostly {name}"
        rows.append((measure, (mostly[its] == name).mean(), base))
    for name, hits in lesions_hit.items():
        rows.append((f"lesions found: {name} ({len(hits)})", np.mean(hits), np.nan))
    rows.append(("regions of diseased eyes on lesions", on[diseased].mean(), np.nan))
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"))
    parser.add_argument("seed", nargs="?", type=int, default=1)
    args = parser.parse_args()
    try:
        rows = measure(args.results, args.seed)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    print("measure\tvalue\tunit\tbaseline\tratio")
    for name, value, baseline in rows:
        beside = "" if np.isnan(baseline) else f"{baseline:.3f}"
        ratio = f"{value / baseline:.2f}" if baseline > 0 else ""
        print(f"{name}\t{value:.3f}\t\t{beside}\t{ratio}")


if __name__ == "__main__":
    main()
