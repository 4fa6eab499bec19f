"""Formats of optional packages: eyepy reads E2E; oct-converter FDA, FDS, Bioptigen and Optovue.

The packages are asked for pixels, spacing, laterality and layers, never for the patient; what they
print is swallowed. What a file does not tell surely (the spacing of E2E and .oct) is left unknown,
so that the load stage asks for it; a sidecar has the last word.
"""

import contextlib
import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from preprocessing.errors import InputError
from preprocessing.readers.sidecar import described_volume
from preprocessing.untrusted import parsing
from preprocessing.volume import Volume, rows_within

NAME = "E2E, FDA, FDS or OCT by an optional package"
E2E_EMPTY = 1.99  # power that eyepy decodes from pixels without a measurement lies above
E2E_EYES = {"OD": "R", "OS": "L"}
E2E_PATTERNS = {1: "line", 2: "circle", 5: "radial"}
TOPCON_RASTER = 2  # scan mode of the horizontal 3-D scans


def matches(path: Path) -> bool:
    """Tell whether the name of `path` ends in one of the formats' suffixes."""
    return path.suffix.lower() in _READERS


def read(path: Path) -> Volume:
    """Read a file that holds one scan.

    Raises InputError when the package is not installed, cannot read the file, or the file holds
    several scans or a pattern whose geometry is not known.
    """
    return _READERS[path.suffix.lower()](path)


def _read_e2e(path: Path) -> Volume:
    with _optional(path, "eyepy"):
        from eyepy.io.he.e2e_reader import HeE2eReader
    with _quiet(path), HeE2eReader(path) as reader:
        scans = [series for series in reader.series if series.n_bscans]
        _check_single(path, len(scans))
        series = scans[0]
        positions = series.get_bscan_meta()
        data = np.asarray(series.get_bscans(), np.float32)
        eye = E2E_EYES.get(series.laterality().split(".")[-1], "")
        axial_mm = float(positions[0]["scale_y"])
        pattern = E2E_PATTERNS.get(positions[0]["scan_pattern"], "raster")
    return described_volume(
        path,
        np.where(data > E2E_EMPTY, np.float32(np.nan), data),
        "Heidelberg E2E (eyepy)",
        spacing_mm=(math.nan, axial_mm, math.nan),
        eye=eye,
        intensity="linear",
        scan_pattern=pattern,
        device="Heidelberg Engineering Spectralis",
    )


def _read_topcon(path: Path) -> Volume:
    with _optional(path, "oct-converter"):
        from oct_converter import readers
    kind = path.suffix[1:].upper()
    with _quiet(path):
        scan = getattr(readers, kind)(path).read_oct_volume()
        data = np.stack(scan.volume)
        mode = scan.oct_header["scan_mode"]
        step_x, step_b, step_z = scan.pixel_spacing or [math.nan] * 3
        model = next(
            (info["model_name"] for key, info in scan.metadata.items() if "hw_info" in key), ""
        )
    if mode != TOPCON_RASTER:
        raise InputError(
            f"{path}: Topcon scan mode {mode}, whose geometry is not known; only 3-D scans (mode "
            f"{TOPCON_RASTER}) can be read"
        )
    return described_volume(
        path,
        data,
        f"Topcon {kind} (oct-converter)",
        spacing_mm=(step_b, step_z, step_x),
        eye=scan.laterality or "",
        vendor_layers=topcon_layers(scan.contours or {}, data.shape),
        device=f"Topcon {model}".strip(),
    )


def topcon_layers(
    contours: dict[str, np.ndarray], shape: tuple[int, int, int]
) -> dict[str, np.ndarray]:
    """Return surfaces (b, x) from oct-converter's contours; those of another shape are left out.

    oct-converter turns the rows of the contours but not the B-scans, and counts z from 1.
    """
    n_b, n_z, n_x = shape
    layers = {}
    for name, contour in contours.items():
        if contour.shape == (n_b, n_x):
            z = contour[::-1].astype(np.float32) - 1
            layers[str(name)] = rows_within(z, n_z)
    return layers


def _read_oct(path: Path) -> Volume:
    """Read Optovue, which has a text file beside it, or else Bioptigen."""
    with _optional(path, "oct-converter"):
        from oct_converter import readers
    optovue = path.with_suffix(".txt").exists()
    with _quiet(path) as printed:
        scans = (readers.POCT if optovue else readers.BOCT)(path).read_oct_volume()
        _check_single(path, len(scans))
        data = np.stack(scans[0].volume)
        eye = scans[0].laterality or ""
    if "Stopping load" in printed.getvalue() or data.nbytes > path.stat().st_size:
        raise InputError(f"{path}: it is truncated; copy or export it again")
    return described_volume(
        path,
        data if optovue else data.transpose(0, 2, 1),
        f"{'Optovue' if optovue else 'Bioptigen'} OCT (oct-converter)",
        eye=eye,
    )


_READERS = {".e2e": _read_e2e, ".fda": _read_topcon, ".fds": _read_topcon, ".oct": _read_oct}


@contextlib.contextmanager
def _optional(path: Path, extra: str) -> Iterator[None]:
    """Tell what to install where the package of an extra cannot be imported."""
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"{path}: {path.suffix} files are read by the optional package {extra} ({error}); "
            f"pip install 'oct-anogan[{extra}]'"
        ) from error


def _check_single(path: Path, n_scans: int) -> None:
    if n_scans != 1:
        raise InputError(
            f"{path}: {n_scans} readable scans in one file where one is expected; export each scan "
            "apart, best as .vol or XML"
        )


@contextlib.contextmanager
def _quiet(path: Path) -> Iterator[io.StringIO]:
    """Collect what a package prints and turn what it raises into one InputError."""
    printed = io.StringIO()
    try:
        with parsing(path, f"{path.suffix} file"), contextlib.redirect_stdout(printed):
            yield printed
    except InputError as error:
        if "fromstring" in str(error):
            raise InputError(
                f"{path}: this oct-converter reads Topcon files only with NumPy below 2.3, here is "
                f"{np.__version__}; pip install 'numpy<2.3' in an environment of its own and "
                "convert the file there"
            ) from error
        raise
