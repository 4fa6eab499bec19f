# What the rules share: the checked config, the sample sheet and small helpers. No work happens here.

import os
import re
import shlex
import sys

import yaml
from snakemake.exceptions import WorkflowError

sys.path[:0] = [workflow.basedir, os.path.dirname(workflow.basedir)]  # `planning`, `preprocessing`

from planning.code_version import code_version
from planning.config import resolve_config
from planning.errors import PlanningError
from planning.existing import check_patches, existing_patches
from planning.models import (
    gpus_to_train,
    headline,
    model_of,
    models_of,
    needed_model,
    score_options,
    searches,
    train_options,
)
from planning.sample_sheet import PHANTOM_FOLDER, chunk_of, read_sample_sheet
from planning.skipped import refuse_skipped
from planning.sources import source_files
from planning.storage import connect, is_remote, listed, local_folder
from planning.writable import check_writable

connect(storage, is_planning=lambda: workflow.iocache.active)

try:
    config = resolve_config(config)
    EXISTING_MODELS = config["existing_models"]
    MODELS = models_of(config["methods"], EXISTING_MODELS)
    NEEDS_TRAINING = set(MODELS) - set(EXISTING_MODELS)
    EXISTING_PATCHES = existing_patches(config["existing_patches"])
    SHEET = read_sample_sheet(
        config["volumes"], config["data_dir"], bool(NEEDS_TRAINING), EXISTING_PATCHES
    )
    check_patches(
        EXISTING_PATCHES,
        config["patches"]["size"],
        SHEET.rows.values(),
        config["results_dir"],
    )
    check_writable(config["results_dir"])
    listed(config["results_dir"])
    if config["on_volume_error"] == "fail":
        refuse_skipped(config["results_dir"], SHEET.rows)
except PlanningError as error:
    raise WorkflowError(str(error)) from None

# Nothing of a run is for others than the user and the group: jobs inherit this from Snakemake, whose
# own folder (logs with every path) is made before.
os.umask(os.umask(0o007) | 0o007)
if os.path.isdir(".snakemake") and os.stat(".snakemake").st_uid == os.getuid():
    os.chmod(".snakemake", os.stat(".snakemake").st_mode & 0o7770)

RESULTS = config["results_dir"].rstrip("/")
DATA = config["data_dir"].rstrip("/")
LOCAL = local_folder(RESULTS)  # of logs, benchmarks and what a training shows while it runs
# What a volume that cannot be used does to its jobs. They get it as a resource: with a param, another
# choice would make all volumes anew.
ON_ERROR = config["on_volume_error"]
HEADLINE = headline(config["methods"])
SPLITS = {row.split for row in SHEET.rows.values()} | set(EXISTING_PATCHES)
SCORED_SPLITS = [s for s in ("validation", "test", "score") if s in SPLITS]
SHOWN_SPLITS = [s for s in ("test", "score") if s in SCORED_SPLITS]
MAPPED_METHODS = config["heatmap"]["methods"] if any(map(SHEET.volumes, SHOWN_SPLITS)) else []
USED_SPLITS = ["train", *SCORED_SPLITS] if NEEDS_TRAINING else SCORED_SPLITS
USED_VOLUMES = [volume for split in USED_SPLITS for volume in SHEET.volumes(split)]

# Jobs find the Python that runs Snakemake, whether or not its environment is activated.
if not workflow.deployment_settings.deployment_method:
    shell.prefix(f"export PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH; ")


wildcard_constraints:
    volume=r"[A-Za-z0-9][A-Za-z0-9_.-]*",
    part=r"train|(validation|test|score)-\d+",
    model="[a-z0-9_]+",
    method="[a-z0-9_]+",


def at(path):
    """A file or files as Snakemake is to see them: as they are, or as objects of the storage."""
    if isinstance(path, list):
        return [at(one) for one in path]
    return storage.s3(path) if is_remote(path) else path


def result(path, **wildcards):
    """A file of the results, named from results_dir; with values of its wildcards, a list of files."""
    path = f"{RESULTS}/{path}"
    return at(expand(path, **wildcards) if wildcards else path)


def result_folder(path):
    """A folder of the results that a job writes; the storage knows no flag `directory`."""
    return result(path) if is_remote(RESULTS) else directory(result(path))


def data(path):
    """A file or folder of the sample sheet, named from data_dir."""
    return os.path.join(DATA, path)


def local_copy(path):
    """Where a job finds a file or folder: in its place, or where the storage puts its copy."""
    return str(at(path))


def volume_files(stage):
    """The five files of a volume as written by `stage`, by name."""
    stem = f"volumes/{{volume}}/{stage}"
    return {
        "image": result(f"{stem}.nii.gz"),
        "valid": result(f"{stem}.valid.nii.gz"),
        "annotation": result(f"{stem}.annotation.nii.gz"),
        "vendor": result(f"{stem}.vendor.npz"),
        "sidecar": result(f"{stem}.json"),
    }


def row_of(wildcards):
    try:
        return SHEET[wildcards.volume]
    except PlanningError as error:
        raise WorkflowError(str(error)) from None


def from_sheet(column):
    """A params function that gives a volume's entry in a column of the sample sheet."""
    return lambda wildcards: getattr(row_of(wildcards), column)


def load_inputs(wildcards):
    """The files that the stage load reads: those of the volume, and those of its mask."""
    row = row_of(wildcards)
    source = data(row.path)
    files = {"images": source_files(source)}
    if row.is_phantom:
        files["images"] = [source, re.sub(r"\.nii\.gz$", ".json", source)]
    if row.annotation:
        mask = data(row.annotation)
        files["annotation"] = mask if row.is_phantom else source_files(mask)
    return {name: at(paths) for name, paths in files.items()}


def annotation_option(wildcards):
    annotation = row_of(wildcards).annotation
    return f"--annotation {shlex.quote(local_copy(data(annotation)))}" if annotation else ""


def spacing_option(wildcards):
    spacing = row_of(wildcards).spacing_um
    return f"--spacing-um {spacing}" if spacing else ""


def already_option(wildcards):
    already = row_of(wildcards).already
    return f"--already {already}" if already else ""


def eye_option(wildcards):
    eye = row_of(wildcards).eye
    return f"--eye {eye}" if eye else ""


def memory(mb):
    """A resource function: `mb` megabytes, and as much again with every retry."""
    return lambda wildcards, attempt: mb * attempt


def model_folder(model):
    """The folder of a model: the one named in the config, else the one trained here."""
    return EXISTING_MODELS.get(model, f"{RESULTS}/model/{model}")


def training_pictures(wildcards):
    """What the report shows of a training, unless the model was trained elsewhere."""
    model = model_of(HEADLINE)
    names = ("history.tsv", "samples.png", "real.png") if model in NEEDS_TRAINING else ()
    return at([f"{model_folder(model)}/{name}" for name in names])


def needed_files(wildcards):
    """The files of the model that another learns from; none where it learns from patches alone."""
    needed = needed_model(wildcards.model)
    names = ("model.json", "weights.safetensors") if needed else ()
    return at([f"{model_folder(needed)}/{name}" for name in names])


def needed_option(wildcards, input):
    folders = [os.path.dirname(path) for path in input.needed[:1]]
    return option(f"--{needed_model(wildcards.model)}", folders)


def model_file(name):
    """An input function: a file of the model that a method scores with."""
    return lambda wildcards: at(f"{model_folder(model_of(wildcards.method))}/{name}")


# A part is what one job of the rules patches and score works on: "train", or a chunk of another split
# such as "test-1".


def split_of(part):
    return part.split("-")[0]


def volumes_of_part(part):
    if part == "train":
        return SHEET.volumes("train")
    split, chunk = part.split("-")
    return SHEET.volumes(split, int(chunk), config["map"]["chunks"])


def patch_file(part):
    """The patches of a part: those named in the config, else the ones that are cut here."""
    files = EXISTING_PATCHES.get(split_of(part))
    if files is None:
        return result(f"patches/{part}.h5")
    return files[0 if part == "train" else int(part.split("-")[1])]


def part_files(name):
    """An input function: the file `name` of every volume of a part."""
    return lambda wildcards: result(
        f"volumes/{{volume}}/{name}",
        volume=volumes_of_part(wildcards.part),
    )


def quality_tables(wildcards):
    """The QC tables of a part's volumes; none where B-scans are used whatever their flag."""
    if config["patches"]["leave_out_bscans"] == "none":
        return []
    return part_files("qc.tsv")(wildcards)


def flat_files():
    """What the stages that cut patches read of a part's volumes: input functions by name."""
    return {
        "images": part_files("flat.nii.gz"),
        "valid": part_files("flat.valid.nii.gz"),
        "annotations": part_files("flat.annotation.nii.gz"),
        "vendor": part_files("flat.vendor.npz"),
        "sidecars": part_files("flat.json"),
        "geometry": part_files("flat.geometry.npz"),
        "qc": quality_tables,
    }


def option(name, paths):
    """An option with its files, nothing without a file."""
    return " ".join([name, *(shlex.quote(str(path)) for path in paths)]) if paths else ""


def quality_option(wildcards, input):
    return option("--qc", input.qc)


def scored_parts(splits=SCORED_SPLITS):
    """The parts of `splits`: patch files named in the config, and chunks that have a volume."""
    parts = []
    for split in splits:
        given = EXISTING_PATCHES.get(split)
        chunks = [f"{split}-{k}" for k in range(len(given or range(config["map"]["chunks"])))]
        parts += [part for part in chunks if given or volumes_of_part(part)]
    return parts


def score_files(method, suffix):
    """One file of a method per chunk of the scored splits."""
    return [result(f"scores/{method}/{part}{suffix}") for part in scored_parts()]


def maps_of(method, splits):
    """The heat maps of a method, one file per chunk of `splits` with volumes to draw on."""
    drawn = [split for split in splits if SHEET.volumes(split)]
    return [result(f"heatmaps/{method}/{part}.h5") for part in scored_parts(drawn)]


def maps_of_scale(wildcards):
    """What the colour scale is made from: validation alone, so that a new eye changes no colour."""
    validation = maps_of(wildcards.method, ["validation"])
    return validation or maps_of(wildcards.method, SCORED_SPLITS)


def maps_of_volume(wildcards):
    """The heat maps that hold a volume, one file per method."""
    split = row_of(wildcards).split
    part = f"{split}-{chunk_of(wildcards.volume, config['map']['chunks'])}"
    return [result(f"heatmaps/{method}/{part}.h5") for method in MAPPED_METHODS]


def patch_count(split):
    """How many patches the command is to draw: all in all for training, else of each volume."""
    if split == "train":
        return f"--total {config['patches']['train_total']}"
    return f"--per-volume {config['patches'][f'{split}_per_volume']}"


def shown_volumes():
    """The volumes whose layers stand in the report: a few of every split."""
    return [
        volume
        for split in USED_SPLITS
        for volume in SHEET.volumes(split)[: config["report"]["layer_pictures_per_split"]]
    ]


def files_of(stage, suffixes, splits):
    """The files STAGE.SUFFIX of all volumes of `splits`."""
    volumes = [volume for split in splits for volume in SHEET.volumes(split)]
    if not volumes:
        return []
    return result(f"volumes/{{volume}}/{stage}.{{suffix}}", volume=volumes, suffix=suffixes)
