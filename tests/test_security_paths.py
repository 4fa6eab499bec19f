"""XML expands nothing, and no path in a file or sheet leads out of its folder."""

import re

import numpy as np
import pytest
from format_writers import PATTERN, image_folder, metaimage
from PIL import Image
from test_readers_heyex import XML_IMAGE

from planning.errors import PlanningError
from planning.sample_sheet import read_sample_sheet
from planning.sources import source_files
from preprocessing.errors import InputError
from preprocessing.readers import read_vendor_volume

SECRET = "this text stands in no scan"


@pytest.fixture
def secret(tmp_path):
    """A file beside the folder of the scans that nothing but its own path may reach."""
    path = tmp_path / "secret.txt"
    path.write_text(SECRET)
    return path


@pytest.fixture
def export(tmp_path):
    """The XML file of a HEYEX export of two B-scans."""
    folder = tmp_path / "scans"
    folder.mkdir()
    images = ""
    for b, bscan in enumerate(PATTERN[:2]):
        Image.fromarray(bscan).save(folder / f"a{b}.tif")
        values = {"number": b + 1, "kind": "OCT", "width": 40, "height": 70, "y": 5 - 0.25 * b}
        images += XML_IMAGE.format(**values, eye="R", name=f"a{b}.tif", layers="")
    path = folder / "export.xml"
    path.write_text(f"<HEDX><BODY><Series>{images}</Series></BODY></HEDX>")
    assert read_vendor_volume(path).data.shape == (2, 70, 40)
    return path


def rewrite(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


LAUGHS = '<!ENTITY l0 "ha">' + "".join(
    f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("declared", "used"),
    [
        (LAUGHS, "&l9;"),
        ('<!ENTITY long "' + "x" * 10**5 + '">', "&long;" * 1000),
        ('<!ENTITY out SYSTEM "file://{secret}">', "&out;"),
        ('<!ENTITY out PUBLIC "x" "{secret}">', "&out;"),
        ('<!ENTITY % out SYSTEM "file://{secret}"> %out;', "R"),
        ('<!ENTITY eye "R">', "R"),  # declared, not used
        ("<!ELEMENT HEDX ANY>", "R"),
    ],
    ids=["laughs", "quadratic", "external", "public", "parameter", "unused", "plain"],
)
def test_xml_with_declarations_is_refused(export, secret, declared, used):
    rewrite(export, "<Laterality>R", f"<Laterality>{used}")
    declared = declared.replace("{secret}", str(secret))
    export.write_text(f"<!DOCTYPE HEDX [{declared}]>\n{export.read_text()}")
    with pytest.raises(InputError, match=r"export\.xml: not a readable XML file") as error:
        read_vendor_volume(export)
    assert SECRET not in str(error.value)


def test_xml_with_an_external_dtd_is_refused(export, secret):
    export.write_text(f'<!DOCTYPE HEDX SYSTEM "{secret}">\n{export.read_text()}')
    with pytest.raises(InputError, match=r"export\.xml: not a readable XML file"):
        read_vendor_volume(export)


def test_xml_includes_nothing(export, secret):
    include = '<x:include xmlns:x="http://www.w3.org/2001/XInclude" parse="text" href="{}"/>'
    rewrite(export, "<Series>", f"<Series><GeneralEquipment><Manufacturer>{include.format(secret)}")
    rewrite(export, "<Image>", "</Manufacturer></GeneralEquipment><Image>")
    assert read_vendor_volume(export).device == ""


OUTSIDE = [
    "..\\..\\{}",
    "../{}",
    "..\\scans\\..\\{}",
    "C:\\{}",
    "/{}",
    "file:///{}",
]


@pytest.mark.parametrize("address", OUTSIDE)
def test_an_image_outside_of_the_folder_of_a_heyex_export(export, address):
    outside = export.parents[1] / "outside.tif"
    Image.fromarray(PATTERN[0]).save(outside)
    rewrite(export, "file:///C:\\Exports of X\\a0.tif", address.format(outside.name))
    with pytest.raises(InputError, match="no image file in its folder"):
        read_vendor_volume(export)


@pytest.mark.parametrize("address", OUTSIDE)
def test_of_an_address_in_a_heyex_export_the_name_alone_counts(export, address):
    rewrite(export, "file:///C:\\Exports of X\\a0.tif", address.format("a0.tif"))
    assert (read_vendor_volume(export).data[-1] == PATTERN[1] / np.float32(255)).all()


@pytest.mark.parametrize(
    "name",
    ["../v.raw", "..\\v.raw", "{}/v.raw", "scans/../../v.raw", "./v.raw", "..", ".", "~/v.raw"],
)
def test_metaimage_data_outside_of_its_folder(tmp_path, name):
    folder = tmp_path / "scans"
    folder.mkdir()
    path = metaimage(folder)
    path.with_name("v.raw").rename(tmp_path / "v.raw")
    rewrite(path, "v.raw", name.format(tmp_path))
    with pytest.raises(InputError, match="in the same folder"):
        read_vendor_volume(path)
    assert source_files(str(path)) == [str(path)]


@pytest.fixture
def sheet(tmp_path):
    """A function that writes a sheet with one cell changed and reads it."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "eyes").symlink_to(image_folder(tmp_path))
    (data / "eye.tif").write_bytes(b"x")

    def read(column="path", value="eye.tif"):
        cells = {"volume": "v1", "patient": "p1", "path": "eyes", "annotation": ""} | {
            column: value
        }
        path = tmp_path / "volumes.tsv"
        rows = [["volume", "patient", "path", "annotation", "split", "label"]]
        rows.append([*cells.values(), "score", "unknown"])
        path.write_text("".join("\t".join(row) + "\n" for row in rows))
        return read_sample_sheet(str(path), str(data), needs_training=False)

    return read


@pytest.mark.parametrize("column", ["path", "annotation"])
@pytest.mark.parametrize("value", ["../secret.txt", "eyes/../secret.txt", "..", "./../secret.txt"])
def test_a_relative_path_that_leaves_the_data_folder(sheet, secret, column, value):
    message = rf"volumes\.tsv, row 2, column '{column}': .*data_dir.* absolute"
    with pytest.raises(PlanningError, match=message):
        sheet(column, value)


def test_absolute_paths_and_links_are_the_users_own(sheet, secret):
    assert sheet("path", str(secret))["v1"].path == str(secret)
    assert sheet("path", "eyes")["v1"].path == "eyes"  # a link that leads out of data_dir


@pytest.mark.parametrize("column", ["volume", "patient"])
@pytest.mark.parametrize(
    "value", ["..", ".", "../v", "v/../..", "/v", "-v", ".v", "v\\..\\w", "~", "$v"]
)
def test_ids_are_no_paths(sheet, column, value):
    with pytest.raises(PlanningError, match=f"row 2, column '{column}'"):
        sheet(column, value)


@pytest.mark.parametrize(
    "value", ["\x1b[31meye.tif", "eye\u202e.tif", "eye\x07.tif", "eye\x9b.tif"]
)
def test_no_cell_steers_the_terminal(sheet, value):
    with pytest.raises(PlanningError, match="row 2, column 'path'") as error:
        sheet("path", value)
    assert str(error.value).isprintable()


def test_no_heading_steers_the_terminal(sheet, tmp_path):
    sheet()
    path = tmp_path / "volumes.tsv"
    path.write_text(re.sub("annotation", "\x1b[31mnote\u202e", path.read_text()))
    with pytest.raises(PlanningError, match="unknown column") as error:
        read_sample_sheet(str(path), str(tmp_path), needs_training=False)
    assert str(error.value).isprintable()
