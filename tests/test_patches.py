import math
from pathlib import Path

import h5py
import numpy as np
import pytest

from preprocessing import patch_file
from preprocessing.cli import run_command
from preprocessing.errors import InputError
from preprocessing.flatten import flat_geometry, flatten
from preprocessing.geometry import geometry_path, write_geometry
from preprocessing.patch_file import (
    INDEX_DTYPE,
    MappedPatches,
    PatchWriter,
    open_patches,
    read_index,
)
from preprocessing.patches import (
    draw_corners,
    label_bscans,
    label_patches,
    marked_fraction,
    possible_corners,
    shares,
)
from preprocessing.qc import FIGURES, write_table
from preprocessing.volume import read_volume, write_volume


@pytest.fixture
def flat(volume, layers):
    geometry = flat_geometry(layers, volume, "bm", above_um=400, thickness_um=0)
    return flatten(volume, geometry, n_rows=140), geometry


@pytest.fixture
def flat_files(flat, tmp_path):
    """Two flat volumes on disk, v1 (diseased, annotated) and v2 (healthy, not annotated)."""
    volume, geometry = flat
    paths = []
    for name, annotation in (("v1", volume.annotation), ("v2", None)):
        path = str(tmp_path / name / "flat.nii.gz")
        write_volume(volume.replace(volume=name, patient=f"p-{name}", annotation=annotation), path)
        write_geometry(geometry, geometry_path(path))
        paths.append(path)
    return paths


def cut(*arguments) -> int:
    return run_command("preprocessing", {"patches": ""}, ["patches", *map(str, arguments)])


def cut_both(flat_files, per_volume, size, out, split="test") -> int:
    """Cut patches of a diseased and a healthy volume."""
    inputs = ["--inputs", *flat_files, "--labels", "diseased", "healthy", "--split", split]
    return cut(*inputs, "--per-volume", per_volume, "--size", size, "--output", out)


def test_patches_are_what_the_index_says(flat_files, flat, tmp_path):
    out = tmp_path / "p.h5"
    code = cut_both(flat_files, 50, 32, out)
    assert code == 0
    volume, geometry = flat
    with open_patches(out) as file:
        index = read_index(file)
        assert index["volume"].value_counts().to_dict() == {"v1": 50, "v2": 50}
        assert file["patches"].dtype == np.float16
        for row in range(0, 100, 7):
            b, z, x = index.loc[row, ["bscan", "z", "x"]]
            window = (b, slice(z, z + 32), slice(x, x + 32))
            np.testing.assert_allclose(file["patches"][row], volume.data[window], atol=1e-3)
            assert volume.valid[window].all()
            assert geometry.ilm[b, x + 16] <= z + 16 <= geometry.bm[b, x + 16]
            if index.loc[row, "volume"] == "v1":
                np.testing.assert_array_equal(file["masks"][row], volume.annotation[window])
            else:
                assert (file["masks"][row] == 255).all()
        group = file["geometry/v1"]
        assert tuple(group.attrs["native_shape"]) == volume.native_shape
        np.testing.assert_array_equal(group["z_offset"], geometry.z_offset)
    assert set(index.loc[index["volume"] == "v2", "label_source"]) == {"healthy"}
    assert set(index.loc[index["volume"] == "v2", "label"]) == {0}


def test_patches_of_a_volume_do_not_depend_on_the_others(flat_files, tmp_path):
    def of_v2(name, *inputs):
        cut(
            "--inputs",
            *inputs,
            "--labels",
            *["healthy"] * len(inputs),
            "--split",
            "train",
            "--per-volume",
            20,
            "--size",
            32,
            "--output",
            tmp_path / name,
        )
        with open_patches(tmp_path / name) as file:
            return file["patches"][:][read_index(file)["volume"] == "v2"]

    alone = of_v2("a.h5", flat_files[1])
    np.testing.assert_array_equal(alone, of_v2("b.h5", *flat_files))
    np.testing.assert_array_equal(alone, of_v2("c.h5", *flat_files[::-1]))


def test_memory_does_not_grow_with_the_number_of_patches(flat_files, tmp_path, monkeypatch):
    import tracemalloc

    from preprocessing import patches

    monkeypatch.setattr(patches, "BLOCK_BYTES", 2**18)

    def peak(count):
        tracemalloc.start()
        cut("--inputs", flat_files[0], "--labels", "diseased", "--split", "test", "--per-volume",
            count, "--size", 32, "--output", tmp_path / f"{count}.h5")  # fmt: skip
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(4000) < peak(1000) + 2e6  # 3000 patches of 32 x 32 float32 would be 12 MB


def test_no_patch_twice_and_no_more_than_there_are(flat):
    volume, geometry = flat
    everywhere = possible_corners(volume, geometry, 32)
    corners = draw_corners(volume, geometry, 10**6, 32, seed=1)
    np.testing.assert_array_equal(corners, everywhere)
    assert len(np.unique(corners, axis=0)) == len(corners)
    assert len(draw_corners(volume, geometry, 7, 32, seed=1)) == 7


def test_invalid_pixels_are_never_in_a_patch(flat):
    volume, geometry = flat
    volume.valid[0, 90, 50] = False
    corners = possible_corners(volume, geometry, 32)
    covers = (
        (corners[:, 0] == 0) & (abs(corners[:, 1] - 74.5) < 16) & (abs(corners[:, 2] - 34.5) < 16)
    )
    assert not covers.any()
    assert (corners[:, 0] == 0).any()


@pytest.mark.parametrize(
    ("marked_px", "volume_label", "expected"),
    [
        (0, "diseased", (0, "annotation")),
        (1, "diseased", (-1, "annotation")),
        (11, "diseased", (1, "annotation")),
        (None, "diseased", (1, "eye")),
        (None, "healthy", (0, "healthy")),
        (None, "unknown", (-1, "none")),
    ],
)
def test_labels(marked_px, volume_label, expected):
    annotation = np.zeros((1, 40, 40), np.float32)
    annotation[0, 5].flat[: marked_px or 0] = 1
    corners = np.array([(0, 3, 0)])
    fraction = marked_fraction(None if marked_px is None else annotation, corners, 32)
    np.testing.assert_array_equal(fraction, np.nan if marked_px is None else marked_px / 32**2)
    label, source = label_patches(fraction, volume_label, 0.01)
    assert (label[0], source[0]) == expected


def test_a_patch_that_was_examined_in_part_has_no_fraction():
    annotation = np.zeros((1, 40, 40), np.float32)
    annotation[0, 35:] = np.nan
    fraction = marked_fraction(annotation, np.array([(0, 3, 0), (0, 4, 0)]), 32)
    np.testing.assert_array_equal(fraction, [0, np.nan])


@pytest.mark.parametrize(
    ("marked_px", "examined", "volume_label", "expected"),
    [
        (0, "all", "diseased", 0),
        (1, "all", "diseased", -1),
        (10, "all", "healthy", 1),
        (10, "some", "unknown", 1),
        (1, "some", "diseased", -1),
        (0, "some", "diseased", 1),
        (0, "some", "healthy", 0),
        (0, "valid", "diseased", 0),
        (0, "none", "diseased", 1),
        (0, "none", "unknown", -1),
    ],
)
def test_labels_of_bscans(volume, marked_px, examined, volume_label, expected):
    annotation = np.zeros_like(volume.data)
    annotation[1, 50, :marked_px] = 1
    annotation[1, 20, :90] = np.nan if examined in ("some", "valid") else 0
    valid = volume.valid.copy()
    valid[1, 20, :90] = examined != "valid"
    annotation[2] = 1
    seen = None if examined == "none" else annotation
    changed = volume.replace(annotation=seen, valid=valid)
    labels = label_bscans(changed, volume_label, min_px=10)
    assert labels.dtype == np.int8
    assert labels[1] == expected
    assert examined == "none" or list(labels[[0, 2]]) == [0, 1]


def test_marks_outside_the_valid_pixels_label_no_bscan(volume):
    volume.valid[1, 110:120] = False
    assert list(label_bscans(volume, "diseased", min_px=10)) == [0, 0, 0]


def test_an_anomalous_patch_lies_in_an_anomalous_bscan(flat_files, tmp_path):
    assert cut_both(flat_files, 300, 32, tmp_path / "p.h5") == 0
    with open_patches(tmp_path / "p.h5") as file:
        index = read_index(file)
    assert (index["label"] == 1).any()
    annotated = index[index["volume"] == "v1"]
    np.testing.assert_array_equal(annotated["bscan_label"], annotated["bscan"] == 1)
    assert (index.loc[index["volume"] == "v2", "bscan_label"] == 0).all()


def test_shares_add_up():
    assert sum(shares(1_000_000, None, 270)) == 1_000_000
    assert max(shares(1_000_000, None, 270)) - min(shares(1_000_000, None, 270)) <= 1


@pytest.mark.parametrize("fault", ["too small", "nowhere", "damaged"])
def test_faults_leave_no_file(flat_files, tmp_path, capsys, fault):
    size = 128 if fault == "too small" else 32
    if fault == "nowhere":
        for path in flat_files:
            volume = read_volume(path)
            volume.valid[:] = False
            write_volume(volume, path)
    elif fault == "damaged":
        Path(flat_files[1]).write_bytes(b"x")
    out = tmp_path / "out" / "p.h5"
    code = cut_both(flat_files, 5, size, out, split="train" if fault == "nowhere" else "test")
    assert code == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert list(out.parent.glob("*")) == []


def test_a_damaged_patch_file_is_named(tmp_path):
    (tmp_path / "p.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"0" * 100)
    with (
        pytest.raises(InputError, match=r"p\.h5.*make it again with the rule patches"),
        open_patches(tmp_path / "p.h5"),
    ):
        pass


def write_qc(path, *flags) -> str:
    """Write a table of the stage qc: a row for the whole volume, then one per B-scan."""
    figures = dict.fromkeys(FIGURES, math.nan)
    rows = [
        {"volume": "v1", "bscan": bscan, **figures, "flag": flag, "reason": "dark band"}
        for bscan, flag in (("all", "fail"), *enumerate(flags))
    ]
    write_table(rows, path)
    return str(path)


@pytest.mark.parametrize(
    ("leave_out", "left", "said"),
    [
        ("none", {"v1": {0, 1, 2}, "v2": {0, 1, 2}}, ""),
        ("fail", {"v1": {0, 1}, "v2": {0, 1, 2}}, ", 1 B-scans left out"),
        ("check", {"v1": {0}}, ", 5 B-scans left out"),
    ],
)
def test_flagged_bscans_give_no_patches(flat_files, tmp_path, capsys, leave_out, left, said):
    tables = [
        write_qc(tmp_path / "a.tsv", "pass", "check", "fail"),
        write_qc(tmp_path / "b.tsv", "check", "check", "check"),
    ]
    inputs = ["--inputs", *flat_files, "--labels", "diseased", "healthy", "--split", "test"]
    rest = ["--per-volume", 90, "--size", 32, "--output", tmp_path / "p.h5"]
    assert cut(*inputs, "--qc", *tables, "--leave-out", leave_out, *rest) == 0
    with open_patches(tmp_path / "p.h5") as file:
        found = read_index(file).groupby("volume")["bscan"].agg(set).to_dict()
    assert found == left
    summary = capsys.readouterr().out.strip()
    assert summary.endswith(said or "2 volumes")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "qc.tsv: no such file"),
        ("", "qc.tsv: not a readable table"),
        (lambda text: text.splitlines()[0], "qc.tsv: not a readable table"),
        (lambda text: text[: len(text) // 2], "qc.tsv: not a readable table"),
        (lambda text: text.replace("flag", "mark"), "qc.tsv: not a readable table"),
        (lambda text: text.replace("pass", "ok"), "qc.tsv: not a readable table"),
        (lambda text: text.rsplit("v1", 1)[0], "flags of 2 B-scans where the volume has 3"),
    ],
)
def test_a_wrong_qc_table_is_named(flat_files, tmp_path, capsys, table, message):
    path = tmp_path / "qc.tsv"
    if table is not None:
        write_qc(path, "pass", "pass", "pass")
        path.write_text(table(path.read_text()) if table else "")
    inputs = ["--inputs", flat_files[0], "--labels", "healthy", "--split", "train", "--qc", path]
    assert cut(*inputs, "--per-volume", 9, "--size", 32, "--output", tmp_path / "p.h5") == 1
    error = capsys.readouterr().err
    assert "qc.tsv" in error
    assert message in error
    assert "the rule prepare" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("pattern", ["line", "circle", "radial", "vertical"])
def test_only_raster_scans_train_a_model(flat_files, tmp_path, capsys, pattern):
    write_volume(read_volume(flat_files[0]).replace(scan_pattern=pattern), flat_files[0])

    def cut_as(split):
        inputs = ["--inputs", flat_files[0], "--labels", "healthy", "--split", split]
        return cut(*inputs, "--per-volume", 9, "--size", 32, "--output", tmp_path / f"{split}.h5")

    assert cut_as("train") == 1
    error = capsys.readouterr().err
    assert flat_files[0] in error
    assert f"a {pattern} scan" in error
    assert "another split" in error
    assert not (tmp_path / "train.h5").exists()
    assert cut_as("score") == 0


@pytest.fixture
def many_patches(tmp_path, rng, monkeypatch):
    """A file of 1000 patches of 8 x 8, in blocks that end within chunks; some have masks."""
    monkeypatch.setattr(patch_file, "CHUNK_BYTES", 2**13)
    patches = rng.uniform(-1, 1, (1000, 8, 8)).astype(np.float16)
    masks = (patches > 0.5).astype(np.uint8)
    with PatchWriter(tmp_path / "p.h5", 8) as writer:
        for start, stop in ((0, 333), (333, 700), (700, 1000)):
            rows = slice(start, stop)
            examined = masks[rows] if start else None
            writer.append(patches[rows], examined, np.zeros(stop - start, INDEX_DTYPE))
    return tmp_path / "p.h5", patches, masks


def test_mapped_patches_are_the_stored_ones(many_patches, rng):
    path, patches, _ = many_patches
    with open_patches(path) as file:
        mapped = MappedPatches(file)
    assert (len(mapped), mapped.shape, mapped.dtype) == (1000, patches.shape, patches.dtype)
    for rows in (rng.permutation(1000), np.array([5, 5, 999]), slice(None), slice(990, 2000, 3)):
        np.testing.assert_array_equal(mapped[rows], patches[rows])
    assert mapped[np.array([], int)].shape == (0, 8, 8)
    for row in (-1, 1000):
        with pytest.raises(IndexError):
            mapped[np.array([row])]


def test_masks_of_unexamined_patches_take_no_space(many_patches, flat_files, tmp_path):
    path, _, masks = many_patches
    with open_patches(path) as file:
        assert (file["masks"][:333] == 255).all()
        np.testing.assert_array_equal(file["masks"][333:], masks[333:])
    cut("--inputs", flat_files[1], "--labels", "healthy", "--split", "train", "--per-volume", 50,
        "--size", 32, "--output", tmp_path / "healthy.h5")  # fmt: skip
    with open_patches(tmp_path / "healthy.h5") as file:
        assert file["masks"].shape == (50, 32, 32)
        assert file["masks"].id.get_storage_size() == 0
        assert (file["masks"][:] == 255).all()


def test_a_compressed_copy_cannot_be_mapped(many_patches, tmp_path):
    with h5py.File(many_patches[0]) as file, h5py.File(tmp_path / "z.h5", "w") as copy:
        for name in ("masks", "index"):
            file.copy(name, copy)
        copy.create_dataset("patches", data=file["patches"][:], compression="gzip")
    with open_patches(tmp_path / "z.h5") as file, pytest.raises(InputError, match=r"z\.h5.*rerun"):
        MappedPatches(file)


def test_an_index_of_another_version_is_named(many_patches, tmp_path):
    with h5py.File(many_patches[0], "r+") as file:
        index = file["index"][:]
        del file["index"]
        kept = [name for name in index.dtype.names if name != "bscan_label"]
        file.create_dataset("index", data=index[kept])
    message = r"p\.h5: its index lacks bscan_label; rerun"
    with open_patches(many_patches[0]) as file, pytest.raises(InputError, match=message):
        read_index(file)
