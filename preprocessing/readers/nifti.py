"""NIfTI with axes (x, z, B-scan), with or without a sidecar of the same name.

Research NIfTI files of OCT rarely carry a true orientation, so the axes are taken as they are
stored; `preprocessing.readers.sidecar` tells what the sidecar may say.
"""

from pathlib import Path

import numpy as np

from preprocessing.readers.sidecar import described_volume
from preprocessing.untrusted import parsing
from preprocessing.volume import Volume, read_nifti, read_nifti_header

NAME = "NIfTI"
UNSCALED = ((None, None), (1, 0))
MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # by the code of the header: metre, micrometre; else mm


def matches(path: Path) -> bool:
    """Tell whether the name of `path` ends in .nii or .nii.gz."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def read_array(path: Path) -> np.ndarray:
    """Return the values (b, z, x) in the order of the file; as stored, where it scales none."""
    with parsing(path, "NIfTI file"):
        scale = read_nifti_header(path).get_slope_inter()
    return read_nifti(path, scaled=scale not in UNSCALED)


def read(path: Path) -> Volume:
    """Read an OCT volume; spacing is that of the header.

    Raises InputError when the file or its sidecar is damaged.
    """
    header = read_nifti_header(path)
    mm = MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    step_x, step_z, step_b = (*(mm * float(step) for step in header.get_zooms()), 0.0)[:3]
    return described_volume(path, read_array(path), NAME, spacing_mm=(step_b, step_z, step_x))
