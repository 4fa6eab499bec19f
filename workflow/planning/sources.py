"""Which files a volume is read from, so that a change in any of them is noticed."""

import re
from pathlib import Path

BESIDE = (".json", ".yaml", ".yml", ".raw", ".zraw", ".txt")  # sidecars, and pixels kept apart
EXPORT = (".xml", ".tif", ".tiff")


def source_files(path: str) -> list[str]:
    """Return the files that belong to the volume or mask at `path`, the named one first.

    Of a folder these are all its files; of a HEYEX XML file also the images in its folder; of any
    other file also sidecars and pixel files of the same name.
    """
    source = Path(path)
    if source.is_dir():
        return [str(file) for file in _files(source)]
    if source.suffix.lower() == ".xml":
        images = [file for file in _files(source.parent) if file.suffix.lower() in EXPORT]
        return [path, *(str(file) for file in images if file != source)]
    stem = re.sub(r"(\.nii\.gz|\.[^.]*)$", "", source.name, flags=re.IGNORECASE)
    beside = [source.with_name(stem + suffix) for suffix in BESIDE]
    return [path, *(str(file) for file in beside if file != source and file.exists())]


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))
