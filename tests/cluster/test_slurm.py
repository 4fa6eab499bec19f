"""The pipeline through `snakemake --executor slurm`, on the Slurm that start-slurm has started."""

import re
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from on_cluster import ClusterProject, gpus, press_ctrl_c
from safetensors.torch import load_file

HUNGRY = Path(__file__).parent / "hungry"
WITHOUT_ACCOUNTING = ["--slurm-status-command", "squeue"]
OFTEN = ["--slurm-init-seconds-before-status-checks", "8"]
SLURM = ["slurm", *WITHOUT_ACCOUNTING, *OFTEN]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The folder of the same project, run on this machine by one process and to the metrics."""
    with ClusterProject(tmp_path_factory.mktemp("local")) as project:
        project.run("default", "--cores", "2", "results/report/metrics.tsv")
        yield project.folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with two GPUs, from nothing to the report; one job needs more memory than it has."""
    hungry = {"PYTHONPATH": str(HUNGRY), "HUNGRY_VOLUME": "d", "HUNGRY_MB": "2300"}
    with ClusterProject(tmp_path_factory.mktemp("whole"), gpus=2) as project:
        project.run(*SLURM, **hungry, LOGLEVEL="INFO")
        yield project


class TestWholeRun:
    def test_it_ends_with_the_report(self, whole):
        page = (whole.folder / "results/report/index.html").read_text()
        assert "AUC of AnoGAN" in page
        assert not whole.queue()

    def test_training_and_mapping_have_gpus_and_nothing_else_has(self, whole):
        given = {(job["what"].split()[0], gpus(job)) for job in whole.jobs()}
        expected = {"train": 2, "score": 1, "heatmap": 1}
        rules = {rule for rule, _ in given}
        assert given == {(rule, expected.get(rule, 0)) for rule in rules}
        assert expected.keys() < rules

    def test_a_job_keeps_to_one_node(self, whole):
        assert {job["NumNodes"] for job in whole.jobs()} == {"1"}

    def test_several_processes_in_one_job_train_the_same_weights(self, whole, local):
        assert len(whole.jobs("train gan")) == 1
        log = (whole.folder / "results/logs/train/gan.log").read_text()
        assert "local_ranks=[0, 1]" in log
        model = "results/model/gan/weights.safetensors"
        two, one = load_file(whole.folder / model), load_file(local / model)
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-5, msg=name)

    def test_a_job_killed_for_memory_gets_more(self, whole):
        jobs = whole.jobs("phantom d")
        assert [job["JobState"] for job in jobs] == ["FAILED", "FAILED", "COMPLETED"]
        memory = [int(job["MinMemoryNode"].removesuffix("M")) for job in jobs]
        assert memory == [memory[0], 2 * memory[0], 3 * memory[0]]
        others = [job for job in whole.jobs() if job["what"] != "phantom d"]
        assert {job["JobState"] for job in others} == {"COMPLETED"}

    def test_the_log_of_a_killed_job_says_why(self, whole):
        logs = list((whole.folder / ".snakemake/slurm_logs/rule_phantom/d").glob("*.log"))
        assert len(logs) == 2
        assert all("exceeded memory limit" in log.read_text() for log in logs)


class Interrupted:
    """A run that was broken off twice and taken up again, and what was seen on the way."""

    def __init__(self, project):
        self.project = project
        self.until_ctrl_c()
        self.until_killed()
        self.to_the_end()

    def until_ctrl_c(self):
        snakemake = self.project.start(*SLURM)
        self.project.wait_for("train gan", "RUNNING")
        press_ctrl_c(snakemake)
        self.project.wait_for_end()

    def until_killed(self):
        snakemake = self.project.start(*SLURM)
        self.project.wait_for("score", "RUNNING", "COMPLETED")
        snakemake.send_signal(signal.SIGKILL)
        snakemake.wait()
        self.left_alone = self.project.queue()
        refused = self.project.start(*SLURM)
        assert refused.wait(timeout=60) != 0
        self.refusal = self.project.said()[-1]
        self.cancelled = self.project.cancel()
        self.after_cancel = self.project.queue()

    def to_the_end(self):
        self.project.run("default", "--unlock")
        self.project.run(*SLURM)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, local):
    folder = tmp_path_factory.mktemp("interrupted")
    with ClusterProject(folder, data=local / "data", gpus=1) as project:
        yield Interrupted(project)


class TestInterruptedRun:
    def test_jobs_outlive_a_killed_snakemake_and_can_be_found(self, interrupted):
        assert interrupted.left_alone
        assert "--unlock" in interrupted.refusal
        assert re.search(r"cancelled \d+ jobs", interrupted.cancelled)
        assert not interrupted.after_cancel

    def test_it_ends_with_the_report_and_without_an_orphan(self, interrupted):
        assert (interrupted.project.folder / "results/report/index.html").exists()
        assert not interrupted.project.queue()

    def test_nothing_finished_is_done_again(self, interrupted):
        finished, done_again = set(), []
        what = {job["JobId"]: job["what"] for job in interrupted.project.jobs()}
        for log in interrupted.project.said():
            submitted = re.findall(r"Job (\d+) has been submitted with SLURM jobid (\d+)", log)
            ended = set(re.findall(r"Finished jobid: (\d+)", log))
            done_again += [what[slurm] for _, slurm in submitted if what[slurm] in finished]
            finished |= {what[slurm] for jobid, slurm in submitted if jobid in ended}
        assert {"load a", "train gan", "score anogan_test-0", "report"} <= finished
        assert not done_again

    def test_the_result_is_that_of_a_run_left_in_peace(self, interrupted, local):
        results = interrupted.project.folder / "results"
        scores, metrics = "scores/anogan/test-0.parquet", "report/metrics.tsv"
        pd.testing.assert_frame_equal(
            pd.read_parquet(results / scores), pd.read_parquet(local / "results" / scores)
        )
        assert (results / metrics).read_text() == (local / "results" / metrics).read_text()

    def test_one_gpu_is_asked_for_where_the_config_says_one(self, interrupted):
        assert {gpus(job) for job in interrupted.project.jobs("train", "COMPLETED")} == {1}
