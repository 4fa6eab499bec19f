"""Normalise, resample and flatten: gray values, areas, and the way of every pixel back."""

import numpy as np
import pytest

from preprocessing.errors import InputError
from preprocessing.flatten import flat_geometry, flatten
from preprocessing.geometry import read_geometry, write_geometry
from preprocessing.intensity import to_display, to_power
from preprocessing.normalise import normalise
from preprocessing.resample import area_weights, resample


def retina_like(volume, rng):
    """Gray values of a dark vitreous above bright tissue, (b, z, x)."""
    gray = np.where(np.arange(200)[None, :, None] < 80, 0.1, 0.6) + 0.08 * rng.normal(
        size=volume.data.shape
    )
    return np.clip(gray, 0, 1).astype(np.float32)


def test_normalised_retina_does_not_depend_on_the_vitreous_or_the_gain(volume, rng):
    gray = retina_like(volume, rng)
    raw = volume.replace(data=gray, intensity="display")
    noisy_vitreous = gray.copy()
    noisy_vitreous[:, :80] += 0.1
    reference = normalise(raw, (1, 99)).data
    for other in (noisy_vitreous, 0.5 * gray + 0.2):
        again = normalise(raw.replace(data=other.astype(np.float32)), (1, 99)).data
        np.testing.assert_allclose(again[:, 90:], reference[:, 90:], atol=0.05)
    assert -1 <= reference.min() <= reference.max() <= 1


def test_invalid_pixels_do_not_count(volume, rng):
    gray = retina_like(volume, rng)
    raw = volume.replace(data=gray, intensity="display")
    reference = normalise(raw, (1, 99))
    raw.valid[:, :, :30] = False
    gray[:, :, :30] = 1  # a white wedge
    wedged = normalise(raw, (1, 99))
    np.testing.assert_allclose(wedged.data[:, 90:, 30:], reference.data[:, 90:, 30:], atol=0.05)
    assert (wedged.data[:, :, :30] == -1).all()


def test_stages_refuse_what_is_not_theirs(volume):
    with pytest.raises(InputError, match="already normalised"):
        normalise(volume, (1, 99))
    with pytest.raises(InputError, match="must be positive"):
        resample(volume, 0)


def test_linear_values_get_the_display_transform():
    np.testing.assert_allclose(to_display(np.array([0.0, 1e-3, 1.0])), [0, 0.194, 1], atol=0.005)
    gray = np.linspace(0.02, 0.98, 9)
    np.testing.assert_allclose(to_display(to_power(gray)), gray, atol=1e-5)


def test_area_average_keeps_the_mean_and_shrinks_the_noise_of_every_column(rng):
    weights = area_weights(512, 272)
    np.testing.assert_allclose(weights.sum(0), 1, rtol=1e-5)
    np.testing.assert_allclose(weights.sum(1), 272 / 512, rtol=1e-5)
    noise = rng.normal(size=(20000, 512)).astype(np.float32) @ weights
    # taking the nearest column would leave 1, interpolating linearly up to 1 in some columns
    assert noise.std(0).max() < 0.75


def test_resampling_makes_22_um_and_leaves_invalid_area_out(volume):
    fine = volume.replace(spacing_mm=(0.12, 0.004, 0.0117))
    fine.valid[:, :, :10] = False
    fine.data[:, :, 10:] = 0.25
    coarse = resample(fine, 22)
    assert coarse.data.shape == (3, 200, round(100 * 11.7 / 22))
    assert coarse.spacing_mm[2] * coarse.data.shape[2] == pytest.approx(100 * 0.0117)
    np.testing.assert_allclose(coarse.data[coarse.valid], 0.25, rtol=1e-5)
    marked = np.nansum(coarse.annotation) * coarse.spacing_mm[2]
    assert marked == pytest.approx(fine.annotation.sum() * 0.0117, rel=1e-4)


def test_a_coarse_scan_is_interpolated_and_flagged(volume):
    ramp = np.broadcast_to(np.linspace(-1, 1, 100, dtype=np.float32), volume.data.shape)
    fine = resample(volume.replace(data=ramp, spacing_mm=(0.12, 0.004, 0.044)), 22)
    assert fine.data.shape[2] == 200
    np.testing.assert_allclose(np.diff(fine.data[0, 0])[2:-2], 1 / 99, rtol=1e-3)
    assert fine.parameters["resample"]["upsampled"]
    assert not resample(volume, 22).parameters["resample"]["upsampled"]


def test_whole_pixel_shifts_copy_gray_values(volume, layers):
    geometry = flat_geometry(layers, volume, "bm", above_um=400, thickness_um=0)
    flat = flatten(volume, geometry, n_rows=120)
    assert np.isin(flat.data[flat.valid], volume.data).all()
    np.testing.assert_allclose(geometry.bm, 100, atol=0.5)
    b, z, x = geometry.to_native(2, 50, 33)
    assert flat.data[2, 50, 33] == volume.data[b, int(z), int(x)]


def test_mode_both_puts_ilm_and_bm_on_fixed_rows(volume, layers):
    layers.ilm[:, 50:] += 20  # a thinner retina
    geometry = flat_geometry(layers, volume, "both", above_um=400, thickness_um=240)
    np.testing.assert_allclose(geometry.bm, 100, atol=1e-3)
    np.testing.assert_allclose(geometry.ilm, 40, atol=1e-3)
    flat = flatten(volume, geometry, n_rows=120)
    assert flat.valid[:, 30:110].all()


def test_unknown_columns_become_invalid(volume, layers):
    layers.bm[1, 20:30] = np.nan
    flat = flatten(volume, flat_geometry(layers, volume, "bm", 400, 0), 120)
    assert not flat.valid[1, :, 20:30].any()
    assert flat.valid[1, 50:100, :20].all()


def test_every_flat_pixel_maps_back_to_where_it_came_from(volume, layers, tmp_path):
    """Paint each native pixel with its own number, push it through, and compare pixel by pixel."""
    n_b, n_z, n_x = 3, 200, 200
    numbers = np.arange(n_b * n_z * n_x, dtype=np.float32).reshape(n_b, n_z, n_x)
    native = volume.replace(
        data=numbers,
        valid=np.ones(numbers.shape, bool),
        annotation=None,
        spacing_mm=(0.12, 0.004, 0.011),
        native_shape=numbers.shape,
    )
    resampled = resample(native, 22)  # two native columns make one
    geometry = flat_geometry(layers, resampled, "bm", 400, 0)
    flat = flatten(resampled, geometry, 120)
    write_geometry(geometry, tmp_path / "g.npz")
    geometry = read_geometry(tmp_path / "g.npz")
    b, r, c = np.nonzero(flat.valid)
    native_b, native_z, native_x = geometry.to_native(b, r, c)
    left = numbers[native_b, native_z.astype(int), np.floor(native_x).astype(int)]
    np.testing.assert_allclose(flat.data[flat.valid], left + 0.5)
    back = geometry.to_flat(native_b, native_z, native_x)
    for found, original in zip(back, (b, r, c), strict=True):
        np.testing.assert_allclose(found, original, atol=1e-3)


def test_damaged_geometry_names_the_stage_to_rerun(volume, layers, tmp_path):
    path = tmp_path / "flat.geometry.npz"
    write_geometry(flat_geometry(layers, volume, "bm", 400, 0), path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(
        InputError, match=r"flat\.geometry\.npz.*make it again with the rule prepare"
    ):
        read_geometry(path)
