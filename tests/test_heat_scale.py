"""The colours of heat maps: from healthy validation eyes, the same for all volumes."""

import json

import numpy as np
import pytest
from made_maps import run

from anogan.heat_scale import LOW_QUANTILE, REACH
from anogan.maps.file import VolumeMaps, write_maps


def write_map_file(path, volumes, method="pca"):
    """Write maps whose values are drawn with a given mean: (name, split, label, mean)."""
    rng = np.random.default_rng(0)
    with write_maps(path, method, 16, 32) as writer:
        for name, split, label, mean in volumes:
            score = rng.normal(mean, 1, (2, 50, 60)).astype(np.float32)
            score[:, :10] = np.nan
            facts = {"split": split, "eye_label": label}
            writer.append(
                VolumeMaps(name, name, "R", n_patches=1, score=score, residual=score, **facts)
            )
    return path


def scale_of(folder, *paths):
    assert run("heat_scale", "--maps", *paths, "--output", folder / "scale.json") == 0
    return json.loads((folder / "scale.json").read_text())


def test_the_scale_comes_from_healthy_validation_eyes(tmp_path):
    healthy = [("a", "validation", 0, 5), ("b", "validation", 0, 5)]
    others = [("c", "validation", 1, 50), ("d", "test", 0, 90), ("e", "score", -1, 20)]
    one = write_map_file(tmp_path / "1.h5", [healthy[0], *others])
    two = write_map_file(tmp_path / "2.h5", [healthy[1]])
    scale = scale_of(tmp_path, one, two)
    assert (scale["method"], scale["from"]) == ("pca", "healthy validation volumes")
    low, high = scale["score"]
    assert low == pytest.approx(5 + 1.645, abs=0.1) and LOW_QUANTILE == 0.95
    assert high - low == pytest.approx(REACH * 1.645, abs=0.3)
    assert scale["residual"] == pytest.approx(scale["score"], abs=0.01)  # in half precision
    assert scale_of(tmp_path, two, one) == scale


def test_the_sample_is_of_the_whole_volume(tmp_path, monkeypatch):
    monkeypatch.setattr("anogan.heat_scale.SAMPLE", 500)
    score = np.linspace(0, 1, 10_000, dtype=np.float32).reshape(4, 50, 50)
    with write_maps(tmp_path / "1.h5", "pca", 16, 32) as writer:
        writer.append(VolumeMaps("a", "a", "R", "validation", 0, 1, score))
    scale = scale_of(tmp_path, tmp_path / "1.h5")
    assert scale["score"][0] == pytest.approx(0.95, abs=0.01)
    assert scale["residual"] is None


def test_without_healthy_validation_eyes_all_give_the_scale(tmp_path):
    path = write_map_file(tmp_path / "1.h5", [("c", "validation", 1, 5), ("d", "test", 0, 5)])
    scale = scale_of(tmp_path, path)
    assert scale["from"] == "all volumes"
    assert scale["score"][0] == pytest.approx(5 + 1.645, abs=0.1)


def test_a_scale_of_two_methods_or_of_nothing_is_refused(tmp_path, capsys):
    one = write_map_file(tmp_path / "1.h5", [("a", "test", 0, 5)])
    two = write_map_file(tmp_path / "2.h5", [("b", "test", 0, 5)], method="ae")
    bare = write_map_file(tmp_path / "3.h5", [("c", "test", 0, np.nan)])
    output = tmp_path / "scale.json"
    for paths, message in (((one, two), "maps of ae, pca"), ((bare,), "no pixel is covered")):
        assert run("heat_scale", "--maps", *paths, "--output", output) == 1
        assert message in capsys.readouterr().err
    assert not output.exists()
