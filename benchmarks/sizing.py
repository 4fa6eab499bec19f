"""What a run of many volumes takes, computed from a finished run: CPU hours, memory, disk.

Usage: python benchmarks/sizing.py RESULTS [--volumes 20 300 10000] [--config PRESET]

RESULTS is a finished run on volumes like yours. From its benchmark files come the CPU seconds and
the peak memory of every job, from its files their sizes. All grows with the number of volumes, but
for training, whose patches are a set number (those of RESULTS, or of the config given), for models
and for the page. The share of volumes to train on is that of RESULTS; the rest is scored. Prints a
TSV table, measure value unit baseline ratio; the baseline is RESULTS itself. CPU time is that of
the machine and of the methods of RESULTS.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml
from stages import read_benchmarks

WORK = {  # what is said of the CPU time, and the rules behind it
    "preprocessing": ("load", "prepare", "qc_pictures", "patches"),
    "training": ("train",),
    "scores": ("score", "latent"),
    "heat maps": ("heatmap", "heat_scale", "overlay"),
    "report": ("evaluate", "report"),
}
FILES = {
    "volumes": ("volumes/**/*",),
    "training patches": ("patches/train.h5",),
    "other patches": ("patches/[!t]*", "patches/te*"),
    "scores and maps": ("scores/**/*", "heatmaps/**/*", "overlays/**/*"),
    "models": ("model/**/*", "training/**/*"),
    "page and figures": ("report/**/*",),
}
VOLUMES = (20, 300, 10_000)


@dataclass
class Run:
    """A finished run: its config, jobs (one row each) and number of volumes."""

    results: Path
    config: dict
    jobs: pd.DataFrame
    volumes: int

    def cpu_h(self, stages: Iterable[str]) -> float:
        """Return the CPU hours of all jobs of `stages`."""
        return self.jobs.loc[self.jobs["stage"].isin(stages), "cpu_time"].sum() / 3600

    def gb(self, patterns: Iterable[str]) -> float:
        """Return the size of all files that match, in GB."""
        files = {file for pattern in patterns for file in self.results.glob(pattern)}
        return sum(file.stat().st_size for file in files if file.is_file()) / 1e9


def read_run(results: Path) -> Run:
    """Return what a finished run tells of itself."""
    config = yaml.safe_load((results / "report/config.yaml").read_text())
    volumes = sum(folder.is_dir() for folder in (results / "volumes").iterdir())
    return Run(results, config, read_benchmarks(results), volumes)


def growth(run: Run, n: int, patches: dict) -> dict[str, float]:
    """Return how many times more is needed of work and files for `n` volumes, by name.

    `patches` are the patches to train on and the epochs of the GAN, `train_total` and `epochs`.
    """
    before = run.config["patches"]["train_total"]
    drawn = patches["train_total"] / before
    seen = drawn * patches["epochs"] / run.config["gan"]["epochs"]
    grown = dict.fromkeys((*WORK, *FILES), n / run.volumes)
    fixed = {"models": 1.0, "page and figures": 1.0}
    return {**grown, **fixed, "training": seen, "training patches": drawn}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--volumes", nargs="+", type=int, default=VOLUMES)
    parser.add_argument("--config", type=Path, help="preset whose training is meant")
    args = parser.parse_args()
    run = read_run(args.results)
    preset = yaml.safe_load(args.config.read_text()) if args.config else run.config
    patches = {**preset["patches"], **preset["gan"]}
    print("measure\tvalue\tunit\tbaseline\tratio")
    for stage, jobs in run.jobs.groupby("stage"):
        print(f"{stage}, peak memory of a job\t{jobs['max_rss'].max():.0f}\tMB\t\t")
    here = {name: run.cpu_h(stages) for name, stages in WORK.items()}
    here |= {name: run.gb(patterns) for name, patterns in FILES.items()}
    for n in args.volumes:
        times = growth(run, n, patches)
        for unit, names in (("h", WORK), ("GB", FILES)):
            there = {name: here[name] * times[name] for name in names}
            total = {"all": sum(there.values())}
            for name, value in {**there, **total}.items():
                now = here.get(name, sum(here[one] for one in names))
                print(f"{n} volumes, {name}\t{value:.3g}\t{unit}\t{now:.3g}\t{_ratio(now, value)}")


def _ratio(baseline: float, value: float) -> str:
    return f"{baseline / value:.3g}" if value else ""


if __name__ == "__main__":
    main()
