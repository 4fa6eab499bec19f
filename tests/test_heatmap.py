"""Dense maps: means over the patches that cover a pixel, the same however the work is divided."""

import re

import h5py
import numpy as np
import pandas as pd
import pytest
from made_maps import SIZE, make_maps, native_volume, run, write_flat, write_model

from anogan.maps.file import VolumeMaps, open_maps, write_maps
from preprocessing.errors import InputError
from preprocessing.geometry import geometry_path, read_geometry
from preprocessing.patch_file import INDEX_DTYPE, PatchWriter
from preprocessing.patch_grid import grid_corners
from preprocessing.patches import cut
from preprocessing.qc import FIGURES, write_table
from preprocessing.volume import read_volume, write_volume

METHODS = {"anogan": "gan", "p_d": "gan", "pca": "pca"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two volumes, a model "gan" and a model "pca"."""
    folder = tmp_path_factory.mktemp("maps")
    for name in ("a", "b"):
        (folder / name).mkdir()
        write_flat(native_volume(name), folder / name)
    for kind in ("gan", "pca"):
        write_model(folder / kind, kind)
    return folder


def mapped(folder, names, output, *extra, method="pca") -> dict[str, VolumeMaps]:
    """Map the volumes `names` and return their maps by name."""
    flats = [folder / name / "flat.nii.gz" for name in names]
    model = folder / METHODS[method]
    assert make_maps(model, flats, output, "--method", method, *extra) == 0
    with open_maps(output) as file:
        return {maps.volume: maps for maps in file}


def same(one: VolumeMaps, other: VolumeMaps) -> bool:
    """Whether the maps are the same to the last bit."""
    kinds = ("score", "residual", "annotation")
    return all(np.array_equal(getattr(one, k), getattr(other, k), equal_nan=True) for k in kinds)


@pytest.mark.parametrize("method", ["pca", "anogan"])
def test_a_pixel_is_the_mean_over_the_patches_that_cover_it(folder, tmp_path, method):
    volume = read_volume(folder / "a" / "flat.nii.gz")
    geometry = read_geometry(geometry_path(folder / "a" / "flat.nii.gz"))
    corners = grid_corners(volume, geometry, SIZE, 16)
    index = np.zeros(len(corners), INDEX_DTYPE)
    index["volume"] = b"a"
    index["bscan"], index["z"], index["x"] = corners.T
    patches, scores, pictures = (tmp_path / name for name in ("p.h5", "s.parquet", "r.h5"))
    with PatchWriter(patches, SIZE) as writer:
        writer.append(cut(volume.data.astype(np.float16), corners, SIZE), None, index)
    given = ["--patches", patches, "--model", folder / METHODS[method], "--method", method]
    outputs = ["--output", scores, "--residual-output", pictures, "--residuals", len(corners)]
    assert run("score", *given, *outputs, "--steps", 3) == 0
    own = pd.read_parquet(scores)[{"pca": "L2", "anogan": "A"}[method]]
    with h5py.File(pictures) as file:
        residuals = file["residual"][:].astype(float)

    total, residual, count = (np.zeros(volume.data.shape) for _ in range(3))
    for (b, z, x), score, of_patch in zip(corners, own, residuals, strict=True):
        for row in range(SIZE):
            for column in range(SIZE):
                total[b, z + row, x + column] += score
                residual[b, z + row, x + column] += of_patch[row, column]
                count[b, z + row, x + column] += 1
    with np.errstate(invalid="ignore"):
        expected, expected_residual = total / count, residual / count

    maps = mapped(folder, ["a"], tmp_path / "m.h5", method=method)["a"]
    assert maps.n_patches == len(corners) and count.max() >= 4
    np.testing.assert_allclose(maps.score, expected, rtol=1e-5)
    np.testing.assert_allclose(maps.residual, expected_residual, atol=2e-3)


@pytest.mark.parametrize("method", ["pca", "anogan"])
def test_a_map_does_not_depend_on_order_or_chunk(folder, tmp_path, method):
    both = mapped(folder, ["a", "b"], tmp_path / "ab.h5", method=method)
    turned = mapped(folder, ["b", "a"], tmp_path / "ba.h5", method=method)
    assert both.keys() == turned.keys() == {"a", "b"}
    for name in both:
        alone = mapped(folder, [name], tmp_path / f"{name}.h5", method=method)[name]
        assert same(alone, both[name]) and same(turned[name], both[name])


@pytest.mark.parametrize("method", ["pca", "anogan"])
def test_a_map_does_not_depend_on_batch_size(folder, tmp_path, method):
    extra = ["--precision", "fp32", "--batch-size"]
    few = mapped(folder, ["a"], tmp_path / "7.h5", *extra, 7, method=method)["a"]
    many = mapped(folder, ["a"], tmp_path / "64.h5", *extra, 64, method=method)["a"]
    np.testing.assert_allclose(few.score, many.score, rtol=1e-4)
    np.testing.assert_allclose(few.residual, many.residual, atol=2e-3)


def test_a_file_says_what_it_holds(folder, tmp_path):
    found = mapped(folder, ["a", "b"], tmp_path / "m.h5")
    with open_maps(tmp_path / "m.h5") as file:
        assert (file.method, file.stride, file.size) == ("pca", 16, SIZE)
        assert file.facts("b")["patient"] == "p-b"
    maps = found["b"]
    assert (maps.patient, maps.eye, maps.split, maps.eye_label) == ("p-b", "R", "test", 1)
    assert found["a"].eye_label == 0
    volume = read_volume(folder / "b" / "flat.nii.gz")
    assert maps.score.shape == volume.data.shape
    assert maps.score.dtype == np.float32 and maps.residual.dtype == np.float16
    np.testing.assert_array_equal(maps.annotation == 1, volume.annotation >= 0.5)
    np.testing.assert_array_equal(maps.annotation == 255, np.isnan(volume.annotation))
    assert (maps.annotation == 1).any() and (maps.annotation == 0).any()


def test_without_annotation_there_is_none(folder, tmp_path):
    (tmp_path / "c").mkdir()
    write_flat(native_volume("c").replace(annotation=None), tmp_path / "c")
    assert make_maps(folder / "pca", [tmp_path / "c" / "flat.nii.gz"], tmp_path / "m.h5") == 0
    with open_maps(tmp_path / "m.h5") as file:
        assert file["c"].annotation is None


def test_a_method_that_rebuilds_nothing_has_no_residual(folder, tmp_path):
    maps = mapped(folder, ["a"], tmp_path / "m.h5", method="p_d")["a"]
    assert maps.residual is None
    assert np.isfinite(maps.score).any()


def write_qc(path, *flags):
    """Write a table of the stage qc: a row for the whole volume, then one per B-scan."""
    numbers = dict.fromkeys(FIGURES, 0.0)
    bscans = ["", *range(len(flags))]
    rows = [
        {"volume": "a", "bscan": b, **numbers, "flag": flag, "reason": ""}
        for b, flag in zip(bscans, ("pass", *flags), strict=True)
    ]
    write_table(rows, path)
    return path


@pytest.mark.parametrize(("leave_out", "mapped_bscans"), [("fail", [0, 1]), ("check", [0])])
def test_bscans_left_out_stay_bare(folder, tmp_path, leave_out, mapped_bscans):
    table = write_qc(tmp_path / "qc.tsv", "pass", "check", "fail")
    extra = ["--qc", table, "--leave-out", leave_out]
    maps = mapped(folder, ["a"], tmp_path / "m.h5", *extra)["a"]
    whole = mapped(folder, ["a"], tmp_path / "whole.h5")["a"]
    for b in range(3):
        for kind in ("score", "residual"):
            expected = getattr(whole, kind)[b] if b in mapped_bscans else np.nan
            np.testing.assert_array_equal(getattr(maps, kind)[b], expected)


@pytest.mark.parametrize("method", ["pca", "p_d"])
def test_a_volume_without_a_place_for_a_patch_is_bare(folder, tmp_path, method):
    table = write_qc(tmp_path / "qc.tsv", "fail", "fail", "fail")
    maps = mapped(folder, ["a"], tmp_path / "m.h5", "--qc", table, method=method)["a"]
    assert maps.n_patches == 0 and np.isnan(maps.score).all()
    assert maps.residual is None


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.95])
def test_a_truncated_file_ends_in_one_sentence(folder, tmp_path, share):
    path = tmp_path / "m.h5"
    mapped(folder, ["a"], path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    one_sentence = rf"^{path}: .* make it again with the rule heatmap$"
    with pytest.raises(InputError, match=one_sentence), open_maps(path) as file:
        list(file)


def test_damaged_values_end_in_one_sentence(tmp_path):
    path = tmp_path / "m.h5"
    score = np.random.default_rng(0).normal(size=(4, 50, 50)).astype(np.float32)
    with write_maps(path, "pca", 16, SIZE) as writer:
        writer.append(VolumeMaps("a", "p", "R", "test", 0, 1, score))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"m\.h5: not a readable file of"), open_maps(path) as file:
        list(file)


def test_another_hdf5_file_is_no_file_of_maps(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["patches"] = np.zeros(3)
    with (
        pytest.raises(InputError, match="not a readable file of maps"),
        open_maps(tmp_path / "m.h5"),
    ):
        pass


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--stride", 0], "a stride of 0"),
        (["--stride", SIZE + 1], f"a stride of 33 .* 1 to {SIZE}"),
        (["--labels", "healthy"], "labels: 1 for 2 inputs"),
        (["--method", "anogan"], "holds the model pca, but anogan"),
        (["--qc", "absent.tsv", "absent.tsv"], "absent.tsv: no such file"),
    ],
)
def test_faults_end_in_one_line_and_leave_nothing(folder, tmp_path, capsys, extra, message):
    flats = [folder / name / "flat.nii.gz" for name in ("a", "b")]
    assert make_maps(folder / "pca", flats, tmp_path / "out" / "m.h5", *extra) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert not list(tmp_path.rglob("*.h5"))


def test_what_fails_at_the_last_volume_leaves_the_older_file(folder, tmp_path, capsys):
    flats = [folder / "a" / "flat.nii.gz", folder / "absent" / "flat.nii.gz"]
    (tmp_path / "m.h5").write_bytes(b"older")
    assert make_maps(folder / "pca", flats, tmp_path / "m.h5") == 1
    assert "no such file" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["m.h5"]
    assert (tmp_path / "m.h5").read_bytes() == b"older"


def test_a_volume_given_twice_is_named(folder, tmp_path, capsys):
    flats = [folder / "a" / "flat.nii.gz"] * 2
    assert make_maps(folder / "pca", flats, tmp_path / "m.h5") == 1
    assert "a is there already; give it once" in capsys.readouterr().err.splitlines()[-1]


def test_volumes_preprocessed_otherwise_than_the_model_are_refused(folder, tmp_path, capsys):
    volume = read_volume(folder / "a" / "flat.nii.gz")
    other = volume.replace(parameters={"resample": {"x_um": 11.0}})
    write_volume(other, tmp_path / "flat.nii.gz")
    assert make_maps(folder / "pca", [tmp_path / "flat.nii.gz"], tmp_path / "m.h5") == 1
    assert "resample: x_um = 11.0, but" in capsys.readouterr().err
