import numpy as np
import pytest

from preprocessing.errors import InputError
from preprocessing.files import atomic_path
from preprocessing.normalise import normalise
from preprocessing.seeds import derive_seed
from preprocessing.volume import Volume, companion, read_volume, write_volume


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
@pytest.mark.parametrize("intensity", ["display", "linear", "normalised"])
def test_a_volume_survives_the_disk(volume, tmp_path, intensity, suffix):
    volume.valid[0, :5] = False
    volume.annotation[0] = np.nan
    volume = volume.replace(
        intensity=intensity,
        bscan_lines_mm=np.arange(12.0).reshape(3, 4),
        parameters={"a": {"b": 1}},
    )
    if intensity != "normalised":
        volume = volume.replace(data=np.abs(volume.data))
    write_volume(volume, tmp_path / f"flat{suffix}")
    again = read_volume(tmp_path / f"flat{suffix}")
    np.testing.assert_allclose(again.data, volume.data, atol=2e-5)
    np.testing.assert_array_equal(again.valid, volume.valid)
    np.testing.assert_array_equal(again.annotation, volume.annotation)
    np.testing.assert_array_equal(again.bscan_lines_mm, volume.bscan_lines_mm)
    for name in (
        "spacing_mm",
        "volume",
        "patient",
        "eye",
        "intensity",
        "native_shape",
        "parameters",
    ):
        assert getattr(again, name) == getattr(volume, name)


def test_eight_bit_gray_values_are_stored_exactly(volume, tmp_path, rng):
    import nibabel as nib

    gray = rng.integers(0, 256, volume.data.shape).astype(np.float32) / np.float32(255)
    write_volume(volume.replace(data=gray, intensity="display"), tmp_path / "v.nii.gz")
    assert nib.load(tmp_path / "v.nii.gz").get_data_dtype() == np.uint8
    np.testing.assert_array_equal(
        np.rint(read_volume(tmp_path / "v.nii.gz").data * 255), gray * 255
    )


def test_the_file_opens_elsewhere_with_right_proportions(volume, tmp_path):
    import nibabel as nib

    write_volume(volume, tmp_path / "v.nii.gz")
    image = nib.load(tmp_path / "v.nii.gz")
    assert image.shape == (100, 200, 3)  # x, z, b
    np.testing.assert_allclose(image.header.get_zooms(), (0.022, 0.004, 0.12), rtol=1e-6)
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")


def test_mirroring_moves_no_pixel_in_space(volume):
    from preprocessing.load import mirror

    mirrored = mirror(volume)
    place = volume.affine @ [7, 11, 2, 1]
    place_mirrored = mirrored.affine @ [100 - 1 - 7, 11, 2, 1]
    np.testing.assert_allclose(place, place_mirrored)
    assert mirrored.data[2, 11, 92] == volume.data[2, 11, 7]


@pytest.mark.parametrize(
    "damage", ["truncated", "no sidecar", "no mask", "not nifti", "other shape"]
)
def test_damaged_files_end_in_one_clear_error(volume, tmp_path, damage):
    path = tmp_path / "v.nii.gz"
    write_volume(volume, path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "no sidecar":
        companion(path, "json").unlink()
    elif damage == "no mask":
        companion(path, "valid").unlink()
    elif damage == "not nifti":
        path.write_bytes(b"hello" * 100)
    else:
        small = volume.replace(
            data=volume.data[:2],
            valid=volume.valid[:2],
            annotation=None,
            native_shape=(2, 200, 100),
        )
        write_volume(small, tmp_path / "w.nii.gz")
        companion(tmp_path / "w.nii.gz", "valid").replace(companion(path, "valid"))
    with pytest.raises(InputError, match=r"v\..*"):
        read_volume(path)


def test_layers_keep_their_order_and_plain_names(volume, tmp_path):
    names = ["IPL-", "ISM/ISE", "file", "allow_pickle", "Doe, Jane", "x" * 33, "layer9", "../a"]
    plain = [*names[:4], "layer5", "layer6", "layer7", "layer8"]
    layers = {name: np.full((3, 100), n, np.float32) for n, name in enumerate(names)}
    write_volume(volume.replace(vendor_layers=layers), tmp_path / "v.nii.gz")
    again = read_volume(tmp_path / "v.nii.gz").vendor_layers
    assert list(again) == plain
    assert [layer[0, 0] for layer in again.values()] == list(range(8))
    write_volume(volume, tmp_path / "v.nii.gz")
    assert read_volume(tmp_path / "v.nii.gz").vendor_layers == {}


def test_a_volume_is_written_whole_or_not_at_all(volume, tmp_path):
    with pytest.raises(TypeError, match="JSON"):
        write_volume(volume.replace(parameters={"a": object()}), tmp_path / "v.nii.gz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["normalise", "resample"])
def test_a_stage_names_the_file_it_cannot_use(volume, tmp_path, capsys, stage):
    from preprocessing.cli import run_command

    source = tmp_path / "v.nii.gz"
    write_volume(volume, source)
    options = {"normalise": [], "resample": ["--x-um", "0"]}[stage]
    arguments = [stage, "--input", str(source), "--output", str(tmp_path / "w.nii.gz"), *options]
    assert run_command("preprocessing", {stage: ""}, arguments) == 1
    assert f"{source}: " in capsys.readouterr().err


def constant_but_one(data, valid):
    data[:] = 0.5
    data[1, 50, 33] = 0.6


def valid_in_one_column(data, valid):
    valid[:, :, :33] = valid[:, :, 34:] = False


@pytest.mark.parametrize("spoil", [constant_but_one, valid_in_one_column])
def test_a_volume_without_tissue_is_refused(rng, spoil):
    data = rng.uniform(0, 1, (3, 100, 64)).astype(np.float32)
    valid = np.ones(data.shape, bool)
    spoil(data, valid)
    with pytest.raises(InputError, match="no tissue"):
        normalise(Volume(data, (0.12, 0.004, 0.0115), valid), (1, 99))


def test_nothing_half_written_stays_behind(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(OSError, match="full"), atomic_path(target) as temporary:
        temporary.write_text("new but incompl")
        raise OSError("disk full")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_seeds_depend_on_every_label_and_on_nothing_else():
    seeds = {
        derive_seed(1, "a", "b"),
        derive_seed(2, "a", "b"),
        derive_seed(1, "ab"),
        derive_seed(1, "b", "a"),
    }
    assert len(seeds) == 4
    assert derive_seed(1, "a", "b") == derive_seed(1, "a", "b")
