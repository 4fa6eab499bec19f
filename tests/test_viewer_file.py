"""The viewer's pack: pictures, layers and outlines that fit each other."""

import numpy as np
import pytest
from made_maps import (
    BLOCK,
    HIGH,
    LOW,
    hot_pixels,
    native_volume,
    overlay,
    prepare,
    viewer_of,
    write_flat,
)
from skimage.measure import points_in_poly

from anogan.maps.viewer import native_surfaces, outlines, polylines, retina_rows, simplify
from preprocessing.geometry import read_geometry
from preprocessing.volume import read_volume


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The folder of a mirrored left eye that was drawn."""
    folder = tmp_path_factory.mktemp("drawn") / "v"
    prepare(folder, eye="L", mirrored=True)
    assert overlay(folder) == 0
    return folder


def test_the_viewers_pack_is_consistent(drawn):
    facts, pictures = viewer_of(drawn)
    identity = [facts[name] for name in ("volume", "patient", "split", "eye_label", "method")]
    assert identity == ["v", "p-v", "test", 1, "pca"]
    assert facts["scale"] == {"residual": [LOW, HIGH], "score": [LOW, HIGH]}
    assert facts["spacing_um"] == pytest.approx([200, 4, 11])
    assert (facts["n_bscans"], facts["width"], len(facts["bscans"])) == (3, 144, 3)
    size = facts["width"], facts["height"]
    named = set(facts["enface"].values())
    for b, bscan in enumerate(facts["bscans"]):
        assert pictures[bscan["gray"]].size == size
        assert bscan["max_score"] == (1 if b == BLOCK[0] else 0)
        for kind in ("residual", "score"):
            assert (bscan[kind] is not None) == (b == BLOCK[0])
        named |= {bscan[kind] for kind in ("gray", "residual", "score")}
    assert named - {None} == set(pictures)
    assert pictures[facts["enface"]["residual"]].size == (72, 3)
    front = np.asarray(pictures[facts["enface"]["residual"]].convert("RGBA"))[..., 3]
    hot = np.zeros((3, 72), bool)
    hot[BLOCK[0], BLOCK[2]] = True
    np.testing.assert_array_equal(front[::-1] > 0, hot)  # the superior B-scan is on top


def test_the_viewers_heat_lies_on_the_right_pixels(drawn):
    facts, pictures = viewer_of(drawn)
    volume = read_volume(drawn / "volume.nii.gz")
    geometry = read_geometry(drawn / "flat.geometry.npz")
    rows = retina_rows(native_surfaces(geometry), volume)
    hot = hot_pixels(volume)[BLOCK[0], rows]
    heat = pictures[facts["bscans"][BLOCK[0]]["score"]].convert("RGBA")
    assert heat.size == (facts["width"], facts["height"])
    np.testing.assert_array_equal(np.asarray(heat)[..., 3] > 100, hot)


def test_layers_of_the_viewer_lie_on_the_layers_of_the_picture(tmp_path):
    """BM is painted white into the volume; the viewer's line must run along it."""
    folder = tmp_path / "v"
    geometry = prepare(folder)
    native = native_volume("v")
    bm = native_surfaces(geometry)["bm"]
    native.data[:] = 0.1
    for x in range(144):
        native.data[:, round(float(bm[0, x // 2])), x] = 1
    write_flat(native, folder)
    assert overlay(folder) == 0
    facts, pictures = viewer_of(folder)
    for bscan in facts["bscans"]:
        (line,) = bscan["layers"]["bm"]
        x, z = np.array(line).T
        assert x.min() >= 0 and x.max() <= facts["width"]
        assert z.min() >= 0 and z.max() <= facts["height"]
        gray = np.asarray(pictures[bscan["gray"]].convert("L"))
        columns = np.arange(2, 142)
        painted = gray[:, columns].argmax(axis=0) + 0.5
        strays = np.interp(columns + 0.5, x, z) - painted
        assert np.abs(strays).max() < 1.2 and abs(strays.mean()) < 0.2
        (ilm,) = bscan["layers"]["ilm"]
        assert np.array(ilm)[:, 1].max() < z.min()


def test_outlines_enclose_the_marked_pixels_and_no_others(drawn):
    facts, _ = viewer_of(drawn)
    volume = read_volume(drawn / "volume.nii.gz")
    rows = retina_rows(native_surfaces(read_geometry(drawn / "flat.geometry.npz")), volume)
    for b, bscan in enumerate(facts["bscans"]):
        marked = volume.annotation[b, rows] >= 0.5
        assert len(bscan["outlines"]) == marked.any()
        centres = np.argwhere(np.ones_like(marked))[:, ::-1] + 0.5
        inside = np.zeros(len(centres), bool)
        for polygon in bscan["outlines"]:
            inside |= points_in_poly(centres, np.array(polygon))
        np.testing.assert_array_equal(inside.reshape(marked.shape), marked)


def test_outlines_of_any_form_hold_their_pixels(rng):
    marked = rng.random((24, 30)) < 0.4
    marked[0] = marked[:, 0] = True  # at the picture's edge
    centres = np.argwhere(np.ones_like(marked))[:, ::-1] + 0.5
    crossings = np.zeros(len(centres), int)
    for polygon in outlines(marked):
        crossings += points_in_poly(centres, np.array(polygon))
    np.testing.assert_array_equal(crossings.reshape(marked.shape) % 2 == 1, marked)


def test_a_simplified_line_stays_near_and_keeps_its_ends():
    x = np.arange(200.0)
    line = np.column_stack([x, np.where(x < 100, 0, (x - 100) * 0.5) + 0.1 * np.sin(x)])
    few = simplify(line, 0.4)
    assert len(few) < 10
    np.testing.assert_array_equal(few[[0, -1]], line[[0, -1]])
    assert np.abs(np.interp(x, *few.T) - line[:, 1]).max() < 0.5


def test_a_line_runs_through_the_centres_of_pixels():
    """A flat column is two columns of the picture, whose middle is the border between them."""
    z = np.array([5, 5, 5, np.nan, 7, 9, 8, np.nan, 3], np.float32)
    lines = polylines(z, 2.0)
    assert lines == [[[1, 5.5], [5, 5.5]], [[9, 7.5], [11, 9.5], [13, 8.5]]]


def test_gaps_in_a_layer_are_gaps_in_its_line(tmp_path):
    geometry = prepare(tmp_path / "v")
    geometry.bm[1, 30:40] = np.nan
    np.savez(tmp_path / "v" / "flat.geometry.npz", **vars(geometry))
    assert overlay(tmp_path / "v") == 0
    facts, _ = viewer_of(tmp_path / "v")
    assert [len(bscan["layers"]["bm"]) for bscan in facts["bscans"]] == [1, 2, 1]
