"""What the load stage does by scan pattern, and to what a file says of its device."""

import argparse

import numpy as np
import pytest

from preprocessing.load import canonical, load
from preprocessing.volume import Volume, write_nifti


def scan(rng, pattern, **changes):
    data = rng.random((3, 80, 60)).astype(np.float32)
    facts = {"eye": "L", "scan_pattern": pattern} | changes
    return Volume(data, (0.12, 0.004, 0.012), np.ones(data.shape, bool), **facts)


@pytest.mark.parametrize(
    ("pattern", "mirrored"),
    [("raster", True), ("line", True), ("circle", False), ("radial", False), ("vertical", False)],
)
def test_only_horizontal_bscans_of_a_left_eye_are_mirrored(rng, pattern, mirrored):
    given = scan(rng, pattern)
    volume = canonical(given, True)
    assert volume.mirrored is mirrored
    expected = given.data[:, :, ::-1] if mirrored else given.data
    np.testing.assert_array_equal(volume.data[volume.valid], expected[volume.valid])


@pytest.mark.parametrize(
    ("pattern", "between_mm"),
    [("raster", 0.12), ("vertical", 0.12), ("line", 0), ("circle", 0), ("radial", 0)],
)
def test_only_parallel_bscans_lie_apart(rng, pattern, between_mm):
    assert canonical(scan(rng, pattern), False).spacing_mm == (between_mm, 0.004, 0.012)


def test_a_single_bscan_has_no_distance_whatever_the_sheet_says(tmp_path, rng):
    path = tmp_path / "v.nii.gz"
    write_nifti(rng.integers(1, 255, (1, 80, 60), np.uint8), path, np.eye(4))
    options = {"annotation": None, "eye": "", "mirror_left_eyes": False}
    ids = {"input": str(path), "volume": "v", "patient": "p"}
    volume = load(argparse.Namespace(**ids, **options, spacing_um=[120, 4, 12], already=""))
    assert volume.spacing_mm == (0, 0.004, 0.012)


def test_the_device_is_a_short_line_of_text(rng):
    volume = canonical(scan(rng, "raster", device="Maker\n\x1b[2J " + 100 * "m"), False)
    assert volume.device == ("Maker[2J " + 100 * "m")[:64]
    assert canonical(scan(rng, "raster", device="Topcon Größe 1"), False).device == "Topcon Größe 1"
