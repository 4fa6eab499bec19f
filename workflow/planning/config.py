"""The config: checked against its schema, with every default filled in."""

import copy
import functools
import json
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from planning.errors import PlanningError
from planning.models import headline, known_methods, models_of
from planning.storage import listed, path_of

SCHEMAS = Path(__file__).parents[1] / "schemas"


@functools.cache
def load_schema(name: str) -> dict:
    """Return the schema workflow/schemas/<name>.schema.yaml."""
    return yaml.safe_load((SCHEMAS / f"{name}.schema.yaml").read_text(encoding="utf-8"))


def resolve_config(config: dict) -> dict:
    """Return a copy of `config` with its defaults; PlanningError when it breaks the schema."""
    schema = load_schema("config")
    resolved = copy.deepcopy(dict(config))
    _fill_defaults(resolved, schema)
    error = best_match(Draft202012Validator(schema).iter_errors(resolved))
    if error is not None:
        raise PlanningError(f"config: {_explain(error)}; config/README.md explains every key")
    _fill_sizes(resolved, schema)
    for key in ("volumes", "data_dir", "results_dir"):
        resolved[key] = str(path_of(resolved[key]).expanduser())
    resolved["existing_models"] = {
        model: str(path_of(folder).expanduser())
        for model, folder in resolved["existing_models"].items()
    }
    _check_methods(resolved)
    _choose_heatmaps(resolved)
    for model in models_of(resolved["methods"], resolved["existing_models"]):
        if model not in resolved["existing_models"]:
            _check_training(resolved, model)
    _check_search(resolved["map"])
    _check_percentiles(*resolved["normalise"]["percentiles"])
    return resolved


def _check_methods(config: dict) -> None:
    _check_known("methods", config["methods"])
    models = models_of(config["methods"], config["existing_models"])
    for model, folder in config["existing_models"].items():
        if model not in models:
            raise PlanningError(
                f"config: existing_models: no method needs '{model}'; "
                f"needed are {', '.join(models)}"
            )
        if path_of(config["results_dir"]).resolve() in path_of(folder).resolve().parents:
            raise PlanningError(
                f"config: existing_models: {model}: {folder} lies in results_dir, where models are "
                "trained; leave it out to use it with the rest of that run, or set another "
                "results_dir"
            )
        _check_model(model, listed(folder), config)


def _choose_heatmaps(config: dict) -> None:
    """Keep the methods to draw with that run: the leading one where none is named or none runs."""
    section, leading = config["heatmap"], [headline(config["methods"])]
    wanted = section.get("methods", leading)
    _check_known("heatmap: methods", wanted)
    drawn = [method for method in wanted if method in config["methods"]]
    section["methods"] = drawn or (leading if wanted else [])


def _check_known(key: str, methods: list[str]) -> None:
    known = known_methods()
    for method in methods:
        if method not in known:
            raise PlanningError(
                f"config: {key}: there is no method '{method}'; there are {', '.join(known)}"
            )


def _check_model(model: str, folder: Path, config: dict) -> None:
    """Refuse a model that is another one, or that has learned other patches than are to be cut."""
    place = f"config: existing_models: {model}: {folder}"
    try:
        found = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        name, size = found["model"], found["architecture"]["patch_size"]
        learned = [
            (stage, key, value, config[stage][key])
            for stage, settings in found.get("data", {}).get("preprocessing", {}).items()
            for key, value in settings.items()
            if key in config.get(stage, {})
        ]
    except FileNotFoundError:
        raise PlanningError(
            f"{place} holds no model.json; name the folder of a trained model, such as "
            "results/model/gan"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanningError(f"{place}/model.json cannot be read ({error!r})") from None
    if name != model:
        raise PlanningError(f"{place} holds the model {name}")
    if size != config["patches"]["size"]:
        raise PlanningError(
            f"{place} has learned patches of {size} pixels, but patches: size is "
            f"{config['patches']['size']}"
        )
    for stage, key, value, wanted in learned:
        if value != wanted:
            raise PlanningError(
                f"{place} has learned patches with {stage}: {key} {value}, but the config says "
                f"{wanted}; set it as for the model"
            )


def _fill_sizes(config: dict, schema: dict) -> None:
    """Give each network whose section names no sizes of its own those of the section model."""
    for name, part in schema["properties"].items():
        if name != "model" and "channels" in part.get("properties", {}):
            for key, value in config["model"].items():
                config[name].setdefault(key, copy.deepcopy(value))


def _check_training(config: dict, model: str) -> None:
    if model not in config:
        raise PlanningError(
            f"config: the schema has no section '{model}' to train it by; docs/methods.md says how "
            "to add a method"
        )
    if "channels" not in config[model]:
        return
    n, size = len(config[model]["channels"]), config["patches"]["size"]
    if 4 * 2**n != size:
        raise PlanningError(
            f"config: {model}: channels has {n} numbers, which makes patches of {4 * 2**n} "
            f"pixels, but patches: size is {size}; sizes 32, 64 and 128 need 3, 4 and 5 numbers"
        )
    layer = config["map"]["feature_layer"]
    if layer != "all" and layer > n:
        raise PlanningError(
            f"config: map: feature_layer is {layer}, but the discriminator of {model} has {n} "
            "convolutions; 0 means the last"
        )


def _check_search(search: dict) -> None:
    if 0 < search["candidates"] < search["restarts"]:
        raise PlanningError(
            f"config: map: {search['restarts']} restarts need at least as many candidates, not "
            f"{search['candidates']}; 0 candidates start at random"
        )


def _check_percentiles(low: float, high: float) -> None:
    if low >= high:
        raise PlanningError(
            f"config: normalise: percentiles are [{low}, {high}]; the first must be the smaller one"
        )


def _fill_defaults(values: dict, schema: dict) -> None:
    for key, part in schema.get("properties", {}).items():
        if part.get("type") == "object":
            section = values.setdefault(key, {})
            if isinstance(section, dict):
                _fill_defaults(section, part)
        elif "default" in part:
            values.setdefault(key, copy.deepcopy(part["default"]))


def _explain(error: ValidationError) -> str:
    place = ": ".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        unknown = sorted(set(error.instance) - set(error.schema["properties"]))
        known = ", ".join(error.schema["properties"])
        return (
            f"unknown key '{': '.join(filter(None, [place, *unknown[:1]]))}' (known here: {known})"
        )
    hint = ""
    if error.validator == "type" and isinstance(error.instance, str) and _is_number(error.instance):
        hint = "; YAML takes it for text: write it as 0.001 or 1.0e-3"
    return f"{place or 'the file'}: {error.message}{hint}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
