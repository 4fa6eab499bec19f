"""Stage `markers`: the most anomalous regions of all scans, grouped by what D sees in them.

Clusters come from the same volumes that they are counted in: they are hypotheses, not findings.
The folder gets `regions.tsv`, `clusters.tsv`, `cluster-<k>.png` and `markers.json`, which says how
they were made.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from anogan.discovery.clusters import Clustering, cluster, renumber
from anogan.discovery.embedding import embed, feature_widths, reduce, windows
from anogan.discovery.gallery import Tile, choose, draw_sheet, draw_tile, tile_title
from anogan.discovery.regions import Region, find_regions, hottest, measures, native_outline
from anogan.discovery.sources import (
    SHOWN_SPLITS,
    RetinalHeat,
    Rule,
    Source,
    find_sources,
    make_rule,
)
from anogan.discovery.tables import EYES, REGION_COLUMNS, cluster_table, tsv
from anogan.maps.pictures import gray_levels
from anogan.model import TrainedModel, check_preprocessing, read_frozen_gan
from anogan.networks import Discriminator
from preprocessing.errors import InputError
from preprocessing.files import atomic_folder
from preprocessing.geometry import geometry_path, read_geometry, vendor_order
from preprocessing.patch_file import shared_settings
from preprocessing.volume import Volume, read_volume

MOST_CLUSTERS = 50


@dataclass
class Gathered:
    """The regions of all volumes, in the order of the table, and their features (n, d).

    `volumes` holds what `compare` takes.
    """

    table: pd.DataFrame
    regions: dict[str, Region]
    features: np.ndarray
    volumes: pd.DataFrame


def gather(
    sources: list[Source],
    rule: Rule,
    most_fitted: int,
    discriminator: Discriminator,
    model: TrainedModel,
) -> Gathered:
    """Find and embed the regions of the test and score volumes, one volume in memory at a time.

    `fitted` of the table marks those that clusters are to be fitted on, `most_fitted` of a volume.
    """
    size = model.architecture["patch_size"]
    rows, found, features, volumes = [], {}, [], []
    for source in sources:
        if source.facts["split"] not in SHOWN_SPLITS:
            continue
        heat = source.heat()
        volumes.append({**source.facts, "searched_mm": heat.searched_mm})
        own = find_regions(heat.map, rule.threshold, heat.pixel_um2, rule.smallest_um2)
        fitted = hottest(own, most_fitted)
        volume = read_volume(source.flat)
        check_preprocessing(source.flat, size, shared_settings(volume.parameters), model)
        features.append(embed(discriminator, *windows(own, volume, size)))
        for number, region in enumerate(own):
            name = f"{volume.volume}-{number:03d}"
            found[name] = region
            row = _row(region, source.facts, volume, heat)
            rows.append({"region": name, "fitted": fitted[number], **row})
    columns = [name for name in REGION_COLUMNS if name not in ("cluster", "distance")]
    table = pd.DataFrame(rows, columns=columns)
    joined = np.concatenate(features) if features else np.zeros((0, 1))
    return Gathered(table, found, joined, pd.DataFrame(volumes))


def _row(region: Region, facts: dict, volume: Volume, heat: RetinalHeat) -> dict:
    row, column = region.centroid
    height, width = region.mask.shape
    b, outline = region.bscan, native_outline(region, heat.geometry)
    order = volume.native_shape, volume.mirrored, volume.bscans_reversed
    vendor_bscan, vendor_x = vendor_order(b, outline["x"], *order)
    return {
        **{name: facts[name] for name in ("volume", "patient", "eye", "split")},
        "eye_label": EYES[facts["eye_label"]],
        "bscan": b,
        **outline,
        "vendor_bscan": vendor_bscan,
        "vendor_x": vendor_x,
        "flat_z": row,
        "flat_x": column,
        "flat_z0": region.corner[0],
        "flat_z1": region.corner[0] + height,
        "flat_x0": region.corner[1],
        "flat_x1": region.corner[1] + width,
        **measures(region, volume.data[b], volume.valid[b], heat.geometry, heat.pixel_um),
        "excess": region.excess,
    }


def draw_gallery(
    folder: Path,
    clusters: pd.DataFrame,
    regions: pd.DataFrame,
    found: dict[str, Region],
    sources: list[Source],
    seed: int,
) -> None:
    """Write the contact sheet of every cluster, one volume in memory at a time."""
    chosen = {
        number: choose(regions[regions["cluster"] == number], seed)
        for number in clusters["cluster"]
    }
    wanted = {name for kinds in chosen.values() for names in kinds.values() for name in names}
    tiles = dict(_tiles(regions[regions["region"].isin(wanted)], found, sources))
    for row in clusters.to_dict("records"):
        kinds = chosen[row["cluster"]]
        draw_sheet(
            f"Cluster {row['cluster']} (regions: {row['regions']}, volumes: {row['volumes']})",
            {
                "Nearest to the middle of the cluster": [tiles[name] for name in kinds["central"]],
                "Drawn at random from the others": [tiles[name] for name in kinds["random"]],
            },
            folder / f"cluster-{row['cluster']}.png",
        )


def _tiles(
    wanted: pd.DataFrame, regions: dict[str, Region], sources: list[Source]
) -> Iterator[tuple[str, Tile]]:
    places = {source.facts["volume"]: source for source in sources}
    for name, rows in wanted.groupby("volume"):
        volume = read_volume(places[name].image)
        geometry = read_geometry(geometry_path(places[name].flat))
        gray = gray_levels(volume)
        spacing_um = tuple(1000 * step for step in volume.spacing_mm[1:])
        for row in rows.to_dict("records"):
            mirrored = ", mirrored" if volume.mirrored else ""
            place = f", B-scan {row['bscan']}, {row['eye_label']} eye{mirrored}"
            region, centre = regions[row["region"]], (row["z"], row["x"])
            bscan, title = gray[region.bscan], tile_title(name, place)
            yield row["region"], draw_tile(bscan, region, geometry, spacing_um, centre, title)


def group(
    gathered: Gathered, widths: list[int], wanted: int | None, replicates: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame, Clustering]:
    """Return the table of regions with their clusters, the table of clusters, and how they came.

    `widths` are those of `feature_widths`.
    """
    fitted = gathered.table["fitted"].to_numpy(bool)
    found = cluster(reduce(gathered.features, fitted, widths), fitted, wanted, seed)
    regions = gathered.table.assign(cluster=found.label, distance=found.distance)
    clusters = cluster_table(regions, gathered.volumes, replicates, seed)
    regions["cluster"] = renumber(found.label, clusters["cluster"])
    clusters["cluster"] = range(1, len(clusters) + 1)
    return regions[list(REGION_COLUMNS)], clusters, found


def facts_of(
    method: str, rule: Rule, most_fitted: int, gathered: Gathered, found: Clustering
) -> dict:
    """Return what markers.json says."""
    return {
        "method": method,
        "map": rule.kind,
        "threshold": rule.threshold if np.isfinite(rule.threshold) else None,
        "quantile": rule.quantile,
        "from": rule.chosen_on,
        "smallest_um2": rule.smallest_um2,
        "regions_per_volume": most_fitted,
        "volumes": len(gathered.volumes),
        "regions": len(gathered.table),
        "fitted": int(gathered.table["fitted"].sum()),
        "clusters": len(np.unique(found.label)),
        "silhouettes": {str(k): round(value, 4) for k, value in found.silhouettes.items()},
    }


def _checked(
    read: Callable[[str], object], fits: Callable[[object], bool], words: str
) -> Callable[[str], object]:
    """Return an argparse type: what `read` makes of a text; it must fit, which `words` describe."""

    def parse(text: str) -> object:
        with suppress(ValueError):
            if fits(value := read(text)):
                return value
        raise argparse.ArgumentTypeError(f"'{text}' is not {words}")

    return parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options, with the bounds of the config's schema."""
    count = _checked(int, lambda number: number >= 1, "a whole number of 1 or more")
    parser.add_argument("--maps", nargs="+", required=True, help="heat maps of one method, .h5")
    parser.add_argument(
        "--flats", nargs="+", required=True, help="flat.nii.gz of every volume that they are of"
    )
    parser.add_argument(
        "--images",
        nargs="+",
        default=[],
        help="volume.nii.gz, as loaded, of the test and score volumes",
    )
    parser.add_argument("--model", required=True, help="folder of the GAN, for its discriminator")
    parser.add_argument(
        "--quantile",
        type=_checked(float, lambda share: 0 < share < 1, "a number between 0 and 1"),
        default=0.995,
        help="of the retina's pixels of healthy validation volumes: what is above is a region",
    )
    parser.add_argument(
        "--smallest-um2",
        type=_checked(float, lambda um2: um2 >= 0, "a number of 0 or more"),
        default=300,
        help="area of a region, at least",
    )
    parser.add_argument(
        "--regions-per-volume",
        type=count,
        default=100,
        help="those with the highest heat, at most, that clusters are fitted on; all are counted",
    )
    parser.add_argument(
        "--clusters",
        type=_checked(
            lambda text: None if text == "auto" else int(text),
            lambda k: k is None or 1 <= k <= MOST_CLUSTERS,
            f"auto or a whole number from 1 to {MOST_CLUSTERS}",
        ),
        default="auto",
        help="how many: auto or a number",
    )
    parser.add_argument("--bootstrap", type=count, default=1000, help="replicates of the intervals")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", required=True, help="folder")


def command(args: argparse.Namespace) -> str:
    """Find, embed, cluster and count regions, and write tables and contact sheets."""
    torch.set_num_threads(args.threads)
    model, _, discriminator = read_frozen_gan(args.model)
    size, most_fitted = model.architecture["patch_size"], args.regions_per_volume
    method, sources = find_sources(args.maps, args.flats, args.images, size)
    rule = make_rule(sources, args.quantile, args.smallest_um2)
    gathered = gather(sources, rule, most_fitted, discriminator, model)
    if not np.isfinite(gathered.features).all():
        raise InputError(f"{args.model}: its D does not answer with numbers; train it again")
    widths = feature_widths(discriminator)
    regions, clusters, found = group(gathered, widths, args.clusters, args.bootstrap, args.seed)
    with atomic_folder(args.output) as folder:
        draw_gallery(folder, clusters, regions, gathered.regions, sources, args.seed)
        for name, table in (("regions", regions), ("clusters", clusters)):
            (folder / f"{name}.tsv").write_text(tsv(table), encoding="utf-8")
        facts = facts_of(method, rule, most_fitted, gathered, found)
        (folder / "markers.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return (
        f"{args.output}: {len(regions)} regions of {len(gathered.volumes)} volumes in "
        f"{len(clusters)} clusters"
    )
