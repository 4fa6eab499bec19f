"""Which files a volume is read from, so that a change in any of them is noticed."""

import re
from pathlib import Path

from planning.storage import path_of

BESIDE = (".json", ".yaml", ".yml", ".raw", ".zraw", ".txt")  # sidecars, and pixels kept apart
HEYEX_IMAGES = (".tif", ".tiff", ".png", ".bmp", ".jpg", ".jpeg")
METAIMAGE = (".mhd", ".mha")
METAIMAGE_HEADER_BYTES = 2**16
# the name of a file in the same folder: printable ASCII without slashes
ELEMENT_DATA_FILE = re.compile(
    rb"^[ \t]*ElementDataFile[ \t]*=[ \t]*([ -.0-\[\]-~]{1,255}?)[ \t\r]*$", re.MULTILINE
)


def source_files(path: str) -> list[str]:
    """Return the files that belong to the volume or mask at `path`, the named one first.

    Of a folder these are all its files; of any other file also sidecars and pixel files of the same
    name, of a HEYEX XML file the images in its folder, of MetaImage its `ElementDataFile`.
    """
    source = path_of(path)
    if source.is_dir():
        return [str(file) for file in _files(source)]
    stem = re.sub(r"(\.nii\.gz|\.[^.]*)$", "", source.name, flags=re.IGNORECASE)
    beside = [source.with_name(stem + suffix) for suffix in BESIDE]
    suffix = source.suffix.lower()
    if suffix == ".xml" and source.is_file():
        beside = [f for f in _files(source.parent) if f.suffix.lower() in HEYEX_IMAGES] + beside
    if suffix in METAIMAGE and source.is_file():
        beside += _element_data_file(source)
    found = dict.fromkeys(str(file) for file in beside if file != source and file.is_file())
    return [path, *found]


def _element_data_file(header: Path) -> list[Path]:
    """Return the file in the same folder that a MetaImage header names, if it names one."""
    with header.open("rb") as file:
        block = file.read(METAIMAGE_HEADER_BYTES)
    line = ELEMENT_DATA_FILE.search(block)
    return [header.parent / line[1].decode("ascii")] if line else []


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
