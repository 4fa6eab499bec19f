"""What is made of patients' scans is never readable by everybody, whatever the umask outside."""

import os
import stat
from pathlib import Path

import pytest
from made_project import Project, phantom

from preprocessing.cli import run_command


@pytest.fixture
def umask():
    """A function that sets the umask until the test ends."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """Return the permissions of everything in a folder, links left out."""
    return {
        str(path.relative_to(folder)): stat.filemode(path.stat().st_mode)
        for path in folder.rglob("*")
        if not path.is_symlink()
    }


@pytest.mark.parametrize(
    ("outside", "file", "folder"),
    [
        (0o000, "-rw-rw----", "drwxrwx---"),
        (0o022, "-rw-r-----", "drwxr-x---"),
        (0o002, "-rw-rw----", "drwxrwx---"),
        (0o077, "-rw-------", "drwx------"),  # a stricter one stays
    ],
)
def test_a_command_takes_nothing_but_the_rights_of_others(tmp_path, umask, outside, file, folder):
    umask(outside)
    size = ["--bscans", "3", "--depth", "320", "--width", "192"]
    arguments = ["--volume", "v", "--label", "healthy", *size, "--seed", "1"]
    arguments = ["phantom", *arguments, "--output", str(tmp_path / "new" / "v.nii.gz")]
    assert run_command("preprocessing", {"phantom": ""}, arguments) == 0
    found = modes(tmp_path)
    assert found.pop("new") == folder
    assert len(found) >= 4
    assert set(found.values()) == {file}


def test_a_run_of_the_workflow_is_closed_to_others(tmp_path, umask):
    project = Project(tmp_path)
    project.write([phantom("a", "train"), phantom("t", "test", "diseased")])
    umask(0o000)
    result = project.snakemake("--", "data/phantom/a.nii.gz")
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("results", "data", ".snakemake"):
        assert (tmp_path / name).stat().st_mode & stat.S_IRWXO == 0, name
    found = modes(tmp_path / "results") | modes(tmp_path / "data")
    assert {"phantom/a.json", "logs/phantom/a.log", "benchmarks/phantom/a.tsv"} <= set(found)
    assert [name for name, mode in found.items() if not mode.endswith("---")] == []
