"""Heidelberg .vol files: order, geometry, layers and every kind of damage."""

import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from fuzzing import check_consistent, fuzz, read_or_refuse
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.errors import InputError
from preprocessing.load import canonical
from preprocessing.readers import read_vendor_volume
from preprocessing.readers.vol import LAYERS

FLT_MAX = float(np.finfo(np.float32).max)
UNKNOWN_PATTERN, LINE, CIRCLE, VOLUME, RADIAL = 0, 1, 2, 3, 5


def rows_of_lines(n, first_mm, step_mm, width_mm=1.2):
    """Positions of `n` horizontal B-scans, y changing by `step_mm`."""
    return [(1.0, first_mm + b * step_mm, 1.0 + width_mm, first_mm + b * step_mm) for b in range(n)]


def vol_bytes(
    pixels,
    lines,
    pattern=VOLUME,
    eye=b"OD",
    layers=(),
    version=b"HSF-OCT-103",
    slo=(3, 4),
    n=None,
    scale_x=None,
    header_size=None,
):
    """Return a .vol file of linear `pixels` (b, z, x); layers (n, b, x) as FLT_MAX where NaN."""
    n_b, n_z, n_x = n or pixels.shape
    layers = np.array(layers, "<f4").reshape(-1, *pixels.shape[::2])
    layers = np.where(np.isnan(layers), np.float32(FLT_MAX), layers)
    size = 256 + 4 * layers.shape[0] * pixels.shape[2] + 40
    width = np.hypot(lines[0][2] - lines[0][0], lines[0][3] - lines[0][1])
    width *= 2 * np.pi if pattern == CIRCLE else 1
    parts = [
        struct.pack("<12s3i3d", version, n_x, n_b, n_z, scale_x or width / (n_x or 1), 0.3, 0.0039),
        struct.pack("<2i2did4sQ", *slo, 0.01, 0.01, 30, -1.0, eye, 131286184616218310),
        struct.pack("<2i16s16si24sd", pattern, header_size or size, b"77.1", b"", 86, b"0815", 1e4),
    ]
    parts = [b"".join(parts).ljust(2048, b"\0"), bytes(slo[0] * slo[1])]
    for b, line in enumerate(lines):
        head = struct.pack("<12si4d2if", b"HSF-BS-103", size, *line, len(layers), 256, 30.0)
        parts += [head.ljust(256, b"\0"), layers[:, b].astype("<f4").tobytes(), bytes(40)]
        parts += [pixels[b].astype("<f4").tobytes()]
    return b"".join(parts)


@pytest.fixture
def pixels(rng):
    return (rng.random((4, 80, 60)) ** 4).astype(np.float32)


@pytest.fixture
def write(tmp_path):
    def write_vol(*args, **kwargs) -> Path:
        (tmp_path / "scan.vol").write_bytes(vol_bytes(*args, **kwargs))
        return tmp_path / "scan.vol"

    return write_vol


def test_vol_volume_is_read_in_canonical_order(write, pixels):
    layers = np.full((3, 4, 60), 20.0)
    layers[0, 1] = np.arange(60)
    layers[1, 2, 5] = np.nan
    layers[2] = np.nan
    pixels[3, 7, 9] = FLT_MAX
    volume = read_vendor_volume(write(pixels, rows_of_lines(4, 5, -0.25), layers=layers))
    assert not volume.valid[3, 7, 9]
    assert volume.valid.sum() == pixels.size - 1
    np.testing.assert_array_equal(volume.data[volume.valid], pixels[volume.valid])
    np.testing.assert_allclose(volume.spacing_mm, (0.25, 0.0039, 0.02))
    assert (volume.eye, volume.intensity, volume.scan_pattern) == ("R", "linear", "raster")
    assert set(volume.vendor_layers) == {"ILM", "BM"}  # a surface nobody segmented is left out
    np.testing.assert_array_equal(volume.vendor_layers["ILM"][1], np.arange(60))
    assert np.isnan(volume.vendor_layers["BM"]).sum() == 1


def test_vol_scanned_from_the_top_is_turned_with_its_layers(write, pixels):
    layers = np.arange(4.0)[None, :, None] + np.zeros((1, 4, 60))
    volume = read_vendor_volume(write(pixels, rows_of_lines(4, 5, 0.25), layers=layers, eye=b"OS"))
    np.testing.assert_array_equal(volume.data, pixels[::-1])
    np.testing.assert_array_equal(volume.vendor_layers["ILM"][:, 0], [3, 2, 1, 0])
    assert (np.diff(volume.bscan_lines_mm[:, 1]) < 0).all()
    assert volume.bscans_reversed
    assert volume.eye == "L"


def star(n):
    angles = np.pi * np.arange(n) / n
    reach = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.hstack([4 - reach, 4 + reach])


@pytest.mark.parametrize(
    ("pattern", "lines", "expected", "spacing"),
    [
        (LINE, [(1, 4, 2.2, 4)], "line", (0, 1.2 / 60)),
        (LINE, [(4, 1, 4, 2.2)], "vertical", (0, 1.2 / 60)),
        (VOLUME, [(4 + b / 4, 2.2, 4 + b / 4, 1) for b in range(4)], "vertical", (0.25, 1.2 / 60)),
        (CIRCLE, [(3, 4, 4.8, 4)], "circle", (0, 2 * np.pi * 1.8 / 60)),
        (RADIAL, star(4), "radial", (0, 2 / 60)),
        (UNKNOWN_PATTERN, rows_of_lines(4, 5, -0.2), "raster", (0.2, 1.2 / 60)),
        # a raster rotated by 30 degrees: the spacing is across the lines
        (
            VOLUME,
            [(-b / 10, b * 3**0.5 / 10, 3**0.5 - b / 10, 1 + b * 3**0.5 / 10) for b in range(4)],
            "raster",
            (0.2, 2 / 60),
        ),
    ],
)
def test_scan_patterns_are_marked(write, pixels, pattern, lines, expected, spacing):
    volume = read_vendor_volume(write(pixels[: len(lines)], lines, pattern))
    assert volume.scan_pattern == expected
    np.testing.assert_allclose((volume.spacing_mm[0], volume.spacing_mm[2]), spacing)
    assert (volume.bscan_lines_mm is None) == (expected == "circle")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([(0, 0, 0, 0)] * 4, "no length"),
        ([(np.nan, 1, 2, 1)] * 4, "no position"),
        ([(1, 1, 1e308, 1)] * 4, "no position"),
        ([(2, 5 - b / 4, 1, 5 - b / 4) for b in range(4)], "right to left"),
        ([(2, 5, 1, 5), *rows_of_lines(3, 4, -0.2)], "right to left"),
        ([(1, y, 2, y) for y in (5, 4.8, 4.9, 4.7)], "2 and 3 are not in order"),
        ([(1, y, 2, y) for y in (5, 4.8, 4.8, 4.6)], "2 and 3 are not in order"),
        ([(1, y, 2, y) for y in (5, 4.8, 4.4, 4.2)], "2 and 3 lie too far apart"),
        ([(1, 1, 2, 1), (1, 2, 1, 3), (5, 5, 6, 6), (8, 8, 9, 7)], "neither parallel nor a star"),
    ],
)
def test_positions_that_make_no_volume_are_refused(write, pixels, lines, message):
    with pytest.raises(InputError, match=message):
        read_vendor_volume(write(pixels, lines))


def test_a_pixel_width_that_contradicts_the_positions_has_to_be_given(write, pixels):
    volume = read_vendor_volume(write(pixels, rows_of_lines(4, 5, -0.2), scale_x=0.005))
    with pytest.raises(InputError, match="column 'spacing_um'"):
        canonical(volume, False)


def test_a_sidecar_of_a_vol_file_has_the_last_word(write, pixels):
    path = write(pixels, rows_of_lines(4, 5, -0.2), scale_x=0.005)
    sidecar = path.with_suffix(".yaml")
    sidecar.write_text("{laterality: L, device: Other, spacing_mm: [0.2, 0.0039, 0.02]}")
    volume = canonical(read_vendor_volume(path), False)
    assert (volume.eye, volume.device) == ("L", "Other")
    assert volume.spacing_mm == (0.2, 0.0039, 0.02)
    sidecar.write_text("intensity: display")
    with pytest.raises(InputError, match="'intensity'"):
        read_vendor_volume(path)


def test_only_a_regular_file_is_a_vol_file(tmp_path):
    (tmp_path / "folder.vol").mkdir()
    os.mkfifo(tmp_path / "pipe.vol")
    assert [read_or_refuse(path) for path in tmp_path.iterdir()] == [None, None]


def test_more_than_any_scan_has_is_refused_before_it_is_read(write, pixels):
    path = write(pixels, rows_of_lines(4, 5, -0.2), n=(2**15, 2**8, 2**7))
    with path.open("r+b") as file:
        file.truncate(2**33)
    with pytest.raises(InputError, match="more than can be read"):
        read_vendor_volume(path)


def test_gray_values_that_are_no_power_are_refused(write, pixels):
    with pytest.raises(InputError, match="no power in"):
        read_vendor_volume(write(pixels * 255, rows_of_lines(4, 5, -0.2)))
    by_eyepy = write(np.rint(pixels * 255), rows_of_lines(4, 5, -0.2), version=b"ep-v0.6.8   ")
    volume = read_vendor_volume(by_eyepy)
    assert volume.intensity == "display"
    assert volume.data.max() <= 1


def test_the_size_of_a_bscan_header_is_its_own(write, pixels):
    volume = read_vendor_volume(write(pixels, rows_of_lines(4, 5, -0.2), header_size=61440))
    np.testing.assert_array_equal(volume.data, pixels)


@pytest.mark.parametrize(
    "content",
    [b"", b"HSF-OCT-103", b"II*\0" + bytes(5000), bytes(5000), b"HSF-OCT-103".ljust(4000, b"\xff")],
)
def test_what_is_no_vol_file_is_refused(tmp_path, content):
    (tmp_path / "scan.vol").write_bytes(content)
    assert read_or_refuse(tmp_path / "scan.vol") is None


@pytest.mark.parametrize("field", ["n_b", "n_z", "n_x", "slo"])
@pytest.mark.parametrize("value", [0, -1, -(2**31), 2**31 - 1])
def test_extreme_sizes_end_quickly_and_without_memory(write, pixels, field, value):
    sizes = dict(zip(("n_b", "n_z", "n_x"), pixels.shape, strict=True)) | {"slo": 3}
    sizes[field] = value
    path = write(pixels, rows_of_lines(4, 5, -0.2), n=(sizes["n_b"], sizes["n_z"], sizes["n_x"]))
    raw = bytearray(path.read_bytes())
    struct.pack_into("<i", raw, 48, sizes["slo"])
    path.write_bytes(raw)
    start = time.perf_counter()
    assert read_or_refuse(path) is None
    assert time.perf_counter() - start < 1


def test_all_sizes_at_their_maximum(write, pixels):
    path = write(pixels, rows_of_lines(4, 5, -0.2), n=(2**31 - 1,) * 3)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<2i", raw, 48, 2**31 - 1, 2**31 - 1)
    path.write_bytes(raw)
    assert read_or_refuse(path) is None


@fuzz
@given(data=st.data())
def test_no_damage_of_a_vol_header_does_harm(tmp_path, data):
    pixels = np.zeros((3, 8, 6), np.float32)
    layers = np.full((2, 3, 6), 3.0)
    raw = bytearray(vol_bytes(pixels, rows_of_lines(3, 5, -0.2), layers=layers))
    first = 2048 + 12
    stride = (len(raw) - first) // 3
    places = [*range(120), *(first + b * stride + k for b in range(3) for k in range(60))]
    extremes = [b"\xff\xff\xff\x7f", b"\xff" * 8, bytes(8), b"\0\0\0\0\0\0\xf0\x7f", b"\0\0\0\x80"]
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.sampled_from(places))
        patch = data.draw(st.sampled_from(extremes) | st.binary(min_size=1, max_size=8))
        raw[place : place + len(patch)] = patch
    path = tmp_path / "scan.vol"
    path.write_bytes(raw)
    read_or_refuse(path)


def test_real_vol_line_and_circle(real_data):
    line = read_vendor_volume(real_data / "spectralis_vol" / "Willis_B_716_0.vol")
    circle = read_vendor_volume(real_data / "spectralis_vol" / "Willis_B_716_2.vol")
    for volume, pattern, lateral_mm in ((line, "line", 0.0118206), (circle, "circle", 0.014722)):
        check_consistent(volume)
        assert volume.scan_pattern == pattern
        assert volume.spacing_mm == pytest.approx((0, 0.0038717, lateral_mm), abs=1e-6)
        assert volume.eye == "R"
        ilm, bm = (volume.vendor_layers[name][0] for name in ("ILM", "BM"))
        known = np.flatnonzero(np.isfinite(ilm) & np.isfinite(bm))
        assert len(known) > 600
        brightness = [
            np.mean([volume.data[0, int(row[x]) + shift, x] for x in known])
            for row, shift in ((ilm, -8), (ilm, 8), (bm, -5), (bm, 20))
        ]
        assert brightness[0] < brightness[1]  # vitreous above the ILM
        assert brightness[3] < brightness[2]  # RPE above Bruch's membrane
    assert line.bscan_lines_mm.shape == (1, 4)
    assert list(circle.vendor_layers) == ["ILM", "BM", "RNFL"] == list(LAYERS[:3])


def test_truncated_real_vol(real_data, tmp_path):
    raw = (real_data / "spectralis_vol" / "Willis_B_716_0.vol").read_bytes()
    path = tmp_path / "cut.vol"
    path.write_bytes(raw)
    pixels_end = len(raw) - 132  # a table of thickness follows, which is not read
    start = time.perf_counter()
    for size in range(pixels_end - 1, -1, -1024):
        with path.open("r+b") as file:
            file.truncate(size)
        with pytest.raises(InputError, match=r"cut\.vol"):
            read_vendor_volume(path)
    assert time.perf_counter() - start < 5


def test_eyepys_own_vol_file(real_data):
    volume = read_vendor_volume(real_data / "eyepy_fixtures" / "test_volume.vol")
    check_consistent(volume)
    assert volume.data.shape == (10, 40, 50)
    assert volume.spacing_mm[0] == pytest.approx(0.0314, abs=1e-4)
    assert np.isnan(volume.spacing_mm[2])  # cropped: its positions and its ScaleX contradict
    assert (np.diff(volume.bscan_lines_mm[:, 1]) < 0).all()
