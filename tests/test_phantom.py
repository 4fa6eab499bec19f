"""The phantom: plausible anatomy, exact truth, the files of a user."""

import json

import numpy as np
import pytest
from scipy.ndimage import uniform_filter1d

from preprocessing.__main__ import COMMANDS
from preprocessing.cli import run_command
from preprocessing.errors import InputError
from preprocessing.phantom import SPACING_MM, lesion_kinds, make_phantom
from preprocessing.phantom_lesions import KINDS
from preprocessing.validity import find_valid

SMALL = (3, 384, 256)
STEP_Z_UM = 1000 * SPACING_MM[1]


@pytest.fixture(scope="module")
def healthy():
    return make_phantom("eye-1", 0, False)


@pytest.fixture(scope="module")
def diseased():
    return make_phantom("eye-1", 0, True)


def test_the_kind_of_each_lesion_pixel_is_known(diseased):
    phantom, layers = diseased
    kinds = lesion_kinds("eye-1", 0)
    np.testing.assert_array_equal(kinds > 0, phantom.annotation == 1)
    of = {name: kinds == k for k, name in enumerate(KINDS)}
    gray = {name: phantom.data[pixels].mean() for name, pixels in of.items()}
    assert gray["fluid"] < 0.2 < gray["druse"] < gray["focus"]
    below_rpe = between(layers, "rpe", "bm", kinds.shape)
    assert below_rpe[of["druse"]].mean() > 0.9 and not below_rpe[of["fluid"]].any()
    assert of["focus"].sum() < of["druse"].sum()


def between(layers, upper, lower, shape):
    z = np.arange(shape[1])[None, :, None]
    return (z >= layers[upper][:, None, :]) & (z < layers[lower][:, None, :])


def test_same_id_and_seed_give_the_same_phantom_whatever_came_before():
    first, layers = make_phantom("a", 7, True, SMALL)
    make_phantom("b", 7, False, SMALL)
    again, layers_again = make_phantom("a", 7, True, SMALL)
    np.testing.assert_array_equal(first.data, again.data)
    np.testing.assert_array_equal(first.annotation, again.annotation)
    np.testing.assert_array_equal(layers["rpe"], layers_again["rpe"])


def test_another_id_or_seed_gives_another_phantom():
    reference = make_phantom("a", 7, False, SMALL)[0].data
    assert (reference != make_phantom("b", 7, False, SMALL)[0].data).mean() > 0.5
    assert (reference != make_phantom("a", 8, False, SMALL)[0].data).mean() > 0.5


def test_both_eyes_occur_and_the_nerve_fibres_thicken_towards_the_nose():
    eyes = set()
    for number in range(8):
        phantom, layers = make_phantom(f"n{number}", 0, False, (1, 384, 384))
        eyes.add(phantom.eye)
        assert not phantom.mirrored
        thickness = (layers["bm"] - layers["ilm"]).mean(axis=0)
        left_end, right_end = thickness[:40].mean(), thickness[-40:].mean()
        assert (right_end > left_end) == (phantom.eye == "R")
    assert eyes == {"R", "L"}


@pytest.mark.parametrize("number", range(4))
def test_layers_are_ordered_and_as_thick_as_in_an_eye(number):
    phantom, layers = make_phantom(f"t{number}", 0, False, (5, 384, 384))
    assert all(rows.shape == (5, 384) for rows in layers.values())
    assert (layers["ilm"] < layers["rpe"]).all()
    assert (layers["rpe"] <= layers["bm"]).all()
    assert layers["ilm"].min() > 0
    assert layers["bm"].max() < phantom.data.shape[1]
    thickness_um = (layers["bm"] - layers["ilm"]) * STEP_Z_UM
    assert 180 < thickness_um.min() < 320
    assert thickness_um[:, [60, -60]].min() > 260
    assert thickness_um.max() < 400


def test_gray_values_are_those_of_an_8_bit_display_with_the_spread_of_real_retinas(healthy):
    phantom, layers = healthy
    levels = phantom.data * 255
    assert phantom.intensity == "display"
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    assert phantom.data.min() >= 0
    assert phantom.data.max() <= 1
    retina = phantom.data[between(layers, "ilm", "bm", phantom.data.shape)]
    assert 0.45 < np.median(retina) < 0.60
    assert 0.88 < np.percentile(retina, 99) < 1.0
    vitreous = phantom.data[:, 40:80]
    assert np.median(vitreous) < 0.2


def test_speckle_is_correlated_in_depth_as_measured(healthy):
    phantom, layers = healthy
    # The ONL keeps one gray value over these rows above BM.
    rows = np.rint(layers["bm"])[:, None, :] - np.arange(40, 24, -1)[None, :, None]
    onl = np.take_along_axis(phantom.data, rows.astype(int), axis=1)
    onl = onl - uniform_filter1d(onl, 5, axis=2)  # leaves speckle, not vessels or texture
    power = (onl * onl).mean()
    correlation = [(onl[:, :-lag] * onl[:, lag:]).mean() / power for lag in (1, 2, 3)]
    np.testing.assert_allclose(correlation, [0.64, 0.26, 0.09], atol=0.1)


def test_a_healthy_phantom_is_annotated_as_free_of_lesions(healthy):
    phantom, _ = healthy
    assert phantom.annotation.shape == phantom.data.shape
    assert not phantom.annotation.any()
    assert phantom.valid.all()


def test_lesions_lie_between_ilm_and_bm(diseased):
    phantom, layers = diseased
    assert set(np.unique(phantom.annotation)) == {0.0, 1.0}
    inside = between(layers, "ilm", "bm", phantom.data.shape)
    assert not (phantom.annotation > 0)[~inside].any()


@pytest.mark.parametrize("number", range(4))
def test_every_diseased_phantom_has_dark_fluid_drusen_and_lesions_in_part_of_its_width(number):
    phantom, layers = make_phantom(f"d{number}", 0, True, (6, 384, 384))
    lesion = phantom.annotation > 0
    assert 0.2 < lesion.any(axis=1).mean() < 0.55
    under_rpe = lesion & between(layers, "rpe", "bm", lesion.shape)
    assert under_rpe.sum() > 500
    above_rpe = lesion & between(layers, "ilm", "rpe", lesion.shape)
    tissue = between(layers, "ilm", "rpe", lesion.shape) & ~lesion
    assert above_rpe.sum() > 1000
    assert np.median(phantom.data[above_rpe]) < np.median(phantom.data[tissue]) - 0.2
    assert ((layers["bm"] - layers["rpe"]) * STEP_Z_UM).max() > 40


def test_the_load_stage_finds_black_and_white_wedges_that_spare_the_retina():
    kinds = set()
    for number in range(16):
        phantom, layers = make_phantom(f"w{number}", 0, False, (2, 384, 128))
        invalid = ~find_valid(phantom.data, phantom.intensity)
        wedge = invalid[:, :, 4:]  # the first columns may be blank over their whole depth
        assert wedge.mean() < 0.2
        retina = between(layers, "ilm", "bm", invalid.shape)[:, :, 4:]
        assert wedge[retina].mean() < 1e-3
        if wedge.any():
            kinds.update(np.unique(phantom.data[:, :, 4:][wedge]))
        else:
            kinds.add("none")
    assert kinds == {0.0, 1.0, "none"}


def test_lesions_span_neighbouring_bscans(diseased):
    lesion = diseased[0].annotation > 0
    columns = lesion.any(axis=1)
    shared = (columns[1:] & columns[:-1]).mean()
    assert shared > 1.1 * columns.mean() ** 2


@pytest.mark.parametrize(
    ("shape", "option"),
    [((2, 100, 128), "--depth"), ((0, 384, 128), "--bscans"), ((2, 384, 8), "--width")],
)
def test_a_volume_too_small_for_a_retina_is_refused(shape, option):
    with pytest.raises(InputError, match=option):
        make_phantom("a", 0, True, shape)


def run(output, label="diseased"):
    arguments = f"phantom --volume eye-1 --label {label} --seed 3 --bscans 3 --width 128"
    return run_command("preprocessing", COMMANDS, [*arguments.split(), "--output", str(output)])


def test_the_command_writes_what_a_user_would_have(tmp_path, capsys):
    import nibabel as nib

    output = tmp_path / "new" / "eye-1.nii.gz"
    assert run(output) == 0
    assert "eye-1: diseased phantom, 3 x 384 x 128" in capsys.readouterr().out
    names = ["annotation.nii.gz", "json", "nii.gz", "truth.npz"]
    assert sorted(p.name for p in output.parent.iterdir()) == [f"eye-1.{name}" for name in names]

    image = nib.load(output)
    assert image.shape == (128, 384, 3)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.header.get_zooms(), SPACING_MM[::-1], rtol=1e-6)
    phantom, layers = make_phantom("eye-1", 3, True, (3, 384, 128))
    stored = np.asarray(image.dataobj).T
    np.testing.assert_array_equal(stored, np.rint(phantom.data * 255))
    mask = np.asarray(nib.load(output.parent / "eye-1.annotation.nii.gz").dataobj).T
    np.testing.assert_array_equal(mask, phantom.annotation)
    facts = json.loads((output.parent / "eye-1.json").read_text())
    assert facts == {"laterality": phantom.eye, "device": "phantom", "intensity": "display"}
    with np.load(output.parent / "eye-1.truth.npz") as truth:
        assert sorted(truth) == ["bm", "ilm", "rpe"]
        np.testing.assert_array_equal(truth["bm"], layers["bm"])


def test_the_command_writes_the_same_bytes_twice(tmp_path):
    for folder in "ab":
        run(tmp_path / folder / "eye-1.nii.gz")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_the_command_refuses_an_unknown_label(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "eye-1.nii.gz", label="ill")
    assert stopped.value.code == 2
    assert "invalid choice: 'ill'" in capsys.readouterr().err


def test_a_wrong_output_name_is_one_clear_line(tmp_path, capsys):
    assert run(tmp_path / "eye-1.tif") == 1
    assert "must end in .nii.gz or .nii" in capsys.readouterr().err
