"""Files that are not what their path promises, series, masks and sidecars that do not fit."""

import os
import warnings

import numpy as np
import pytest
from format_writers import (
    PATTERN,
    SHAPE,
    cirrus_cube,
    describe,
    image_folder,
    metaimage,
    nifti,
    opt,
    tiff_stack,
)
from fuzzing import refused
from PIL import Image
from scipy.io import savemat

from preprocessing.errors import InputError
from preprocessing.load import canonical, read_annotation
from preprocessing.readers import read_vendor_volume
from preprocessing.volume import Volume


@pytest.mark.parametrize("name", ["v.vol", "v.xml", "v.nii", "v.mat", "v.png", "v.img", "v.dcm"])
def test_what_is_no_file_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    refused(tmp_path / name, "neither a file nor a folder")
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    refused(tmp_path / name, "an empty folder")
    (tmp_path / name / "a.txt").touch()
    refused(tmp_path / name, "a folder without")


def test_what_is_no_file_is_refused_beside_and_inside(tmp_path):
    os.mkfifo(tmp_path / "v.json")
    assert read_vendor_volume(nifti(tmp_path)).eye == ""
    folder = image_folder(tmp_path)
    os.mkfifo(folder / "eye_scan13.png")
    refused(folder, "eye_scan13.png: not a file")
    (folder / "eye_scan13.png").unlink()
    (folder / "eye_scan13.png").mkdir()
    refused(folder, "eye_scan13.png: not a file")


def test_a_folder_of_too_many_images(tmp_path, monkeypatch):
    monkeypatch.setattr("preprocessing.readers.images.MAX_PAGES", 4)
    refused(image_folder(tmp_path), "more than 4 images")


def test_values_beyond_float32_are_missing(tmp_path):
    gray = PATTERN.astype(float)
    gray[0, 0, 0] = 1e300
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        volume = read_vendor_volume(nifti_raw(tmp_path, gray))
    assert (~volume.valid).sum() == 1


def nifti_raw(folder, gray):
    import nibabel as nib

    nib.Nifti1Image(gray.T, np.eye(4)).to_filename(folder / "f.nii")
    return folder / "f.nii"


def test_matlab_layouts_that_do_not_fit(tmp_path):
    path = tmp_path / "v.mat"
    for content, message in (
        ({"a": 1}, "neither 'images' nor 'B0'"),
        ({"images": "text"}, "not an array of gray values"),
        ({"images": np.zeros((70, 40, 5, 2))}, "not an array of gray values"),
        ({"images": np.zeros((70, 40)) + 1j}, "no array of real numbers"),
        ({"images": np.zeros((70, 40, 5)), "layerMaps": np.zeros((5, 40, 2))}, "has shape"),
        ({"B0": np.zeros((70, 40)), "B2": np.zeros((70, 40))}, "B-scans are missing"),
        ({"B0": np.zeros((70, 40)), "B1": np.zeros((70, 41))}, "different sizes"),
    ):
        savemat(path, content)
        refused(path, message)


@pytest.mark.parametrize(
    "changes",
    [
        {"Rows": 65535, "Columns": 65535, "NumberOfFrames": 2**31 - 1},
        {"Rows": 0},
        {"NumberOfFrames": -1},
        {"BitsAllocated": 7},
        {"SamplesPerPixel": 3},
        {"PixelData": b""},
        {"PerFrameFunctionalGroupsSequence": []},
    ],
)
def test_dicom_at_its_extremes(tmp_path, changes):
    path = opt(tmp_path, **changes)
    if "PerFrameFunctionalGroupsSequence" in changes:
        volume = read_vendor_volume(path)  # all that is lost is where the B-scans lie
        assert np.isnan(volume.spacing_mm[0])
    else:
        refused(path)


@pytest.mark.parametrize(
    ("name", "image", "message"),
    [
        ("eye_scan009.png", PATTERN[0], "eye_scan009.png and eye_scan9.png have the same number"),
        ("eye_scan9.png", PATTERN[0, :-1], "images of different sizes or types"),
        ("eye_scan9.png", PATTERN[0].astype(np.uint16), "images of different sizes or types"),
        ("eye_scan9.png", np.stack([PATTERN[0], *PATTERN[1:3]], 2), "a colour picture"),
        ("eye_scan14.png", PATTERN[0], "missing between eye_scan12.png and eye_scan14.png"),
        ("eye_scan13.tif", PATTERN[0], "PNG and TIFF images"),
    ],
)
def test_series_of_images_that_are_no_volume(tmp_path, name, image, message):
    folder = image_folder(tmp_path)
    Image.fromarray(image).save(folder / name)
    refused(folder, message)


def test_a_missing_image_and_several_pages_are_noticed(tmp_path):
    folder = image_folder(tmp_path)
    (folder / "eye_scan10.png").unlink()
    refused(folder, "missing between eye_scan9.png and eye_scan11.png")
    for file in folder.glob("*.png"):
        file.unlink()
    tiff_stack(folder, name="a1.tif")
    refused(folder, "several pages")


def test_series_may_count_in_any_step_or_not_at_all(tmp_path):
    for numbers in ((10, 20, 30), (10, 15, 20, 25, 28, 30, 32, 35), (1042, 1178, 3000, 3001)):
        folder = tmp_path / str(len(numbers)) / str(numbers[1])
        folder.mkdir(parents=True)
        for number in numbers:
            Image.fromarray(PATTERN[0]).save(folder / f"b{number}.png")
        assert len(read_vendor_volume(folder).data) == len(numbers)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.4e38, 0.5, -2.0])
@pytest.mark.parametrize("writer", [nifti, metaimage, tiff_stack])
def test_volumes_of_nothing_are_refused(tmp_path, writer, value):
    path = writer(tmp_path, gray=np.full((2, 70, 40), value, np.float32))
    volume = read_vendor_volume(path).replace(spacing_mm=(0.1, 0.004, 0.01))
    assert np.isfinite(volume.data).all()
    with pytest.raises(InputError, match="empty, NaN or the same gray value"):
        canonical(volume, False)


def test_damaged_masks_are_refused(tmp_path):
    volume = Volume(PATTERN / np.float32(255), (0.1, 0.004, 0.01), np.ones(SHAPE, bool))
    for path, message in (
        (tmp_path / "absent.png", "no such file"),
        (cirrus_cube(tmp_path), "format of masks"),
        (nifti(tmp_path, gray=np.full(SHAPE, np.nan, np.float32)), "must be a mask"),
        (nifti(tmp_path, gray=np.full(SHAPE, 0.5, np.float32)), "must be a mask"),
        (nifti(tmp_path, gray=np.full(SHAPE, -1, np.int16)), "must be a mask"),
    ):
        with pytest.raises(InputError, match=message):
            read_annotation(path, volume)


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        "a: b: c",
        "{unclosed",
        "spacing_mm: [0.1, 0.004]",
        "spacing_mm: [0.1, 0.004, .nan]",
        "spacing_mm: [0.1, -0.004, 0.01]",
        "spacing_mm: 5",
        "spacing_mm: '123'",
        "spacing_mm: [true, 0.004, 0.01]",
        "spacing_mm: ['0.1', 0.004, 0.01]",
        f"spacing_mm: [0x{'f' * 10000}, 1, 1]",
        f"spacing_mm: [1{'0' * 4000}, 1, 1]",
        f"laterality: 0x{'f' * 10000}",
        f"? 0x{'f' * 100}\n: 1",
        "shape: [5, 70, 40.5]",
        "shape: [5, 70, true]",
        "a0: &a0 {k0: 1, k1: 2}\n"
        + "".join(f"a{n}: &a{n} {{<<: [{','.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 9)),
        "laterality: &anchor R",
        "device: " + "y" * 2**14,
        "shape: [5, 70, wide]",
        "device: [1]",
        "laterality: {R: L}",
        "bscan_order: 1",
        "? [a, b]\n: c",
        "name: Doe",
        "[" * 500,
        "a: &a [x, x]\nb: &b [*a, *a]\n"
        + "".join(f"{chr(c + 1)}: &{chr(c + 1)} [*{chr(c)}, *{chr(c)}]\n" for c in range(98, 121))
        + "laterality: *y",
        "x" * 2**21,
    ],
)
def test_damaged_sidecars_are_refused(tmp_path, text):
    path = nifti(tmp_path)
    (tmp_path / "v.yaml").write_text(text)
    assert len(refused(path, "v.yaml")) < 500


def test_a_sidecar_cannot_make_a_cube_larger_than_its_file(tmp_path):
    path = tmp_path / "cube.img"
    path.write_bytes(PATTERN.tobytes())
    describe(path, shape=[50000, 70000, 40000])
    refused(path, "more than can be read")
