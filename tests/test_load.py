import json

import numpy as np
import pytest

from preprocessing.load import canonical, mirror
from preprocessing.readers import read_vendor_volume
from preprocessing.validity import find_valid
from preprocessing.volume import read_volume, write_nifti


def load(source, output, *options) -> int:
    from preprocessing.cli import run_command

    ids = ["--volume", "v", "--patient", "p"]
    arguments = ["load", "--input", source, *ids, "--output", output, *options]
    return run_command("preprocessing", {"load": ""}, list(map(str, arguments)))


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
        ("between", "B-scan to B-scan (b) spacing is 7 mm"),
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
    elif case == "between":
        write_nifti_volume(tmp_path, rng, spacing=(7, 0.004, 0.012))
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


def retina(rng, shape=(2, 200, 120)):
    data = rng.uniform(0.01, 0.3, shape).astype(np.float32)
    data[:, 80:120] = rng.uniform(0.4, 0.9, (shape[0], 40, shape[2]))
    return data


def test_a_saturated_layer_at_the_side_is_a_measurement(rng):
    data = retina(rng)
    data[:, 110:120, :30] = 1
    data[:, 100:105, 90:] = 0  # a dark layer, clipped
    data[1, 30:80, 100:] = 1  # a wedge beside the retina
    valid = find_valid(data, "display")
    assert valid[:, 80:120].all()
    assert not valid[1, 30:80, 100:].any()


def test_a_vitreous_clipped_to_black_costs_no_retina(rng):
    data = retina(rng)
    data[:, :80] = 0
    data[:, 140:] = np.where(rng.random(data[:, 140:].shape) < 0.5, 0, data[:, 140:])
    valid = find_valid(data, "display")
    assert valid[:, 80:140].all()


def test_missing_linear_values_are_invalid():
    data = np.full((1, 50, 40), 1e-4, np.float32)
    data[0, :3] = 3.4028235e38
    data[0, 10, 5] = np.nan
    valid = find_valid(data, "linear")
    assert not valid[0, :3].any()
    assert not valid[0, 10, 5]
    assert valid.sum() == data.size - 3 * 40 - 1
