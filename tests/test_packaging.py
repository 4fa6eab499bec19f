"""What a new user installs, and that every place says the same."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from preprocessing.cli import run_command

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return [Requirement(name) for name in names]


def test_conda_users_get_the_same_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = dict(
        re.fullmatch(r"([\w-]+) *(.*)", line).groups() for line in environment["dependencies"]
    )
    assert conda.pop("python") == "=3.11"
    expected = {
        CONDA_NAMES.get(r.name, r.name): ",".join(sorted(str(r.specifier).split(",")))
        for r in requirements()
    }
    found = {name: ",".join(sorted(spec.split(","))) for name, spec in conda.items()}
    assert found == expected


def test_the_constraints_fulfil_the_requirements():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    for requirement in requirements():
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement


@pytest.mark.parametrize("package", ["preprocessing", "anogan"])
def test_every_command_explains_itself(package, capsys):
    main = subprocess.run(
        [sys.executable, "-m", package, "--help"], capture_output=True, text=True, cwd=ROOT
    )
    commands = importlib.import_module(f"{package}.__main__").COMMANDS
    assert main.returncode == 0
    for command, text in commands.items():
        assert text in main.stdout
        with pytest.raises(SystemExit, match="0"):
            run_command(package, commands, [command, "--help"])
        assert "--debug" in capsys.readouterr().out


def test_a_wrong_command_is_a_wrong_use():
    result = subprocess.run(
        [sys.executable, "-m", "anogan", "trian"], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 2
    assert "trian" in result.stderr


def test_every_link_of_the_documentation_leads_somewhere():
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("config/*.md")]:
        links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
        for link in links:
            assert (page.parent / link).exists(), f"{page.name}: {link}"
