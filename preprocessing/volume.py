"""The OCT volume that the stages hand to each other, and its form on disk.

A volume `NAME` is five files: `NAME.nii.gz` (gray values), `NAME.valid.nii.gz` (1 where the scanner
measured something), `NAME.annotation.nii.gz` (per cent of the pixel that a grader marked, 255 where
nobody looked), `NAME.vendor.npz` (layers that came with the file) and `NAME.json` (everything
else). Array axes are always (b, z, x): B-scan, depth,
lateral. B-scans run from inferior to superior, z from the vitreous to the choroid, x as in the
B-scan on the screen: from temporal to nasal in a right eye (and in a left eye once mirrored).
"""

import dataclasses
import json
import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from preprocessing.errors import InputError
from preprocessing.files import atomic_path
from preprocessing.own_files import reading
from preprocessing.untrusted import check_size, parsing

if TYPE_CHECKING:
    from nibabel import Nifti1Header

NOT_EXAMINED = 255  # in NAME.annotation.nii.gz
MAX_NIFTI_OFFSET = 2**24  # bytes; extensions of a NIfTI header are rarely longer than a page
# Names of layers come from vendors' files, which may hold any text.
PLAIN_NAME = re.compile(r"(?!layer\d+$)[A-Za-z0-9 _+/-]{1,32}")
# raster: parallel horizontal B-scans; line: one of them
SCAN_PATTERNS = ("raster", "line", "circle", "radial", "vertical")


@dataclass
class Volume:
    """One OCT volume; all arrays have axes (b, z, x).

    Attributes
    ----------
    data : float32 gray values; see `intensity`.
    spacing_mm : (b, z, x) in mm; b is 0 for a single B-scan.
    valid : bool, False where the device has no measurement (borders of a registered scan).
    volume, patient : pseudonymous ids from the sample sheet.
    eye : "R", "L" or "" when unknown.
    mirrored : True when x was reversed, so that a left eye looks like a right one.
    intensity : "display" (0 black, 1 white), "linear" (power of the signal) or "normalised"
        ([-1, 1]).
    annotation : fraction of each pixel that a grader marked, NaN where nobody looked; None when
        there is no annotation at all.
    bscans_reversed : True when the reader turned the order of the B-scans of the file.
    bscan_lines_mm : (b, 4) start x, start y, end x, end y of each B-scan on the fundus, or None.
    scan_pattern : one of `SCAN_PATTERNS`, how the B-scans lie on the fundus.
    vendor_layers : by the vendor's name, surfaces (b, x) float32 in z pixels of this volume, NaN
        unknown; empty when the file holds none.
    device : maker and model, or "".
    source_format : name of the reader.
    native_shape : (b, z, x) of the volume as loaded, before any resampling.
    """

    data: np.ndarray
    spacing_mm: tuple[float, float, float]
    valid: np.ndarray
    volume: str = ""
    patient: str = ""
    eye: str = ""
    mirrored: bool = False
    intensity: str = "display"
    annotation: np.ndarray | None = None
    bscans_reversed: bool = False
    bscan_lines_mm: np.ndarray | None = None
    scan_pattern: str = "raster"
    vendor_layers: dict[str, np.ndarray] = field(default_factory=dict)
    device: str = ""
    source_format: str = ""
    native_shape: tuple[int, int, int] = ()
    parameters: dict = field(default_factory=dict)  # what each stage did, by stage

    def __post_init__(self) -> None:
        if self.data.ndim != 3 or self.valid.shape != self.data.shape:
            raise ValueError(
                f"data {self.data.shape} and valid {self.valid.shape} must be (b, z, x)"
            )
        if self.annotation is not None and self.annotation.shape != self.data.shape:
            raise ValueError(f"annotation {self.annotation.shape} must be {self.data.shape}")
        if self.scan_pattern not in SCAN_PATTERNS:
            raise ValueError(f"scan pattern '{self.scan_pattern}' is not one of {SCAN_PATTERNS}")
        n_b, _, n_x = self.data.shape
        if any(layer.shape != (n_b, n_x) for layer in self.vendor_layers.values()):
            raise ValueError(f"vendor layers must be (b, x), {n_b} x {n_x}")
        if not self.native_shape:
            self.native_shape = self.data.shape

    def replace(self, **changes: object) -> "Volume":
        """Return a copy with some attributes changed (arrays are not copied)."""
        return dataclasses.replace(self, **changes)

    @property
    def affine(self) -> np.ndarray:
        """4x4 matrix from NIfTI indices (x, z, b) to RAS+ mm: x runs left, z posterior, b superior.

        The origin is the volume's outer edge, so that the affine of a resampled volume still lays
        it over the original; a mirrored volume gets its columns' true places.
        """
        step_b, step_z, step_x = self.spacing_mm
        step_b = step_b or 1.0  # a NIfTI affine must be invertible
        affine = np.diag([-step_x, -step_z, step_b, 1.0])
        affine[:3, 3] = [-step_x / 2, -step_z / 2, step_b / 2]
        if self.mirrored:
            affine[0, 0] = step_x
            affine[0, 3] = step_x / 2 - step_x * self.data.shape[2]
        return affine


def companion(path: str | Path, kind: str) -> Path:
    """Return the path beside volume file `path` for `kind`.

    Kinds are valid, annotation, vendor and json; of a flat volume also geometry and layers.

    >>> companion("a/flat.nii.gz", "valid").as_posix()
    'a/flat.valid.nii.gz'
    >>> companion("a/flat.nii.gz", "vendor").as_posix()
    'a/flat.vendor.npz'
    """
    own_suffix = {
        "json": ".json",
        "vendor": ".vendor.npz",
        "geometry": ".geometry.npz",
        "layers": ".layers.npz",
    }
    path = Path(path)
    for suffix in (".nii.gz", ".nii"):
        if path.name.lower().endswith(suffix):
            stem, suffix = path.name[: -len(suffix)], path.name[-len(suffix) :]
            return path.with_name(stem + own_suffix.get(kind, f".{kind}{suffix}"))
    raise InputError(f"{path}: a volume file must end in .nii.gz or .nii")


def files_of(path: str | Path) -> list[Path]:
    """Return the five files of the volume at `path`."""
    kinds = ("valid", "annotation", "vendor", "json")
    return [Path(path), *(companion(path, kind) for kind in kinds)]


def rows_within(rows: np.ndarray, n_z: int) -> np.ndarray:
    """Return a surface's `rows` with NaN where they lie outside a B-scan of `n_z` pixels.

    Vendors mark what is unknown by FLT_MAX, by 0 counted from 1, or not at all.
    """
    return np.where((rows >= 0) & (rows < n_z), rows, np.float32(np.nan))


def write_volume(volume: Volume, path: str | Path) -> None:
    """Write the five files of `volume`, all or none; the sidecar appears last.

    A layer whose name is not plain (at most 32 letters, digits, spaces and `_+/-`) becomes
    `layer<N>`, N counted from 1.
    """
    affine = volume.affine
    stored, slope = _compact(volume.data, volume.intensity)
    if volume.annotation is None:
        percent = np.full(volume.data.shape, NOT_EXAMINED, np.uint8)
    else:
        examined = np.isfinite(volume.annotation)
        percent = np.where(examined, np.rint(100 * np.nan_to_num(volume.annotation)), NOT_EXAMINED)
    with ExitStack() as stack:  # it renames the last first
        kinds = ("json", "vendor", "annotation", "valid")
        files = {kind: stack.enter_context(atomic_path(companion(path, kind))) for kind in kinds}
        _save_nifti(stored, stack.enter_context(atomic_path(path)), affine, slope)
        _save_nifti(volume.valid.astype(np.uint8), files["valid"], affine)
        _save_nifti(percent.astype(np.uint8), files["annotation"], affine)
        np.savez_compressed(files["vendor"], **_stacked(volume.vendor_layers))
        text = json.dumps(_sidecar(volume), indent=1) + "\n"
        files["json"].write_text(text, encoding="utf-8")


def read_volume(path: str | Path) -> Volume:
    """Read a volume written by `write_volume`.

    Raises InputError when a file is missing, damaged or does not fit the others.
    """
    rule = "load" if Path(path).name.startswith("volume.") else "prepare"
    files = {kind: companion(path, kind) for kind in ("valid", "annotation", "json", "vendor")}
    with reading(path, "volume", rule):
        data = read_nifti(path)
        valid = read_nifti(files["valid"], scaled=False) > 0
        percent = read_nifti(files["annotation"], scaled=False)
    annotation = None
    if (percent != NOT_EXAMINED).any():
        annotation = np.where(percent == NOT_EXAMINED, np.nan, percent / np.float32(100))
    vendor = files["vendor"]
    with reading(vendor, "archive of layers", rule), np.load(vendor, allow_pickle=False) as file:
        names = [name.decode("ascii") for name in file["names"].tolist()]
        vendor_layers = dict(zip(names, file["surfaces"], strict=True))
    with reading(files["json"], "sidecar of a volume", rule):
        facts = json.loads(files["json"].read_text(encoding="utf-8"))
        facts.pop("has_annotation")
        facts["spacing_mm"] = tuple(facts["spacing_mm"])
        facts["native_shape"] = tuple(facts["native_shape"])
        if facts["bscan_lines_mm"] is not None:
            facts["bscan_lines_mm"] = np.array(facts["bscan_lines_mm"], float)
    with reading(path, "volume", rule):  # all of it fits together
        return Volume(
            data, valid=valid, annotation=annotation, vendor_layers=vendor_layers, **facts
        )


def write_nifti(array: np.ndarray, path: str | Path, affine: np.ndarray) -> None:
    """Write `array` (b, z, x) as NIfTI (x, z, b), atomically."""
    with atomic_path(path) as temporary:
        _save_nifti(array, temporary, affine)


def _save_nifti(array: np.ndarray, path: Path, affine: np.ndarray, slope: float = 1.0) -> None:
    """Write `array` (b, z, x), whose values are to be read times `slope`, as NIfTI (x, z, b)."""
    import nibabel as nib

    image = nib.Nifti1Image(array.T, affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, 0.0)
    image.to_filename(path)


def read_nifti(path: str | Path, scaled: bool = True) -> np.ndarray:
    """Read NIfTI (x, z, b) as an array (b, z, x); float32 when `scaled`, else as stored.

    Raises InputError when the file is missing, damaged, not 3-D or not gray.
    """
    import nibabel as nib

    header = read_nifti_header(path)
    with parsing(path, "NIfTI file"):
        slope, intercept = header.get_slope_inter()
        with nib.openers.ImageOpener(path) as file:
            stored = header.raw_data_from_fileobj(file)
            # at the end of a compressed file, which damage may have moved, the checksum is compared
            if len(file.read(MAX_NIFTI_OFFSET)) == MAX_NIFTI_OFFSET:
                raise ValueError("more data than its header declares")
    stored = stored.reshape((*stored.shape, 1, 1)[:3]).T
    if not scaled:
        return stored
    with np.errstate(over="ignore"):  # beyond float32 is infinite, so missing
        data = np.ascontiguousarray(stored, np.float32)
    if slope is None or (slope, intercept) == (1, 0):
        return data
    with np.errstate(over="ignore", invalid="ignore"):
        return data * np.float32(slope) + np.float32(intercept)


def read_nifti_header(path: str | Path) -> "Nifti1Header":
    """Read the header alone and check that an array (x, z, b) of gray values may follow it.

    nibabel's own way to it would also read the extensions, however long they say they are.
    """
    import nibabel as nib

    with parsing(path, "NIfTI file"):
        with nib.openers.ImageOpener(path) as file:
            block = file.read(nib.Nifti2Header.sizeof_hdr)
        kinds = (nib.Nifti1Header, nib.Nifti2Header)
        kind = next((kind for kind in kinds if kind.may_contain_header(block)), None)
        if kind is None:
            raise ValueError("no NIfTI header")
        header = kind(block[: kind.sizeof_hdr], check=False)
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        offset = header.get_data_offset()
        if not kind.sizeof_hdr <= offset <= MAX_NIFTI_OFFSET:
            raise ValueError(f"its data start at byte {offset}")
    if dtype.fields:
        raise InputError(f"{path}: a colour image; a volume needs one gray value per voxel")
    if dtype.kind not in "iuf":
        raise InputError(f"{path}: {dtype} values where a volume has real gray values")
    if any(n != 1 for n in shape[3:]) or len(shape) < 2:
        raise InputError(f"{path}: {len(shape)} dimensions where a volume has 3 (x, z, B-scan)")
    compressed = str(path).lower().endswith(".gz")
    check_size(path, shape, dtype.itemsize, offset, compressed)
    return header


def as_stored(volume: Volume) -> Volume:
    """Return `volume` with the values that reading it back from disk would give."""
    stored, slope = _compact(volume.data, volume.intensity)
    annotation = volume.annotation
    if annotation is not None:
        annotation = np.rint(100 * annotation) / np.float32(100)
    return volume.replace(data=stored.astype(np.float32) * np.float32(slope), annotation=annotation)


def _compact(data: np.ndarray, intensity: str) -> tuple[np.ndarray, float]:
    """Return (array to store, slope): 8 bits where that is exact, 16 where it is bounded."""
    if intensity == "linear":
        return data.astype(np.float32), 1.0
    if intensity == "display":
        levels = data * np.float32(255)
        whole = np.rint(levels)
        levels -= whole
        if max(levels.max(), -levels.min()) < 1e-3:
            return whole.astype(np.uint8), 1 / 255
    levels = np.clip(data, -1, 1)
    levels *= np.float32(32767)
    return np.rint(levels, out=levels).astype(np.int16), 1 / 32767


def _stacked(layers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the names (n,) and surfaces (n, b, x) of vendor layers."""
    names = [
        name if PLAIN_NAME.fullmatch(name) else f"layer{n}" for n, name in enumerate(layers, 1)
    ]
    return {
        "names": np.array(names, "S32"),
        "surfaces": np.array([*layers.values()], np.float32),
    }


def _sidecar(volume: Volume) -> dict:
    facts = {
        f.name: getattr(volume, f.name)
        for f in dataclasses.fields(volume)
        if f.name not in ("data", "valid", "annotation", "vendor_layers")
    }
    if volume.bscan_lines_mm is not None:
        facts["bscan_lines_mm"] = np.round(volume.bscan_lines_mm, 6).tolist()
    facts["spacing_mm"] = [float(step) for step in volume.spacing_mm]
    facts["native_shape"] = [int(n) for n in volume.native_shape]
    facts["has_annotation"] = volume.annotation is not None
    return facts
