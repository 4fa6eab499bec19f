"""Heat maps on the B-scans as loaded: right pixels, right colours, nothing half-written."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from made_maps import (
    HIGH,
    LOW,
    flat_maps,
    hot_pixels,
    native_volume,
    overlay,
    prepare,
    viewer_of,
    write_flat,
    write_scale,
)
from PIL import Image

from anogan.maps.enface import from_the_front
from anogan.maps.file import write_maps
from anogan.maps.pictures import HEAT_COLOURS, LEVELS, OUTLINE, gray_levels, heat_levels
from preprocessing.intensity import to_power
from preprocessing.volume import read_nifti, read_nifti_header, read_volume


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The folder of a mirrored left eye that was drawn."""
    folder = tmp_path_factory.mktemp("drawn") / "v"
    prepare(folder, eye="L", mirrored=True)
    assert overlay(folder) == 0
    return folder


@pytest.mark.parametrize(
    "native", [{}, {"eye": "L", "mirrored": True}, {"n_x": 133, "columns": 66}]
)
def test_a_block_of_the_flat_map_lies_on_its_native_pixels(tmp_path, native):
    prepare(tmp_path / "v", **native)
    assert overlay(tmp_path / "v") == 0
    volume = read_nifti_header(tmp_path / "v" / "volume.nii.gz")
    hot = hot_pixels(native_volume("v", n_x=native.get("n_x", 144)), native.get("columns", 72))
    for kind in ("residual", "score"):
        path = tmp_path / "v" / "out" / f"pca.{kind}.nii.gz"
        header = read_nifti_header(path)
        assert header.get_data_shape() == volume.get_data_shape()
        np.testing.assert_array_equal(header.get_best_affine(), volume.get_best_affine())
        values = read_nifti(path)
        np.testing.assert_array_equal(values == 1, hot)
        assert np.isnan(values).any()


def test_bscans_have_the_size_of_the_scan_and_its_colours(drawn):
    volume = read_volume(drawn / "volume.nii.gz")
    hot = hot_pixels(volume)
    for b in range(3):
        with Image.open(drawn / "out" / "bscans" / f"pca-{b:03d}.png") as picture:
            pixels = np.asarray(picture).astype(int)
        assert pixels.shape == (*volume.data.shape[1:], 3)
        outlined = (pixels == OUTLINE).all(axis=2)
        coloured = np.ptp(pixels, axis=2) > 20
        np.testing.assert_array_equal(coloured & ~outlined, hot[b] & ~outlined)
        marked = np.nan_to_num(volume.annotation[b]) >= 0.5
        assert (marked[outlined]).all() and outlined.any() == marked.any()
        assert np.ptp(pixels[~coloured], axis=1).max() == 0


def test_bscans_show_the_residual_where_there_is_one(tmp_path):
    folder = tmp_path / "v"
    prepare(folder)
    maps = flat_maps("v")
    with write_maps(folder / "pca.h5", "pca", 16, 32) as writer:
        writer.append(replace(maps, residual=np.zeros_like(maps.score)))
    assert overlay(folder) == 0
    with Image.open(folder / "out" / "bscans" / "pca-000.png") as picture:
        assert np.ptp(np.asarray(picture).astype(int), axis=2).max() == 0


def test_gray_is_stretched_and_black_where_nothing_was_measured():
    volume = native_volume("v")
    volume.valid[:, :20] = False
    volume.data[:, :20] = 9
    volume.data[:, 20:] = 0.4 + 0.1 * volume.data[:, 20:]
    gray = gray_levels(volume)
    assert not gray[:, :20].any() and gray[:, 20:].max() == 255
    power = volume.replace(data=to_power(volume.data), intensity="linear")
    assert np.abs(gray_levels(power).astype(int) - gray).max() <= 1


def test_heat_hides_more_the_hotter_it_is_and_starts_above_low():
    values = np.array([np.nan, -1, LOW, LOW + 1e-3, 0.4, HIGH, 9, np.inf], np.float32)
    levels = heat_levels(values, [LOW, HIGH])
    assert levels[:3].tolist() == [0, 0, 0] and levels[3] == 1
    assert levels[4] == LEVELS // 2 and levels[5:].tolist() == [LEVELS - 1] * 3
    alpha, luminance = HEAT_COLOURS[:, 3].astype(int), HEAT_COLOURS[:, :3] @ [0.3, 0.59, 0.11]
    assert alpha[0] == 0 and (np.diff(alpha) > 0).all() and (np.diff(luminance) > 0).all()


def test_without_annotation_and_without_residual(tmp_path):
    folder = tmp_path / "v"
    prepare(folder, "p_d", residual=False)
    write_flat(native_volume("v").replace(annotation=None), folder)
    assert overlay(folder, methods=["p_d"]) == 0
    assert not (folder / "out" / "p_d.residual.nii.gz").exists()
    facts, _ = viewer_of(folder)
    assert facts["scale"]["residual"] is None and facts["enface"]["residual"] is None
    assert facts["bscans"][0]["residual"] is None and facts["bscans"][0]["score"]
    assert facts["bscans"][1]["outlines"] == []
    with Image.open(folder / "out" / "bscans" / "p_d-000.png") as picture:
        assert np.ptp(np.asarray(picture).astype(int), axis=2).max() > 20


def test_all_methods_are_drawn_and_one_is_in_the_viewer(tmp_path):
    folder = tmp_path / "v"
    prepare(folder, "pca")
    prepare(folder, "p_d", residual=False)
    assert overlay(folder, methods=["pca", "p_d"], viewer="p_d") == 0
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {
        *("pca.residual.nii.gz", "pca.score.nii.gz", "p_d.score.nii.gz", "viewer.zip", "bscans"),
        *("pca.enface.png", "p_d.enface.png"),
    }
    assert len(list((folder / "out" / "bscans").iterdir())) == 6
    assert viewer_of(folder)[0]["method"] == "p_d"


def test_drawing_again_gives_the_same_files(drawn):
    assert overlay(drawn, output="again") == 0
    files = [path for path in (drawn / "out").rglob("*") if path.is_file()]
    for path in files:
        again = drawn / "again" / path.relative_to(drawn / "out")
        assert again.read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    "changes", [{"scan_pattern": "radial"}, {"spacing_mm": (0.0, 0.004, 0.011)}, {"eye": ""}]
)
def test_the_view_from_the_front_needs_no_raster(tmp_path, changes):
    folder = tmp_path / "v"
    prepare(folder)
    write_flat(native_volume("v").replace(**changes), folder)
    assert overlay(folder) == 0
    with Image.open(folder / "out" / "pca.enface.png") as picture:
        assert picture.size[0] > picture.size[1] > 100


def test_the_view_from_the_front_is_to_scale(drawn):
    with Image.open(drawn / "out" / "pca.enface.png") as picture:
        pixels = np.asarray(picture).astype(int)
    hot = (pixels[..., 0] > 200) & (pixels[..., 2] < 120)
    hot = hot[: len(hot) - 90]  # above the colour bar
    z, x = np.nonzero(hot[:, : hot.shape[1] // 2])
    height, width = np.ptp(z) + 1, np.ptp(x) + 1
    assert z.mean() == pytest.approx(64 + 2.5 * height, rel=0.02)  # the inferior B-scan is below
    # a B-scan is 0.2 mm wide, the block 13 columns of 0.022 mm
    assert width / height == pytest.approx(13 * 0.022 / 0.2, rel=0.03)
    bar = (pixels[: -len(pixels) // 9].max(axis=2) == 0).sum(axis=1).max() / 2  # of two panels
    assert bar / width == pytest.approx(0.1 / (13 * 0.022), rel=0.03)


def test_the_front_is_the_mean_of_the_highest_of_each_ascan():
    flat = np.zeros((1, 40, 4), np.float32)
    flat[0, ::2, 0] = 1
    flat[0, 7, 1] = 1
    flat[0, :, 2] = np.nan
    flat[0, :20, 3] = np.nan
    front = from_the_front(flat, pixel_um=5)  # 10 rows are 50 um
    np.testing.assert_allclose(front[0], [1, 0.1, np.nan, 0])


FAULTS = {
    "other volume": "no maps of the volume v; give the file",
    "no scale": "no scale of pca is given; add its scale.json",
    "viewer": "--viewer-method anogan: the maps are of pca",
    "maps cut off": "pca.h5: .*the rule heatmap",
    "scale cut off": "pca.json: not a readable scale .*the rule heat_scale",
    "no geometry": "flat.geometry.npz: no such file; .*the rule prepare",
    "other geometry": r"pca.h5: its maps of v \(3, 110, 70\), .* do not belong together",
}


def spoil(folder, fault) -> None:
    if fault in ("other volume", "other geometry"):
        other = fault == "other volume"
        maps = flat_maps("w") if other else flat_maps("v", shape=(3, 110, 70))
        with write_maps(folder / "pca.h5", "pca", 16, 32) as writer:
            writer.append(maps)
    elif fault == "no scale":
        write_scale(folder / "pca.json", "anogan")
    elif fault == "no geometry":
        (folder / "flat.geometry.npz").unlink()
    elif fault.endswith("cut off"):
        path = folder / ("pca.h5" if fault == "maps cut off" else "pca.json")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(("fault", "message"), FAULTS.items())
def test_faults_end_in_one_line_and_leave_what_was_there(tmp_path, capsys, fault, message):
    folder = tmp_path / "v"
    prepare(folder)
    spoil(folder, fault)
    (folder / "out").mkdir()
    (folder / "out" / "older.txt").write_text("older")
    assert overlay(folder, viewer="anogan" if fault == "viewer" else "pca") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert [path.name for path in (folder / "out").iterdir()] == ["older.txt"]
    assert not list(folder.glob(".tmp*"))


def test_drawing_needs_no_torch():
    code = "import sys, anogan.overlay, anogan.heat_scale; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
