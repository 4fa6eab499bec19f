"""No output says who was scanned or when; the real files and planted identities are searched for.

The public files are pseudonymised, so what a clinic's files would hold is written into copies.
"""

import datetime
import re
import shutil
import struct
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pydicom
import pytest
from conftest import plain_bytes
from format_writers import matlab_vol, opt
from PIL import Image

from preprocessing.cli import run_command
from preprocessing.volume import Volume, write_volume

MIN_CHARACTERS = 5  # fewer occur by chance among the bytes of an image
BORN, EXAMINED = datetime.date(1957, 11, 23), datetime.date(2019, 3, 28)
NAME = "Zyxwvutson"
PLANTED = {  # by tag of the HEYEX XML
    "LastName": NAME,
    "FirstNames": "Hildegarda",
    "PatientID": "QJ-7731942",
    "ID": "8846213",
    "Operator": "Dr Mabuse",
    "PatientUID": "LOC-44127.0af3c2d1",
    "StudyUID": "1.2.276.0.33.1.0.4.55021",
    "SeriesUID": "LOC-44127.77be0192",
    "ReferringPhysician": "Caligari",
    "StudyDescription": "diabetes since 2007",
}


def dates_as_text(day: datetime.date) -> list[str]:
    formats = ("%Y-%m-%d", "%Y%m%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%Y/%m/%d")
    return [day.strftime(form) for form in formats]


def leaks(files: list[Path], secrets: list[str | bytes], printed: str = "") -> list[tuple]:
    """Return (where, secret) for every secret found in a file or in what was printed."""
    contents = {file.name: plain_bytes(file) for file in files}
    contents |= {f"name of {file.name}": file.name.encode() for file in files}
    for file in files:
        if file.suffix == ".png":
            with Image.open(file) as image:
                contents[f"texts in {file.name}"] = str(image.info).encode()
    contents["printed"] = printed.encode()
    found = []
    for secret in secrets:
        forms = [secret]
        if isinstance(secret, str):
            forms = [secret.encode(), secret.encode("utf-16-le"), secret.encode("utf-16-be")]
        found += [(where, secret) for where, text in contents.items() for f in forms if f in text]
    return found


def run(stage: str, **options) -> None:
    """Run a stage as a command: `inputs=x` is `--inputs x`."""
    arguments = [stage]
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{name.replace('_', '-')}", *map(str, values)]
    assert run_command("preprocessing", {stage: ""}, arguments) == 0


def run_all_stages(source: Path, out: Path) -> list[Path]:
    """Push one volume through every stage to patches; return all files."""
    names = ("volume", "normalised", "resampled", "flat")
    volume, normalised, resampled, flat = (out / f"{name}.nii.gz" for name in names)
    layers = out / "layers.npz"
    run("load", input=source, volume="v1", patient="p1", output=volume)
    run("normalise", input=volume, output=normalised)
    run("resample", input=normalised, output=resampled)
    run("segment", input=resampled, output=layers)
    pictures = {"picture": out / "layers.png", "enface": out / "enface.png"}
    run("qc", input=resampled, layers=layers, output=out / "qc.tsv")
    run("qc_pictures", input=resampled, layers=layers, qc=out / "qc.tsv", **pictures)
    run("flatten", input=resampled, layers=layers, output=flat)
    run("patches", inputs=flat, labels="healthy", split="train", total=20, output=out / "p.h5")
    return [file for file in out.rglob("*") if file.is_file()]


def copy_of_export(source: Path, target: Path, n_bscans: int) -> list[str]:
    """Copy a HEYEX export cut to its first B-scans, identities planted; return all identities."""
    target.mkdir(parents=True)
    tree = ElementTree.parse(next(source.glob("*.xml")))
    patient = next(tree.iter("Patient"))
    series = next(tree.iter("Series"))
    real = [item.text for item in tree.iter() if item.tag in PLANTED and item.text]
    for tag, text in PLANTED.items():
        parent = series if tag.startswith("Series") else patient
        for item in [*tree.iter(tag), ElementTree.SubElement(parent, tag)]:
            item.text = text
    for tag, day in (("Birthdate", BORN), ("StudyDate", EXAMINED), ("ExamDate", EXAMINED)):
        for item in [*tree.iter(tag), ElementTree.SubElement(patient, tag)]:
            item.text = day.isoformat()
    files = {file.name.lower(): file for file in source.iterdir()}
    for image in series.findall("Image"):
        number = int(image.findtext("ImageNumber"))
        if number > n_bscans:
            series.remove(image)
            continue
        name = re.split(r"[\\/]", image.findtext("ImageData/ExamURL"))[-1]
        real += [Path(name).stem, image.findtext("AcquisitionTime/Time/Second")]
        if number:
            shutil.copy(files[name.lower()], target / name)
    xml = target / "export.xml"
    tree.write(xml)
    planted = [*PLANTED.values(), BORN.isoformat(), EXAMINED.isoformat()]
    assert all(text in xml.read_text() for text in planted)
    original = next(source.glob("*.xml")).read_text()
    real = [text for text in real if len(text) >= MIN_CHARACTERS]
    assert real
    assert all(text in original for text in real)
    return [*real, *planted, *dates_as_text(BORN), *dates_as_text(EXAMINED)]


def test_no_identity_of_a_heyex_export_reaches_an_output(real_data, tmp_path, capfd):
    source = tmp_path / f"{NAME}, Hildegarda 1957-11-23"  # clinics name folders so
    original = real_data / "heyex_volumes" / "healthy_subject2"
    secrets = copy_of_export(original, source, n_bscans=5)
    files = run_all_stages(source, tmp_path / "out")
    assert len(files) > 20
    printed = capfd.readouterr()
    assert "v1" in printed.out
    assert not leaks(files, secrets, printed.out + printed.err)


TEXTS_OF_VOL = {104: 16, 120: 16, 140: 21, 176: 24, 224: 34}  # offset: bytes
NUMBERS_OF_VOL = (88, 164, 200)  # examined, born, visited: 8 bytes each


def test_no_identity_of_a_vol_file_reaches_an_output(real_data, tmp_path, capfd):
    original = (real_data / "spectralis_vol" / "Willis_B_716_2.vol").read_bytes()
    assert original[140:145] == b"01234"  # the patient's id
    raw = bytearray(original)
    for n, (offset, length) in enumerate(TEXTS_OF_VOL.items()):
        raw[offset : offset + length] = f"{NAME}{n}".encode().ljust(length, b"\0")
    days = [(day - datetime.date(1899, 12, 30)).days for day in (BORN, EXAMINED)]
    moment = datetime.datetime.combine(EXAMINED, datetime.time(9, 41, 7))
    ticks = (moment - datetime.datetime(1601, 1, 1)) // datetime.timedelta(microseconds=1) * 10
    struct.pack_into("<q", raw, 88, ticks)
    struct.pack_into("<d", raw, 164, days[0])
    struct.pack_into("<d", raw, 200, days[1])
    numbers = [
        bytes(version[offset : offset + 8])
        for version in (raw, original)
        for offset in NUMBERS_OF_VOL
    ]
    source, out = tmp_path / NAME / "scan.vol", tmp_path / "out"
    source.parent.mkdir()
    source.write_bytes(raw)
    assert source.read_bytes().count(NAME.encode()) == len(TEXTS_OF_VOL)
    run("load", input=source, volume="v1", patient="p1", output=out / "volume.nii.gz")
    run("normalise", input=out / "volume.nii.gz", output=out / "normalised.nii.gz")
    files = list(out.iterdir())
    assert len(files) == 10
    printed = capfd.readouterr()
    numbers = [number for number in numbers if number.strip(b"\0")]
    texts = [NAME, *dates_as_text(BORN), *dates_as_text(EXAMINED), str(ticks)]
    assert not leaks(files, [*numbers, *texts], printed.out + printed.err)


PLANTED_IN_DICOM = {
    "PatientName": f"{NAME}^Hildegarda",
    "PatientID": "QJ-7731942",
    "PatientBirthDate": f"{BORN:%Y%m%d}",
    "PatientComments": "diabetes since 2007",
    "AcquisitionDateTime": f"{EXAMINED:%Y%m%d}094107",
    "StudyDate": f"{EXAMINED:%Y%m%d}",
    "AccessionNumber": "8846213",
    "InstitutionName": "Klinik Nosferatu",
    "OperatorsName": "Dr Mabuse",
    "ReferringPhysicianName": "Caligari",
    "DeviceSerialNumber": "SN-551-20398",
    "StudyInstanceUID": "1.2.276.0.33.1.0.4.55021",
    "SeriesDescription": f"OCT of {NAME}",
    "ImageComments": f"{NAME} moved",
}


def planted_dicom(folder: Path) -> tuple[Path, list[str]]:
    source = opt(folder, **PLANTED_IN_DICOM)
    data = pydicom.dcmread(source)
    for group in (data, data.PerFrameFunctionalGroupsSequence[0]):
        group.private_block(0x0099, "MAKER", create=True).add_new(1, "LO", f"{NAME} private")
    data.save_as(source)
    return source, [*PLANTED_IN_DICOM.values(), "Hildegarda"]


def planted_mat(folder: Path) -> tuple[Path, list[str]]:
    texts = {"PatientID": "QJ-7731942", "VisitID": "LOC-44127.0af3", "ID": f"{NAME}, Hildegarda"}
    source = matlab_vol(folder, **texts, Info={"Name": "Caligari"}, Birthdate=f"{BORN}")
    raw = bytearray(source.read_bytes())
    raw[:116] = f"MATLAB 5.0 {NAME} Klinik Nosferatu {EXAMINED}".encode().ljust(116)
    source.write_bytes(raw)
    return source, [*texts.values(), "Caligari", "Nosferatu"]


@pytest.mark.parametrize("planted", [planted_dicom, planted_mat])
def test_no_identity_of_a_file_with_text_fields_reaches_an_output(tmp_path, capfd, planted):
    folder = tmp_path / NAME
    folder.mkdir()
    source, secrets = planted(folder)
    raw = source.read_bytes()
    assert all(text.encode() in raw or text.encode("utf-16-le") in raw for text in secrets)
    out = tmp_path / "out"
    run("load", input=source, volume="v1", patient="p1", output=out / "volume.nii.gz")
    files = list(out.iterdir())
    assert len(files) == 5
    printed = capfd.readouterr()
    assert "v1" in printed.out
    secrets = [NAME, *secrets, *dates_as_text(BORN), *dates_as_text(EXAMINED)]
    assert not leaks(files, secrets, printed.out + printed.err)


def test_a_leak_would_be_found(tmp_path):
    gray = np.zeros((1, 3, 4), np.float32)
    layers = {NAME: np.zeros((1, 4), np.float32)}
    volume = Volume(gray, (0, 1, 1), gray == 0, device=NAME, vendor_layers=layers)
    write_volume(volume, tmp_path / "a.nii.gz")
    Image.new("L", (2, 2)).save(tmp_path / f"{NAME}.png")
    where = {name for name, _ in leaks(list(tmp_path.iterdir()), [NAME], printed=NAME)}
    assert where == {"a.json", "a.vendor.npz", f"name of {NAME}.png", "printed"}


@pytest.mark.parametrize("code", ["utf-16-le", "utf-16-be", "ascii"])
def test_a_leak_is_found_in_every_encoding(tmp_path, code):
    (tmp_path / "log.txt").write_bytes(b"\1" + NAME.encode(code))
    assert leaks([tmp_path / "log.txt"], [NAME])
