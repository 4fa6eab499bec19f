"""The small pipeline on a Slurm: how a run is started, and what Slurm says of its jobs."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from made_project import ROWS, SNAKEMAKE, Project

if (
    not shutil.which("scontrol")
    or subprocess.call(["scontrol", "ping"], stdout=subprocess.DEVNULL) != 0
):
    pytest.exit("no Slurm answers here; `make test-cluster` starts one", returncode=1)

VOLUMES = [ROWS[0], ROWS[3], ROWS[4]]  # one to train on, a healthy and a diseased one to test
CONFIG = {"methods": ["anogan"], "precision": "fp32", "report": {"layer_pictures_per_split": 0}}
FEW_THREADS = ["--set-threads", "train=1", "score=1", "heatmap=1"]
PROFILES = "workflow/profiles"


class ClusterProject(Project):
    """A small project whose jobs go to Slurm."""

    def __init__(self, folder: Path, data: Path | None = None, **config: object) -> None:
        super().__init__(folder)
        self.runs: list[subprocess.Popen] = []
        self.write(VOLUMES, **{**CONFIG, **config})
        if data:
            (folder / "data").symlink_to(data)

    def __enter__(self) -> "ClusterProject":
        return self

    def __exit__(self, *_) -> None:
        for snakemake in self.runs:  # if a test has failed or was broken off
            snakemake.kill()

    def start(self, profile: str, *arguments: str, **environment: str) -> subprocess.Popen:
        """Start Snakemake as a terminal would, in a process group of its own."""
        command = [*SNAKEMAKE, "--workflow-profile", f"{PROFILES}/{profile}"]
        command += ["--configfile", "my.yaml", *FEW_THREADS, "--latency-wait", "10", *arguments]
        with (self.folder / f"said-{len(self.runs)}.log").open("w") as log:
            snakemake = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**os.environ, "ANOGAN_DEVICE": "cpu", **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # a shell has background jobs, such as this one's parents in CI, ignore Ctrl-C
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self.runs.append(snakemake)
        return snakemake

    def run(self, profile: str, *arguments: str, **environment: str) -> None:
        """Run Snakemake to its good end."""
        ended = self.start(profile, *arguments, **environment).wait(timeout=600)
        assert ended == 0, self.said()[-1][-6000:]

    def wait_for(self, what: str, *states: str) -> None:
        """Return when there is a job of that rule in one of the states."""
        while not self.jobs(what, *states):
            assert self.runs[-1].poll() is None, self.said()[-1][-6000:]
            time.sleep(0.3)

    def said(self) -> list[str]:
        """Return what each run has printed."""
        return [(self.folder / f"said-{i}.log").read_text() for i in range(len(self.runs))]

    def cancel(self) -> str:
        """Cancel the jobs of this folder as a user would; return what that prints."""
        return subprocess.run(
            [f"{PROFILES}/cancel"], cwd=self.folder, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    def jobs(self, what: str = "", *states: str) -> list[dict[str, str]]:
        """Return the jobs of this folder as Slurm knows them, by id; of a rule, in some states."""
        command = ["scontrol", "show", "job", "--details", "--oneliner"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in text.splitlines()]
        return [
            {**job, "what": _what(job)}
            for job in sorted(found, key=lambda job: int(job.get("JobId", 0)))
            if job.get("WorkDir") == str(self.folder)
            and _what(job).startswith(what)
            and (not states or job["JobState"] in states)
        ]

    def wait_for_end(self) -> None:
        """Return when no job of this folder is left, as after Ctrl-C."""
        end = time.monotonic() + 20
        while self.queue():
            assert time.monotonic() < end, "jobs are left that nobody waits for"
            time.sleep(0.3)

    def queue(self) -> list[dict[str, str]]:
        """Return the jobs of this folder that have not ended."""
        return self.jobs("", "PENDING", "CONFIGURING", "RUNNING", "COMPLETING")


def _what(job: dict[str, str]) -> str:
    """Return a job's rule, and its wildcards where the executor says them."""
    name = job.get("Comment") or job.get("JobName", "")
    return re.sub("^(rule|oct-anogan)_", "", name).replace("_wildcards_", " ")


def gpus(job: dict[str, str]) -> int:
    """Return how many GPUs Slurm has given to a job."""
    found = re.fullmatch(r"gpu:(\d+)", job["JOB_GRES"])
    return int(found[1]) if found else 0


def press_ctrl_c(snakemake: subprocess.Popen) -> None:
    """Send what the terminal sends, to Snakemake and all that it has started; wait for the end."""
    os.killpg(snakemake.pid, signal.SIGINT)
    assert snakemake.wait(timeout=60) != 0
