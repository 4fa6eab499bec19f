"""Data and results in S3, against a server on this machine."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from made_project import Project
from PIL import Image

from planning.config import resolve_config
from planning.errors import PlanningError
from planning.sample_sheet import read_sample_sheet
from planning.sources import source_files
from planning.storage import connect, listed, local_folder, path_of
from preprocessing.phantom import make_phantom
from preprocessing.volume import write_nifti

plugin = pytest.importorskip(
    "snakemake_storage_plugin_s3", reason="the extra s3, the storage plugin, is not installed"
)
moto = pytest.importorskip("moto.server", reason="moto, a server of S3 for tests, is not installed")
pytest.importorskip("flask_cors", reason="flask-cors, which moto's server needs, is not installed")

SHAPE = (3, 320, 192)
ROWS = [
    ["a", "a", "phantom/a.nii.gz", "train", "healthy", "", "", ""],  # made by the workflow
    ["e", "e", "clinic/e", "test", "diseased", "masks/e.nii.gz", "R", "240 3.87 11.7"],  # a folder
]
CHEAP = {"methods": ["pca"], "heatmap": {"methods": []}, "report": {"layer_pictures_per_split": 0}}


@pytest.fixture(scope="module")
def s3():
    """The client of a server, which Snakemake finds by the environment; it has a bucket `eyes`."""
    import boto3

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"endpoint_url": f"http://{host}:{port}", "access_key": "k", "secret_key": "s"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(f"SNAKEMAKE_STORAGE_S3_{name.upper()}", value)
        client = boto3.client(
            "s3",
            endpoint_url=settings["endpoint_url"],
            region_name="us-east-1",
            aws_access_key_id="k",
            aws_secret_access_key="s",
        )
        client.create_bucket(Bucket="eyes")
        yield client
    server.stop()


def upload(s3, folder: Path, prefix: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            s3.upload_file(str(file), "eyes", f"{prefix}/{file.relative_to(folder)}")


def names(s3, prefix: str) -> set[str]:
    found = s3.list_objects_v2(Bucket="eyes", Prefix=prefix).get("Contents", [])
    return {item["Key"].removeprefix(prefix) for item in found}


@pytest.fixture
def planner(s3, tmp_path):
    """Returns a function that connects the planner as Snakemake does, with changed settings."""

    def connected(**changes):
        class Registry:
            def register_storage(self, name):
                settings = {"endpoint_url": s3.meta.endpoint_url, "retries": 1}
                settings |= {"access_key": "k", "secret_key": "s", **changes}
                return plugin.StorageProvider(
                    local_prefix=tmp_path / name,
                    logger=logging.getLogger(__name__),
                    settings=plugin.StorageProviderSettings(**settings),
                )

        connect(Registry(), is_planning=lambda: True)

    connected()
    return connected


class TestPlanning:
    @pytest.mark.parametrize(
        "source", ["scans", "a.nii.gz", "heyex/e.xml", "m.mhd", "missing.tif", "heyex", "none"]
    )
    def test_the_files_of_a_volume_are_those_of_the_same_folder_on_disk(
        self, s3, planner, tmp_path, source
    ):
        folder = tmp_path / "data"
        texts = {"m.mhd": "ElementDataFile = pixels.raw\n"}
        for name in ("scans/2.png", "scans/1.png", "scans/.hidden", "scans/deep/3.png"):
            texts[name] = "x"
        for name in ("a.nii.gz", "a.json", "ab.json", "pixels.raw", "heyex/e.xml", "heyex/1.tif"):
            texts[name] = "x"
        for name, text in texts.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        upload(s3, folder, "tree")
        listed("s3://eyes/tree")
        there = source_files(f"s3://eyes/tree/{source}")
        here = source_files(f"{folder}/{source}")
        assert there == [file.replace(str(folder), "s3://eyes/tree") for file in here]

    def test_a_missing_object_is_named_with_its_row_and_column(self, planner, tmp_path):
        sheet = tmp_path / "volumes.tsv"
        sheet.write_text("volume\tpatient\tpath\tsplit\tlabel\nv\tv\tx.nii.gz\tscore\tunknown\n")
        message = r"row 2, column 'path': s3://eyes/no/x.nii.gz does not exist; relative"
        with pytest.raises(PlanningError, match=message):
            read_sample_sheet(str(sheet), "s3://eyes/no", needs_training=False)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({}, "s3://eyez/data: there is no such bucket; make it"),
            ({"access_key": None, "secret_key": None}, "nable to locate credentials; docs/storage"),
            ({"endpoint_url": "http://127.0.0.1:1"}, r"Could not connect .*; docs/storage"),
        ],
        ids=["bucket", "keys", "server"],
    )
    def test_why_a_folder_cannot_be_listed(self, planner, monkeypatch, settings, message):
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        planner(**settings)
        with pytest.raises(PlanningError, match=message):
            listed("s3://eyes/data" if settings else "s3://eyez/data")

    def test_without_the_plugin_its_installation_is_named(self, planner, monkeypatch):
        monkeypatch.setitem(sys.modules, "snakemake_storage_plugin_s3", None)
        with pytest.raises(PlanningError, match="pip install snakemake-storage-plugin-s3"):
            listed("s3://eyes/data")

    def test_a_model_may_be_there(self, s3, planner):
        model = {"model": "pca", "architecture": {"patch_size": 64}}
        s3.put_object(Bucket="eyes", Key="model/model.json", Body=json.dumps(model))
        config = {"methods": ["pca"], "existing_models": {"pca": "s3://eyes/model"}}
        assert resolve_config(config)["existing_models"] == config["existing_models"]
        with pytest.raises(PlanningError, match="s3://eyes/models holds no model"):
            resolve_config({**config, "existing_models": {"pca": "s3://eyes/models"}})

    def test_what_is_local_stays_a_path(self):
        assert path_of("data/a") == Path("data/a")
        assert local_folder("out/run 1") == "out/run 1"
        assert local_folder("s3://eyes/run") == "results/eyes/run"
        assert path_of("s3://eyes/data") / "/disk/a" == Path("/disk/a")


def write(project: Project, **config: object) -> None:
    project.write([], **{**CHEAP, **config})
    columns = ["volume", "patient", "path", "split", "label", "annotation", "eye", "spacing_um"]
    text = "".join("\t".join(row) + "\n" for row in [columns, *ROWS])
    (project.folder / "volumes.tsv").write_text(text)


@pytest.fixture(scope="module")
def finished(s3, tmp_path_factory):
    """A project whose small run, with all in S3, is done."""
    project = Project(tmp_path_factory.mktemp("storage"))
    data = project.folder / "data"
    for folder in ("clinic/e", "masks"):
        (data / folder).mkdir(parents=True)
    diseased, _ = make_phantom("e", 1, True, SHAPE)
    for b, bscan in enumerate(np.rint(diseased.data * 255).astype(np.uint8)):
        Image.fromarray(bscan).save(data / f"clinic/e/scan{b}.png")
    write_nifti(diseased.annotation.astype(np.uint8), data / ROWS[1][5], diseased.affine)
    upload(s3, data, "data")
    write(project, data_dir="s3://eyes/data", results_dir="s3://eyes/run")
    result = project.snakemake()
    assert result.returncode == 0, result.stderr
    return project


@pytest.mark.long
class TestWholeRun:
    def test_results_are_there_and_logs_are_here(self, s3, finished):
        there = names(s3, "run/")
        assert {"report/index.html", "scores/pca/test-0.parquet", "volumes/e/flat.json"} <= there
        assert not {name for name in there if name.startswith(("logs/", "benchmarks/"))}
        assert names(s3, "data/phantom/") >= {"a.nii.gz", "a.json"}
        here = [file for file in (finished.folder / "results").rglob("*") if file.is_file()]
        kinds = {file.relative_to(finished.folder).parts[:4] for file in here}
        assert kinds == {("results", "eyes", "run", kind) for kind in ("logs", "benchmarks")}
        copies = (finished.folder / ".snakemake/storage").rglob("*")
        assert not [file for file in copies if file.is_file()]

    def test_a_second_run_has_nothing_to_do(self, finished):
        result = finished.snakemake()
        assert "Nothing to be done" in result.stderr + result.stdout

    def test_a_changed_key_reruns_what_depends_on_it(self, finished):
        write(
            finished,
            data_dir="s3://eyes/data",
            results_dir="s3://eyes/run",
            pca={"components": 4},
        )
        expected = {"train": 1, "score": 1, "evaluate": 1, "report": 1, "all": 1}
        assert finished.planned() == expected

    def test_data_alone_may_be_there_and_the_results_are_the_same(self, s3, finished):
        write(finished, data_dir="s3://eyes/data")
        target = "results/volumes/e/flat.nii.gz"
        result = finished.snakemake("--", target)
        assert result.returncode == 0, result.stderr
        flat = s3.get_object(Bucket="eyes", Key="run/volumes/e/flat.nii.gz")["Body"].read()
        assert (finished.folder / target).read_bytes() == flat

    def test_results_alone_may_be_there(self, finished):
        write(finished, results_dir="s3://eyes/other")
        planned = finished.planned()
        assert planned["load"] == planned["prepare"] == 2
        assert planned["phantom"] == planned["report"] == 1
