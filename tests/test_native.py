"""The way of a pixel from the vendor's file to a patch and back, and of a map to the B-scans."""

import numpy as np
import pytest

from preprocessing.cli import run_command
from preprocessing.errors import InputError
from preprocessing.flatten import flat_geometry, flatten
from preprocessing.geometry import (
    Geometry,
    geometry_path,
    vendor_order,
    write_geometry,
)
from preprocessing.layers import Layers
from preprocessing.load import canonical
from preprocessing.native import to_native_map
from preprocessing.patch_file import open_patches, read_geometry_of, read_index
from preprocessing.resample import resample
from preprocessing.volume import Volume, read_nifti, write_nifti, write_volume

SHAPE = (3, 160, 96)
STEP_UM = 11.0
SIZE = 32
ROWS = 100


def loaded(gray: np.ndarray, eye: str, bscans_reversed: bool) -> Volume:
    """What the stage load makes of `gray` (b, z, x), stored in the order of the vendor's file."""
    volume = Volume(
        gray[::-1] if bscans_reversed else gray,
        spacing_mm=(0.12, 0.004, STEP_UM / 1000),
        valid=np.ones(gray.shape, bool),
        volume="v1",
        patient="p1",
        eye=eye,
        intensity="normalised",
        bscans_reversed=bscans_reversed,
    )
    return canonical(volume, mirror_left_eyes=True)


def tilted_layers(n_b: int, n_x: int, rng: np.random.Generator) -> Layers:
    """BM that jumps up to two pixels from column to column, a thickness that varies."""
    bm = 100 + np.linspace(0, 20, n_x) + rng.uniform(-2, 2, (n_b, n_x))
    ilm = bm - np.linspace(50, 70, n_x)
    bm, ilm = bm.astype(np.float32), ilm.astype(np.float32)
    return Layers(ilm=ilm, rpe=bm - 5, bm=bm, confidence=np.ones_like(bm))


def pushed(
    native: Volume, columns: int, mode: str, rng: np.random.Generator
) -> tuple[Volume, Geometry]:
    """Resample `native` to a number of columns and flatten it."""
    volume = resample(native, STEP_UM * SHAPE[2] / columns)
    assert volume.data.shape[2] == columns
    layers = tilted_layers(SHAPE[0], columns, rng)
    geometry = flat_geometry(layers, volume, mode, above_um=320, thickness_um=240)
    return flatten(volume, geometry, ROWS), geometry


def patch_file_of(flat: Volume, geometry: Geometry, folder) -> str:
    """Write the flat volume and cut patches from it by the command; return the HDF5 file."""
    path = folder / "flat.nii.gz"
    write_volume(flat, path)
    write_geometry(geometry, geometry_path(path))
    out = str(folder / "p.h5")
    arguments = ["--inputs", str(path), "--labels", "healthy", "--split", "train", "--output", out]
    counts = ["--per-volume", "200", "--size", str(SIZE)]
    assert run_command("preprocessing", {"patches": ""}, ["patches", *arguments, *counts]) == 0
    return out


def pixels_of(path: str) -> tuple:
    """Return geometry, facts, gray values (n,) and flat places (b, r, c) of all patch pixels."""
    with open_patches(path) as file:
        index = read_index(file)
        geometry, facts = read_geometry_of(file, "v1")
        gray = file["patches"][:].astype(np.float32)
    b, z, x = (index[name].to_numpy()[:, None, None] for name in ("bscan", "z", "x"))
    row, column = np.mgrid[:SIZE, :SIZE]
    places = np.broadcast_arrays(b, z + row, x + column)
    return geometry, facts, gray.ravel(), [place.ravel() for place in places]


@pytest.mark.parametrize("bscans_reversed", [False, True])
@pytest.mark.parametrize("eye", ["R", "L"])
def test_every_patch_pixel_is_found_in_the_vendors_file_and_back(
    rng, tmp_path, eye, bscans_reversed
):
    painted = rng.uniform(-1, 1, SHAPE).astype(np.float32)
    flat, geometry = pushed(loaded(painted, eye, bscans_reversed), SHAPE[2], "bm", rng)
    geometry, facts, gray, (b, r, c) = pixels_of(patch_file_of(flat, geometry, tmp_path))

    native_b, z, x = geometry.to_native(b, r, c)
    np.testing.assert_array_equal([z, x], np.rint([z, x]))  # exactly on native pixels
    order = {name: facts[name] for name in ("native_shape", "mirrored", "bscans_reversed")}
    vendor_b, vendor_x = vendor_order(native_b, x, **order)
    stored = np.rint(painted * 32767).astype(np.float32) / np.float32(32767)  # of a volume file
    there = stored[vendor_b, z.astype(int), vendor_x.astype(int)].astype(np.float16)
    np.testing.assert_array_equal(gray, there.astype(np.float32))

    assert (order["mirrored"], order["bscans_reversed"]) == (eye == "L", bscans_reversed)
    back_b, back_x = vendor_order(vendor_b, vendor_x, **order)
    np.testing.assert_array_equal(geometry.to_flat(back_b, z, back_x), (b, r, c))


@pytest.mark.parametrize("columns", [48, 41])
@pytest.mark.parametrize("eye", ["R", "L"])
def test_an_averaged_pixel_is_the_mean_of_the_native_area_it_names(rng, tmp_path, eye, columns):
    painted = rng.uniform(-1, 1, SHAPE).astype(np.float32)
    native = loaded(painted, eye, bscans_reversed=False)
    flat, geometry = pushed(native, columns, "bm", rng)
    geometry, _, gray, (b, r, c) = pixels_of(patch_file_of(flat, geometry, tmp_path))

    _, z, x = geometry.to_native(b, r, c)
    # the integral along x up to the edges of the area, half a flat pixel to each side of x
    integral = np.pad(np.cumsum(native.data, axis=2, dtype=float), ((0, 0), (0, 0), (1, 0)))
    edges = np.arange(SHAPE[2] + 1) - 0.5

    def up_to(border):
        left = np.searchsorted(edges, border - 1e-6, side="right").clip(1, SHAPE[2]) - 1
        line = integral[b, z.astype(int)]
        some = np.take_along_axis(line, left[:, None], 1)[:, 0]
        more = np.take_along_axis(line, left[:, None] + 1, 1)[:, 0]
        return some + (more - some) * (border - edges[left])

    half = geometry.x_factor / 2
    mean = (up_to(x + half) - up_to(x - half)) / geometry.x_factor
    np.testing.assert_allclose(gray, mean, atol=4e-4)  # half a step of float16 at 1, of int16
    for found, original in zip(geometry.to_flat(b, z, x), (b, r, c), strict=True):
        np.testing.assert_array_equal(found, original)


def test_mode_both_maps_back_within_the_error_of_interpolation(rng):
    z, x = np.arange(SHAPE[1])[:, None], np.arange(SHAPE[2])
    for painted in (z / 200, x / 200):  # ramps, which linear interpolation keeps
        gray = np.broadcast_to(painted, SHAPE).astype(np.float32)
        flat, geometry = pushed(loaded(gray, "L", False), SHAPE[2], "both", rng)
        b, r, c = np.nonzero(flat.valid)
        native_b, native_z, native_x = geometry.to_native(b, r, c)
        low = np.floor(native_z).astype(int)
        part = native_z - low
        at = loaded(gray, "L", False).data[native_b, :, native_x.astype(int)]
        rows = np.arange(len(low))
        expected = (1 - part) * at[rows, low] + part * at[rows, np.minimum(low + 1, SHAPE[1] - 1)]
        np.testing.assert_allclose(flat.data[flat.valid], expected, atol=1e-5)
        back = geometry.to_flat(native_b, native_z, native_x)
        np.testing.assert_allclose(back, (b, r, c), atol=1e-3)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def lesion(rng) -> np.ndarray:
    """Round lesions within the retina, bool (b, z, x)."""
    b, z, x = np.indices(SHAPE)
    marked = np.zeros(SHAPE, bool)
    for _ in range(6):
        centre, radius = (rng.integers(3), rng.uniform(70, 95), rng.uniform(5, 90)), (8, 6)
        marked |= (b == centre[0]) & (
            ((z - centre[1]) / radius[0]) ** 2 + ((x - centre[2]) / radius[1]) ** 2 < 1
        )
    return marked


@pytest.mark.parametrize("eye", ["R", "L"])
@pytest.mark.parametrize(("columns", "mode", "least"), [(96, "bm", 0.99), (48, "bm", 0.9)])
def test_a_lesion_comes_back_to_its_place(rng, eye, columns, mode, least):
    marked = lesion(rng)
    native = loaded(rng.uniform(-1, 1, SHAPE).astype(np.float32), "R", False)
    native = canonical(
        native.replace(eye=eye, annotation=marked.astype(np.float32)), mirror_left_eyes=True
    )
    flat, geometry = pushed(native, columns, mode, rng)
    back = to_native_map((flat.annotation >= 0.5).astype(np.float32), geometry, SHAPE)
    expected = marked[:, :, ::-1] if eye == "L" else marked
    assert dice(back == 1, expected) >= least


@pytest.mark.parametrize("eye", ["R", "L"])
def test_the_command_writes_an_overlay_of_the_loaded_volume(rng, tmp_path, eye, capsys):
    import nibabel as nib

    native = loaded(rng.uniform(-1, 1, SHAPE).astype(np.float32), eye, False)
    write_volume(native, tmp_path / "volume.nii.gz")
    flat, geometry = pushed(native, 48, "bm", rng)
    geometry.z_offset[1, 10:20] = np.nan  # layers unknown
    write_geometry(geometry, tmp_path / "g.npz")
    write_nifti(np.where(flat.valid, flat.data, np.nan), tmp_path / "map.nii.gz", flat.affine)
    arguments = {
        "--input": "map.nii.gz",
        "--geometry": "g.npz",
        "--like": "volume.nii.gz",
        "--output": "out.nii.gz",
    }

    def run(**changes):
        named = {**arguments, **{f"--{k}": v for k, v in changes.items()}}
        words = [word for k, v in named.items() for word in (k, str(tmp_path / v))]
        return run_command("preprocessing", {"native": ""}, ["native", *words])

    assert run() == 0
    image, like = (nib.load(tmp_path / name) for name in ("out.nii.gz", "volume.nii.gz"))
    assert image.shape == like.shape
    np.testing.assert_array_equal(image.affine, like.affine)
    back = read_nifti(tmp_path / "out.nii.gz")
    assert np.isnan(back[1, :, 20:40]).all()
    b, z, x = np.nonzero(np.isfinite(back))
    _, r, c = geometry.to_flat(b, z, x)
    np.testing.assert_allclose(back[b, z, x], flat.data[b, r.astype(int), c])

    write_nifti(native.data[:, :, 1:], tmp_path / "other.nii.gz", native.affine)
    capsys.readouterr()
    assert run(like="other.nii.gz") == 1
    assert "do not belong together" in capsys.readouterr().err


def test_a_map_may_be_finer_than_the_scan(rng):
    """A coarse scan is interpolated: several flat columns fall into one native pixel."""
    flat_map = np.broadcast_to(np.arange(96, dtype=np.float32), (1, 10, 96))
    zero = np.zeros((1, 96), np.float32)
    geometry = Geometry(zero, zero + 1, 0.5, zero, zero, zero)
    back = to_native_map(flat_map, geometry, (1, 10, 48))
    np.testing.assert_array_equal(back[0, 0], 2 * np.arange(48) + 1)


def test_a_missing_volume_is_named(tmp_path):
    from preprocessing.native import write_native_map

    zero = np.zeros((1, 8), np.float32)
    geometry = Geometry(zero, zero + 1, 1.0, zero, zero, zero)
    with pytest.raises(InputError, match=r"absent\.nii\.gz"):
        write_native_map(zero[None], geometry, tmp_path / "absent.nii.gz", tmp_path / "o.nii.gz")


def test_a_map_of_another_height_or_orientation_is_refused(tmp_path, rng, capsys):
    volume = loaded(rng.uniform(-1, 1, (2, 90, 70)).astype(np.float32), "L", False)
    layers = tilted_layers(2, 70, rng)
    geometry = flat_geometry(layers, volume, "bm", 100, 320)
    flat = flatten(volume, geometry, 40)
    write_volume(volume, tmp_path / "volume.nii.gz")
    write_volume(volume.replace(mirrored=not volume.mirrored), tmp_path / "other.nii.gz")
    write_volume(flat, tmp_path / "flat.nii.gz")
    write_geometry(geometry, geometry_path(tmp_path / "flat.nii.gz"))
    write_nifti(flat.data, tmp_path / "map.nii.gz", flat.affine)
    write_nifti(flat.data[:, 5:], tmp_path / "low.nii.gz", flat.affine)

    def run(map_name, like):
        words = ["--input", map_name, "--like", like, "--geometry", "flat.geometry.npz"]
        words = [str(tmp_path / word) if "." in word else word for word in words]
        return run_command(
            "preprocessing",
            {"native": ""},
            ["native", *words, "--output", str(tmp_path / "out" / "o.nii.gz")],
        )

    assert run("map.nii.gz", "volume.nii.gz") == 0
    assert run("low.nii.gz", "volume.nii.gz") == 1
    assert "35 rows" in capsys.readouterr().err
    assert run("map.nii.gz", "other.nii.gz") == 1
    assert "only one of them is mirrored" in capsys.readouterr().err
