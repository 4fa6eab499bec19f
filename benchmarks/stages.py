"""Time and peak memory of every stage of a finished run, from its benchmark files.

Usage: python benchmarks/stages.py [results]

Prints a TSV table, measure value unit baseline ratio: per stage the number of jobs, the median and
the sum of their wall-clock seconds and the largest resident memory. The baseline of a stage's time
is the whole run's, the ratio its share of it.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd


def stage_of(file: Path, folder: Path) -> str:
    """Return the rule that wrote a benchmark file: its folder, or its name when it has none."""
    return file.relative_to(folder).parts[0].removesuffix(".tsv")


def read_benchmarks(results: Path) -> pd.DataFrame:
    """Return one row per job with the columns stage, s (wall clock) and max_rss (MB)."""
    folder = results / "benchmarks"
    tables = [
        pd.read_csv(file, sep="\t", na_values="-").assign(stage=stage_of(file, folder))
        for file in sorted(folder.rglob("*.tsv"))
    ]
    if not tables:
        sys.exit(f"error: {folder}: no benchmark files; run the pipeline first")
    return pd.concat(tables, ignore_index=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"))
    jobs = read_benchmarks(parser.parse_args().results)
    total = jobs["s"].sum()
    print("measure\tvalue\tunit\tbaseline\tratio")
    for stage, rows in jobs.groupby("stage"):
        seconds = rows["s"].sum()
        print(f"{stage}: jobs\t{len(rows)}\t\t\t")
        print(f"{stage}: median time\t{rows['s'].median():.2f}\ts\t\t")
        print(f"{stage}: total time\t{seconds:.1f}\ts\t{total:.1f}\t{seconds / total:.3f}")
        print(f"{stage}: peak memory\t{rows['max_rss'].max():.0f}\tMB\t\t")


if __name__ == "__main__":
    main()
