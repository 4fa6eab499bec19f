"""Heidelberg HEYEX XML export: a folder with one XML file and one TIFF per B-scan.

What the XML says and what is true: image paths are Windows paths of the exporting machine, only
their base name counts; the B-scan order is `ImageNumber` (0 is the infrared localizer); laterality
sits under each image; `ScaleX` and `ScaleY` are rounded to 0.1 um. A B-scan along a line has
`Start` and `End`, one along a circle `Start` and `Center` (so LibOctData reads them), in mm on the
fundus.
"""

import ntpath
import reprlib
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from preprocessing.errors import InputError
from preprocessing.readers.images import FORMATS
from preprocessing.readers.scan_lines import agreed_mm, corrected, lay_out
from preprocessing.untrusted import check_total, parsing
from preprocessing.volume import Volume, rows_within

NAME = "HEYEX XML"

# The Spectralis digitises 1.92 mm of depth into 496 pixels; its XML rounds that to 0.0039.
SPECTRALIS_AXIAL_MM = 1.92 / 496
MAX_XML_BYTES = 20e6  # 241 B-scans of 768 columns with 11 layers take about 16e6
MAX_DIGITS = 12
MAX_SIDE_PX = 4096  # a B-scan of a Spectralis has up to 1536


@dataclass
class _BScan:
    number: int
    file: Path
    width: int
    height: int
    lateral_mm: float
    axial_mm: float
    circle: bool
    line_mm: tuple[float, ...]  # start x, start y, end (of a circle: centre) x, y
    laterality: str
    layers: dict[str, np.ndarray]


def matches(path: Path) -> bool:
    """Tell whether `path` is an XML file or a folder that holds one."""
    if path.is_dir():
        return bool(_xml_files(path))
    return path.suffix.lower() == ".xml"


def read(path: Path) -> Volume:
    """Read an export, given its folder or its XML file; a circle gets no `bscan_lines_mm`.

    A sidecar (`oct.yaml` in the folder, `NAME.yaml` beside a named XML file) corrects it.
    Raises InputError when the XML, a TIFF or the geometry is missing or damaged.
    """
    xml = _only_xml(path) if path.is_dir() else path
    bscans, device = _parse(xml)
    _check(xml, bscans)
    first = bscans[0]
    lines = np.array([bscan.line_mm for bscan in bscans])
    layout = lay_out(xml, lines, first.width, first.circle)
    if layout.from_the_top:
        bscans, lines = bscans[::-1], lines[::-1]
    data = np.empty((len(bscans), first.height, first.width), np.float32)
    for bscan, pixels in zip(bscans, data, strict=True):
        np.divide(_read_tiff(bscan), np.float32(255), out=pixels)
    rounded = abs(first.axial_mm - SPECTRALIS_AXIAL_MM) < 5e-5
    volume = Volume(
        data=data,
        spacing_mm=(
            layout.between_mm,
            SPECTRALIS_AXIAL_MM if rounded else first.axial_mm,
            agreed_mm(layout.lateral_mm, first.lateral_mm),
        ),
        valid=np.ones(data.shape, bool),
        eye=first.laterality,
        intensity="display",
        bscan_lines_mm=None if first.circle else lines,
        bscans_reversed=layout.from_the_top,
        scan_pattern=layout.pattern,
        vendor_layers=_layers(bscans),
        device=device,
        source_format=NAME,
    )
    return corrected(path, volume)


def _xml_files(folder: Path) -> list[Path]:
    return sorted(
        file for file in folder.iterdir() if file.suffix.lower() == ".xml" and file.is_file()
    )


def _only_xml(folder: Path) -> Path:
    files = _xml_files(folder)
    if len(files) > 1:
        raise InputError(f"{folder}: {len(files)} XML files; name the one to read in column 'path'")
    return files[0]


def _parse(xml: Path) -> tuple[list[_BScan], str]:
    from defusedxml.ElementTree import parse

    if xml.stat().st_size > MAX_XML_BYTES:
        raise InputError(f"{xml}: too large for the XML file of an export; export it again")
    with parsing(xml, "XML file"):
        root = parse(xml, forbid_dtd=True).getroot()
    all_series = list(root.iter("Series"))
    if root.tag != "HEDX" or len(all_series) != 1:
        raise InputError(
            f"{xml}: not a HEYEX export of one scan ({len(all_series)} series); export each apart"
        )
    series = all_series[0]
    names = {
        file.name.lower(): file
        for file in xml.parent.iterdir()
        if file.suffix.lower() in FORMATS and file.is_file()
    }
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
    shown = reprlib.repr(number)
    name = ntpath.basename(image.findtext("ImageData/ExamURL", ""))
    if name.lower() not in names:
        raise InputError(
            f"{xml}: B-scan {shown} names {reprlib.repr(name)}, which is no image file in its "
            "folder; export the scan again"
        )
    try:
        context = image.find("OphthalmicAcquisitionContext")
        circle = context.find("End") is None and context.find("Center") is not None
        return _BScan(
            number=_whole(number),
            file=names[name.lower()],
            width=_whole(context.findtext("Width")),
            height=_whole(context.findtext("Height")),
            lateral_mm=float(context.findtext("ScaleX")),
            axial_mm=float(context.findtext("ScaleY")),
            circle=circle,
            line_mm=tuple(
                float(context.findtext(f"{point}/Coord/{axis}"))
                for point in ("Start", "Center" if circle else "End")
                for axis in ("X", "Y")
            ),
            laterality=image.findtext("Laterality", "").strip().upper()[:1],
            layers={
                line.findtext("Name"): np.array(line.findtext("Array").split(), np.float32)
                for line in image.iter("SegLine")
            },
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{xml}: size, scale, position or a layer of B-scan {shown} is missing or not a "
            "number; export the scan again"
        ) from error


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError("too long for a number")
    return int(text)


def _read_tiff(bscan: _BScan) -> np.ndarray:
    """Return the (z, x) gray values, uint8; the export writes gray as R = G = B."""
    from PIL import Image

    formats = list(FORMATS.values())
    with parsing(bscan.file, "image"), Image.open(bscan.file, formats=formats) as image:
        size = image.size
        if size == (bscan.width, bscan.height):
            return np.asarray(image.convert("L"))
    raise InputError(
        f"{bscan.file}: {size[0]} x {size[1]} pixels where the XML says {bscan.width} x "
        f"{bscan.height}; export the scan again"
    )


def _check(xml: Path, bscans: list[_BScan]) -> None:
    """Refuse what does not make one volume: gaps, and B-scans of different kinds."""
    numbers = [bscan.number for bscan in bscans]
    expected = list(range(numbers[0], numbers[0] + len(numbers)))
    if numbers != expected:
        odd = next(n for n, e in zip(numbers, expected, strict=True) if n != e)
        raise InputError(f"{xml}: B-scans are missing or doubled around number {odd}; export again")
    if len({bscan.file for bscan in bscans}) < len(bscans):
        raise InputError(f"{xml}: two B-scans name the same image; export again")
    lateralities = {bscan.laterality for bscan in bscans}
    if len(lateralities) > 1 or not lateralities <= {"R", "L", ""}:
        raise InputError(f"{xml}: laterality is neither R nor L throughout; export again")
    sizes = {(bscan.width, bscan.height) for bscan in bscans}
    if len(sizes) > 1:
        raise InputError(f"{xml}: B-scans of different sizes {sorted(sizes)}; export them apart")
    if not all(0 < side <= MAX_SIDE_PX for side in sizes.pop()):
        raise InputError(
            f"{xml}: B-scans of {bscans[0].width} x {bscans[0].height} pixels; export again"
        )
    check_total(xml, len(bscans) * bscans[0].width * bscans[0].height)
    if len({bscan.circle for bscan in bscans}) > 1:
        raise InputError(f"{xml}: circles and lines in one scan; export each pattern apart")
    for bscan in bscans:
        if any(rows.size != bscan.width for rows in bscan.layers.values()):
            raise InputError(
                f"{xml}: a layer of B-scan {bscan.number} has not {bscan.width} values; "
                "export again"
            )


def _layers(bscans: list[_BScan]) -> dict[str, np.ndarray]:
    """Return the vendor's surfaces (b, x) by name, NaN where a B-scan has none."""
    names = dict.fromkeys(name for bscan in bscans for name in bscan.layers if name)
    unknown = np.full(bscans[0].width, np.nan, np.float32)
    n_z = bscans[0].height
    layers = {name: np.stack([b.layers.get(name, unknown) for b in bscans]) for name in names}
    return {name: rows_within(rows, n_z) for name, rows in layers.items()}
