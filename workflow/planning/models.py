"""Which models the methods of a config need, and the options of their commands."""

import ast
import functools
import shlex
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).parents[2]
# the first that runs leads the report
LEADING = ("r_anogan", "anogan", "f_anogan_refined", "f_anogan", "gan_r")
LEADING += ("p_d", "acae", "ae", "pca")
COMPOSITION = ("lambda", "weighting", "feature_layer", "feature_distance")
REFINEMENT = ("refine_steps", "refine_learning_rate", "refine_restarts")
ALWAYS = ("batch_size",)
CONSTANTS = ("MODEL", "NEEDS", "HEEDS", "USES_GPU")  # of a method's module
NO_OPTION = ("chunks", "residuals")  # not of the score itself


@functools.cache
def _constants(method: str) -> dict[str, object]:
    """Return the constants that a method's module says of itself, read without importing it."""
    path = ROOT / "anogan" / "methods" / f"{method}.py"
    if not path.exists():
        return {}
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in CONSTANTS:
            found[ast.unparse(node.targets[0])] = ast.literal_eval(node.value)
    return found


def known_methods() -> list[str]:
    """Return the methods there are modules for."""
    modules = sorted(path.stem for path in (ROOT / "anogan" / "methods").glob("*.py"))
    return [name for name in modules if "MODEL" in _constants(name)]


def model_of(method: str) -> str:
    """Return the model that a method scores with."""
    return _constants(method)["MODEL"]


def needed_model(model: str) -> str | None:
    """Return the model that another learns from, None where patches are all it needs."""
    return _constants(model).get("NEEDS")


def models_of(methods: list[str], existing: Collection[str] = ()) -> list[str]:
    """Return the models that methods need, each once, and those that these learn from.

    What an `existing` model has learned from is not needed any more, but is taken where it exists
    as well: markers and latent space are looked at through a GAN.
    """
    models = list(dict.fromkeys(model_of(method) for method in methods))
    for model in models:  # which grows meanwhile
        needed = needed_model(model)
        wanted = model not in existing or needed in existing
        if needed and wanted and needed not in models:
            models.append(needed)
    return models


def gpus_to_train(config: dict, model: str) -> int:
    """Return how many GPUs the training of a model uses."""
    return config["gpus"] if _constants(model).get("USES_GPU", True) else 0


def heeds(method: str, group: str) -> bool:
    """Tell whether a method heeds a group of options of `score`: see `anogan.methods`."""
    return group in _constants(method).get("HEEDS", ())


def searches(method: str) -> bool:
    """Tell whether a method searches for z, which is worth several cores."""
    return heeds(method, "search") or heeds(method, "refinement")


def headline(methods: list[str]) -> str:
    """Return the method that leads the report."""
    return min(methods, key=lambda name: (name not in LEADING, (*LEADING, name).index(name), name))


def train_options(config: dict, model: str) -> str:
    """Return the options of `train MODEL`: the config's section of that name."""
    options = {**config[model], "seed": config["seed"]}
    if "epochs" in options:  # a network
        options["precision"] = config["precision"]
    return _options(options)


def score_options(config: dict, method: str) -> str:
    """Return the options that a method heeds in scoring, so that the others rerun nothing."""
    section = config["map"]
    options = {key: section[key] for key in ALWAYS}
    if heeds(method, "composition"):
        options |= {key: section[key] for key in COMPOSITION}
    if heeds(method, "refinement"):
        options |= {key: section[key] for key in REFINEMENT}
    if heeds(method, "search"):
        others = (*ALWAYS, *COMPOSITION, *REFINEMENT, *NO_OPTION)
        options |= {key: value for key, value in section.items() if key not in others}
    if searches(method):
        options |= {"seed": config["seed"], "precision": config["precision"]}
    return _options(options)


def _options(section: dict) -> str:
    """Return a section as command-line options."""
    parts = []
    for key, value in section.items():
        name = "weight" if key == "lambda" else key.replace("_", "-")
        if isinstance(value, bool):
            parts.append(f"--{name}" if value else f"--no-{name}")
        else:
            values = value if isinstance(value, list) else [value]
            parts += [f"--{name}", *(shlex.quote(str(v)) for v in values)]
    return " ".join(parts)
