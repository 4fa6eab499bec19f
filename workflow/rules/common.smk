# What the rules share: the checked config, the sample sheet and small helpers. No work happens here.

import os
import sys
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError

sys.path.insert(0, workflow.basedir)

from planning.code_version import code_version
from planning.config import resolve_config
from planning.errors import PlanningError
from planning.sample_sheet import PHANTOM_FOLDER, chunk_of, read_sample_sheet

try:
    config = resolve_config(config)
    SHEET = read_sample_sheet(config["volumes"], config["data_dir"])
except PlanningError as error:
    raise WorkflowError(str(error)) from None

RESULTS = config["results_dir"].rstrip("/")
DATA = config["data_dir"].rstrip("/")
MAPPED_SPLITS = [s for s in ("validation", "test", "score") if SHEET.volumes(s)]

# Jobs find the Python that runs Snakemake, whether or not its environment is activated.
if not workflow.deployment_settings.deployment_method:
    shell.prefix(f"export PATH={os.path.dirname(sys.executable)!r}:$PATH; ")


wildcard_constraints:
    volume=r"[A-Za-z0-9][A-Za-z0-9_.-]*",
    split="train|validation|test|score",
    chunk=r"\d+",


def volume_files(stage):
    """The four files of a volume as written by `stage`."""
    return multiext(
        f"{RESULTS}/volumes/{{volume}}/{stage}",
        ".nii.gz",
        ".valid.nii.gz",
        ".annotation.nii.gz",
        ".json",
    )


def source_files(wildcards):
    """What the stage load reads of a volume: its file or folder, a sidecar, an annotation."""
    row = SHEET[wildcards.volume]
    source = os.path.join(DATA, row.path)
    files = {"source": source}
    if row.annotation:
        files["annotation"] = os.path.join(DATA, row.annotation)
    sidecar = source.removesuffix(".gz").removesuffix(".nii") + ".json"
    if row.is_phantom or (sidecar != f"{source}.json" and os.path.exists(sidecar)):
        files["sidecar"] = sidecar
    return files


def from_sheet(column):
    """A params function that gives a volume's entry in a column of the sample sheet."""
    return lambda wildcards: getattr(SHEET[wildcards.volume], column)


def flat_volumes(volumes):
    return expand(f"{RESULTS}/volumes/{{volume}}/flat.nii.gz", volume=volumes)


def volumes_of_part(wildcards):
    """The volumes of a split, or of the chunk of it that the wildcards name."""
    if wildcards.split == "train":
        return SHEET.volumes("train")
    return SHEET.volumes(wildcards.split, int(wildcards.chunk), config["map"]["chunks"])


def mapped_parts(suffix):
    """One file per chunk of the splits that are mapped, leaving out chunks without a volume."""
    return [
        f"{RESULTS}/scores/{split}-{chunk}{suffix}"
        for split in MAPPED_SPLITS
        for chunk in range(config["map"]["chunks"])
        if SHEET.volumes(split, chunk, config["map"]["chunks"])
    ]


def shown_volumes():
    """The volumes whose layers stand in the report: a few of every split."""
    return [
        volume
        for split in ("train", *MAPPED_SPLITS)
        for volume in SHEET.volumes(split)[: config["report"]["layer_pictures_per_split"]]
    ]
