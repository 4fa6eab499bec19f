"""What a file cannot say itself: a sidecar beside it, `NAME.json` or `NAME.yaml`, or in its folder.

For an image file or volume `scan.tif` it is `scan.json` or `scan.yaml`; for a folder of images,
`oct.yaml` or `oct.json` inside it.
"""

import json
import math
import reprlib
from pathlib import Path

import numpy as np

from preprocessing.errors import InputError
from preprocessing.untrusted import parsing
from preprocessing.validity import FLOAT_MAX
from preprocessing.volume import SCAN_PATTERNS, Volume

FOLDER_STEM = "oct"
SUFFIXES = (".json", ".yaml", ".yml")
MAX_BYTES = 2**14
LEAST, MAX_NUMBER = (0, 1e-9, 1e-9), 2**31  # spacing is 0 between the B-scans of a line
CHOICES = {
    "laterality": ("R", "L", ""),
    "intensity": ("display", "linear"),
    "bscan_order": ("inferior-first", "superior-first"),
    "scan_pattern": SCAN_PATTERNS,
    "device": None,
    "spacing_mm": None,
    "shape": None,
}


def described_volume(
    path: Path,
    data: np.ndarray,
    source_format: str,
    spacing_mm: tuple[float, float, float] = (math.nan, math.nan, math.nan),
    bscan_order: str = "inferior-first",
    **known: object,
) -> Volume:
    """Return the volume of stored gray values `data` (b, z, x), a sidecar having the last word.

    `known` are attributes of `Volume` that the file tells, in its own order of B-scans. Display
    values are scaled to [0, 1]: 8-bit ones, and floats that lie in [0, 255], by 255; what
    lies in [0, 1] stays; the rest by their own range. Values that are not finite, or beyond what
    vendors mark as missing, are invalid and become 0.
    """
    facts = read_sidecar(path)
    reverse = facts.get("bscan_order", bscan_order) == "superior-first"
    if reverse:
        data = data[::-1]
        for name in ("annotation", "bscan_lines_mm"):
            if known.get(name) is not None:
                known[name] = known[name][::-1]
        layers = known.get("vendor_layers", {})
        known["vendor_layers"] = {name: layer[::-1] for name, layer in layers.items()}
    for attribute, key in (("eye", "laterality"), ("device", "device")):
        known[attribute] = facts.get(key, known.get(attribute, ""))
    intensity = facts.get("intensity", known.pop("intensity", "display"))
    pattern = known.pop("scan_pattern", "raster" if len(data) > 1 else "line")
    step_b, step_z, step_x = facts.get("spacing_mm", spacing_mm)
    measured = np.ones(data.shape, bool)
    if data.dtype.kind == "f":
        measured = np.abs(data) < FLOAT_MAX  # False for NaN
        data = np.where(measured, data, data.dtype.type(0)).astype(np.float32, copy=False)
    return Volume(
        data=_to_unit_range(data, measured) if intensity == "display" else data.astype(np.float32),
        spacing_mm=(step_b if len(data) > 1 else 0.0, step_z, step_x),
        valid=measured,
        intensity=intensity,
        scan_pattern=facts.get("scan_pattern", pattern),
        bscans_reversed=reverse,
        source_format=source_format,
        **known,
    )


def _to_unit_range(data: np.ndarray, measured: np.ndarray) -> np.ndarray:
    if data.dtype == np.uint8:
        return data / np.float32(255)
    is_float = data.dtype.kind == "f"
    data = data.astype(np.float32)
    low, high = data.min(initial=np.inf, where=measured), data.max(initial=-np.inf, where=measured)
    if low >= 0 and high <= 1:
        return data
    if low >= 0 and high <= 255 and is_float:
        return data / np.float32(255)
    data -= low
    data /= max(high - low, np.finfo(np.float32).tiny)
    data[~measured] = 0
    return data


def sidecar_of(path: Path) -> Path | None:
    """Return the sidecar of a file or folder, or None."""
    stem = path / FOLDER_STEM if path.is_dir() else _without_suffix(path)
    for suffix in SUFFIXES:
        file = stem.with_name(stem.name + suffix)
        if file.is_file() and file != path:
            return file
    return None


def read_sidecar(path: Path) -> dict:
    """Return what the sidecar of `path` says, {} without one.

    Keys, all optional: `laterality` (R or L), `device`, `intensity` (display or linear),
    `bscan_order` (inferior-first or superior-first), `scan_pattern` (one of `SCAN_PATTERNS`),
    `spacing_mm` and, for raw cubes, `shape` (both [B-scan, z, x]).
    Raises InputError when it is damaged, or a key or value is unknown.
    """
    file = sidecar_of(path)
    if file is None:
        return {}
    with parsing(file, "sidecar in JSON or YAML"):
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        text = file.read_text(encoding="utf-8")
        facts = json.loads(text) if file.suffix == ".json" else _parse_yaml(text)
    if not isinstance(facts, dict):
        raise InputError(f"{file}: must hold keys and values, such as 'laterality: R'")
    for key, value in facts.items():
        if key not in CHOICES:
            known = ", ".join(CHOICES)
            raise InputError(f"{file}: unknown key {reprlib.repr(key)}; known keys are {known}")
        if CHOICES[key] and value not in CHOICES[key]:
            wanted = " or ".join(choice for choice in CHOICES[key] if choice)
            raise InputError(f"{file}: '{key}' is {reprlib.repr(value)}; it must be {wanted}")
    if not isinstance(facts.get("device", ""), str):
        raise InputError(f"{file}: 'device' must be text")
    if "spacing_mm" in facts:
        facts["spacing_mm"] = _three(file, facts, "spacing_mm", (int, float), "numbers in mm")
    if "shape" in facts:
        facts["shape"] = _three(file, facts, "shape", (int,), "whole numbers")
    return facts


def _parse_yaml(text: str) -> object:
    """Return what JSON could say too: no anchors, which can expand endlessly, no giant numbers."""
    import yaml

    if any(isinstance(token, yaml.AnchorToken | yaml.AliasToken) for token in yaml.scan(text)):
        raise ValueError("anchors and aliases are not allowed")
    facts = yaml.safe_load(text)
    json.dumps(facts)
    return facts


def _three(file: Path, facts: dict, key: str, kinds: tuple[type, ...], meaning: str) -> tuple:
    values = facts[key]
    # the type itself, as a bool is an int too
    right = isinstance(values, list) and len(values) == 3 and all(type(n) in kinds for n in values)
    if not right or not all(low <= n < MAX_NUMBER for low, n in zip(LEAST, values, strict=True)):
        raise InputError(
            f"{file}: '{key}' is {reprlib.repr(values)}; it must be three {meaning}: "
            "B-scan, z and x"
        )
    return tuple(values)


def _without_suffix(path: Path) -> Path:
    name = path.name
    for suffix in (".nii.gz", path.suffix):
        if suffix and name.lower().endswith(suffix.lower()):
            return path.with_name(name[: -len(suffix)])
    return path
