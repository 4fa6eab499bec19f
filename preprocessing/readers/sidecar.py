"""What a file cannot say itself: a sidecar beside it, `NAME.json` or `NAME.yaml`, or in its folder.

For an image file or volume `scan.tif` it is `scan.json` or `scan.yaml`; for a folder of images,
`oct.yaml` or `oct.json` inside it.
"""

import math
from pathlib import Path

import numpy as np

from preprocessing.errors import InputError
from preprocessing.volume import SCAN_PATTERNS, Volume

FOLDER_STEM = "oct"
SUFFIXES = (".json", ".yaml", ".yml")
CHOICES = {
    "laterality": ("R", "L", ""),
    "intensity": ("display", "linear"),
    "bscan_order": ("inferior-first", "superior-first"),
    "scan_pattern": SCAN_PATTERNS,
    "device": None,
    "spacing_mm": None,
}


def described_volume(
    path: Path,
    data: np.ndarray,
    source_format: str,
    spacing_mm: tuple[float, float, float] = (math.nan, math.nan, math.nan),
    **known: object,
) -> Volume:
    """Return the volume of stored gray values `data` (b, z, x), a sidecar having the last word.

    `known` are attributes of `Volume` that the file tells. Display values are scaled to [0, 1]:
    8-bit ones by 255, others by their own range.
    """
    facts = read_sidecar(path)
    intensity = facts.get("intensity", known.pop("intensity", "display"))
    reverse = facts.get("bscan_order") == "superior-first"
    data = data[::-1] if reverse else data
    step_b, step_z, step_x = facts.get("spacing_mm", spacing_mm)
    known["eye"] = facts.get("laterality", known.get("eye", ""))
    known["device"] = str(facts.get("device", known.get("device", "")))
    pattern = "raster" if len(data) > 1 else "line"
    return Volume(
        data=_to_unit_range(data) if intensity == "display" else data.astype(np.float32),
        spacing_mm=(step_b if len(data) > 1 else 0.0, step_z, step_x),
        valid=np.isfinite(data),
        intensity=intensity,
        scan_pattern=facts.get("scan_pattern", known.pop("scan_pattern", pattern)),
        bscans_reversed=reverse,
        source_format=source_format,
        **known,
    )


def _to_unit_range(data: np.ndarray) -> np.ndarray:
    if data.dtype == np.uint8:
        return data / np.float32(255)
    data = data.astype(np.float32)
    finite = data[np.isfinite(data)]
    low, high = (finite.min(), finite.max()) if finite.size else (0, 0)
    if low >= 0 and high <= 1:
        return data
    if low >= 0 and high <= 255:
        return data / np.float32(255)
    return (data - low) / max(high - low, np.finfo(np.float32).tiny)


def sidecar_of(path: Path) -> Path | None:
    """Return the sidecar of a file or folder, or None."""
    stem = path / FOLDER_STEM if path.is_dir() else _without_suffix(path)
    for suffix in SUFFIXES:
        file = stem.with_name(stem.name + suffix)
        if file.exists() and file != path:
            return file
    return None


def read_sidecar(path: Path) -> dict:
    """Return what the sidecar of `path` says, {} without one.

    Keys, all optional: `laterality` (R or L), `device`, `intensity` (display or linear),
    `bscan_order` (inferior-first or superior-first), `scan_pattern` (one of `SCAN_PATTERNS`) and
    `spacing_mm` ([between B-scans, z, x]).
    Raises InputError when it is damaged, or a key or value is unknown.
    """
    file = sidecar_of(path)
    if file is None:
        return {}
    import yaml

    try:
        facts = yaml.safe_load(file.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file}: not valid JSON or YAML ({error})") from error
    if not isinstance(facts, dict):
        raise InputError(f"{file}: must hold keys and values, such as 'laterality: R'")
    for key, value in facts.items():
        if key not in CHOICES:
            raise InputError(f"{file}: unknown key '{key}'; known keys are {', '.join(CHOICES)}")
        choices = CHOICES[key]
        if choices and value not in choices:
            wanted = " or ".join(choice for choice in choices if choice)
            raise InputError(f"{file}: '{key}' is {value!r}; it must be {wanted}")
    if "spacing_mm" in facts:
        facts["spacing_mm"] = _spacing(file, facts["spacing_mm"])
    return facts


def _spacing(file: Path, value: object) -> tuple[float, float, float]:
    try:
        b, z, x = (float(step) for step in value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{file}: 'spacing_mm' is {value!r}; it must be three numbers in mm: between B-scans, "
            "z and x"
        ) from error
    return b, z, x


def _without_suffix(path: Path) -> Path:
    name = path.name
    for suffix in (".nii.gz", path.suffix):
        if suffix and name.lower().endswith(suffix.lower()):
            return path.with_name(name[: -len(suffix)])
    return path
