"""Quality control: good scans pass, also diseased ones; every defect is flagged and named."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from preprocessing.cli import run_command
from preprocessing.intensity import to_display, to_power
from preprocessing.layer_search import find_layers
from preprocessing.layers import Layers, write_layers
from preprocessing.load import canonical
from preprocessing.normalise import normalise
from preprocessing.phantom import make_phantom
from preprocessing.qc import COLUMNS, assess, read_table, write_table
from preprocessing.qc_measures import measure
from preprocessing.qc_pictures import draw_contact_sheet
from preprocessing.resample import resample
from preprocessing.volume import Volume, read_volume, write_volume

SHAPE = (6, 384, 256)
CUT_OFF = "retina cut off or folded at the edge of the scan"


def phantom(diseased=False, shape=SHAPE):
    """Return a phantom as exported and its true layers."""
    return make_phantom("qc1", 1, diseased, shape)


def judged(exported):
    """Take an exported volume through the stages before qc; return its rows, volume first."""
    volume = resample(normalise(exported, (1, 99)), 22)
    layers = find_layers(volume.data, volume.valid, volume.spacing_mm)
    return assess(volume, layers, measure(volume, layers))


def changed(exported, data, **facts):
    data = np.ascontiguousarray(data)
    return exported.replace(
        data=data, valid=np.ones(data.shape, bool), annotation=None, native_shape=(), **facts
    )


def dimmed(data, decibels):
    """Return display gray values with so much less light, over the noise of the detector."""
    noise = np.random.default_rng(5).exponential(np.median(to_power(data[:, :40])), data.shape)
    return to_display(to_power(data) / 10 ** (decibels / 10) + noise.astype(np.float32))


def moved_up(data, layers, out_um):
    """Return `data` so high that this much of the retina is lost above the scan, and the loss."""
    rows = int(layers["ilm"].max() + out_um / 3.87)
    return np.concatenate([data[:, rows:], data[:, -rows:]], axis=1), data[:, :rows]


@pytest.mark.parametrize("diseased", [False, True])
def test_a_good_scan_passes_healthy_or_not(diseased):
    exported, _ = phantom(diseased)
    rows = judged(exported)
    assert {row["flag"] for row in rows} == {"pass"}
    assert not any(row["reason"] for row in rows)
    assert rows[0]["bscan"] == "all"
    assert [row["bscan"] for row in rows[1:]] == list(range(SHAPE[0]))


def test_a_blank_and_a_blinked_bscan_are_flagged_and_so_is_the_volume():
    exported, _ = phantom()
    data = exported.data.copy()
    data[2] = 0
    data[4, :, 50:200] = dimmed(data[4:5], 30)[0, :, 50:200]
    whole, *rows = judged(changed(exported, data))
    assert [row["bscan"] for row in rows if row["flag"] != "pass"] == [2, 4]
    assert (rows[2]["flag"], rows[2]["reason"]) == ("fail", "no retina found")
    assert np.isnan(rows[2]["thickness_um"])
    dark = rows[4]["dark_fraction"] * (1 - rows[4]["unknown_fraction"])
    assert rows[4]["unknown_fraction"] + dark == pytest.approx(0.6, abs=0.08)
    assert whole["flag"] == "check"
    assert "of 6 B-scans fail" in whole["reason"]


def test_signal_falls_with_the_light_until_nothing_passes():
    exported, _ = phantom()
    whole = [judged(changed(exported, dimmed(exported.data, loss)))[0] for loss in (0, 10, 28)]
    signal = [row["signal"] for row in whole]
    assert signal[0] > 1.2 * signal[1]
    assert [row["flag"] for row in whole] == ["pass", "pass", "fail"]


@pytest.mark.parametrize(("out_um", "folded"), [(0, False), (150, True)])
def test_a_retina_beyond_the_top_fails(out_um, folded):
    exported, layers = phantom()
    data, lost = moved_up(exported.data, layers, out_um)
    if folded:
        data[:, : lost.shape[1]] = np.maximum(data[:, : lost.shape[1]], lost[:, ::-1])
    whole, *rows = judged(changed(exported, data))
    assert whole["flag"] == "fail"
    assert all(row["flag"] == "fail" and CUT_OFF in row["reason"] for row in rows)


def test_an_upside_down_volume_fails():
    exported, _ = phantom()
    whole, *rows = judged(changed(exported, exported.data[:, ::-1]))
    assert whole["flag"] == "fail"
    assert all(row["flag"] == "fail" and "upside down" in row["reason"] for row in rows)


@pytest.mark.parametrize("black_point", [0.15, 0.3])
def test_a_device_that_shows_the_vitreous_black_passes(black_point):
    exported, _ = phantom()
    gray = np.clip((exported.data - black_point) / (1 - black_point), 0, 1)
    volume = canonical(changed(exported, gray), mirror_left_eyes=False)
    assert volume.valid.mean() > 0.9
    assert {row["flag"] for row in judged(volume)} == {"pass"}


def test_a_decentred_volume_is_to_be_checked():
    wide, _ = phantom(shape=(7, 384, 460))
    whole, *rows = judged(changed(wide, wide.data[:, :, 210:]))
    assert whole["flag"] == "check"
    assert "off the centre" in whole["reason"]
    assert {row["flag"] for row in rows} == {"pass"}


def test_what_makes_a_volume_doubtful_is_said_of_the_volume_alone(scene):
    volume, layers = scene
    coarse = {"resample": {"upsampled": True}}
    whole, *rows = rows_of(volume.replace(parameters=coarse), layers)
    assert (whole["flag"], {row["flag"] for row in rows}) == ("check", {"pass"})
    assert "coarser" in whole["reason"]
    assert "circle scan" in rows_of(volume.replace(scan_pattern="circle"), layers)[0]["reason"]
    line = Volume(volume.data[:1], (0, *volume.spacing_mm[1:]), volume.valid[:1])
    single = Layers(*(surface[:1] for surface in dataclasses.astuple(layers)))
    whole, row = rows_of(line, single)
    assert "a single B-scan" in whole["reason"]
    assert row["flag"] == "pass"


@pytest.fixture
def scene(rng):
    """A normalised volume of 12 B-scans, a flat retina 300 um thick, and its true layers."""
    data = np.full((12, 250, 120), -0.95, np.float32)
    data[:, 100:175] = 0.2
    data[:, 175:230] = -0.3
    data += rng.normal(0, 0.1, data.shape).astype(np.float32)
    volume = Volume(data, (0.12, 0.004, 0.022), np.ones(data.shape, bool), volume="v1", eye="R")
    bm = np.full((12, 120), 174.5, np.float32)
    return volume, Layers(ilm=bm - 75, rpe=bm - 5, bm=bm, confidence=np.ones_like(bm))


def rows_of(volume, layers):
    return assess(volume, layers, measure(volume, layers))


def test_figures_are_those_of_the_scene(scene):
    volume, layers = scene
    layers.bm[3, :30] = np.nan
    whole, *rows = rows_of(volume, layers)
    assert rows[0]["thickness_um"] == pytest.approx(300, abs=0.1)
    assert rows[0]["signal"] == pytest.approx(1.15 / 0.1, rel=0.05)
    assert rows[3]["unknown_fraction"] == 0.25
    assert rows[3]["flag"] == "pass"
    assert whole["unknown_fraction"] == pytest.approx(0.25 / 12)


def test_one_bscan_with_other_layers_than_its_neighbours_fails(scene):
    volume, layers = scene
    layers.ilm[6] += 40  # 160 um
    whole, *rows = rows_of(volume, layers)
    assert [row["bscan"] for row in rows if row["flag"] == "fail"] == [6]
    assert rows[6]["outliers"] == 1
    assert "thickness jumps" in rows[6]["reason"]
    assert whole["flag"] == "check"


def test_a_dark_band_fails_where_layers_were_guessed(scene):
    """A band without light fails; a band of fluid, with its bright floor, does not."""
    volume, layers = scene
    volume.data[4, :, 20:80] = -0.95
    volume.data[8, 100:165, 20:80] = -0.9
    rows = rows_of(volume, layers)[1:]
    assert [row["bscan"] for row in rows if row["flag"] != "pass"] == [4]
    assert rows[4]["dark_fraction"] == pytest.approx(0.5, abs=0.05)
    assert (rows[4]["flag"], rows[4]["reason"]) == ("fail", "dark band")


def test_a_detachment_is_no_defect(scene):
    volume, layers = scene
    x, b = np.arange(120), np.arange(12)[:, np.newaxis]
    dome = 60 * np.exp(-(((x - 60) / 25) ** 2) - ((b - 6) / 4) ** 2)  # 240 um high, 1 mm wide
    layers.ilm -= dome.astype(np.float32)
    for k in range(12):
        for column in range(120):
            volume.data[k, int(layers.ilm[k, column]) + 1 : 100, column] += 1.15
    assert {row["flag"] for row in rows_of(volume, layers)} == {"pass"}


def test_many_unknown_columns_are_to_be_checked_and_too_many_fail(scene):
    volume, layers = scene
    layers.ilm[0, :60] = np.nan
    layers.ilm[1, :110] = np.nan
    rows = rows_of(volume, layers)[1:]
    assert [row["flag"] for row in rows[:3]] == ["check", "fail", "pass"]
    assert rows[0]["reason"] == "no layers in many columns"


def test_the_difference_to_the_vendor_is_in_um(scene):
    volume, layers = scene
    assert np.isnan(rows_of(volume, layers)[0]["vendor_difference_um"])
    vendor = {"ILM": layers.ilm + 2, "BM": layers.bm - 1}
    rows = rows_of(volume.replace(vendor_layers=vendor), layers)
    assert rows[1]["vendor_difference_um"] == pytest.approx(6)


def run_stage(folder, volume, layers):
    write_volume(volume.replace(intensity="normalised"), folder / "v.nii.gz")
    write_layers(layers, folder / "l.npz")
    files = {"input": "v.nii.gz", "layers": "l.npz"}
    pictures = {"qc": "qc.tsv", "picture": "layers.png", "enface": "enface.png"}
    for stage, more in (("qc", {"output": "qc.tsv"}), ("qc_pictures", pictures)):
        options = [(f"--{name}", f"{folder / file}") for name, file in (files | more).items()]
        code = run_command("preprocessing", {stage: ""}, [stage, *sum(options, ())])
        if code:
            return code
    return 0


def test_the_table_is_read_by_pandas(scene, tmp_path, capsys):
    volume, layers = scene
    layers.bm[2] = np.nan
    assert run_stage(tmp_path, volume, layers) == 0
    assert "v1: check; B-scans: 11 pass, 0 check, 1 fail" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "qc.tsv", sep="\t")
    assert tuple(table.columns) == COLUMNS
    assert table["bscan"].tolist() == ["all", *map(str, range(12))]
    assert table["flag"].tolist()[:4] == ["check", "pass", "pass", "fail"]
    assert np.isnan(table["thickness_um"][3])
    assert table["vendor_difference_um"].isna().all()


def test_a_table_comes_back_from_disk(scene, tmp_path):
    rows = rows_of(*scene)
    write_table(rows, tmp_path / "qc.tsv")
    whole, again = read_table(tmp_path / "qc.tsv")
    assert [row["flag"] for row in (whole, *again)] == [row["flag"] for row in rows]
    assert again[3]["thickness_um"] == pytest.approx(rows[4]["thickness_um"], abs=0.1)
    assert np.isnan(whole["vendor_difference_um"])


def test_layers_of_another_volume_are_refused(scene, tmp_path, capsys):
    volume, layers = scene
    layers = Layers(*(surface[1:] for surface in dataclasses.astuple(layers)))
    assert run_stage(tmp_path, volume, layers) == 1
    assert "l.npz: made for another volume" in capsys.readouterr().err


@pytest.mark.parametrize(("n_bscans", "known"), [(1, True), (2, False), (130, True)])
def test_pictures_of_any_volume_are_bounded(scene, tmp_path, n_bscans, known):
    volume, layers = scene
    order = np.arange(n_bscans) % 12
    volume = Volume(volume.data[order], volume.spacing_mm, volume.valid[order], volume="v" * 60)
    layers = Layers(*(surface[order] for surface in dataclasses.astuple(layers)))
    if not known:
        layers.bm[:] = np.nan
    assert run_stage(tmp_path, volume, layers) == 0
    for name in ("layers.png", "enface.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width <= 2200
            assert picture.height <= 2500


def test_the_worst_of_many_bscans_is_among_those_shown(scene, tmp_path):
    """A failed B-scan has a red frame, whichever of 130 it is."""
    volume, layers = scene
    order = np.arange(130) % 12
    volume = Volume(volume.data[order], volume.spacing_mm, volume.valid[order])
    layers = Layers(*(surface[order] for surface in dataclasses.astuple(layers)))
    whole, *rows = rows_of(volume, layers)
    red = []
    for flag in ("pass", "fail"):
        rows[77]["flag"] = flag
        draw_contact_sheet(volume, layers, whole, rows, tmp_path / "layers.png")
        with Image.open(tmp_path / "layers.png") as picture:
            pixels = np.asarray(picture.convert("RGB"))
        red.append((pixels == (0xD5, 0x5E, 0x00)).all(axis=-1).sum())
    assert red[1] > red[0] + 1000


def test_real_eyes_pass(real_data, tmp_path):
    for name in ("healthy_subject2", "AMD_patient1"):
        path = tmp_path / f"{name}.nii.gz"
        options = ["--input", str(real_data / "heyex_volumes" / name), "--output", str(path)]
        options += ["--volume", name, "--patient", name]
        assert run_command("preprocessing", {"load": ""}, ["load", *options]) == 0
        volume = read_volume(path)
        part = slice(20, 29)  # the middle
        rows = judged(Volume(volume.data[part], volume.spacing_mm, volume.valid[part], volume=name))
        assert {row["flag"] for row in rows} == {"pass"}, name
