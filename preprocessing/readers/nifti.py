"""NIfTI with axes (x, z, B-scan), with or without a sidecar of the same name.

Research NIfTI files of OCT rarely carry a true orientation, so the axes are taken as they are
stored; `preprocessing.readers.sidecar` tells what the sidecar may say.
"""

from pathlib import Path

from preprocessing.readers.sidecar import described_volume
from preprocessing.volume import Volume, read_nifti

NAME = "NIfTI"


def matches(path: Path) -> bool:
    """Tell whether the name of `path` ends in .nii or .nii.gz."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def read(path: Path) -> Volume:
    """Read an OCT volume; spacing is that of the header, in mm.

    Raises InputError when the file or its sidecar is damaged.
    """
    import nibabel as nib

    data = read_nifti(path)
    step_x, step_z, step_b = (*map(float, nib.load(path).header.get_zooms()), 0.0)[:3]
    return described_volume(path, data, NAME, spacing_mm=(step_b, step_z, step_x))
