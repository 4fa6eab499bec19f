"""Stage `heat_scale`: one colour scale for all heat maps of a method, made from healthy eyes.

`low` is the 95 % quantile of the covered pixels: what is below is not coloured. `high` lies three
times as far above `low` as `low` above the median. Lesions are mostly beyond what any healthy pixel
reaches, so that a quantile of healthy pixels as `high` would show all of them alike.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from anogan.maps.file import KINDS, open_maps
from preprocessing.errors import InputError
from preprocessing.files import write_text
from preprocessing.own_files import reading

LOW_QUANTILE = 0.95
REACH = 3.0
SAMPLE = 200_000  # pixels of a volume that are looked at


def colour_scale(values: np.ndarray) -> list[float]:
    """Return [low, high] of heat maps whose healthy pixels have `values` (n,)."""
    median, low = np.quantile(values.astype(float), [0.5, LOW_QUANTILE])
    return [float(low), float(low + REACH * max(low - median, 1e-6))]


def make_scale(paths: list[str]) -> dict:
    """Return what scale.json says: `method`, `from`, and a scale or None for each of `KINDS`.

    Reads one volume at a time. Raises InputError when the files are of several methods or cover
    nothing.
    """
    places, methods = [], set()
    for path in paths:
        with open_maps(path) as file:
            methods.add(file.method)
            places += [(path, file.facts(volume)) for volume in file.volumes]
    if len(methods) > 1:
        raise InputError(
            f"{', '.join(paths)}: maps of {', '.join(sorted(methods))}, but a scale is of one "
            "method; give the files of one"
        )
    if not places:
        raise InputError(
            f"{', '.join(paths)}: no map of any volume, as all were skipped; add volumes that can "
            "be used, or draw no heat maps (heatmap: methods: [])"
        )
    healthy = [p for p in places if (p[1]["split"], p[1]["eye_label"]) == ("validation", 0)]
    source = "healthy validation volumes" if healthy else "all volumes"
    values = {kind: [] for kind in KINDS}
    for path, facts in healthy or places:
        with open_maps(path) as file:
            maps = file[facts["volume"]]
        for kind in KINDS:
            values[kind].append(_covered(getattr(maps, kind)))
    pooled = {kind: np.concatenate(values[kind]) for kind in KINDS}
    if not pooled["score"].size:
        raise InputError(
            f"{', '.join(paths)}: no pixel is covered by a patch; look at layers.png and qc.tsv of "
            f"{source}"
        )
    scales = {kind: colour_scale(pooled[kind]) if pooled[kind].size else None for kind in KINDS}
    return {"method": methods.pop(), "from": source, **scales}


def read_scale(path: str | Path) -> dict:
    """Read what this stage wrote; InputError when it is missing or something else."""
    with reading(path, "scale of heat maps", "heat_scale"):
        scale = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(scale["method"], str):
            raise ValueError("it does not say of which method")
        for kind in KINDS:
            if scale[kind] is not None:
                low, high = map(float, scale[kind])
                if not low < high:
                    raise ValueError(f"{kind} has no range")
        return scale


def _covered(flat_map: np.ndarray | None) -> np.ndarray:
    """Return at most `SAMPLE` of the covered pixels of a map, evenly spaced."""
    if flat_map is None:
        return np.zeros(0, np.float32)
    covered = flat_map[np.isfinite(flat_map)].astype(np.float32)
    return covered[:: max(1, -(-len(covered) // SAMPLE))]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the stage's options."""
    parser.add_argument("--maps", nargs="+", required=True, help="maps of one method, .h5")
    parser.add_argument("--output", required=True, help="scale.json")


def command(args: argparse.Namespace) -> str:
    """Make the scale of one method."""
    scale = make_scale(args.maps)
    write_text(args.output, json.dumps(scale, indent=1) + "\n")
    ranges = [f"{kind} {scale[kind][0]:.4g}..{scale[kind][1]:.4g}" for kind in KINDS if scale[kind]]
    return f"{args.output}: {', '.join(ranges)} of {scale['method']} from {scale['from']}"
