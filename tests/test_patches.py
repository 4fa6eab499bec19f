import numpy as np
import pytest

from preprocessing.cli import run_command
from preprocessing.errors import InputError
from preprocessing.flatten import flat_geometry, flatten
from preprocessing.geometry import geometry_path, write_geometry
from preprocessing.patch_file import open_patches, read_index
from preprocessing.patches import draw_corners, label_patches, possible_corners, shares
from preprocessing.volume import write_volume


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


def cut_both(flat_files, per_volume, size, out) -> int:
    """Cut test patches of a diseased and a healthy volume."""
    inputs = ["--inputs", *flat_files, "--labels", "diseased", "healthy", "--split", "test"]
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

    monkeypatch.setattr(patches, "BLOCK", 100)

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
    marked = np.full((1, 32, 32), np.nan if marked_px is None else 0, np.float32)
    marked[0].flat[: marked_px or 0] = 1
    label, source, fraction = label_patches(marked, volume_label, 0.01)
    assert (label[0], source[0]) == expected
    assert np.isnan(fraction[0]) == (marked_px is None)


def test_shares_add_up():
    assert sum(shares(1_000_000, None, 270)) == 1_000_000
    assert max(shares(1_000_000, None, 270)) - min(shares(1_000_000, None, 270)) <= 1


@pytest.mark.parametrize("fault", ["too small", "nowhere", "damaged"])
def test_faults_leave_no_file(flat_files, tmp_path, capsys, fault):
    size = 128 if fault == "too small" else 32
    if fault == "nowhere":
        from preprocessing.volume import read_volume

        for path in flat_files:
            volume = read_volume(path)
            volume.valid[:] = False
            write_volume(volume, path)
    elif fault == "damaged":
        from pathlib import Path

        Path(flat_files[1]).write_bytes(b"x")
    out = tmp_path / "out" / "p.h5"
    code = cut_both(flat_files, 5, size, out)
    assert code == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert list(out.parent.glob("*")) == []


def test_a_damaged_patch_file_is_named(tmp_path):
    (tmp_path / "p.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"0" * 100)
    with (
        pytest.raises(InputError, match=r"p\.h5.*rerun the stage patches"),
        open_patches(tmp_path / "p.h5"),
    ):
        pass
