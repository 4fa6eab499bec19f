"""The code calls nothing that runs what a file says: read from its syntax, not from its text."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("anogan", "preprocessing", "workflow")
CODE = sorted(file for part in PARTS for file in (ROOT / part).rglob("*.py"))
RULES = sorted([ROOT / "workflow" / "Snakefile", *(ROOT / "workflow").rglob("*.smk")])

MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
MODULES |= {"lxml", "xml.dom", "xml.sax", "xml.parsers"}
NEVER = {
    *("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *(f"xml.etree.ElementTree.{name}" for name in ("parse", "iterparse", "fromstring", "XML")),
    *(
        f"yaml.{name}"
        for name in ("load_all", "full_load", "unsafe_load", "Loader", "UnsafeLoader")
    ),
    *("yaml.load", "pandas.read_pickle", "pandas.read_hdf", "numpy.lib.format.read_array"),
    *("torch.jit.load", "torch.hub.load", "torch.package.PackageImporter", "runpy.run_path"),
}
ONLY_WITH = {  # what a call must say
    "numpy.load": ("allow_pickle", False),
    "torch.load": ("weights_only", True),
    "PIL.Image.open": ("formats", ...),  # some of Pillow's formats start other programs
}


def offences(code: str) -> list[str]:
    """Return what in a module's code could run the content of a file."""
    tree = ast.parse(code)
    aliases = _aliases(tree)
    found = [name for name in aliases.values() if name in NEVER or _is_in(name, MODULES)]
    settled = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = _dotted(node.func, aliases)
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            if name in ONLY_WITH and _says(keywords, *ONLY_WITH[name]):
                settled.add(node.func)
            if _says(keywords, "shell", ...) and not _says(keywords, "shell", False):
                found.append(f"{name}(shell)")
        elif isinstance(node, ast.Name | ast.Attribute) and node not in settled:
            name = _dotted(node, aliases)
            if name in NEVER or name in ONLY_WITH:
                found.append(name)
    return found


def _aliases(tree: ast.AST) -> dict[str, str]:
    """Return by the name used in the code the full name of everything imported."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                aliases[name.asname or name.name.split(".")[0]] = (
                    name.name if name.asname else name.name.split(".")[0]
                )
                aliases[f"import {name.name}"] = name.name
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                aliases[name.asname or name.name] = f"{node.module}.{name.name}"
    return aliases


def _dotted(node: ast.AST, aliases: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, aliases)}.{node.attr}"
    return ""


def _is_in(name: str, modules: set[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _says(keywords: dict[str, ast.AST], name: str, value: object) -> bool:
    """Tell whether a call has a keyword, with this value unless it is `...`."""
    said = keywords.get(name)
    if said is None or value is ...:
        return said is not None
    return isinstance(said, ast.Constant) and said.value is value


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_module_runs_what_a_file_says(file):
    assert not offences(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", RULES, ids=lambda file: file.name)
def test_no_rule_runs_what_a_file_says(file):
    """Rules are no Python to parse, but the names in them can be read."""
    text = file.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    names = {token.string for token in tokens if token.type == tokenize.NAME}
    assert not names & {*MODULES, "eval", "exec", "system", "popen", "subprocess", "torch", "numpy"}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import joblib as j",
        "from pickle import loads",
        "from xml.dom import minidom",
        "import lxml.etree",
        "eval('1')",
        "run = eval",
        "list(map(exec, []))",
        "import numpy as np\nnp.load('f')",
        "import numpy as np\nnp.load('f', allow_pickle=True)",
        "import numpy as np\nsafe = False\nnp.load('f', allow_pickle=safe)",
        "from numpy import load as read\nread('f')",
        "from functools import partial\nimport numpy\npartial(numpy.load, 'f')",
        "import torch\ntorch.load('f')",
        "import torch\ntorch.load('f', weights_only=False)",
        "import yaml\nyaml.load('f', Loader=yaml.SafeLoader)",
        "from yaml import unsafe_load",
        "import os\nos.system('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "from subprocess import run\nrun('ls', shell=not False)",
        "import xml.etree.ElementTree as et\net.parse('f')",
        "from xml.etree import ElementTree\nElementTree.fromstring('f')",
        "import pandas as pd\npd.read_pickle('f')",
        "from PIL import Image\nImage.open('f')",
    ],
)
def test_what_could_run_is_found(code):
    assert offences(code)


@pytest.mark.parametrize(
    "code",
    [
        "import numpy as np\nnp.load('f', allow_pickle=False)",
        "import torch\ntorch.load('f', weights_only=True)",
        "import yaml\nyaml.safe_load('f')",
        "import subprocess\nsubprocess.run(['ls'])",
        "network.eval()",
        "import re\nre.compile('f')",
        "from xml.etree.ElementTree import Element",
        "from defusedxml.ElementTree import parse\nparse('f')",
        "from PIL import Image\nImage.open('f', formats=['PNG'])",
    ],
)
def test_what_cannot_run_is_left_alone(code):
    assert not offences(code)


def test_templates_escape_all_but_the_pages_own_files_and_prepared_data():
    """The data are JSON in which no element can begin."""
    templates = (ROOT / "anogan" / "page" / "templates").glob("*.j2")
    text = "".join(file.read_text(encoding="utf-8") for file in templates)
    raw = re.findall(r"(\w+) *\| *(?:safe|tojson|xmlattr)\b", text)
    assert sorted(raw) == ["data", "script", "style"]
    assert "autoescape" not in text
