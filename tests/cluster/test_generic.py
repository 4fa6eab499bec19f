"""The pipeline through the profile cluster-generic, whose scripts speak to the same Slurm."""

import pytest
from on_cluster import ClusterProject, gpus, press_ctrl_c

OFTEN = ["--seconds-between-status-checks", "3"]
MODEL = "results/model/gan/weights.safetensors"


class Interrupted:
    """A run to a model: broken off, failed for a damaged file, then taken up again."""

    def __init__(self, project):
        self.project = project
        snakemake = project.start("cluster-generic", *OFTEN, "--", MODEL)
        project.wait_for("load", "RUNNING")
        press_ctrl_c(snakemake)
        project.wait_for_end()
        phantom = project.folder / "data/phantom/a.nii.gz"
        whole = phantom.read_bytes()
        phantom.write_bytes(whole[:1000])
        damaged = project.start("cluster-generic", *OFTEN, "--retries", "1", "--", MODEL)
        self.status_when_damaged = damaged.wait(timeout=120)
        phantom.write_bytes(whole)
        project.run("cluster-generic", *OFTEN, "--", MODEL)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generic")
    with ClusterProject(folder, gpus=1) as project:
        yield Interrupted(project)


def test_ctrl_c_cancels_the_jobs(interrupted):
    first, *_ = interrupted.project.jobs("load")
    assert first["JobState"] == "CANCELLED"


def test_a_job_that_fails_is_noticed_and_tried_again_with_more_memory(interrupted):
    assert interrupted.status_when_damaged != 0
    assert "data/phantom/a.nii.gz: not a readable NIfTI file" in interrupted.project.said()[1]
    failed = interrupted.project.jobs("load", "FAILED")
    memory = [int(job["MinMemoryNode"].removesuffix("M")) for job in failed]
    assert memory == [memory[0], 2 * memory[0]]


def test_it_goes_on_to_the_model_and_leaves_no_job(interrupted):
    assert (interrupted.project.folder / MODEL).exists()
    assert not interrupted.project.queue()
    done = [job["what"] for job in interrupted.project.jobs("", "COMPLETED")]
    assert sorted(done) == ["load", "patches", "phantom", "prepare", "train"]


def test_training_has_its_gpu_and_nothing_else_has(interrupted):
    given = {job["what"]: gpus(job) for job in interrupted.project.jobs()}
    assert given == {name: int(name == "train") for name in given}
