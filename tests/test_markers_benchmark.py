"""What benchmarks/markers.py measures: clusters of a finished run against painted lesions."""

import json
import sys
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from made_maps import SIZE, run, write_model
from sklearn.metrics import adjusted_rand_score

from anogan.maps.file import VolumeMaps, write_maps
from preprocessing.flatten import flat_geometry, flatten
from preprocessing.geometry import geometry_path, write_geometry
from preprocessing.layers import Layers
from preprocessing.phantom import make_phantom
from preprocessing.volume import write_volume

with mock.patch.object(sys, "path", [*sys.path]):  # which a benchmark changes
    from benchmarks.markers import main, measure, of_volume, read_sources

NATIVE, SPACING_MM = (4, 384, 160), (0.24, 0.00387, 0.022)
SEED, CAP = 1, 10
EYES = {"v": ("validation", 0), "d1": ("test", 1), "d2": ("test", 1), "h": ("test", 0)}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A run on phantoms whose heat maps are their lesions, and in one eye a bright corner."""
    results = tmp_path_factory.mktemp("run") / "results"
    maps = {}
    for name, (split, label) in EYES.items():
        native, layers = make_phantom(name, SEED, label == 1, NATIVE, SPACING_MM)
        folder = results / "volumes" / name
        folder.mkdir(parents=True)
        write_volume(native, folder / "volume.nii.gz")
        scaled = native.replace(data=2 * native.data - 1, intensity="normalised")
        layers = Layers(**layers, confidence=np.ones_like(layers["bm"]))
        geometry = flat_geometry(layers, scaled, "bm", above_um=500, thickness_um=320)
        flat = flatten(scaled, geometry, 160).replace(parameters={"resample": {"x_um": 22.0}})
        write_volume(flat, folder / "flat.nii.gz")
        write_geometry(geometry, geometry_path(folder / "flat.nii.gz"))
        heat = np.random.default_rng(len(maps)).uniform(0, 0.1, flat.data.shape)
        heat += np.nan_to_num(flat.annotation)
        if name == "h":
            heat[0, 80:90, 20:40] += 1
        heat = np.where(flat.valid, heat, np.nan).astype(np.float32)
        maps[name] = VolumeMaps(name, f"p-{name}", "R", split, label, 9, heat, heat)
    (results / "heatmaps" / "pca").mkdir(parents=True)
    for split in ("validation", "test"):
        with write_maps(results / "heatmaps" / "pca" / f"{split}-0.h5", "pca", 16, SIZE) as writer:
            for found in maps.values():
                if found.split == split:
                    writer.append(found)
    given = [
        *("--maps", *(results / "heatmaps" / "pca").glob("*.h5")),
        *("--flats", *results.glob("volumes/*/flat.nii.gz")),
        *("--images", *results.glob("volumes/*/volume.nii.gz")),
        *("--model", write_model(results / "gan", "gan"), "--regions-per-volume", CAP),
    ]
    assert run("markers", *given, "--quantile", 0.999, "--output", results / "markers") == 0
    return results


def test_clusters_are_compared_with_the_kind_of_every_region(results):
    rows = {name: (value, baseline) for name, value, baseline in measure(results, SEED)}
    regions = pd.read_csv(results / "markers" / "regions.tsv", sep="\t").set_index("region")
    facts, size, sources = read_sources(results)
    assert size == SIZE
    truth = pd.concat([of_volume(source, facts, size, SEED)[0] for source in sources])
    kind = truth.set_index("region")["kind"].reindex(regions.index)
    assert not kind.isna().any() and (regions["fitted"].sum() < len(regions))
    assert set(kind) == {"none", "fluid", "druse", "focus"}
    assert set(kind[regions["volume"] == "h"]) == {"none"}

    diseased, on = regions["eye_label"] == "diseased", kind != "none"
    for among, some in (("regions on lesions", on), ("all of diseased eyes", diseased)):
        name = f"adjusted Rand index, {among} ({some.sum()}), beside size and depth"
        assert rows[name][0] == adjusted_rand_score(kind[some], regions["cluster"][some])
    counts = pd.crosstab(regions["cluster"], kind)
    mostly = regions["cluster"].map(counts.idxmax(axis=1))
    for name, its in kind.groupby(kind):
        told = rows[f"regions on {name} ({len(its)}) in clusters of mostly {name}"]
        assert told[0] == pytest.approx((mostly[its.index] == name).mean())
        assert told[1] == pytest.approx(len(its) / len(kind))
    found = [value for name, (value, _) in rows.items() if name.startswith("lesions found")]
    assert len(found) == 3 and min(found) > 0.5  # they are the heat


def test_it_prints_a_table(results, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["markers.py", str(results)])
    main()
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split("\t") == ["measure", "value", "unit", "baseline", "ratio"]
    assert len(lines) == 12 and {line.count("\t") for line in lines} == {4}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"threshold": None}, "no heat was there"), ({"method": "ae"}, "no heat maps of ae")],
)
def test_a_run_without_heat_is_refused(results, tmp_path, monkeypatch, change, message):
    facts = json.loads((results / "markers" / "markers.json").read_text())
    (tmp_path / "markers").mkdir()
    (tmp_path / "markers" / "markers.json").write_text(json.dumps({**facts, **change}))
    monkeypatch.setattr(sys, "argv", ["markers.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=message):
        main()
