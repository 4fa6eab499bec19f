"""Which models the methods of a config need, and the options of their commands."""

import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODEL_OF = {"anogan": "gan", "gan_r": "gan", "p_d": "gan"}  # others have one of their own name
SEARCHING = ("anogan", "gan_r")
COMPARING_FEATURES = ("lambda", "weighting", "feature_layer", "feature_distance")
LEADING = ("anogan", "gan_r", "p_d", "acae", "ae", "pca")  # the first that runs leads the report
NOT_OF_SEARCH = ("chunks", "residuals", "batch_size")


def known_methods() -> list[str]:
    """Return the methods there are modules for."""
    modules = sorted(path.stem for path in (ROOT / "anogan" / "methods").glob("*.py"))
    return [name for name in modules if name not in ("__init__", *MODEL_OF.values())]


def model_of(method: str) -> str:
    """Return the model that a method scores with."""
    return MODEL_OF.get(method, method)


def models_of(methods: list[str]) -> list[str]:
    """Return the models that methods need, each once."""
    return list(dict.fromkeys(model_of(method) for method in methods))


def headline(methods: list[str]) -> str:
    """Return the method that leads the report."""
    return min(methods, key=lambda name: (name not in LEADING, (*LEADING, name).index(name), name))


def train_options(config: dict, model: str) -> str:
    """Return the options of `train MODEL`: the config's section of that name."""
    return _options(config[model])


def score_options(config: dict, method: str) -> str:
    """Return the options of `score` that a method heeds, so that the others rerun nothing."""
    section = config["map"]
    heeded = ["batch_size", "residuals"]
    if method in SEARCHING:
        heeded += [key for key in section if key not in NOT_OF_SEARCH]
    elif method == "acae":
        heeded += COMPARING_FEATURES
    return _options({key: section[key] for key in heeded})


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
