"""Every stage on tiny data, as a process of its own that a test kills or takes the disk from."""

import ctypes
import hashlib
import importlib
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import made_gan
import made_maps
import made_report
import numpy as np
import pandas as pd
import pytest
from made_scores import make_scores, write_scores
from matplotlib.figure import Figure
from PIL import Image

import anogan.__main__
import preprocessing.__main__
from preprocessing.cli import run_command
from preprocessing.volume import write_nifti

COMMANDS = {
    "preprocessing": preprocessing.__main__.COMMANDS,
    "anogan": anogan.__main__.COMMANDS,
}
IMPORTED = (
    *("matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "nibabel", "PIL.Image"),
    *("pyarrow.parquet", "scipy.ndimage", "scipy.stats", "sklearn.metrics", "torch._dynamo"),
)
NEW_MOUNTS, NEW_USERS = 0x00020000, 0x10000000  # CLONE_NEWNS, CLONE_NEWUSER

# Folders stand for INPUTS and OUT; "train" is there twice, as networks have checkpoints.
STAGES = {
    "phantom": "preprocessing phantom --volume a --label diseased --bscans 3 --depth 320"
    " --width 192 --output OUT/v.nii.gz",
    "load": "preprocessing load --input INPUTS/phantom/v.nii.gz --volume a --patient a"
    " --output OUT/volume.nii.gz",
    "normalise": "preprocessing normalise --input INPUTS/load/volume.nii.gz --output OUT/n.nii.gz",
    "resample": "preprocessing resample --input INPUTS/normalise/n.nii.gz --output OUT/r.nii.gz",
    "segment": "preprocessing segment --input INPUTS/prepare/resampled.nii.gz"
    " --output OUT/layers.npz",
    "qc": "preprocessing qc --input INPUTS/prepare/resampled.nii.gz"
    " --layers INPUTS/prepare/layers.npz --output OUT/qc.tsv",
    "qc_pictures": "preprocessing qc_pictures --input INPUTS/prepare/resampled.nii.gz"
    " --layers INPUTS/prepare/layers.npz --qc INPUTS/prepare/qc.tsv --picture OUT/layers.png"
    " --enface OUT/enface.png",
    "flatten": "preprocessing flatten --input INPUTS/prepare/resampled.nii.gz"
    " --layers INPUTS/prepare/layers.npz --output OUT/flat.nii.gz",
    "prepare": "preprocessing prepare --input INPUTS/load/volume.nii.gz --folder OUT",
    "patches": "preprocessing patches --inputs INPUTS/maps/flat.nii.gz --labels diseased"
    " --split test --per-volume 40 --size 32 --output OUT/p.h5",
    "native": "preprocessing native --input INPUTS/maps/map.nii.gz"
    " --geometry INPUTS/maps/flat.geometry.npz --like INPUTS/maps/volume.nii.gz"
    " --output OUT/native.nii.gz",
    "train": "anogan train pca --patches INPUTS/p.h5 --components 4 --output OUT/model",
    "train gan": "anogan train gan --patches INPUTS/p.h5 --channels 16 8 8 --latent 6"
    " --batch-size 16 --precision fp32 --epochs 1 --checkpoint-s 0 --output OUT/model",
    "score": "anogan score --patches INPUTS/patches/p.h5 --model INPUTS/pca --residuals 8"
    " --residual-output OUT/r.h5 --output OUT/s.parquet",
    "heatmap": "anogan heatmap --inputs INPUTS/maps/flat.nii.gz --labels diseased --split test"
    " --model INPUTS/pca --stride 16 --output OUT/m.h5",
    "heat_scale": "anogan heat_scale --maps INPUTS/maps/pca.h5 --output OUT/scale.json",
    "overlay": "anogan overlay --maps INPUTS/maps/pca.h5 --scales INPUTS/maps/pca.json"
    " --volume-image INPUTS/maps/volume.nii.gz --geometry INPUTS/maps/flat.geometry.npz"
    " --viewer-method pca --output OUT/overlay",
    "latent": "anogan latent --model INPUTS/gan --patches INPUTS/patches/p.h5 --count 4"
    " --output OUT/l.h5",
    "evaluate": "anogan evaluate --scores SCORES --bootstrap 5 --output OUT/metrics.tsv",
    "report": "anogan report REPORT --output OUT/index.html",
}
ORDER = ("phantom", "load", "prepare", "normalise", "patches")  # whose outputs others read


class Ended(NamedTuple):
    """How a process ended: its status (negative: by that signal), what it said, what was there."""

    status: int
    said: str
    files: dict[str, str]
    renames: int


class Stages:
    """The commands of all stages, with inputs in a folder that is made once."""

    def __init__(self, folder: Path) -> None:
        for name in IMPORTED:  # once, not in every process
            importlib.import_module(name)
        for package, commands in COMMANDS.items():
            for name in commands:
                importlib.import_module(f"{package}.{name}")
        self.inputs = folder / "inputs"
        self.inputs.mkdir()
        made_maps.prepare(self.inputs / "maps")
        write_nifti(np.zeros((3, 110, 72), np.float32), self.inputs / "maps/map.nii.gz", np.eye(4))
        made_gan.write_patches(self.inputs / "p.h5")
        for kind in ("pca", "gan"):
            made_maps.write_model(self.inputs / kind, kind)
        scores = make_scores(patches_per_volume=8, splits=(("validation", 1, 1), ("test", 2, 2)))
        self._scores = write_scores(scores, self.inputs / "scores", ("p_d",))
        (self.inputs / "evaluated").mkdir()
        self._report = made_report.make_inputs(
            self.inputs / "evaluated", scores, residuals=2, methods=("p_d",)
        )
        self.whole = {}
        for stage in (*ORDER, *(stage for stage in STAGES if stage not in ORDER)):
            self.whole[stage] = self.run(stage, self.inputs / stage)
            assert self.whole[stage].status == 0, (stage, self.whole[stage].said)

    def arguments(self, stage: str, out: Path) -> list[str]:
        """Return package, command and options of a stage that writes into `out`."""
        parts = []
        for part in shlex.split(STAGES[stage]):
            if part in ("SCORES", "REPORT"):
                parts += self._scores if part == "SCORES" else self._report
            else:
                parts.append(part.replace("INPUTS", str(self.inputs)).replace("OUT", str(out)))
        return parts

    def run(self, stage: str, out: Path, before: Callable[[], None] = lambda: None) -> Ended:
        """Run a stage in a process of its own, after `before` in it; return how it ended."""
        package, command, *options = self.arguments(stage, out)

        def work() -> int:
            if command == "report":
                _draw_little()
            before()
            return run_command(package, COMMANDS[package], [command, *options])

        return run_apart(work, out)


def run_apart(work: Callable[[], int], out: Path) -> Ended:
    """Return how `work` ends in a process of its own, and the digests of the files in `out`."""
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as found:
        process = os.fork()
        if process == 0:
            status = 70
            try:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                sys.stdout, sys.stderr = (os.fdopen(fd, "w", closefd=False) for fd in (1, 2))
                renames = []
                sys.addaudithook(lambda event, _: event == "os.rename" and renames.append(event))
                status = work()
                json.dump({"files": digests(out), "renames": len(renames)}, found)
                found.flush()
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        said.seek(0)
        found.seek(0)
        facts = json.loads(found.read() or '{"files": {}, "renames": 0}')
        return Ended(status, said.read(), **facts)


def digests(folder: Path) -> dict[str, str]:
    """Return what the files below a folder hold, by name; times that vary are left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.name == "history.tsv":
                table = pd.read_csv(path, sep="\t")
                timeless = table.drop(columns=["patches_per_s", "peak_fraction"], errors="ignore")
                content = timeless.to_csv().encode()
            found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()[:8]
    return found


def killed_at_rename(number: int) -> Callable[[], None]:
    """Return what has a process killed when it is about to give a file its name, that many times.

    Counted from 1.
    """

    def prepare() -> None:
        renames = []

        def hook(event: str, _: tuple) -> None:
            if event == "os.rename":
                renames.append(event)
                if len(renames) == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    return prepare


def killed_at_byte(size: int) -> Callable[[], None]:
    """Return what has a process killed by the system as soon as a file outgrows `size` bytes.

    The signal is SIGXFSZ, of which, as of SIGKILL, a process that does not ask knows nothing.
    """

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return prepare


def own_mount(folder: Path, options: str) -> None:
    """Mount a tmpfs that only this process sees, and that ends with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(NEW_MOUNTS if user == 0 else NEW_MOUNTS | NEW_USERS):
        raise OSError(ctypes.get_errno(), "unshare")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True, capture_output=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
    subprocess.run(mount, check=True, capture_output=True)


def need_mounts(folder: Path) -> None:
    """Skip the test where no file system can be mounted."""

    def work() -> int:
        own_mount(folder, "size=64k")
        return 0

    if run_apart(work, folder).status:
        pytest.skip("no small file system can be mounted here (needs root or user namespaces)")


def flip(path: Path, place: int, bit: int = 0) -> None:
    """Turn one bit of a file over."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def _draw_little() -> None:
    """Let a report draw its first figure only: they take most of its time."""
    draw, pixels, drawn = Figure.savefig, Image.new("L", (40, 30)), []

    def savefig(figure: Figure, path: Path, **options: object) -> None:
        drawn.append(path)
        if len(drawn) == 1:
            draw(figure, path, **options)
        elif path.suffix == ".svg":
            path.write_text(made_report.EMPTY_SVG)
        else:
            pixels.save(path)

    Figure.savefig = savefig
