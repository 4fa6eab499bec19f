"""Formats of optional packages, which stand-ins answer for where they are not installed."""

import importlib.util
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from fuzzing import read_or_refuse
from scipy.ndimage import gaussian_filter

from preprocessing.errors import InputError
from preprocessing.load import canonical
from preprocessing.readers import read_vendor_volume
from preprocessing.readers.extras import topcon_layers


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "eyepy", None)
    monkeypatch.setitem(sys.modules, "oct_converter", None)
    for name, extra in (("a.E2E", "eyepy"), ("a.fda", "oct-converter"), ("a.oct", "oct-converter")):
        (tmp_path / name).write_bytes(b"FOCT")
        with pytest.raises(InputError, match=rf"pip install 'oct-anogan\[{extra}\]'"):
            read_vendor_volume(tmp_path / name)


def stand_in(monkeypatch, package, **classes):
    """Install modules that answer as `package` would, for files nobody may hand out."""
    names = package.split(".")
    for n in range(1, len(names) + 1):
        monkeypatch.setitem(sys.modules, ".".join(names[:n]), ModuleType(".".join(names[:n])))
    for name, reader in classes.items():
        setattr(sys.modules[package], name, reader)


def test_e2e_has_no_lateral_spacing_and_says_so(tmp_path, monkeypatch, rng):
    pixels = rng.random((3, 80, 60)).astype(np.float32)
    pixels[0, :5] = 2.0
    meta = [{"scale_y": 0.0039, "scan_pattern": 3}] * 3
    series = SimpleNamespace(
        n_bscans=3,
        get_bscan_meta=lambda: meta,
        get_bscans=lambda: pixels,
        laterality=lambda: "LateralityEnum.OS",
    )
    reader = SimpleNamespace(series=[SimpleNamespace(n_bscans=0), series])
    stand_in(monkeypatch, "eyepy.io.he.e2e_reader", HeE2eReader=lambda _: nullcontext(reader))
    (tmp_path / "a.E2E").write_bytes(b"CMDb")
    volume = read_vendor_volume(tmp_path / "a.E2E")
    assert (volume.eye, volume.intensity, volume.scan_pattern) == ("L", "linear", "raster")
    assert volume.spacing_mm[1] == 0.0039
    assert not volume.valid[0, :5].any()
    with pytest.raises(InputError, match="column 'spacing_um'"):
        canonical(volume, False)
    reader.series.append(series)
    with pytest.raises(InputError, match="2 readable scans"):
        read_vendor_volume(tmp_path / "a.E2E")


def topcon(tmp_path, name, **attributes):
    scan = {
        "volume": [np.full((5, 4), b, np.uint8) for b in range(3)],
        "oct_header": {"scan_mode": 2},
        "pixel_spacing": [0.01, 0.04, 0.0035],
        "metadata": {"patient_info_02": {"last_name": "Zyxwvut"}},
        "laterality": "L",
        "contours": {"ILM": np.array([[1] * 4, [2] * 4, [9] * 4])},
    }
    (tmp_path / name).write_bytes(b"FOCT")
    reader = SimpleNamespace(read_oct_volume=lambda: SimpleNamespace(**(scan | attributes)))
    return tmp_path / name, lambda _: reader


def test_topcon_spacing_and_contours(tmp_path, monkeypatch):
    path, reader = topcon(tmp_path, "a.fda")
    stand_in(monkeypatch, "oct_converter.readers", FDA=reader)
    volume = read_vendor_volume(path)
    assert volume.spacing_mm == (0.04, 0.0035, 0.01)
    np.testing.assert_array_equal(np.rint(255 * volume.data[:, 0, 0]), [0, 1, 2])
    np.testing.assert_array_equal(volume.vendor_layers["ILM"][:, 0], [np.nan, 1, 0])
    assert "Zyxwvut" not in repr(volume)
    path, reader = topcon(tmp_path, "b.fda", oct_header={"scan_mode": 3})
    stand_in(monkeypatch, "oct_converter.readers", FDA=reader)
    with pytest.raises(InputError, match="scan mode 3"):
        read_vendor_volume(path)


def test_real_topcon_files(real_data):
    readers = pytest.importorskip("oct_converter.readers", reason="oct-converter is not installed")
    folder = real_data / "vendor_minimized"
    if np.lib.NumpyVersion(np.__version__) >= "2.3.0":
        with pytest.raises(InputError, match=r"NumPy below 2\.3"):
            read_vendor_volume(folder / "fda_minimized.fda")
        return
    volume = read_vendor_volume(folder / "fda_minimized.fda")
    assert volume.data.shape == (1, 650, 512)
    assert volume.spacing_mm == (0, 0.0035, 6 / 512)
    assert (volume.eye, volume.device) == ("L", "Topcon 3DOCT-1000MK2")
    # the file kept the contours of all 128 B-scans but the pixels of the first only
    contours = readers.FDA(folder / "fda_minimized.fda").read_oct_volume().contours
    ilm = topcon_layers(contours, (128, 650, 512))["RETINA_1"]
    steps = np.diff(gaussian_filter(volume.data[0], 2), axis=0)
    contrast = [np.mean(steps[row.astype(int), np.arange(512)]) for row in ilm]
    assert np.argmax(contrast) == 0
    assert read_vendor_volume(folder / "fds_minimized.fds").data.shape == (4, 3, 2)


def test_damaged_topcon_and_e2e_files(real_data, tmp_path):
    folder = real_data / "vendor_minimized"
    packages = {".fda": "oct_converter", ".fds": "oct_converter", ".E2E": "eyepy"}
    found = {suffix for suffix, name in packages.items() if importlib.util.find_spec(name)}
    if not found:
        pytest.skip("neither eyepy nor oct-converter is installed")
    for path in folder.iterdir():
        if path.suffix in found:
            raw = path.read_bytes()
            for size in (0, 10, 1000, 30_000):
                cut = tmp_path / f"cut{path.suffix}"
                cut.write_bytes(raw[:size])
                assert read_or_refuse(cut) is None
