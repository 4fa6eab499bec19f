"""What kills a stage or takes its disk leaves whole files or none, and says what to do."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_faults import (
    STAGES,
    Stages,
    digests,
    killed_at_byte,
    killed_at_rename,
    need_mounts,
    own_mount,
    run_apart,
)

from preprocessing import files
from preprocessing.errors import InputError
from preprocessing.files import ABANDONED_S, atomic_folder, atomic_path


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return Stages(tmp_path_factory.mktemp("stages"))


def temporary(folder: Path) -> list[Path]:
    return list(folder.rglob(".tmp-*"))


def of_others(found: dict[str, str]) -> dict[str, str]:
    """Leave out temporary files and what a training leaves for the next run to take up."""
    return {name: d for name, d in found.items() if ".tmp-" not in name and ".training" not in name}


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_leaves_whole_files_and_the_next_run_cleans_up(stages, tmp_path, stage):
    whole, out = stages.whole[stage], tmp_path / "out"
    largest = max(path.stat().st_size for path in (stages.inputs / stage).rglob("*.*"))
    for kill in (killed_at_byte(largest // 2), killed_at_rename(whole.renames)):
        assert stages.run(stage, out, kill).status < 0
        assert temporary(out)
        left = of_others(digests(out))
        assert left.items() <= whole.files.items()
        assert left != of_others(whole.files)
    ended = stages.run(stage, out)
    assert ended.status == 0, ended.said
    assert ended.files == whole.files
    assert not temporary(out)


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_ends_in_one_sentence_and_older_files_stay(stages, tmp_path, stage):
    """A first run has left its files; a second one finds room for some of what it writes."""
    need_mounts(tmp_path)
    sizes = [path.stat().st_size for path in (stages.inputs / stage).rglob("*") if path.is_file()]

    def fill() -> None:
        own_mount(tmp_path, "size=16m")
        subprocess.run(["cp", "-r", *(stages.inputs / stage).iterdir(), tmp_path], check=True)
        free = shutil.disk_usage(tmp_path).free
        with open(tmp_path / "filler", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - max(sizes) // 2 // 4096 * 4096)

    ended = stages.run(stage, tmp_path, fill)
    assert ended.status == 1
    line = ended.said.splitlines()[-1]
    assert "its disk is full (" in line, ended.said
    assert "make room there" in line
    assert "Traceback" not in ended.said
    assert ended.files.pop("filler")
    assert of_others(ended.files) == of_others(stages.whole[stage].files)
    assert not [name for name in ended.files if ".tmp-" in name]


@pytest.mark.parametrize("stage", ["patches", "train gan"])
def test_a_log_that_cannot_be_written_costs_no_work(stages, tmp_path, stage):
    need_mounts(tmp_path)
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()

    def fill() -> None:
        own_mount(disk, "size=4k")
        log = os.open(disk / "log", os.O_CREAT | os.O_WRONLY)
        os.write(log, bytes(4096))
        for stream in (1, 2):
            os.dup2(log, stream)

    ended = stages.run(stage, out, fill)
    assert ended.status == 0
    assert ended.files == stages.whole[stage].files


@pytest.mark.parametrize("stage", ["patches", "train gan"])
def test_a_folder_that_cannot_be_written_is_named(stages, tmp_path, stage):
    need_mounts(tmp_path)
    ended = stages.run(stage, tmp_path, lambda: own_mount(tmp_path, "size=64k,ro"))
    assert ended.status == 1
    line = ended.said.splitlines()[-1]
    assert "cannot be written (Read-only file system)" in line
    assert ".tmp-" not in line


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "results").write_text("")
    with (
        pytest.raises(InputError, match=r"results/a/x\.txt: cannot be written \(Not a directory\)"),
        atomic_path(tmp_path / "results/a/x.txt"),
    ):
        pass


def test_a_disk_too_full_for_a_folder_is_named(tmp_path, monkeypatch):
    def refuse(path: Path, **_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with (
        pytest.raises(InputError, match=r"x\.txt: its disk is full \(.* MB free in .*make room"),
        atomic_path(tmp_path / "new/folder/x.txt"),
    ):
        pass


def test_errors_of_other_files_are_left_alone(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "x") as path:
        path.write_text((tmp_path / "absent").read_text())


class TestAbandoned:
    """Temporary files of writers that were killed."""

    @pytest.fixture
    def left(self, tmp_path):
        """A function that leaves the file of a process that was killed on some machine."""

        def leave(machine=None, process=None):
            if process is None:
                gone = subprocess.Popen([sys.executable, "-c", ""])
                gone.wait()
                process = gone.pid
            folder = tmp_path / f".tmp-{machine or files._machine()}-{process}-0123abcd-x.txt"
            folder.mkdir()
            (folder / "x.txt").write_text("half")
            return folder

        return leave

    def write(self, folder, name="x.txt"):
        with atomic_path(folder / name) as path:
            path.write_text("whole")
        assert (folder / name).read_text() == "whole"

    def test_they_are_removed_by_the_next_writer_of_that_file(self, tmp_path, left):
        path = left()
        self.write(tmp_path, "other-x.txt")
        self.write(tmp_path, "x.txt.gz")
        assert path.exists()
        self.write(tmp_path)
        assert not path.exists()

    def test_those_of_running_processes_stay(self, tmp_path, left):
        path = left(process=os.getppid())
        self.write(tmp_path)
        assert path.exists()

    def test_those_of_other_machines_stay_for_days(self, tmp_path, left):
        fresh, old = left("aaaaaaaa"), left("bbbbbbbb")
        past = time.time() - ABANDONED_S - 60
        for path in (old / "x.txt", old):
            os.utime(path, (past, past))
        self.write(tmp_path)
        assert fresh.exists()
        assert not old.exists()

    def test_two_writers_at_once_leave_the_whole_file_of_one(self, tmp_path):
        with atomic_path(tmp_path / "x.txt") as first:
            first.write_text("first")
            with atomic_path(tmp_path / "x.txt") as second:
                second.write_text("second")
            assert (tmp_path / "x.txt").read_text() == "second"
        assert (tmp_path / "x.txt").read_text() == "first"
        assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


@pytest.mark.parametrize("rename", [1, 2])
def test_a_folder_is_whole_or_missing_when_its_writer_is_killed(tmp_path, rename):
    def write(*names: str) -> int:
        with atomic_folder(tmp_path / "folder") as folder:
            for name in names:
                (folder / name).write_text(name)
        return 0

    def killed() -> int:
        killed_at_rename(rename)()
        return write("c", "d")

    def held() -> set[str]:
        return {path.name for path in (tmp_path / "folder").glob("*")}

    write("a", "b")
    assert run_apart(killed, tmp_path).status < 0
    assert held() == ({"a", "b"} if rename == 1 else set())
    write("e")
    assert held() == {"e"}
    assert not temporary(tmp_path)


def test_two_commands_that_write_the_same_files_leave_whole_ones(stages, tmp_path):
    """As when a stage is started by hand while the workflow runs it."""
    package, *rest = stages.arguments("load", tmp_path)
    command = [sys.executable, "-m", package, *rest]
    running = [
        subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [process.wait() for process in running] == [0, 0]
    assert digests(tmp_path) == stages.whole["load"].files
