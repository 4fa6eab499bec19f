"""The workflow as a user runs it: dry-runs, a whole small run, and what a change reruns."""

import json
import os
import re
import shutil
import signal
import subprocess
import time

import pandas as pd
import pytest
import yaml
from conftest import plain_bytes
from made_project import ROOT, ROWS, SNAKEMAKE, TINY, Project, phantom

STAGES = ["load", "prepare", "qc_pictures"]
MAPS = ["heatmap", "heat_scale", "overlay"]
EVIDENCE = ["evaluate", "report"]
OTHERS = {"differences", "metrics", "page", "table", "workflow"}  # captions of no figure


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.mark.parametrize(
    ("rows", "chunks", "expected"),
    [
        pytest.param(
            ROWS,
            1,
            {"patches": 4, "score": 9, "load": 6, "heatmap": 3, "overlay": 3},
            id="all splits",
        ),
        pytest.param(ROWS[:5], 1, {"patches": 3, "score": 6, "load": 5}, id="nothing to score"),
        pytest.param(
            [*ROWS[:2], *ROWS[3:5]], 1, {"patches": 2, "score": 3, "heatmap": 1}, id="no validation"
        ),
        pytest.param(
            [*ROWS[:2], ROWS[5]],
            1,
            {"patches": 2, "score": 3, "overlay": 1},
            id="nothing to measure",
        ),
        pytest.param([ROWS[0], ROWS[4]], 5, {"patches": 2, "score": 3}, id="many chunks"),
        pytest.param(
            [*ROWS, phantom("e2", "test", "diseased", patient="e")], 1, {"load": 7}, id="two eyes"
        ),
    ],
)
def test_layouts_plan_the_right_jobs(project, rows, chunks, expected):
    project.write(rows, map={**TINY["map"], "chunks": chunks})
    planned = project.planned()
    assert {rule: planned[rule] for rule in expected} == expected
    assert planned["phantom"] == planned["prepare"] == len(rows)
    assert planned["train"] == 2  # gan and pca
    assert planned["heat_scale"] == planned["latent"] == 1
    assert planned["evaluate"] == planned["report"] == 1


def test_without_heat_maps_and_without_a_gan(project):
    project.write(ROWS, methods=["pca"], heatmap={"methods": []})
    assert not {*MAPS, "latent"} & set(project.planned())


def test_the_default_plans_its_phantoms(project):
    result = subprocess.run(
        [*SNAKEMAKE, "--cores", "1", "-n", "--quiet", "rules"],
        cwd=project.folder,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"^phantom +24$", result.stdout, re.MULTILINE)


def test_no_phantom_rule_for_real_files(project):
    rows = [
        ["r1", "p1", "r1.nii.gz", "train", "healthy", ""],
        ["r2", "p2", "r2.nii.gz", "test", "diseased", ""],
    ]
    for row in rows:
        (project.folder / row[2]).touch()
    project.write(rows, data_dir=".")
    assert "phantom" not in project.planned()


@pytest.mark.parametrize(
    ("rows", "config", "message"),
    [
        (ROWS, {"mapp": {}}, "config: unknown key 'mapp'"),
        ([*ROWS, phantom("z", "test", patient="a")], {}, "patient 'a' is in train and in test"),
        ([*ROWS[:1], ["x", "x", "x.nii.gz", "test", "healthy", ""]], {}, "x.nii.gz does not exist"),
        (ROWS, {"results_dir": "my.yaml/results"}, "my.yaml is a file; move it away"),
    ],
)
def test_mistakes_stop_before_any_work(project, rows, config, message):
    project.write(rows, **config)
    result = project.snakemake()
    assert result.returncode != 0
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not (project.folder / "results").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project whose whole small run is done."""
    project = Project(tmp_path_factory.mktemp("run"))
    project.write(ROWS)
    result = project.snakemake()
    assert result.returncode == 0, result.stderr
    return project


@pytest.mark.slow
class TestWholeRun:
    def test_everything_is_there(self, finished):
        results = finished.folder / "results"
        page = (results / "report/index.html").read_text()
        figures = {path.stem for path in (results / "report/figures").glob("*.svg")}
        assert set(re.findall(r'<figure id="figure-(\w+)"', page)) == figures
        assert figures == {path.stem for path in (ROOT / "workflow/report").glob("*.rst")} - OTHERS
        assert page.count(" data-viewer-volume>") == 3  # d and e of test, s of score
        assert "AUC of AnoGAN" in page
        metrics = pd.read_csv(results / "report/metrics.tsv", sep="\t")
        assert list(metrics.columns) == [
            "method",
            "level",
            "subset",
            "metric",
            "value",
            "ci_low",
            "ci_high",
        ]
        assert {"anogan", "anogan_R", "p_d", "pca"} <= set(metrics["method"])
        for method, columns in (("anogan", ["A", "R", "D"]), ("p_d", ["P_D"]), ("pca", ["L2"])):
            scores = pd.read_parquet(results / f"scores/{method}/test-0.parquet")
            assert scores.groupby("volume").size().eq(20).all()
            assert scores[columns].notna().all().all()
        volumes = pd.read_csv(results / "report/volumes.tsv", sep="\t").set_index("volume")
        assert volumes["label"].to_dict() == {"c": 0, "d": 0, "e": 1, "s": -1}
        for stage in (*STAGES, "patches", "train", "score", *MAPS):
            assert list((results / "benchmarks" / stage).iterdir())
            assert list((results / "logs" / stage).iterdir())
        config = yaml.safe_load((results / "report/config.yaml").read_text())
        assert config["map"]["steps"] == 3
        assert config["seed"] == 1
        model = json.loads((results / "model/gan/model.json").read_text())
        assert model["architecture"]["channels"] == [8, 8, 8]

    def test_a_second_run_has_nothing_to_do(self, finished):
        result = finished.snakemake()
        assert "Nothing to be done" in result.stderr + result.stdout

    def test_a_single_target_can_be_asked_for(self, finished):
        assert finished.planned("results/volumes/a/flat.nii.gz", "--forcerun", "prepare") == {
            "prepare": 1
        }

    # The table of all changes is test_reruns.py; here files are really edited.
    @pytest.mark.parametrize(
        ("file", "first", "expected"),
        [
            ("anogan/mapping.py", "score", {"score", "latent", *MAPS, "markers", *EVIDENCE}),
            ("anogan/page/templates/report.html.j2", "report", {"report"}),
        ],
    )
    def test_a_change_reruns_its_stage_and_what_follows(self, finished, file, first, expected):
        path = finished.folder / file
        original = path.read_text()
        try:
            path.write_text(original + ("\nADDED = 1\n" if file.endswith(".py") else "\n"))
            planned = finished.planned()
        finally:
            path.write_text(original)
        assert set(planned) - {"all"} == expected
        assert planned[first] >= 1

    @pytest.mark.parametrize(
        ("change", "train", "score"),
        [
            ({"methods": [*TINY["methods"], "gan_r"]}, 0, 3),
            ({"methods": [*TINY["methods"], "ae"]}, 1, 3),
            ({"pca": {"components": 4}}, 1, 3),
            ({"map": {**TINY["map"], "lambda": 0.2}}, 0, 3),
        ],
        ids=["score with a model there is", "another model", "pca", "lambda"],
    )
    def test_other_methods_are_left_alone(self, finished, change, train, score):
        path = finished.folder / "my.yaml"
        original = path.read_text()
        try:
            path.write_text(yaml.safe_dump({**yaml.safe_load(original), **change}))
            planned = finished.planned()
        finally:
            path.write_text(original)
        assert (planned.get("train", 0), planned["score"]) == (train, score)

    def test_new_eyes_are_scored_with_models_that_exist(self, finished, tmp_path):
        """No training, no truth: a sample sheet of eyes to score is enough."""
        project = Project(tmp_path)
        models = {"gan": f"{finished.folder}/results/model/gan"}
        project.write(ROWS[5:], methods=["anogan"], existing_models=models)
        assert "train" not in project.planned()
        result = project.snakemake()
        assert result.returncode == 0, result.stderr
        results = project.folder / "results"
        there = pd.read_parquet(finished.folder / "results/scores/anogan/score-0.parquet")
        here = pd.read_parquet(results / "scores/anogan/score-0.parquet")
        pd.testing.assert_frame_equal(here, there)
        volumes = pd.read_csv(results / "report/volumes.tsv", sep="\t")
        assert volumes["volume"].tolist() == ["s"]
        assert "Volumes without a label" in (results / "report/index.html").read_text()

    def test_a_comment_reruns_nothing(self, finished):
        path = finished.folder / "preprocessing/load.py"
        original = path.read_text()
        try:
            path.write_text(original + "\n# a remark\n")
            assert not finished.planned()
        finally:
            path.write_text(original)

    def test_a_file_beside_the_source_counts(self, finished):
        """A sidecar that changes, as a TIFF of an export would, reruns that volume."""
        sidecar = finished.folder / "data/phantom/s.json"
        original = sidecar.read_text()
        try:
            sidecar.write_text(original.replace("phantom", "another device"))
            planned = finished.planned()
        finally:
            sidecar.write_text(original)
        assert planned["load"] == 1
        assert "train" not in planned

    def test_an_unknown_volume_is_named(self, finished):
        result = finished.snakemake("--dry-run", "results/volumes/nope/flat.nii.gz")
        assert result.returncode != 0

    def test_one_more_volume_touches_only_its_own(self, finished):
        sheet = finished.folder / "volumes.tsv"
        original = sheet.read_text()
        try:
            sheet.write_text(original + "\t".join(phantom("f", "test")) + "\n")
            planned = finished.planned()
        finally:
            sheet.write_text(original)
        assert planned["load"] == planned["prepare"] == planned["patches"] == 1
        assert planned["score"] == len(TINY["methods"])
        assert "train" not in planned

    def test_snakemake_makes_its_own_report_offline(self, finished):
        result = finished.snakemake("--report", "report.html")
        assert result.returncode == 0, result.stderr
        assert (finished.folder / "report.html").stat().st_size > 10_000

    def test_a_damaged_input_names_file_and_remedy(self, finished):
        """The line that the failed stage wrote is shown by Snakemake itself."""
        volume = finished.folder / "results/volumes/d/volume.nii.gz"
        original = volume.read_bytes()
        try:
            volume.write_bytes(original[:2000])
            result = finished.snakemake("--forcerun", "prepare", "--until", "prepare")
        finally:
            volume.write_bytes(original)
        assert result.returncode != 0
        assert "volume.nii.gz: not a readable NIfTI file" in result.stderr + result.stdout
        finished.snakemake("--cleanup-metadata", "results/volumes/d/layers.npz")

    @pytest.mark.long
    def test_a_killed_run_is_taken_up_and_a_second_one_is_turned_away(self, finished, tmp_path):
        """Both test eyes are to be done again; the run is killed when one of them is prepared."""
        project = Project(tmp_path)
        shutil.copytree(finished.folder, project.folder, dirs_exist_ok=True)
        results, score = project.folder / "results", "results/scores/pca/test-0.parquet"
        done_again = [results / "volumes/d", results / "volumes/e", results / "patches/test-0.h5"]
        for path in (*done_again, project.folder / score):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

        first = subprocess.Popen(
            [*SNAKEMAKE, score, "--cores", "1", "--configfile", "my.yaml"],
            cwd=project.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while not (prepared := list(results.glob("volumes/[de]/flat.json"))):
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(first.pid, signal.SIGSTOP)  # so that it is running for long enough
        second = project.snakemake("--rerun-incomplete", score)
        assert second.returncode != 0
        assert "Directory cannot be locked" in second.stderr
        assert "--unlock" in second.stderr
        os.killpg(first.pid, signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL

        assert project.snakemake("--unlock").returncode == 0
        loaded = prepared[0].with_name("volume.nii.gz")
        written = loaded.stat().st_mtime_ns
        planned = project.planned(score)
        assert planned["score"] == planned["patches"] == 1
        assert planned.get("load", 0) <= 1
        assert not {"phantom", "train"} & set(planned)
        last = project.snakemake("--rerun-incomplete", score)
        assert last.returncode == 0, last.stderr
        assert loaded.stat().st_mtime_ns == written
        assert (project.folder / score).read_bytes() == (finished.folder / score).read_bytes()
        assert not list(results.rglob(".tmp-*"))


@pytest.mark.slow
def test_real_spectralis_volumes(project, real_data):
    """Real eyes need nothing but a sample sheet and a config."""
    rows = [
        ["healthy1", "s1", "healthy_subject1", "train", "healthy", ""],
        ["healthy2", "s2", "healthy_subject2", "test", "healthy", ""],
        ["amd1", "s3", "AMD_patient1", "test", "diseased", ""],
    ]
    cheap = {"methods": ["pca"], "heatmap": {"methods": []}}
    project.write(rows, data_dir=str(real_data / "heyex_volumes"), **cheap)
    result = project.snakemake()
    assert result.returncode == 0, result.stderr
    results = project.folder / "results"
    sidecar = json.loads((results / "volumes/amd1/volume.json").read_text())
    assert (sidecar["eye"], sidecar["mirrored"]) == ("L", True)
    assert sidecar["spacing_mm"][2] == pytest.approx(0.012135, abs=1e-6)
    flat = json.loads((results / "volumes/amd1/flat.json").read_text())
    assert flat["spacing_mm"][2] == pytest.approx(0.022, abs=2e-4)
    for file in results.rglob("*"):
        if file.is_file():
            found = re.search(rb"HRAExport|Birthdate|71317|530706", plain_bytes(file))
            assert not found, file
