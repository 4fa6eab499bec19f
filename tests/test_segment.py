"""Layer segmentation: known surfaces are found, and what is unknown stays NaN."""

import argparse

import numpy as np
import pytest

from benchmarks.hard_phantoms import SCENARIOS, hard_phantom
from preprocessing import segment
from preprocessing.errors import InputError
from preprocessing.layer_search import find_layers
from preprocessing.layers import read_layers, write_layers
from preprocessing.load import canonical
from preprocessing.normalise import normalise
from preprocessing.resample import resample
from preprocessing.volume import Volume, write_volume

SPACING_MM = (0.12, 0.0039, 0.022)
ROWS, COLUMNS = 400, 200


def retina(n_bscans=3, tilt=0.0, drusen_um=0.0, top_row=130.0):
    """Return gray values and the true ILM and BM of a retina with speckle, (b, z, x) and (b, x)."""
    x = np.arange(COLUMNS) - COLUMNS / 2
    bm = top_row + 80 + 0.001 * x**2 + tilt * x + 4 * np.arange(n_bscans)[:, np.newaxis]
    ilm = bm - 80 + 25 * np.exp(-((x / 12) ** 2))
    bump = drusen_um / 3.9 * np.exp(-((x - 50) ** 2) / (2 * 6**2))
    rpe = bm - 7 - bump
    z = np.arange(ROWS)[np.newaxis, :, np.newaxis]
    ilm_, rpe_, bm_ = (surface[:, np.newaxis] for surface in (ilm, rpe, bm))
    gray = np.full((n_bscans, ROWS, COLUMNS), 0.08)
    gray[(z >= ilm_) & (z < rpe_)] = 0.5
    gray[(z >= rpe_ - 22) & (z < rpe_ - 8)] = 0.33
    gray[(z >= rpe_) & (z < bm_)] = 0.6
    gray[(z >= rpe_) & (z < rpe_ + 7)] = 0.9
    below = z >= bm_
    gray = np.where(below, 0.4 * np.exp(-(z - bm_) / 80) + 0.05, gray)
    speckle = np.random.default_rng(3).gamma(8, 1 / 8, gray.shape)
    return (2 * gray * speckle**0.5 - 1).astype(np.float32), ilm - 0.5, bm - 0.5


def errors_px(layers, ilm, bm):
    return np.nanmean(np.abs(layers.ilm - ilm)), np.nanmean(np.abs(layers.bm - bm))


def everywhere(data):
    return np.ones(data.shape, bool)


@pytest.mark.parametrize("n_bscans", [1, 3])
@pytest.mark.parametrize("tilt", [0.0, 0.5, -0.5])
def test_surfaces_are_found_on_a_tilted_retina(n_bscans, tilt):
    data, ilm, bm = retina(n_bscans, tilt)
    spacing = SPACING_MM if n_bscans > 1 else (0, *SPACING_MM[1:])
    layers = find_layers(data, everywhere(data), spacing)
    ilm_error, bm_error = errors_px(layers, ilm, bm)
    assert ilm_error < 0.8
    assert bm_error < 0.8
    assert layers.bm.dtype == np.float32
    assert layers.confidence.min() > 0.5
    assert (layers.ilm < layers.rpe).all()
    assert (layers.rpe <= layers.bm).all()


def test_finer_columns_give_the_same_surfaces():
    data, ilm, bm = retina()
    fine = find_layers(
        np.repeat(data, 3, 2), everywhere(np.repeat(data, 3, 2)), (0.12, 0.0039, 0.0073)
    )
    ilm_error, bm_error = errors_px(fine, np.repeat(ilm, 3, 1), np.repeat(bm, 3, 1))
    assert ilm_error < 0.8
    assert bm_error < 0.8


def test_gain_and_offset_of_gray_values_do_not_matter():
    data, _, _ = retina()
    plain = find_layers(data, everywhere(data), SPACING_MM)
    gain = np.array([0.3, 1.0, 2.0], np.float32)[:, np.newaxis, np.newaxis]
    scaled = find_layers(gain * data + 0.4, everywhere(data), SPACING_MM)
    assert np.abs(plain.ilm - scaled.ilm).max() < 0.1
    assert np.abs(plain.bm - scaled.bm).max() < 0.1


@pytest.mark.parametrize("fill", [-1.0, 1.0])
def test_invalid_wedges_of_any_gray_are_not_tissue(fill):
    data, ilm, bm = retina()
    z, x = np.mgrid[:ROWS, :COLUMNS]
    wedge = (z < 0.5 * x) | (z > 300 + 0.4 * x)
    valid = np.broadcast_to(~wedge, data.shape)
    layers = find_layers(np.where(valid, data, np.float32(fill)), valid, SPACING_MM)
    ilm_error, bm_error = errors_px(layers, ilm, bm)
    assert ilm_error < 0.8
    assert bm_error < 0.8


def test_ilm_cut_off_at_the_top_is_found_at_the_cut():
    data, ilm, bm = retina(top_row=-5)
    layers = find_layers(data, everywhere(data), SPACING_MM)
    ilm_error, bm_error = errors_px(layers, np.maximum(ilm, -0.5), bm)
    assert ilm_error < 1.5
    assert bm_error < 0.8


def test_bm_stays_flat_under_drusen_and_the_rpe_rises():
    data, _, bm = retina(drusen_um=100)
    layers = find_layers(data, everywhere(data), SPACING_MM)
    assert np.abs(layers.bm - bm)[:, 130:170].max() < 3
    elevation_um = 3.9 * (layers.bm - layers.rpe)
    assert elevation_um[:, 148:152].mean() > 80
    assert elevation_um[:, :120].mean() < 35


@pytest.mark.parametrize("blank", ["black", "invalid", "noise"])
def test_a_blank_bscan_is_nan(blank):
    data, ilm, bm = retina()
    valid = everywhere(data)
    if blank == "noise":
        data[1] = -0.9 + 0.05 * np.random.default_rng(1).standard_normal(data[1].shape)
    else:
        data[1] = -1
        valid[1] = blank == "black"
    layers = find_layers(data, valid, SPACING_MM)
    assert np.isnan(layers.ilm[1]).all()
    assert np.isnan(layers.bm[1]).all()
    assert not layers.confidence[1].any()
    assert errors_px(layers, ilm, bm)[1] < 0.8


def test_columns_without_measurements_are_nan():
    data, _, _ = retina()
    valid = everywhere(data)
    valid[0, :, 80:] = False
    layers = find_layers(data, valid, SPACING_MM)
    assert np.isnan(layers.bm[0, 100:]).all()
    assert np.isfinite(layers.bm[0, :60]).all()


def test_a_volume_without_a_retina_is_refused(tmp_path):
    data = np.full((2, 300, 80), -1, np.float32)
    volume = Volume(data, SPACING_MM, everywhere(data), intensity="normalised")
    write_volume(volume, tmp_path / "v.nii.gz")
    files = {"input": tmp_path / "v.nii.gz", "output": tmp_path / "l.npz"}
    with pytest.raises(InputError, match="no B-scan shows a retina"):
        segment.command(argparse.Namespace(**files))
    assert not (tmp_path / "l.npz").exists()


def test_layers_come_back_from_disk_and_damage_is_named(tmp_path):
    data, _, _ = retina(1)
    layers = find_layers(data, everywhere(data), SPACING_MM)
    path = tmp_path / "layers.npz"
    write_layers(layers, path)
    np.testing.assert_array_equal(read_layers(path).rpe, layers.rpe)

    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not an archive", whole[:300] + whole[301:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"layers\.npz"):
            read_layers(path)
    np.savez(path, ilm=layers.ilm)
    with pytest.raises(InputError, match=r"layers\.npz"):
        read_layers(path)
    np.savez(path, ilm=layers.ilm, rpe=layers.rpe, bm=layers.bm[:, 1:], confidence=layers.bm)
    with pytest.raises(InputError, match="do not fit"):
        read_layers(path)
    with pytest.raises(InputError, match="no such file"):
        read_layers(tmp_path / "absent.npz")


def test_fluid_of_real_eyes_lies_between_ilm_and_bm(real_data):
    from PIL import Image

    folder = real_data / "dme_fluid"
    names = [f"subject10_bscan{b:02d}.png" for b in (4, 6, 9)]
    gray, fluid = (
        np.stack([np.asarray(Image.open(folder / kind / name).convert("L")) for name in names])
        for kind in ("image", "grader1_fluid")
    )
    wedge = (gray == 255).cumprod(axis=1) | (gray == 255)[:, ::-1].cumprod(axis=1)[:, ::-1]
    layers = find_layers(gray / np.float32(127.5) - 1, wedge == 0, (0.125, 0.00387, 0.0115))
    z = np.arange(gray.shape[1])[np.newaxis, :, np.newaxis]
    inside = (z > layers.ilm[:, np.newaxis]) & (z < layers.bm[:, np.newaxis])
    assert inside[fluid > 0].mean() > 0.999
    thickness_um = 3.87 * np.nanmean(layers.bm - layers.ilm)
    assert 250 < thickness_um < 400


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_hard_phantoms_reach_the_goals(scenario):
    volume, truth = hard_phantom(scenario, 0, (6, 440, 512))
    ready = resample(normalise(canonical(volume, False), (1, 99)), 22.0)
    layers = find_layers(ready.data, ready.valid, ready.spacing_mm)
    columns = (np.arange(512) + 0.5) * ready.data.shape[2] / 512 - 0.5
    for name, goal_um in (("ilm", 2), ("bm", 6)):
        surface = np.stack(
            [np.interp(columns, range(len(row)), row) for row in getattr(layers, name)]
        )
        seen = np.isfinite(truth[name])
        assert 3.87 * np.nanmean(np.abs(surface - truth[name])) < goal_um
        assert np.isfinite(surface[seen]).mean() > 0.97
        blank = ~seen.any(axis=1)
        assert np.isnan(surface[blank]).all()


def test_layers_end_at_the_optic_disc():
    data, ilm, bm = retina()
    rng = np.random.default_rng(5)
    z = np.arange(ROWS)[np.newaxis, :, np.newaxis]
    nerve = np.where(z > ilm[:, np.newaxis] + 30, 0.45 * np.exp(-(z - 150) / 200), 0.08)
    nerve = 2 * nerve * rng.gamma(30, 1 / 30, data.shape) ** 0.5 - 1
    data[:, :, 150:] = nerve[:, :, 150:]
    layers = find_layers(data, everywhere(data), SPACING_MM)
    assert np.isnan(layers.bm[:, 165:]).mean() > 0.6
    assert np.isfinite(layers.bm[:, :140]).all()
    assert np.abs(layers.bm - bm)[:, :140].mean() < 0.8


def test_a_bscan_unlike_its_neighbours_is_searched_again():
    """A bright layer in the vitreous does not pass for the ILM."""
    data, ilm, bm = retina(5)
    data[2, 20:40] = 0
    layers = find_layers(data, everywhere(data), SPACING_MM)
    assert np.abs(layers.ilm - ilm)[2].mean() < 1.5
    assert np.abs(layers.bm - bm)[2].mean() < 1.5
