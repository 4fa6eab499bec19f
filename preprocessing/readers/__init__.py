"""One module per file format; a path is read by the first reader that knows it.

A reader module offers `NAME`, `matches(path) -> bool` and `read(path) -> Volume`. It returns gray
values and geometry in canonical order; ids, validity, annotation and mirroring are added by the
load stage, alike for every format. To add a format, write the module and list it in `READERS`.
"""

from pathlib import Path

from preprocessing.errors import InputError
from preprocessing.readers import (
    cirrus,
    dicom,
    extras,
    heyex,
    images,
    matlab,
    metaimage,
    nifti,
    vol,
)
from preprocessing.volume import Volume

READERS = (heyex, vol, nifti, metaimage, matlab, cirrus, images, dicom, extras)
FOLDER_READERS = (heyex, images)


def read_vendor_volume(path: str | Path) -> Volume:
    """Read an OCT volume in any known format.

    Raises InputError when the file is missing, damaged or of an unknown format.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check the column 'path' and data_dir")
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise InputError(f"{path}: neither a file nor a folder; give the file of the scan")
    for reader in READERS:
        if reader.matches(path):
            return reader.read(path)
    known = ", ".join(reader.NAME for reader in READERS)
    raise InputError(f"{path}: not in a known OCT format ({known}); convert it to NIfTI first")


def _read_folder(path: Path) -> Volume:
    if not any(path.iterdir()):
        raise InputError(f"{path}: an empty folder; copy the scan into it or correct the path")
    for reader in FOLDER_READERS:
        if reader.matches(path):
            return reader.read(path)
    raise InputError(
        f"{path}: a folder without a HEYEX XML file or images; give the path of the file"
    )
