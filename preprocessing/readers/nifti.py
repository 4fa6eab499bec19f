"""NIfTI with axes (x, z, B-scan), with or without a JSON sidecar of the same name.

The sidecar may say `laterality` (R or L), `device` and `intensity` (display or linear). Research
NIfTI files of OCT rarely carry a true orientation, so the axes are taken as they are stored.
"""

import json
from pathlib import Path

import numpy as np

from preprocessing.errors import InputError
from preprocessing.volume import Volume, companion, read_nifti

NAME = "NIfTI"
SIDECAR_KEYS = {"laterality", "device", "intensity"}


def matches(path: Path) -> bool:
    """Tell whether the name of `path` ends in .nii or .nii.gz."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def read(path: Path) -> Volume:
    """Read an OCT volume; spacing is that of the header, in mm.

    Raises InputError when the file or its sidecar is damaged.
    """
    import nibabel as nib

    data = read_nifti(path)
    step_x, step_z, step_b = (*nib.load(path).header.get_zooms(), 0.0)[:3]
    facts = _sidecar(path)
    intensity = facts.get("intensity", "display")
    return Volume(
        data=data if intensity == "linear" else _to_unit_range(data),
        spacing_mm=(float(step_b) if len(data) > 1 else 0.0, float(step_z), float(step_x)),
        valid=np.isfinite(data),
        eye=facts.get("laterality", ""),
        intensity=intensity,
        device=str(facts.get("device", "")),
        source_format=NAME,
    )


def _sidecar(path: Path) -> dict:
    file = companion(path, "json")
    if not file.exists():
        return {}
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(facts, dict) or facts.get("intensity", "display") not in (
        "display",
        "linear",
    ):
        raise InputError(f"{file}: must be an object whose 'intensity' is display or linear")
    if facts.get("laterality", "") not in ("R", "L", ""):
        raise InputError(f"{file}: 'laterality' is {facts['laterality']!r}; it must be R or L")
    unknown = sorted(set(facts) - SIDECAR_KEYS)
    if unknown:
        known = ", ".join(sorted(SIDECAR_KEYS))
        raise InputError(f"{file}: unknown key '{unknown[0]}'; known keys are {known}")
    return facts


def _to_unit_range(data: np.ndarray) -> np.ndarray:
    """Scale gray values to [0, 1]: 8-bit values by 255, others by their own range."""
    finite = data[np.isfinite(data)]
    low, high = (finite.min(), finite.max()) if finite.size else (0, 0)
    if low >= 0 and high <= 1:
        return data
    if low >= 0 and high <= 255:
        return data / np.float32(255)
    return (data - low) / max(high - low, np.finfo(np.float32).tiny)
