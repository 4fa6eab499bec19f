"""MATLAB files in the layouts of the Duke data sets, and single scans converted from `.vol`.

Chiu 2015 (diabetic macular edema): `images` (z, x, b), graders' fluid (z, x, b; NaN where nobody
looked) and layers (8, x, b). Farsiu 2014 (AMD): `images` (z, x, b) and `layerMaps` (b, x, 3).
Converted `.vol` (octSegmentation): `B0`, `B1`, ... (z, x) in linear intensity with the fields of
the vendor's header. MATLAB counts rows from 1.
"""

import math
import re
from pathlib import Path

import numpy as np

from preprocessing.errors import InputError
from preprocessing.readers.mat5 import check_text, read_mat5
from preprocessing.readers.sidecar import described_volume
from preprocessing.untrusted import (
    VOXEL_BYTES,
    check_self_contained,
    check_size,
    check_total,
    parsing,
)
from preprocessing.validity import FLOAT_MAX
from preprocessing.volume import Volume, rows_within

NAME = "MATLAB"
BSCAN = re.compile(r"B(\d{1,4})")
WANTED = re.compile(
    r"images|layerMaps|manual(Fluid|Layers)[12]|B\d{1,4}(seg)?|Scale[XZ]|Distance"
    r"|Scan(Pattern|Position)"
)
# Chiu et al. 2015, doi 10.1364/BOE.6.001172: 3.87 um; laterally 11.07-11.59 and 118-128 um, the
# file does not say which, so this is their middle.
CHIU_SPACING_MM = (0.123, 0.00387, 0.01133)
CHIU_LAYERS = ("ILM", "NFL-GCL", "IPL-INL", "INL-OPL", "OPL-ONL", "ISM-ISE", "OS-RPE", "BM")
FARSIU_LAYERS = ("ILM", "RPEDC", "BM")
VOL_LAYERS = ("ILM", "BM", "RNFL")
VOL_PATTERNS = {2: "circle", 5: "radial"}
EYES = {"OD": "R", "OS": "L"}
UNKNOWN = (math.nan, math.nan, math.nan)


def matches(path: Path) -> bool:
    """Tell whether the name of `path` ends in .mat."""
    return path.suffix.lower() == ".mat"


def read(path: Path) -> Volume:
    """Read the scan, its layers and, in the Chiu layout, the fluid that grader 1 marked.

    Raises InputError when the file is damaged or has another layout.
    """
    import h5py

    with parsing(path, "MATLAB file"):
        variables = _read_hdf5(path) if h5py.is_hdf5(path) else read_mat5(path, WANTED)
    if "images" in variables:
        return _read_duke(path, variables)
    if "B0" in variables:
        return _read_converted_vol(path, variables)
    raise InputError(f"{path}: it has neither 'images' nor 'B0', so it is no known MATLAB layout")


def _read_hdf5(path: Path) -> dict[str, np.ndarray]:
    """Read version 7.3, which stores the axes in reverse order."""
    import h5py

    variables = {}
    total = 0
    with h5py.File(path) as file:
        check_self_contained(file)
        for name in filter(WANTED.fullmatch, file):
            dataset = file[name]
            if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "biuf":
                raise ValueError(f"'{name}' is no array of numbers")
            check_size(path, dataset.shape, 1, compressed=True)
            total += dataset.nbytes
            check_total(path, total // VOXEL_BYTES)
            is_text = dataset.attrs.get("MATLAB_class") == b"char"
            if is_text:
                check_text(name, dataset.size)
            values = dataset[()].T
            if is_text:
                values = np.array("".join(map(chr, values.flat)))
            variables[name] = values
    return variables


def _read_duke(path: Path, variables: dict[str, np.ndarray]) -> Volume:
    data = _scan(path, variables, "images")
    n_b, n_z, n_x = data.shape
    layers = {}
    for grader in (1, 2):
        name = f"manualLayers{grader}"
        if name in variables:
            surfaces = _array(path, variables, name, (len(CHIU_LAYERS), n_x, n_b))
            for layer, rows in zip(CHIU_LAYERS, surfaces, strict=True):
                layers[f"grader{grader}_{layer}"] = rows_within(rows.T - 1, n_z)
    if "layerMaps" in variables:
        surfaces = _array(path, variables, "layerMaps", (n_b, n_x, len(FARSIU_LAYERS)))
        for layer, rows in zip(FARSIU_LAYERS, np.moveaxis(surfaces, 2, 0), strict=True):
            layers[layer] = rows_within(rows - 1, n_z)
    fluid = None
    if "manualFluid1" in variables:
        marked = _array(path, variables, "manualFluid1", np.moveaxis(data, 0, 2).shape)
        marked = np.moveaxis(marked, 2, 0)
        fluid = np.where(np.isnan(marked), marked, marked > 0).astype(np.float32)
    spacing = CHIU_SPACING_MM if "manualLayers1" in variables else UNKNOWN
    return described_volume(
        path, data, NAME, spacing_mm=spacing, vendor_layers=layers, annotation=fluid
    )


def _read_converted_vol(path: Path, variables: dict[str, np.ndarray]) -> Volume:
    numbers = sorted(int(match[1]) for match in map(BSCAN.fullmatch, variables) if match)
    if numbers != list(range(len(numbers))):
        raise InputError(f"{path}: B-scans are missing, it has only numbers {numbers}")
    scans = [_scan(path, variables, f"B{number}")[0] for number in numbers]
    if len({scan.shape for scan in scans}) > 1:
        raise InputError(f"{path}: B-scans of different sizes")
    layers = {}
    names = [f"B{number}seg" for number in numbers]
    if all(name in variables for name in names):
        n_z, n_x = scans[0].shape
        wanted = (len(VOL_LAYERS), n_x)
        rows = np.stack([_array(path, variables, name, wanted) for name in names], axis=1)
        layers = dict(zip(VOL_LAYERS, rows_within(rows, n_z), strict=True))
    known = {}
    pattern = VOL_PATTERNS.get(_scalar(variables, "ScanPattern"))
    if pattern:
        known["scan_pattern"] = pattern
    return described_volume(
        path,
        np.stack(scans),
        NAME,
        spacing_mm=tuple(_scalar(variables, name) for name in ("Distance", "ScaleZ", "ScaleX")),
        vendor_layers=layers,
        intensity="linear",
        eye=EYES.get(_text(variables, "ScanPosition"), ""),
        **known,
    )


def _scan(path: Path, variables: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Return (z, x) or (z, x, b) values as (b, z, x)."""
    values = variables[name]
    if values.dtype.kind not in "iuf" or values.ndim not in (2, 3) or 0 in values.shape:
        raise InputError(f"{path}: '{name}' is not an array of gray values (z, x, B-scan)")
    return np.moveaxis(values.reshape((*values.shape, 1)[:3]), 2, 0)


def _array(
    path: Path, variables: dict[str, np.ndarray], name: str, shape: tuple[int, ...]
) -> np.ndarray:
    """Return a float32 array of `shape` with NaN for missing values."""
    values = variables[name]
    if values.ndim < len(shape) and shape[-1] == 1:  # MATLAB drops the last axis of length 1
        values = values[..., np.newaxis]
    if values.dtype.kind not in "biuf" or values.shape != shape:
        raise InputError(f"{path}: '{name}' has shape {values.shape} where the scan asks {shape}")
    return np.where(np.abs(values) < FLOAT_MAX, values, np.nan).astype(np.float32)


def _scalar(variables: dict[str, np.ndarray], name: str) -> float:
    values = variables.get(name, np.array([]))
    return float(values.flat[0]) if values.size == 1 and values.dtype.kind in "iuf" else math.nan


def _text(variables: dict[str, np.ndarray], name: str) -> str:
    text = variables.get(name, np.array(""))
    return str(text).strip() if text.dtype.kind == "U" else ""
