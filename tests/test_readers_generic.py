"""A known pattern written in each format comes back in canonical order, and stays so on disk."""

import numpy as np
import pytest
from format_writers import (
    FORMATS,
    MATLAB,
    PATTERN,
    SHAPE,
    SPACING,
    at_mm,
    describe,
    image_folder,
    matlab,
    matlab_amd,
    matlab_vol,
    metaimage,
    nifti,
    opt,
    tiff_stack,
)
from PIL import Image
from scipy.io import savemat

from preprocessing.errors import InputError
from preprocessing.load import canonical, read_annotation
from preprocessing.readers import cirrus, read_vendor_volume
from preprocessing.readers.sidecar import sidecar_of
from preprocessing.volume import Volume, read_volume


@pytest.fixture(params=FORMATS, ids=lambda writer: writer.__name__)
def written(request, tmp_path, monkeypatch):
    """A file of the pattern, the spacing and the eye that it tells."""
    monkeypatch.setitem(cirrus.CUBES, "512x128", SHAPE)
    return request.param(tmp_path), *FORMATS[request.param]


def gray_of(volume):
    return np.rint(volume.data * 255)


def test_every_format_is_read_in_canonical_order(written):
    path, spacing, eye = written
    volume = read_vendor_volume(path)
    np.testing.assert_array_equal(gray_of(volume), PATTERN)
    np.testing.assert_allclose(volume.spacing_mm, spacing, rtol=1e-6)
    assert (volume.eye, volume.bscans_reversed, volume.scan_pattern) == (eye, False, "raster")
    assert volume.valid.all()


def test_a_sidecar_has_the_last_word(written):
    path, _, _ = written
    describe(path, bscan_order="superior-first", laterality="R", spacing_mm=[0.2, 0.003, 0.01])
    volume = read_vendor_volume(path)
    np.testing.assert_array_equal(gray_of(volume), PATTERN[::-1])
    assert volume.bscans_reversed
    assert (volume.eye, volume.spacing_mm) == ("R", (0.2, 0.003, 0.01))


def test_every_format_survives_load_and_the_disk(written, tmp_path):
    from preprocessing.cli import run_command

    path, _, _ = written
    out = tmp_path / "out" / "v.nii.gz"
    arguments = ["load", "--input", path, "--volume", "v", "--patient", "p", "--output", out]
    arguments += ["--spacing-um", 120, 4, 12, "--no-mirror-left-eyes"]
    assert run_command("preprocessing", {"load": ""}, list(map(str, arguments))) == 0
    again, volume = read_volume(out), read_vendor_volume(path)
    np.testing.assert_array_equal(gray_of(again), PATTERN)
    assert again.vendor_layers.keys() == volume.vendor_layers.keys()
    if volume.annotation is not None:
        np.testing.assert_array_equal(again.annotation, volume.annotation)
    assert b"Zyxwvut" not in out.with_name("v.json").read_bytes()


def test_layers_and_fluid_of_chiu_turn_with_their_bscans(tmp_path):
    path = matlab(tmp_path)
    volume = read_vendor_volume(path)
    assert (volume.vendor_layers["grader1_ILM"] == np.arange(5)[:, None]).all()  # counted from 0
    assert (volume.vendor_layers["grader1_BM"] == 7 + np.arange(5)[:, None]).all()
    assert volume.annotation[1, 20:30, 5:9].all()
    assert np.nansum(volume.annotation) == 40
    assert np.isnan(volume.annotation[2]).all()
    describe(path, bscan_order="superior-first")
    turned = read_vendor_volume(path)
    np.testing.assert_array_equal(turned.annotation, volume.annotation[::-1])
    np.testing.assert_array_equal(
        turned.vendor_layers["grader1_ILM"], volume.vendor_layers["grader1_ILM"][::-1]
    )


def test_layers_outside_the_bscan_are_unknown(tmp_path):
    maps = np.stack([np.full((SHAPE[0], SHAPE[2]), row) for row in (0, 1, SHAPE[1] + 1)], axis=2)
    savemat(tmp_path / "v.mat", {"images": MATLAB, "layerMaps": maps})
    layers = read_vendor_volume(tmp_path / "v.mat").vendor_layers
    assert {name: layer[0, 0] for name, layer in layers.items()} == pytest.approx(
        {"ILM": np.nan, "RPEDC": 0, "BM": np.nan}, nan_ok=True
    )


def test_layers_of_farsiu(tmp_path):
    layers = read_vendor_volume(matlab_amd(tmp_path)).vendor_layers
    assert list(layers) == ["ILM", "RPEDC", "BM"]
    assert (layers["BM"] == 2 + 10 * np.arange(5)[:, None]).all()


def test_a_circle_is_marked(tmp_path):
    volume = read_vendor_volume(matlab_vol(tmp_path, ScanPattern=2))
    assert (volume.scan_pattern, volume.intensity) == ("circle", "linear")


def test_real_circle_scan(real_data):
    volume = read_vendor_volume(real_data / "circular_9boundaries" / "circularScan.mat")
    assert volume.data.shape == (1, 496, 768)
    assert (volume.scan_pattern, volume.eye, volume.intensity) == ("circle", "R", "linear")
    # 12 degrees are about 3.4 mm across
    assert 768 * volume.spacing_mm[2] == pytest.approx(np.pi * 3.47, rel=0.01)
    above, below = (
        volume.data[0, np.rint(volume.vendor_layers["ILM"][0]).astype(int) + dz, np.arange(768)]
        for dz in (-6, 4)
    )
    assert np.median(below) > 5 * np.median(above)


def test_real_tiff_stack(real_data):
    volume = read_vendor_volume(real_data / "macular_hole_stack" / "mh.tif")
    assert volume.data.shape == (49, 200, 200)
    # the hole is in the middle of the volume and opens to the vitreous
    depth = volume.data[:, :140].mean(axis=1)
    assert depth[22:27, 90:110].mean() < 0.6 * depth[:5].mean()
    with pytest.raises(InputError, match="spacing is not known"):
        canonical(volume, False)


def test_sixteen_bits_keep_their_order(tmp_path):
    gray = PATTERN.astype(np.uint16) * 200
    volume = read_vendor_volume(tiff_stack(tmp_path, gray))
    np.testing.assert_allclose(volume.data, (gray - 200) / (gray.max() - 200), atol=1e-6)


@pytest.mark.parametrize("writer", [nifti, tiff_stack, metaimage])
@pytest.mark.parametrize(
    ("gray", "want"),
    [
        (PATTERN // 2, PATTERN // 2 / 255),
        ((PATTERN // 2).astype(np.float32), PATTERN // 2 / 255),
        (PATTERN / np.float32(255), PATTERN / 255),
        (PATTERN.astype(np.uint16), (PATTERN - 1.0) / 250),
        (PATTERN * np.float32(10), (PATTERN - 1.0) / 250),
        (PATTERN - np.float32(60), (PATTERN - 1.0) / 250),
    ],
    ids=lambda values: f"{values.dtype}-{values.max():.2f}",
)
def test_how_gray_values_are_scaled(tmp_path, writer, gray, want):
    read = read_vendor_volume(writer(tmp_path, gray=gray)).data
    np.testing.assert_allclose(read, want, atol=1e-6)


def test_white_stored_as_zero_is_noticed(tmp_path):
    white_is_zero = {262: 0}
    Image.fromarray(PATTERN[0]).save(tmp_path / "v.tif", tiffinfo=white_is_zero)
    Image.fromarray(PATTERN[0].astype(np.uint16)).save(tmp_path / "w.tif", tiffinfo=white_is_zero)
    np.testing.assert_array_equal(gray_of(read_vendor_volume(tmp_path / "v.tif"))[0], PATTERN[0])
    with pytest.raises(InputError, match="0 is white"):
        read_vendor_volume(tmp_path / "w.tif")


def test_missing_values_are_invalid_and_do_not_stretch_the_others(tmp_path):
    gray = 1000 * PATTERN.astype(np.float32)
    gray[0, 0, :4] = np.nan, np.inf, -np.inf, 3.4e38
    volume = read_vendor_volume(nifti(tmp_path, gray=gray))
    assert (~volume.valid).sum() == 4
    assert np.isfinite(volume.data).all()
    np.testing.assert_allclose(np.rint(1 + 250 * volume.data)[volume.valid], PATTERN[volume.valid])


def test_a_single_image_is_a_line(tmp_path):
    volume = read_vendor_volume(tiff_stack(tmp_path, PATTERN[:1], "v.png"))
    assert (volume.scan_pattern, volume.spacing_mm[0]) == ("line", 0)


def test_cirrus_needs_a_name_or_a_sidecar(tmp_path):
    disc = tmp_path / "P1_Optic Disc Cube 200x200_1-2-2020_3-4-5_OD_sn1_cube_z.img"
    disc.write_bytes(PATTERN.tobytes())
    with pytest.raises(InputError, match="optic disc"):
        read_vendor_volume(disc)
    unnamed = disc.with_name("cube.img")
    unnamed.write_bytes(PATTERN[:, ::-1, ::-1].tobytes())
    with pytest.raises(InputError, match="'shape' and 'spacing_mm'"):
        read_vendor_volume(unnamed)
    describe(unnamed, shape=SHAPE, spacing_mm=SPACING)
    volume = read_vendor_volume(unnamed)
    np.testing.assert_array_equal(gray_of(volume), PATTERN)
    assert volume.spacing_mm == SPACING
    describe(unnamed, shape=[5, 70, 39])
    with pytest.raises(InputError, match="its size is not"):
        read_vendor_volume(unnamed)


@pytest.mark.parametrize(
    ("rows", "pattern", "reverse"),
    [
        ([[10 * b, 0, 10 * b, 400] for b in range(5)], "raster", True),
        ([[400, 10 * b, 0, 10 * b] for b in range(5)], "vertical", False),
        ([[0, 40 * b, 400, 400 - 40 * b] for b in range(5)], "radial", False),
        ([[400 - b, 0, 400 - b, 400] for b in (0, 1, 3, 4, 5)], "raster", False),  # rounded
        ([], "raster", False),
    ],
)
def test_dicom_tells_how_the_bscans_lie(tmp_path, rows, pattern, reverse):
    volume = read_vendor_volume(opt(tmp_path, rows=rows))
    assert volume.scan_pattern == pattern
    np.testing.assert_array_equal(gray_of(volume), PATTERN[::-1] if reverse else PATTERN)
    assert volume.device == "Maker Model"


def test_dicom_monochrome1_and_rescale(tmp_path):
    negative = opt(tmp_path, 255 - PATTERN, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(gray_of(read_vendor_volume(negative)), PATTERN)
    scaled = opt(tmp_path, PATTERN // 2, RescaleSlope=2, RescaleIntercept=1)
    np.testing.assert_array_equal(gray_of(read_vendor_volume(scaled)), PATTERN // 2 * 2 + 1)


def test_compressed_dicom_is_read_or_names_what_is_missing(tmp_path):
    import pydicom

    path = opt(tmp_path)
    dataset = pydicom.dcmread(path)
    dataset.compress(pydicom.uid.RLELossless)
    dataset.save_as(path)
    np.testing.assert_array_equal(gray_of(read_vendor_volume(path)), PATTERN)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
    dataset.save_as(path)
    with pytest.raises(InputError, match="not a readable DICOM file"):
        read_vendor_volume(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "no Ophthalmic Tomography"),
        ({"rows": [[b, 400, b, 0] for b in range(5)]}, "right to left"),
        ({"rows": [[b % 2, 0, b % 2, 400] for b in range(5)]}, "not in order"),
        ({"rows": [[10 * b, 0, 10 * b, 400] for b in (0, 1, 2, 5, 6)]}, "B-scans 3 and 4 lie too"),
        ({"rows": [[90 * b, 0, 190 * b, 400] for b in range(5)]}, "neither parallel nor a star"),
        ({"rows": [], "planes": at_mm(0, 0.3, 0.1, 0.2, 0.4)}, "not in order"),
        ({"rows": [], "planes": at_mm(0, 0.1, 0.2, 0.5, 0.6)}, "B-scans 3 and 4 lie too far"),
        ({"NumberOfFrames": 6}, "more than the file holds"),
    ],
)
def test_dicom_that_cannot_be_used(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        read_vendor_volume(opt(tmp_path, **changes))


def test_dicom_spacing_no_device_has_is_refused(tmp_path):
    path = opt(tmp_path)
    volume = read_vendor_volume(path).replace(spacing_mm=(0.1, 0.004, 300.0))
    with pytest.raises(InputError, match="300 mm, which no OCT device has"):
        canonical(volume, False)


def test_dicom_without_pydicom_says_what_to_install(tmp_path, monkeypatch):
    import sys

    path = opt(tmp_path)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r"oct-anogan\[dicom\]"):
        read_vendor_volume(path)


def a_volume():
    return Volume(PATTERN / np.float32(255), SPACING, np.ones(SHAPE, bool))


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (0, 1, 2, 3)])
@pytest.mark.parametrize("writer", [nifti, tiff_stack, image_folder, metaimage])
def test_masks_come_in_many_formats(tmp_path, writer, values):
    mask = np.zeros(SHAPE, np.uint8)
    for place, value in enumerate(values[1:]):
        mask[1, 10 + place, 5] = value
    path = writer(tmp_path, gray=mask)
    read = read_annotation(path, a_volume())
    np.testing.assert_array_equal(read, mask > 0)
    # a mask is drawn in the order of the export, which the reader may have turned
    turned = read_annotation(path, a_volume().replace(bscans_reversed=True))
    np.testing.assert_array_equal(turned, (mask > 0)[::-1])


@pytest.mark.parametrize("palette", [(0, 0, 0, 255, 0, 0), (0, 0, 0, 255, 255, 255)])
def test_masks_may_have_a_palette(tmp_path, palette):
    mask = PATTERN[:1] > 200
    image = Image.fromarray(mask[0].astype(np.uint8))
    image.putpalette(palette)
    image.save(tmp_path / "v.png")
    volume = Volume(mask.astype(np.float32), SPACING, np.ones(mask.shape, bool))
    np.testing.assert_array_equal(read_annotation(tmp_path / "v.png", volume), mask)


@pytest.mark.parametrize("writer", [nifti, tiff_stack, metaimage])
def test_gray_images_are_no_masks(tmp_path, writer):
    with pytest.raises(InputError, match="must be a mask"):
        read_annotation(writer(tmp_path), a_volume())


def test_the_sidecar_of_a_folder_is_inside(tmp_path):
    folder = image_folder(tmp_path)
    assert sidecar_of(folder) is None
    describe(folder, laterality="L")
    assert sidecar_of(folder) == folder / "oct.yaml"
