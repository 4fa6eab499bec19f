"""What is known of the container images without an engine to build them."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
INSTALL = "pip install -c constraints.txt -e ."  # as the README says
INDEX = '${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} '
HOME = "/opt/oct-anogan"


def read(name: str) -> str:
    """Return a file without comments and with continued lines joined."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")


@pytest.fixture(scope="module")
def docker() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and what each says."""
    lines = [line.split(maxsplit=1) for line in read("Dockerfile").splitlines() if line.strip()]
    return [(name, rest) for name, rest in lines]


@pytest.fixture(scope="module")
def apptainer() -> dict[str, str]:
    """The sections of the Apptainer definition by name; its head is called `head`."""
    parts = re.split(r"^%(\w+)\n", "%head\n" + read("oct-anogan.def"), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def values(docker: list[tuple[str, str]], name: str) -> list[str]:
    return [rest for instruction, rest in docker if instruction == name]


def copied(docker: list[tuple[str, str]]) -> list[str]:
    return [source for rest in values(docker, "COPY") for source in shlex.split(rest)[:-1]]


def allowed() -> list[str]:
    """What .dockerignore lets into the image."""
    return [line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")]


def test_both_images_start_from_one_python_that_the_project_runs_on(docker, apptainer):
    (base,) = values(docker, "FROM")
    assert f"From: {base}" in apptainer["head"]
    version = re.fullmatch(r"python:(3\.\d+)-slim-\w+", base)[1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert SpecifierSet(project["requires-python"]).contains(version)


def test_both_images_install_as_documented(docker, apptainer):
    assert INSTALL in (ROOT / "README.md").read_text(encoding="utf-8")
    for commands in (" ".join(values(docker, "RUN")), apptainer["post"]):
        (command,) = re.findall(r"pip install .*? -e \.", commands)
        options = command.replace("--no-cache-dir ", "").replace(INDEX, "")
        assert options == INSTALL
        assert "--no-cache-dir" in command
        assert INDEX in command
    (argument,) = values(docker, "ARG")
    assert apptainer["arguments"].strip() == f'{argument}=""'


def test_both_images_hold_the_same_files_and_nothing_private(docker, apptainer):
    assert read(".dockerignore").splitlines()[0] == "*"
    in_apptainer = [line.split()[0] for line in apptainer["files"].splitlines() if line.strip()]
    assert sorted(in_apptainer) == sorted(allowed())
    assert {path.split("/")[0] for path in allowed()} == set(copied(docker))
    for path in allowed():
        assert (ROOT / path).exists(), path
        assert path.split("/")[0] not in ("data", "results", ".git", "tests"), path


def test_the_image_runs_as_a_user_without_rights(docker, apptainer):
    names = [name for name, _ in docker]
    (user,) = values(docker, "USER")
    assert int(user) > 0
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")
    entry = " ".join(yaml.safe_load(values(docker, "ENTRYPOINT")[0]))
    assert entry in apptainer["runscript"]


def test_the_files_of_the_image_plan_a_run_from_another_folder(docker, tmp_path):
    image, work = tmp_path / "image", tmp_path / "work"
    for path in allowed():
        copy = shutil.copytree if (ROOT / path).is_dir() else shutil.copy
        (image / path).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / path, image / path)
    work.mkdir()
    rows = [["volume", "patient", "path", "split", "label"]]
    for volume, split in (("a", "train"), ("t", "test")):
        rows.append([volume, volume, f"{volume}.tif", split, "healthy"])
        (work / f"{volume}.tif").touch()
    (work / "volumes.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    (work / "my.yaml").write_text("volumes: volumes.tsv\ndata_dir: .\n")
    entry = yaml.safe_load(values(docker, "ENTRYPOINT")[0])[1:]
    entry = [part.replace(HOME, str(image)) for part in entry]
    preset = image / "config" / "presets" / "fast.yaml"
    command = [sys.executable, "-m", "snakemake", *entry, "-n", "--quiet", "rules", "--cores", "1"]
    result = subprocess.run(
        [*command, "--configfile", str(preset), "my.yaml"],
        cwd=work,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^load +2$", result.stdout + result.stderr, re.MULTILINE)
