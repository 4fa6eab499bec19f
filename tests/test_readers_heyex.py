"""HEYEX XML exports: order, geometry, layers and every kind of damage."""

import json
import os
import time

import numpy as np
import pytest
from conftest import plain_bytes
from fuzzing import check_consistent, fuzz, read_or_refuse
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from preprocessing import untrusted
from preprocessing.cli import run_command
from preprocessing.errors import InputError
from preprocessing.readers import read_vendor_volume
from preprocessing.readers.vol import LAYERS

XML_IMAGE = """<Image><ImageNumber>{number}</ImageNumber><Laterality>{eye}</Laterality>
<ImageType><Type>{kind}</Type></ImageType>
<OphthalmicAcquisitionContext><Width>{width}</Width><Height>{height}</Height>
<ScaleX>0.0117</ScaleX><ScaleY>0.0039</ScaleY>
<Start><Coord><X>1.000</X><Y>{y}</Y></Coord></Start><End><Coord><X>2.200</X><Y>{y}</Y></Coord></End>
</OphthalmicAcquisitionContext>
<ImageData><ExamURL>file:///C:\\Exports of X\\{name}</ExamURL></ImageData>{layers}</Image>"""


@pytest.fixture
def heyex(tmp_path, rng):
    """A HEYEX export of 4 B-scans (80 x 100), listed out of order, with its gray values."""
    pixels = rng.integers(1, 255, (4, 80, 100), dtype=np.uint8)
    localizer = {"number": 0, "kind": "LOCALIZER", "width": 9, "height": 9, "y": 0}
    images = [XML_IMAGE.format(**localizer, eye="R", name="ir.tif", layers="")]
    for b in (2, 0, 3, 1):
        name = f"A{b}F.tif"
        ilm = " ".join(["3e+038", *["12.5"] * 98, str(b)])
        line = f"<SegLine><Name>ILM</Name><Array>{ilm}</Array></SegLine>" if b != 3 else ""
        values = {"number": b + 1, "kind": "OCT", "width": 100, "height": 80, "y": 5 - 0.25 * b}
        images.append(XML_IMAGE.format(**values, eye="R", name=name, layers=line))
        rgb = np.repeat(pixels[b][:, :, None], 3, axis=2)
        target = tmp_path / name.lower().replace("tif", "TIF")
        Image.fromarray(rgb).save(target, compression="tiff_lzw")
    xml = (
        "<HEDX><BODY><Patient><LastName>Zyxwvut</LastName><Study><Series><Type>Volume</Type>"
        "<GeneralEquipment><Manufacturer>Heidelberg Engineering</Manufacturer>"
        "<ManufacturerModelName>Spectralis</ManufacturerModelName></GeneralEquipment>"
        f"{''.join(images)}</Series></Study></Patient></BODY></HEDX>"
    )
    (tmp_path / "export.xml").write_text(xml)
    return tmp_path, pixels


def replace(folder, *changes):
    xml = folder / "export.xml"
    text = xml.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    xml.write_text(text)


def place_bscans(folder, ends):
    """Give the four B-scans other positions: (start x, start y, end x, end y) as text."""
    line = "<X>1.000</X><Y>{y}</Y></Coord></Start><End><Coord><X>2.200</X><Y>{y}</Y>"
    new = "<X>{}</X><Y>{}</Y></Coord></Start><End><Coord><X>{}</X><Y>{}</Y>"
    replace(
        folder,
        *((line.format(y=5 - 0.25 * b), new.format(*ends[b])) for b in range(4)),
    )


def test_heyex_order_orientation_spacing(heyex):
    folder, pixels = heyex
    volume = read_vendor_volume(folder)
    np.testing.assert_array_equal(np.rint(volume.data * 255), pixels)
    np.testing.assert_allclose(
        volume.spacing_mm, (0.25, 1.92 / 496, 0.012)
    )  # not the rounded 0.0117
    assert (volume.eye, volume.device) == ("R", "Heidelberg Engineering Spectralis")
    ilm = volume.vendor_layers["ILM"]
    assert np.isnan(ilm[:, 0]).all()
    np.testing.assert_array_equal(ilm[:, 99], [0, 1, 2, np.nan])
    assert volume.scan_pattern == "raster"


def test_no_name_in_an_export_reaches_an_output(heyex, tmp_path, capsys):
    folder, _ = heyex
    ids = ["--volume", "v", "--patient", "p", "--output", str(tmp_path / "out" / "v.nii.gz")]
    assert run_command("preprocessing", {"load": ""}, ["load", "--input", str(folder), *ids]) == 0
    assert "Zyxwvut" in (folder / "export.xml").read_text()
    assert "Zyxwvut" not in "".join(capsys.readouterr())
    written = list((tmp_path / "out").iterdir())
    assert len(written) == 5
    for file in written:
        for secret in (b"Zyxwvut", b"Exports of X"):
            assert secret not in plain_bytes(file)


def test_heyex_scanned_from_the_top_is_turned(heyex):
    folder, pixels = heyex
    place_bscans(folder, [(1, 5 + b / 4, 2.2, 5 + b / 4) for b in range(4)])
    volume = read_vendor_volume(folder)
    np.testing.assert_array_equal(np.rint(volume.data * 255), pixels[::-1])
    np.testing.assert_array_equal(volume.vendor_layers["ILM"][:, 99], [np.nan, 2, 1, 0])
    assert volume.bscans_reversed


def test_other_heyex_patterns_are_marked(heyex):
    folder, pixels = heyex
    place_bscans(folder, [(4 + b / 4, 2.2, 4 + b / 4, 1) for b in range(4)])
    volume = read_vendor_volume(folder)
    assert volume.scan_pattern == "vertical"
    assert volume.spacing_mm[0] == pytest.approx(0.25)
    np.testing.assert_array_equal(np.rint(volume.data * 255), pixels)


def test_heyex_circle_is_read_and_marked(heyex):
    folder, pixels = heyex
    xml = folder / "export.xml"
    text = xml.read_text()
    images = ["<Image>" + part for part in text.split("<Image>")[1:]]
    circle = next(image for image in images if "<ImageNumber>1<" in image)
    circle = circle.replace("<End>", "<Center>").replace("</End>", "</Center>")
    circle = circle.replace(">2.200<", ">1.186<")  # 2 pi 0.186 mm = 100 pixels of 0.0117 mm
    xml.write_text(
        text[: text.index("<Image>")] + circle + "</Series></Study></Patient></BODY></HEDX>"
    )
    volume = read_vendor_volume(folder)
    assert volume.scan_pattern == "circle"
    assert volume.bscan_lines_mm is None
    assert volume.spacing_mm[2] == pytest.approx(0.0117, abs=1e-4)
    np.testing.assert_array_equal(np.rint(volume.data[0] * 255), pixels[0])


@pytest.mark.parametrize("sidecar", ["oct.yaml", "export.yaml"])
def test_a_sidecar_of_a_heyex_export_has_the_last_word(heyex, sidecar):
    folder, pixels = heyex
    facts = {"laterality": "L", "device": "Other", "spacing_mm": [0.2, 0.003, 0.01]}
    (folder / sidecar).write_text(json.dumps(facts))
    volume = read_vendor_volume(folder if sidecar == "oct.yaml" else folder / "export.xml")
    assert (volume.eye, volume.device) == ("L", "Other")
    assert volume.spacing_mm == (0.2, 0.003, 0.01)
    np.testing.assert_array_equal(np.rint(volume.data * 255), pixels)


@pytest.mark.parametrize("key", ["bscan_order: superior-first", "scan_pattern: line"])
def test_a_sidecar_cannot_contradict_positions(heyex, key):
    folder, _ = heyex
    (folder / "oct.yaml").write_text(key)
    with pytest.raises(InputError, match=f"'{key.partition(':')[0]}'.* laterality, device"):
        read_vendor_volume(folder)


def test_only_regular_image_files_are_opened(heyex):
    folder, _ = heyex
    image = folder / "a2f.TIF"
    image.unlink()
    os.mkfifo(image)
    with pytest.raises(InputError, match=r"'A2F\.tif', which is no image"):
        read_vendor_volume(folder)
    image.unlink()
    image.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 80\n%%EndComments\n")
    with pytest.raises(InputError, match="cannot identify image file"):
        read_vendor_volume(folder)


def test_more_than_any_scan_has_is_refused_before_it_is_read(heyex, monkeypatch):
    folder, _ = heyex
    monkeypatch.setattr(untrusted, "MAX_VOXELS", 4 * 80 * 100 - 1)
    with pytest.raises(InputError, match="more than can be read"):
        read_vendor_volume(folder)


def test_a_folder_named_like_an_xml_file_is_a_folder(heyex, tmp_path):
    (tmp_path / "empty.xml").mkdir()
    with pytest.raises(InputError, match=r"empty\.xml: "):
        read_vendor_volume(tmp_path / "empty.xml")
    named = tmp_path.parent / f"{tmp_path.name}.xml"
    tmp_path.rename(named)
    assert read_vendor_volume(named).data.shape == (4, 80, 100)


BOMB = (
    "<!DOCTYPE a [<!ENTITY b 'bbbb'>"
    + "".join(f"<!ENTITY b{n} '{f'&b{n - 1};' * 9}'>" for n in range(1, 12)).replace("&b0;", "&b;")
    + "]><HEDX>&b11;</HEDX>"
)


LONG = "9" * 4000


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "a2f.TIF").unlink(), r"A2F.tif"),
        (lambda f: cut(f / "a2f.TIF", 3000), "a2f.TIF"),
        (lambda f: cut(f / "a2f.TIF", 0), "a2f.TIF"),
        (lambda f: cut(f / "export.xml", 900), "not a readable XML"),
        (lambda f: Image.new("L", (5, 5)).save(f / "a2f.TIF"), "5 x 5 pixels where"),
        (lambda f: (f / "export.xml").write_text("<HEDX><BODY>"), "not a readable XML"),
        (lambda f: (f / "export.xml").write_text(""), "not a readable XML"),
        (lambda f: (f / "export.xml").write_text("<A></A>"), "not a HEYEX export"),
        (lambda f: (f / "export.xml").write_text(BOMB), "not a readable XML"),
        (lambda f: (f / "second.xml").write_text("<A/>"), "2 XML files"),
        (lambda f: replace(f, ("<Width>100", "<Width>many")), "not a number"),
        (lambda f: replace(f, ("<Width>100", "<Width>2147483647")), "2147483647 x 80 pixels"),
        (lambda f: replace(f, ("<Width>100", "<Width>-1")), "-1 x 80 pixels"),
        (lambda f: replace(f, ("<Height>80", "<Height>0")), "100 x 0 pixels"),
        (lambda f: replace(f, ("<X>2.200", "<X>nan")), "no position"),
        (lambda f: replace(f, ("<X>2.200", "<X>1e300")), "no position"),
        (lambda f: replace(f, ("<X>2.200", "<X>1.000")), "no length"),
        (lambda f: replace(f, ("<ImageNumber>3", "<ImageNumber>9")), "missing or doubled"),
        (lambda f: replace(f, ("<ImageNumber>3", "<ImageNumber>2")), "missing or doubled"),
        (lambda f: replace(f, ("A2F.tif", "A1F.tif")), "the same image"),
        (lambda f: replace(f, ("<Laterality>R", "<Laterality>X")), "neither R nor L"),
        (lambda f: replace(f, ("</Series>", "</Series><Series></Series>")), "2 series"),
        (lambda f: replace(f, ("3e+038 12.5", "12.5")), "has not 100 values"),
        (lambda f: replace(f, ("3e+038", "many")), "not a number"),
        (lambda f: replace(f, ("<ImageNumber>3", f"<ImageNumber>{LONG}")), "not a number"),
        (lambda f: replace(f, ("<Width>100", f"<Width>{LONG}")), "not a number"),
        (lambda f: replace(f, ("A2F.tif", f"{LONG}.tif")), "which is no image"),
        (lambda f: (f / "export.xml").write_text(f"<HEDX>{' ' * 20_000_000}</HEDX>"), "too large"),
    ],
)
def test_damaged_heyex_ends_in_one_clear_error(heyex, damage, message):
    folder, _ = heyex
    damage(folder)
    start = time.perf_counter()
    with pytest.raises(InputError, match=message) as error:
        read_vendor_volume(folder)
    assert time.perf_counter() - start < 1
    assert len(str(error.value).replace(str(folder), "")) < 200


@fuzz
@given(data=st.data())
def test_no_damage_of_a_heyex_xml_does_harm(heyex, data):
    folder, _ = heyex
    copy = folder / "damaged.xml"
    raw = bytearray((folder / "export.xml").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        values = st.sampled_from([b"nan", b"inf", b"-1", b"0", b"1e999", b"99999999999", b"", b"<"])
        patch = data.draw(values | st.binary(min_size=1, max_size=3))
        raw[place : place + data.draw(st.integers(0, 9))] = patch
    copy.write_bytes(raw)
    read_or_refuse(copy)


@fuzz
@given(data=st.data())
def test_no_damage_of_a_tiff_does_harm(heyex, data):
    folder, _ = heyex
    tiff = folder / "a2f.TIF"
    good = tiff.read_bytes()
    raw = bytearray(good)
    header = [*range(8), *range(len(raw) - 300, len(raw))]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(header) | st.integers(0, len(raw) - 1))
        patch = data.draw(st.binary(min_size=1, max_size=4))
        raw[place : place + len(patch)] = patch
    tiff.write_bytes(raw)
    try:
        read_or_refuse(folder)
    finally:
        tiff.write_bytes(good)


@pytest.mark.parametrize(
    ("name", "eye", "lateral_mm"),
    [
        ("healthy_subject1", "R", 0.011693),
        ("healthy_subject2", "R", 0.011461),
        ("AMD_patient1", "L", 0.012135),
        ("AMD_patient2", "R", 0.011223),
    ],
)
def test_real_heyex_volumes(real_data, name, eye, lateral_mm):
    volume = read_vendor_volume(real_data / "heyex_volumes" / name)
    assert volume.data.shape == (49, 496, 512)
    assert volume.eye == eye
    assert volume.spacing_mm[2] == pytest.approx(lateral_mm, abs=1e-6)
    assert 0.11 < volume.spacing_mm[0] < 0.13
    assert (np.diff(volume.bscan_lines_mm[:, 1]) < 0).all()
    # the fovea lies in the middle: the vitreous reaches deepest there, so orientation z is right
    assert volume.data[:, :100].mean() < volume.data[:, 200:300].mean()


def test_eyepys_own_heyex_export(real_data):
    volume = read_vendor_volume(real_data / "eyepy_fixtures" / "heyex_xml" / "test_volume")
    check_consistent(volume)
    assert volume.data.shape == (10, 40, 50)
    assert set(volume.vendor_layers) <= set(LAYERS)
    assert np.nanmax(volume.vendor_layers["ILM"]) == np.float32(9.6)
