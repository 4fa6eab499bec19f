"""The ways to score patches, a module each; docs/methods.md says how to add one.

Scoring: `MODEL`, the trained model it needs; `SCORES`, its columns, the method's own score first;
`scorer(model, options, device, dtype)`, which returns a function from patches x (n, 1, h, w), their
keys (n) and height_px (n), how many rows their top row lies above BM (NaN where unknown), to
(scores (n, len(SCORES)), rebuilt patches (n, 1, h, w) or None). That function may have a `heat(x,
rebuilt, height_px)`, which heat maps show instead of |x - rebuilt|. `HEEDS` names the groups of
options of `score` that it heeds: "search", "refinement" and "composition"; the workflow reads all
constants but `SCORES` without importing the module.
Training, in the module named as the model: `add_train_arguments(parser)` and
`fit(patches, args, context)`, which returns a `Fitted`. `NEEDS` names another model that it learns
from, as `context.needed`.
"""

import importlib
import pkgutil
from types import ModuleType

from preprocessing.errors import InputError


def method_names() -> list[str]:
    """Return the names of all modules here."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def load_method(name: str) -> ModuleType:
    """Return the module of a method or model; InputError when there is none."""
    if name not in method_names():
        raise InputError(f"there is no method '{name}'; there are {', '.join(method_names())}")
    return importlib.import_module(f"{__name__}.{name}")


def trainable() -> dict[str, ModuleType]:
    """Return the modules that train a model, by name."""
    modules = {name: load_method(name) for name in method_names()}
    return {name: module for name, module in modules.items() if hasattr(module, "fit")}
