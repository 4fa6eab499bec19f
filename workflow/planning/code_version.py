"""A fingerprint of the code behind a rule, so that editing it reruns the rule and no other.

Snakemake does not see a change in an imported module. The fingerprint covers the stage's module and
every module of this project that it imports, as syntax trees without docstrings: comments and
formatting do not count. Versions of the libraries they import count up to the minor number, since a
patch release must not redo a training.
"""

import ast
import functools
import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("preprocessing", "anogan")
DISTRIBUTIONS = {  # import name -> name on the package index, where they differ
    "PIL": "pillow",
    "oct_converter": "oct-converter",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


@functools.cache
def code_version(module: str, *files: str) -> str:
    """Return the fingerprint of a module's import closure and of other `files` it reads.

    Parameters are the dotted name of the module and paths below the project's folder; a folder
    stands for the files in it.
    """
    digest = hashlib.sha256()
    libraries: set[str] = set()
    for name in sorted(import_closure(module)):
        tree, imported = _parse(name)
        digest.update(f"{name}\n{tree}\n".encode())
        libraries |= {top for top in (i.split(".")[0] for i in imported) if top not in PACKAGES}
    for library in sorted(libraries):
        digest.update(f"{library} {_minor_version(library)}\n".encode())
    for file in files:
        path = ROOT / file
        for part in sorted(path.iterdir()) if path.is_dir() else [path]:
            digest.update(part.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def import_closure(module: str) -> frozenset[str]:
    """Return the dotted names of all project modules that `module` imports, itself included."""
    if _source(module) is None:
        raise ValueError(f"there is no module {module} in {ROOT}")
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or _source(name) is None:
            continue
        found.add(name)
        parents = name.split(".")
        waiting += [".".join(parents[:i]) for i in range(1, len(parents))]
        waiting += [i for i in _parse(name)[1] if i.split(".")[0] in PACKAGES]
    return frozenset(found)


@functools.cache
def _parse(name: str) -> tuple[str, frozenset[str]]:
    """Return (dump of the syntax tree without docstrings, every dotted name that is imported)."""
    tree = ast.parse(_source(name).read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{name}: relative imports are not followed; import by full name")
            # `from a import b`: b may be a module or a name in a
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        if isinstance(
            node, ast.Module | ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef
        ) and (ast.get_docstring(node, clean=False) is not None):
            node.body = node.body[1:]
    tree.body = [node for node in tree.body if not _is_version(node)]
    return ast.dump(tree), frozenset(imported)


def _is_version(node: ast.stmt) -> bool:
    """Tell whether `node` is `__version__ = ...`: a release alone reruns nothing."""
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"


def _source(name: str) -> Path | None:
    base = ROOT.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _minor_version(library: str) -> str:
    try:
        return ".".join(version(DISTRIBUTIONS.get(library, library)).split(".")[:2])
    except PackageNotFoundError:
        return ""  # the standard library, or an optional extra that is not installed
