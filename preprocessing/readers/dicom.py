"""DICOM Ophthalmic Tomography (OPT): the frames of one file are the B-scans. Needs pydicom.

Where the B-scans lie comes from the functional groups: distances from the plane positions, order
and direction from where each lies on the reference fundus image (row and column of its ends).
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from preprocessing.errors import InputError
from preprocessing.readers.scan_lines import ROUNDING_MM, lay_out
from preprocessing.readers.sidecar import described_volume
from preprocessing.untrusted import check_file_size, check_size, parsing
from preprocessing.volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

NAME = "DICOM OPT"
OPT_STORAGE = "1.2.840.10008.5.1.4.1.1.77.1.5.4"
DEFLATED = "1.2.840.10008.1.2.1.99"
USUAL_STEP_MM = 0.01  # from column to column
DEVICE_TAGS = ("Manufacturer", "ManufacturerModelName")
GROUPS = {
    "measures": "PixelMeasuresSequence",
    "position": "PlanePositionSequence",
    "orientation": "PlaneOrientationSequence",
    "location": "OphthalmicFrameLocationSequence",
    "anatomy": "FrameAnatomySequence",
}


def matches(path: Path) -> bool:
    """Tell whether `path` is a DICOM file by its suffix or its magic bytes."""
    if path.is_dir():
        return False
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read(path: Path) -> Volume:
    """Read gray values, spacing, laterality and device, and nothing else that the file says.

    Raises InputError when pydicom is missing or the file is damaged, no OPT or not a raster that
    can be put in order.
    """
    try:
        import pydicom
    except ImportError as error:
        raise InputError(
            f"{path}: DICOM needs pydicom; install it with: pip install 'oct-anogan[dicom]'"
        ) from error

    with parsing(path, "DICOM file"):
        syntax = pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID
        if syntax == DEFLATED:  # pydicom would inflate it whole, however long it is
            raise ValueError("deflated; convert it to an uncompressed transfer syntax")
        check_file_size(path)
        dataset = pydicom.dcmread(path)
        if dataset.SOPClassUID != OPT_STORAGE:
            raise InputError(f"{path}: no Ophthalmic Tomography image; export the OCT volume")
        data = _pixels(path, dataset, compressed=syntax.is_compressed)
        frames = _frames(dataset, len(data))
        pattern, order = _layout(path, frames, data.shape[2])
        spacing = _spacing(frames)
        eye = _laterality(dataset, frames[0])
        maker, model = (str(dataset.get(tag, "")) for tag in DEVICE_TAGS)
    return described_volume(
        path,
        data,
        NAME,
        spacing_mm=spacing,
        bscan_order=order,
        scan_pattern=pattern,
        eye=eye,
        device=f"{maker} {model}".strip(),
    )


def _pixels(path: Path, dataset: "Dataset", compressed: bool) -> np.ndarray:
    """Return the values (b, z, x), bright meaning more signal."""
    shape = (int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns))
    check_size(path, shape, int(dataset.BitsAllocated) // 8, compressed=compressed)
    if dataset.SamplesPerPixel != 1:
        raise InputError(f"{path}: a colour image; a volume needs one gray value per voxel")
    data = dataset.pixel_array.reshape(shape)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        signed = data.dtype.kind == "i"
        data = ~data if signed else data.dtype.type(2 ** int(dataset.BitsStored) - 1) - data
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [{}])[0]
    rescale = (shared.get("PixelValueTransformationSequence") or [dataset])[0]
    slope = float(rescale.get("RescaleSlope", 1))
    intercept = float(rescale.get("RescaleIntercept", 0))
    return data if (slope, intercept) == (1, 0) else data * np.float32(slope) + intercept


def _frames(dataset: "Dataset", n_frames: int) -> list[dict]:
    """Return by frame its functional groups, its own ones before the shared ones."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [{}])[0]
    own = dataset.get("PerFrameFunctionalGroupsSequence") or [{}] * n_frames
    if len(own) != n_frames:
        raise ValueError(f"{len(own)} descriptions for {n_frames} frames")
    return [
        {short: (group.get(tag) or shared.get(tag) or [{}])[0] for short, tag in GROUPS.items()}
        for group in own
    ]


def _planes(frames: list[dict]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the corner (b, 3) of each frame in mm and its directions (b, 2, 3) along x and z."""
    corners = [frame["position"].get("ImagePositionPatient") for frame in frames]
    directions = [frame["orientation"].get("ImageOrientationPatient") for frame in frames]
    if not all(corners) or not all(directions):
        return None
    return np.array(corners, float), np.array(directions, float).reshape(len(frames), 2, 3)


def _spacing(frames: list[dict]) -> tuple[float, float, float]:
    step_z, step_x = map(float, frames[0]["measures"].get("PixelSpacing") or (math.nan, math.nan))
    planes = _planes(frames)
    if planes and len(frames) > 1:
        corners, directions = planes
        distances = np.diff(corners @ np.cross(*directions[0]))
        return float(np.median(np.abs(distances))), step_z, step_x
    between = frames[0]["measures"].get("SpacingBetweenSlices")
    return float(math.nan if between is None else between), step_z, step_x


def _layout(path: Path, frames: list[dict], n_x: int) -> tuple[str, str]:
    """Return the scan pattern and the order of the B-scans.

    Without the places on the reference image, a raster is taken to run from inferior: the planes
    tell how the B-scans lie to each other, not to the eye. Raises InputError where B-scans are out
    of order or missing.
    """
    if any(frame["location"].get("OphthalmicImageOrientation") == "NONLINEAR" for frame in frames):
        return "circle", "inferior-first"
    ends = [frame["location"].get("ReferenceCoordinates") for frame in frames]
    if all(ends):
        row_0, column_0, row_1, column_1 = np.array(ends, float).reshape(len(frames), 4).T
        lines_px = np.stack([column_0, row_0, column_1, row_1], axis=1)
        # the size of these pixels is not known, only that places may be rounded to one
        layout = lay_out(path, ROUNDING_MM * lines_px, n_x)
        return layout.pattern, "superior-first" if layout.from_the_top else "inferior-first"
    planes = _planes(frames)
    if planes is None:
        return "raster" if len(frames) > 1 else "line", "inferior-first"
    return lay_out(path, _seen_from_above(frames, *planes, n_x), n_x).pattern, "inferior-first"


def _seen_from_above(
    frames: list[dict], corners: np.ndarray, directions: np.ndarray, n_x: int
) -> np.ndarray:
    """Return (b, 4) the ends of the B-scans in mm, the first one running from (0, 0) rightwards."""
    _, step_x = frames[0]["measures"].get("PixelSpacing") or (math.nan, USUAL_STEP_MM)
    along_x, along_z = directions[0]
    axes = np.stack([along_x, np.cross(along_x, along_z)], axis=1)
    starts = (corners - corners[0]) @ axes
    return np.hstack([starts, starts + float(step_x) * n_x * directions[:, 0] @ axes])


def _laterality(dataset: "Dataset", frame: dict) -> str:
    said = frame["anatomy"].get("FrameLaterality") or dataset.get("ImageLaterality", "")
    return said if said in ("R", "L") else ""
