"""A small project to run the workflow on, for tests."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
SNAKEMAKE = [str(Path(sys.executable).with_name("snakemake"))]

# Small enough for a test, with every stage: 32-pixel patches and a toy network.
TINY = {
    "phantom": {"bscans": 3, "depth": 320, "width": 192},
    "patches": {"size": 32, "train_total": 60, "validation_per_volume": 12, "test_per_volume": 20},
    "methods": ["anogan", "p_d", "pca"],
    "model": {"channels": [8, 8, 8], "latent": 4},
    "gan": {"epochs": 3, "batch_size": 16},
    "pca": {"components": 5},
    "map": {"steps": 3, "chunks": 1, "residuals": 6, "batch_size": 16},
    "heatmap": {"methods": ["anogan"], "overlap": 0},
    "evaluate": {"bootstrap": 20},
}


class Project:
    """A copy of the workflow and the packages in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("workflow", "preprocessing", "anogan", "config", "environment.yml"):
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, folder / name)

    def write(self, rows: list[list[str]], **config: object) -> None:
        columns = ["volume", "patient", "path", "split", "label", "annotation"]
        text = "".join("\t".join(row) + "\n" for row in [columns, *rows])
        (self.folder / "volumes.tsv").write_text(text)
        config = {**TINY, "volumes": "volumes.tsv", **config}
        (self.folder / "my.yaml").write_text(yaml.safe_dump(config))

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess:
        command = [*SNAKEMAKE, "--cores", "2", "--configfile", "my.yaml", *arguments]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        return subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, env=environment, timeout=500
        )

    def planned(self, *arguments: str) -> dict[str, int]:
        """Return how many jobs of each rule a dry-run plans."""
        result = self.snakemake("--dry-run", *arguments, "--quiet", "rules")
        assert result.returncode == 0, result.stderr
        jobs = re.findall(r"^(\w+) +(\d+)$", result.stdout + result.stderr, re.MULTILINE)
        return {rule: int(n) for rule, n in jobs if rule != "total"}


def phantom(volume: str, split: str, label: str = "healthy", patient: str = "") -> list[str]:
    path = f"phantom/{volume}.nii.gz"
    return [volume, patient or volume, path, split, label, path.replace(".nii", ".annotation.nii")]


ROWS = [
    phantom("a", "train"),
    phantom("b", "train"),
    phantom("c", "validation"),
    phantom("d", "test"),
    phantom("e", "test", "diseased"),
    [*phantom("s", "score", "unknown")[:-1], ""],
]
