import json

import numpy as np
import pytest
from conftest import plain_bytes
from PIL import Image

from preprocessing.errors import InputError
from preprocessing.load import canonical, mirror, read_annotation
from preprocessing.readers import read_vendor_volume
from preprocessing.validity import find_valid
from preprocessing.volume import Volume, read_volume, write_nifti

XML_IMAGE = """<Image><ImageNumber>{number}</ImageNumber><Laterality>{eye}</Laterality>
<ImageType><Type>{kind}</Type></ImageType>
<OphthalmicAcquisitionContext><Width>{width}</Width><Height>{height}</Height>
<ScaleX>0.0117</ScaleX><ScaleY>0.0039</ScaleY>
<Start><Coord><X>1.000</X><Y>{y}</Y></Coord></Start><End><Coord><X>2.200</X><Y>{y}</Y></Coord></End>
</OphthalmicAcquisitionContext>
<ImageData><ExamURL>file:///C:\\Exports of X\\{name}</ExamURL></ImageData></Image>"""


@pytest.fixture
def heyex(tmp_path, rng):
    """A HEYEX export of 4 B-scans (80 x 100), listed out of order, with its gray values."""
    pixels = rng.integers(1, 255, (4, 80, 100), dtype=np.uint8)
    images = [
        XML_IMAGE.format(number=0, eye="R", kind="LOCALIZER", width=9, height=9, y=0, name="ir.tif")
    ]
    for b in (2, 0, 3, 1):
        name = f"A{b}F.tif"
        y = 5 - 0.25 * b
        images.append(
            XML_IMAGE.format(
                number=b + 1, eye="R", kind="OCT", width=100, height=80, y=y, name=name
            )
        )
        rgb = np.repeat(pixels[b][:, :, None], 3, axis=2)
        Image.fromarray(rgb).save(
            tmp_path / name.lower().replace("tif", "TIF"), compression="tiff_lzw"
        )
    xml = (
        "<HEDX><BODY><Patient><LastName>Zyxwvut</LastName><Study><Series><Type>Volume</Type>"
        "<GeneralEquipment><Manufacturer>Heidelberg Engineering</Manufacturer>"
        "<ManufacturerModelName>Spectralis</ManufacturerModelName></GeneralEquipment>"
        f"{''.join(images)}</Series></Study></Patient></BODY></HEDX>"
    )
    (tmp_path / "export.xml").write_text(xml)
    return tmp_path, pixels


def load(source, output, *options) -> int:
    from preprocessing.cli import run_command

    ids = ["--volume", "v", "--patient", "p"]
    arguments = ["load", "--input", source, *ids, "--output", output, *options]
    return run_command("preprocessing", {"load": ""}, list(map(str, arguments)))


def test_heyex_order_orientation_spacing(heyex):
    folder, pixels = heyex
    volume = read_vendor_volume(folder)
    np.testing.assert_array_equal(np.rint(volume.data * 255), pixels)
    np.testing.assert_allclose(
        volume.spacing_mm, (0.25, 1.92 / 496, 0.012)
    )  # not the rounded 0.0117
    assert (volume.eye, volume.device) == ("R", "Heidelberg Engineering Spectralis")


def test_heyex_scanned_from_the_top_is_turned(heyex):
    folder, pixels = heyex
    xml = folder / "export.xml"
    text = xml.read_text()
    for old, new in (("4.75", "5.25"), ("4.5", "5.5"), ("4.25", "5.75")):
        text = text.replace(f"<Y>{old}</Y>", f"<Y>{new}</Y>")
    xml.write_text(text)
    volume = read_vendor_volume(folder)
    np.testing.assert_array_equal(np.rint(volume.data * 255), pixels[::-1])
    assert volume.bscans_reversed


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "a2f.TIF").unlink(), r"A2F.tif"),
        (lambda f: (f / "a2f.TIF").write_bytes((f / "a2f.TIF").read_bytes()[:3000]), "a2f.TIF"),
        (lambda f: Image.new("L", (5, 5)).save(f / "a2f.TIF"), "5 x 5 pixels where"),
        (lambda f: (f / "export.xml").write_text("<HEDX><BODY>"), "not a readable XML"),
        (lambda f: (f / "export.xml").write_text("<A></A>"), "not a HEYEX export"),
        (lambda f: (f / "export.xml").write_text(BOMB), "not a readable XML"),
        (lambda f: (f / "second.xml").write_text("<A/>"), "2 XML files"),
        (lambda f: replace(f, "<Type>Volume", "<Type>Circle"), "type 'Circle'"),
        (lambda f: replace(f, "<Width>100", "<Width>many"), "not a number"),
        (lambda f: replace(f, "<ImageNumber>3", "<ImageNumber>9"), "missing or doubled"),
        (lambda f: replace(f, "<ImageNumber>3", "<ImageNumber>2"), "missing or doubled"),
        (lambda f: replace(f, "2.200</X><Y>", "1.0</X><Y>1"), "run vertically"),
        (lambda f: replace(f, "<Laterality>R", "<Laterality>X"), "neither R nor L"),
        (lambda f: replace(f, "</Series>", "</Series><Series></Series>"), "2 series"),
    ],
)
def test_damaged_heyex_ends_in_one_clear_error(heyex, damage, message):
    folder, _ = heyex
    damage(folder)
    with pytest.raises(InputError, match=message):
        read_vendor_volume(folder)


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><HEDX>&c;</HEDX>'


def replace(folder, old, new):
    xml = folder / "export.xml"
    xml.write_text(xml.read_text().replace(old, new))


def test_no_name_of_the_patient_reaches_an_output(heyex, tmp_path):
    folder, _ = heyex
    out = tmp_path / "out" / "volume.nii.gz"
    assert load(folder, out) == 0
    for file in out.parent.iterdir():
        content = plain_bytes(file)
        assert b"Zyxwvut" not in content
        assert b"Exports of X" not in content


def write_nifti_volume(folder, rng, spacing=(0.12, 0.004, 0.012), shape=(3, 80, 60), sidecar=None):
    affine = np.diag([*spacing[::-1], 1])
    gray = rng.integers(1, 255, shape, dtype=np.uint8)
    write_nifti(gray, folder / "v.nii.gz", affine)
    if sidecar is not None:
        (folder / "v.json").write_text(json.dumps(sidecar))
    return folder / "v.nii.gz", gray


def test_nifti_with_sidecar_is_mirrored_and_back(tmp_path, rng):
    path, gray = write_nifti_volume(tmp_path, rng, sidecar={"laterality": "L", "device": "d"})
    mask = np.zeros(gray.shape, np.uint8)
    mask[1, 20:30, 5:9] = 1
    write_nifti(mask, tmp_path / "mask.nii.gz", np.eye(4))
    out = tmp_path / "out.nii.gz"
    options = ["--annotation", tmp_path / "mask.nii.gz", "--mirror-left-eyes"]
    assert load(path, out, *options) == 0
    volume = read_volume(out)
    assert volume.mirrored
    np.testing.assert_array_equal(volume.annotation, mask[:, :, ::-1])
    np.testing.assert_array_equal(np.rint(volume.data * 255), gray[:, :, ::-1])
    np.testing.assert_array_equal(np.rint(mirror(volume).data * 255), gray)


def test_a_single_bscan_is_a_volume(tmp_path, rng):
    path, _ = write_nifti_volume(tmp_path, rng, shape=(1, 80, 60))
    volume = canonical(read_vendor_volume(path), True)
    assert volume.data.shape == (1, 80, 60)
    assert volume.spacing_mm[0] == 0


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "no such file"),
        ("format", "not in a known OCT format"),
        ("spacing", "lateral (x) spacing is 1 mm"),
        ("nan", "every pixel is empty"),
        ("constant", "every pixel is empty"),
        ("small", "only 10 pixels along x"),
        ("eye", "the file says eye L, the sample sheet says R"),
        ("annotation", "annotation of shape"),
        ("values", "must be a mask"),
        ("sidecar", "unknown key 'name'"),
        ("laterality", "'laterality' is 'OS'; it must be R or L"),
        ("colour", "a colour image"),
    ],
)
def test_bad_input_ends_in_one_line_and_no_output(tmp_path, rng, capsys, case, message):
    path, _ = write_nifti_volume(tmp_path, rng, sidecar={"laterality": "L"})
    extra = []
    if case == "missing":
        path = tmp_path / "absent.nii.gz"
    elif case == "format":
        path = tmp_path / "v.doc"
        path.write_text("text")
    elif case == "spacing":
        write_nifti_volume(tmp_path, rng, spacing=(1, 0.004, 1))
    elif case == "nan":
        write_nifti(np.full((3, 80, 60), np.nan, np.float32), path, np.diag([0.012, 0.004, 0.1, 1]))
    elif case == "constant":
        write_nifti(np.full((3, 80, 60), 7, np.uint8), path, np.diag([0.012, 0.004, 0.1, 1]))
    elif case == "small":
        write_nifti_volume(tmp_path, rng, shape=(3, 80, 10))
    elif case == "eye":
        extra = ["--eye", "R"]
    elif case in ("annotation", "values"):
        mask = np.full((3, 80, 60 if case == "values" else 61), 3, np.uint8)
        write_nifti(mask, tmp_path / "a.nii.gz", np.eye(4))
        extra = ["--annotation", tmp_path / "a.nii.gz"]
    elif case == "sidecar":
        (tmp_path / "v.json").write_text('{"name": "Doe"}')
    elif case == "laterality":
        (tmp_path / "v.json").write_text('{"laterality": "OS"}')
    elif case == "colour":
        rgb = np.zeros((3, 80, 60), [("R", "u1"), ("G", "u1"), ("B", "u1")])
        write_nifti(rgb, path, np.diag([0.012, 0.004, 0.1, 1]))
    out = tmp_path / "out"
    code = load(path, out / "volume.nii.gz", *extra)
    error = capsys.readouterr().err
    assert code == 1
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_wedges_are_invalid_but_dark_vitreous_is_not(rng):
    data = rng.uniform(0.01, 0.9, (2, 100, 60)).astype(np.float32)
    data[:, 40:70, 20:40] = 0  # a shadow inside the scan is a measurement
    data[rng.random(data.shape) < 0.1] = 0
    wedge = np.zeros(data.shape, bool)
    for z in range(30):
        wedge[0, z, : 30 - z] = True  # black
        wedge[1, -1 - z, : 30 - z] = True  # white
    data[0][wedge[0]] = 0
    data[1][wedge[1]] = 1
    valid = find_valid(data, "display")
    assert (~valid[wedge]).mean() > 0.95
    assert valid[~wedge].mean() > 0.99
    assert valid[:, 40:70, 20:40].all()


def test_missing_linear_values_are_invalid():
    data = np.full((1, 50, 40), 1e-4, np.float32)
    data[0, :3] = 3.4028235e38
    data[0, 10, 5] = np.nan
    valid = find_valid(data, "linear")
    assert not valid[0, :3].any()
    assert not valid[0, 10, 5]
    assert valid.sum() == data.size - 3 * 40 - 1


@pytest.mark.parametrize("full", [1, 255])
def test_annotations_are_masks(tmp_path, full):
    mask = np.zeros((2, 5, 4), np.uint8)
    mask[1, 2, 3] = full
    write_nifti(mask, tmp_path / "a.nii.gz", np.eye(4))
    gray = np.zeros((2, 5, 4), np.float32)
    volume = Volume(gray, (0.1, 0.004, 0.01), gray == 0)
    read = read_annotation(tmp_path / "a.nii.gz", volume)
    assert read[1, 2, 3] == 1
    assert read.sum() == 1
    # a mask is drawn in the order of the export, which the reader may have turned
    assert (
        read_annotation(tmp_path / "a.nii.gz", volume.replace(bscans_reversed=True))[0, 2, 3] == 1
    )


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
