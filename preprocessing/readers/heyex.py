"""Heidelberg HEYEX XML export: a folder with one XML file and one TIFF per B-scan.

What the XML says and what is true: image paths are Windows paths of the exporting machine, only
their base name counts; the B-scan order is `ImageNumber` (0 is the infrared localizer); laterality
sits under each image; `ScaleX` and `ScaleY` are rounded to 0.1 um.
"""

import ntpath
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np

from preprocessing.errors import InputError
from preprocessing.volume import Volume

NAME = "HEYEX XML"

# The Spectralis digitises 1.92 mm of depth into 496 pixels; its XML rounds that to 0.0039.
SPECTRALIS_AXIAL_MM = 1.92 / 496


@dataclass
class _BScan:
    number: int
    file: Path
    width: int
    height: int
    axial_mm: float
    line_mm: tuple[float, float, float, float]  # start x, start y, end x, end y
    laterality: str


def matches(path: Path) -> bool:
    """Tell whether `path` is an XML file or a folder that holds exactly the XML of an export."""
    return path.suffix.lower() == ".xml" or (path.is_dir() and bool(_xml_files(path)))


def read(path: Path) -> Volume:
    """Read an export, given its folder or its XML file.

    Raises InputError when the XML, a TIFF or the geometry is missing, damaged or not a volume scan.
    """
    xml = _only_xml(path) if path.is_dir() else path
    bscans, device = _parse(xml)
    data = np.stack([_read_tiff(bscan) for bscan in bscans])
    lines = np.array([bscan.line_mm for bscan in bscans])
    _check_raster(xml, bscans, lines)
    from_the_top = len(bscans) > 1 and lines[-1, 1] > lines[0, 1]  # y points down the fundus
    if from_the_top:
        data, lines = data[::-1], lines[::-1]
    return Volume(
        data=data.astype(np.float32) / np.float32(255),
        spacing_mm=_spacing(xml, bscans, lines),
        valid=np.ones(data.shape, bool),
        eye=bscans[0].laterality,
        intensity="display",
        bscan_lines_mm=lines,
        bscans_reversed=bool(from_the_top),
        device=device,
        source_format=NAME,
    )


def _xml_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() == ".xml")


def _only_xml(folder: Path) -> Path:
    files = _xml_files(folder)
    if len(files) > 1:
        raise InputError(f"{folder}: {len(files)} XML files; name the one to read in column 'path'")
    return files[0]


def _parse(xml: Path) -> tuple[list[_BScan], str]:
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import parse

    try:
        root = parse(xml).getroot()
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise InputError(f"{xml}: not a readable XML file ({error}); export it again") from error
    all_series = list(root.iter("Series"))
    if root.tag != "HEDX" or len(all_series) != 1:
        raise InputError(
            f"{xml}: not a HEYEX export of one volume ({len(all_series)} series); export each apart"
        )
    series = all_series[0]
    kind = series.findtext("Type", "Volume")
    if kind != "Volume":
        raise InputError(f"{xml}: a scan of type '{kind}'; only volume scans can be used")
    names = {file.name.lower(): file for file in xml.parent.iterdir()}
    bscans = [
        _parse_image(xml, image, names)
        for image in series.iter("Image")
        if image.findtext("ImageType/Type") == "OCT"
    ]
    if not bscans:
        raise InputError(f"{xml}: it lists no B-scan (no Image of type OCT)")
    equipment = series.find("GeneralEquipment")
    maker, model = (
        (equipment.findtext(tag, "") if equipment is not None else "")
        for tag in ("Manufacturer", "ManufacturerModelName")
    )
    return sorted(bscans, key=lambda bscan: bscan.number), f"{maker} {model}".strip()


def _parse_image(xml: Path, image: Element, names: dict[str, Path]) -> _BScan:
    number = image.findtext("ImageNumber", "?")
    name = ntpath.basename(image.findtext("ImageData/ExamURL", ""))
    if name.lower() not in names:
        raise InputError(f"{xml}: B-scan {number} names '{name}', which is not in its folder")
    try:
        context = image.find("OphthalmicAcquisitionContext")
        line = tuple(
            float(context.findtext(f"{end}/Coord/{axis}"))
            for end in ("Start", "End")
            for axis in ("X", "Y")
        )
        return _BScan(
            number=int(number),
            file=names[name.lower()],
            width=int(context.findtext("Width")),
            height=int(context.findtext("Height")),
            axial_mm=float(context.findtext("ScaleY")),
            line_mm=line,
            laterality=image.findtext("Laterality", "").strip().upper()[:1],
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{xml}: size, scale or position of B-scan {number} is missing or not a number; "
            "export the volume again"
        ) from error


def _read_tiff(bscan: _BScan) -> np.ndarray:
    """Return the (z, x) gray values, uint8; the export writes gray as R = G = B."""
    from PIL import Image

    try:
        with Image.open(bscan.file) as image:
            if image.size != (bscan.width, bscan.height):
                raise InputError(
                    f"{bscan.file}: {image.size[0]} x {image.size[1]} pixels where the XML says "
                    f"{bscan.width} x {bscan.height}; export the volume again"
                )
            return np.asarray(image.convert("L"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{bscan.file}: not a readable image ({error}); export it again"
        ) from error


def _check_raster(xml: Path, bscans: list[_BScan], lines: np.ndarray) -> None:
    """Refuse what would be read in a wrong order: gaps, and lines that do not run along x."""
    numbers = [bscan.number for bscan in bscans]
    expected = list(range(numbers[0], numbers[0] + len(numbers)))
    if numbers != expected:
        odd = next(n for n, e in zip(numbers, expected, strict=True) if n != e)
        raise InputError(f"{xml}: B-scans are missing or doubled around number {odd}; export again")
    along_x = np.abs(lines[:, 2] - lines[:, 0])
    if (np.abs(lines[:, 3] - lines[:, 1]) > along_x).any():
        raise InputError(f"{xml}: its B-scans run vertically; only horizontal ones can be used")
    lateralities = {bscan.laterality for bscan in bscans}
    if len(lateralities) > 1 or not lateralities <= {"R", "L", ""}:
        raise InputError(f"{xml}: laterality is neither R nor L throughout; export again")


def _spacing(xml: Path, bscans: list[_BScan], lines: np.ndarray) -> tuple[float, float, float]:
    sizes = {(bscan.width, bscan.height) for bscan in bscans}
    if len(sizes) > 1:
        raise InputError(f"{xml}: B-scans of different sizes {sorted(sizes)}; export them apart")
    starts, ends = lines[:, :2], lines[:, 2:]
    lateral = float(np.median(np.linalg.norm(ends - starts, axis=1))) / bscans[0].width
    axial = bscans[0].axial_mm
    if abs(axial - SPECTRALIS_AXIAL_MM) < 5e-5:
        axial = SPECTRALIS_AXIAL_MM
    between = 0.0
    if len(bscans) > 1:
        between = float(np.median(np.linalg.norm(np.diff(starts, axis=0), axis=1)))
    return between, axial, lateral
