"""Methods, models and the options of their commands, as the planner sees them."""

import argparse
import importlib
import json
import shlex
import shutil
from pathlib import Path

import pytest

from anogan.evidence import score_tables
from planning import models
from planning.config import resolve_config
from planning.errors import PlanningError
from planning.models import (
    LEADING,
    headline,
    known_methods,
    model_of,
    models_of,
    score_options,
    train_options,
)

ROOT = Path(__file__).parents[1]


def stage_options(stage: str, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"anogan.{stage}").add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize("model", ["gan", "encoder", "restorer", "acae", "ae", "pca"])
def test_every_key_of_a_model_is_an_option_of_its_training(model):
    config = resolve_config({})
    files = ["--patches", "p.h5", "--output", "m"]
    if needed := models.needed_model(model):
        files += [f"--{needed}", "folder"]
    options = shlex.split(train_options(config, model))
    given = vars(stage_options("train", model, *files, *options))
    assert {key: given[key] for key in config[model]} == config[model]
    assert given["seed"] == config["seed"]
    learned = set(given) - {"model", "patches", "output", "training_folder", "debug", "seed"}
    learned -= {"checkpoint_s", "memory_mb", "threads", "gpus", "precision", "needed"}
    assert learned == set(config[model])  # and none is missing in the config


@pytest.mark.parametrize(
    ("stage", "files"),
    [
        ("score", ("--patches", "p.h5")),
        ("heatmap", ("--inputs", "f", "--labels", "healthy", "--split", "test")),
    ],
    ids=["score", "heatmap"],
)
@pytest.mark.parametrize("method", known_methods())
def test_a_method_is_scored_with_the_options_that_it_heeds(method, stage, files):
    changed = {"steps": 7, "lambda": 0.3, "clamp": True, "refine_steps": 5}
    config = resolve_config({"map": changed})
    files = (*files, "--model", "m", "--output", "s")
    given = vars(stage_options(stage, *files, *shlex.split(score_options(config, method))))
    searches, refines = method in ("anogan", "gan_r"), method == "f_anogan_refined"
    weighs = searches or refines or method == "acae"
    assert given["steps"] == (7 if searches else 500)
    assert given["refine_steps"] == (5 if refines else 20)
    assert given["clamp"] is searches
    assert given["weight"] == (0.3 if weighs else 0.1)


def test_the_planner_knows_the_methods():
    expected = {"acae", "ae", "anogan", "f_anogan", "f_anogan_refined", "gan_r", "p_d", "pca"}
    assert known_methods() == sorted(expected | {"r_anogan"})
    for method in known_methods():
        assert model_of(method) == importlib.import_module(f"anogan.methods.{method}").MODEL


def test_what_a_method_does_not_heed_is_not_passed_to_it():
    """So that it reruns nothing."""
    fp32, bf16 = (
        resolve_config({"precision": p, "seed": n}) for n, p in ((1, "fp32"), (2, "bf16"))
    )
    for method in known_methods():
        same = score_options(fp32, method) == score_options(bf16, method)
        assert same is (method not in ("anogan", "gan_r", "f_anogan_refined"))
    assert "precision" not in train_options(fp32, "pca")


def test_sizes_of_networks_that_are_not_trained_do_not_matter(tmp_path):
    model = {"model": "gan", "architecture": {"patch_size": 32}}
    (tmp_path / "model.json").write_text(json.dumps(model))
    resolve_config({"methods": ["pca"], "patches": {"size": 32}})
    existing = {"gan": str(tmp_path)}
    resolve_config({"methods": ["anogan"], "patches": {"size": 32}, "existing_models": existing})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"model": "ae"}, "holds the model ae"),
        ({"architecture": {"patch_size": 32}}, "patches of 32 pixels, but patches: size is 64"),
        ({"data": {"preprocessing": {"flatten": {"above_um": 600}}}}, "flatten: above_um 600"),
        ({"architecture": None}, "model.json cannot be read"),
        ({"data": {"preprocessing": ["resample"]}}, "model.json cannot be read"),
        ({"data": {"preprocessing": {"resample": 22}}}, "model.json cannot be read"),
        ({"data": {"preprocessing": {"seed": {"x_um": 22}}}}, "model.json cannot be read"),
    ],
)
def test_an_existing_model_must_be_what_the_config_needs(tmp_path, change, message):
    learned = {"flatten": {"above_um": 650, "mode": "bm"}, "normalise": {"percentiles": [1, 99]}}
    model = {"model": "gan", "architecture": {"patch_size": 64}, "data": {"preprocessing": learned}}
    (tmp_path / "model.json").write_text(json.dumps({**model, **change}))
    config = {"methods": ["anogan"], "existing_models": {"gan": str(tmp_path)}}
    if message is None:
        resolve_config(config)
    else:
        with pytest.raises(PlanningError, match=message):
            resolve_config(config)


def test_a_method_is_a_module_and_a_section_or_a_model_that_there_is(tmp_path, monkeypatch):
    folder = tmp_path / "anogan/methods"
    shutil.copytree(ROOT / "anogan/methods", folder)
    (folder / "mine.py").write_text('"""Mine."""\n\nMODEL = "gan"\nSCORES = ("s",)\n')
    (folder / "other.py").write_text('"""Other."""\n\nMODEL = "other"\nSCORES = ("s",)\n')
    monkeypatch.setattr(models, "ROOT", tmp_path)
    assert models_of(resolve_config({"methods": ["mine"]})["methods"]) == ["gan"]
    with pytest.raises(PlanningError, match="no section 'other'"):
        resolve_config({"methods": ["other"]})


def test_the_leading_method_is_that_of_the_report():
    assert LEADING == score_tables.KNOWN
    assert headline(["pca", "knn", "anogan"]) == "anogan"
    assert headline(["pca", "ae"]) == "ae"
    assert headline(["mine", "knn"]) == "knn"


def test_only_networks_train_on_gpus():
    """A job that asks for a GPU waits for one."""
    asked = {
        model: models.gpus_to_train({"gpus": 2}, model) for model in models_of(known_methods())
    }
    assert asked == {"acae": 2, "ae": 2, "encoder": 2, "gan": 2, "pca": 0, "restorer": 2}


class TestModelsThatLearnFromOthers:
    def test_what_a_model_learns_from_is_trained_too(self):
        assert models_of(["f_anogan", "pca"]) == ["encoder", "pca", "gan"]
        assert models_of(["f_anogan", "anogan"]) == ["encoder", "gan"]
        assert models_of(["pca"]) == ["pca"]

    def test_an_existing_one_has_learned_already(self):
        assert models_of(["f_anogan_refined"], {"encoder": "folder"}) == ["encoder"]
        assert models_of(["f_anogan", "anogan"], {"encoder": "folder"}) == ["encoder", "gan"]
        assert models_of(["f_anogan"], {"gan": "folder"}) == ["encoder", "gan"]
        both = {"encoder": "folder", "gan": "folder"}  # the latter for markers and latent space
        assert models_of(["f_anogan"], both) == ["encoder", "gan"]

    def test_what_they_learn_from_may_be_a_chain(self, tmp_path, monkeypatch):
        folder = tmp_path / "anogan/methods"
        folder.mkdir(parents=True)
        for name, needed in (("a", "b"), ("b", "c"), ("c", "")):
            (folder / f"{name}.py").write_text(f'MODEL = "{name}"\n' + f"NEEDS = {needed!r}\n")
        monkeypatch.setattr(models, "ROOT", tmp_path)
        monkeypatch.setattr(models, "_constants", models._constants.__wrapped__)
        assert models_of(["a"]) == ["a", "b", "c"]
        assert models_of(["a"], {"b": "folder"}) == ["a", "b"]

    def test_an_existing_model_must_be_needed(self, tmp_path):
        for name in ("gan", "encoder"):
            (tmp_path / name).mkdir()
            model = {"model": name, "architecture": {"patch_size": 64}}
            (tmp_path / name / "model.json").write_text(json.dumps(model))
        folders = {name: str(tmp_path / name) for name in ("gan", "encoder")}
        resolve_config({"methods": ["f_anogan"], "existing_models": {"gan": folders["gan"]}})
        resolve_config({"methods": ["f_anogan"], "existing_models": folders})
        with pytest.raises(PlanningError, match="no method needs 'gan'; needed are pca"):
            resolve_config({"methods": ["pca"], "existing_models": {"gan": folders["gan"]}})
