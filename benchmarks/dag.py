"""How long Snakemake plans, by number of volumes: a new run, and one with nothing to do.

Usage: python benchmarks/dag.py [VOLUMES ...]   (10 100 290 1000)

Half of the volumes are for training, a tenth for validation, the rest to test. The files are empty:
a plan looks at names and times only. A run is made to look finished with `snakemake --touch`, whose
pause after every job is left out. Prints a TSV table, measure value unit baseline ratio. The
baseline of each time is that of the smallest run; the ratio is how many times more volumes were
planned per second. The last rows are the growth: seconds that each further volume adds.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).parents[1]
VOLUMES = (10, 100, 290, 1000)
CHUNKS = 8
SNAKEMAKE = (sys.executable, "-m", "snakemake")
TOUCH = (
    sys.executable,
    "-c",
    "from snakemake.executors import touch; touch.Executor.SLEEPING_TIME = 0; "
    "from snakemake.cli import main; main()",
)


def write_project(folder: Path, n: int) -> None:
    """Write a config and a sample sheet of `n` volumes, and their empty files."""
    (folder / "scans").mkdir()
    lines = ["volume\tpatient\tpath\tsplit\tlabel"]
    for i in range(n):
        split = "train" if i < n // 2 else "validation" if i < 0.6 * n else "test"
        label = "diseased" if i >= 0.8 * n else "healthy"
        (folder / f"scans/v{i}.nii.gz").touch()
        lines.append(f"v{i}\tp{i}\tscans/v{i}.nii.gz\t{split}\t{label}")
    (folder / "volumes.tsv").write_text("\n".join(lines) + "\n")
    config = {"volumes": "volumes.tsv", "data_dir": str(folder), "map": {"chunks": CHUNKS}}
    (folder / "my.yaml").write_text(yaml.safe_dump(config))


def run(folder: Path, *arguments: str, program: tuple[str, ...] = SNAKEMAKE) -> tuple:
    """Run Snakemake in `folder`; return (seconds, CPU seconds, what it printed)."""
    command = [*program, "--snakefile", f"{ROOT}/workflow/Snakefile", "--cores", "2"]
    before, start = _cpu(), time.perf_counter()
    done = subprocess.run(
        [*command, "--configfile", "my.yaml", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(command)}\n{done.stdout}{done.stderr}")
    return seconds, _cpu() - before, done.stdout + done.stderr


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def pretend_finished(folder: Path) -> None:
    """Make all outputs as empty files, and let Snakemake record that they were made."""
    summary = run(folder, "--summary")[2].splitlines()
    rows = [line.split("\t") for line in summary if line.count("\t") > 3]
    for output, *_ in rows[1:]:
        path = folder / output
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if path.suffix else path.mkdir()
    run(folder, "--touch", "--forceall", "--quiet", "all", program=TOUCH)


def measure(n: int) -> dict[str, float]:
    """Return jobs, seconds and CPU seconds of planning and of a run with nothing to do."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_project(folder, n)
        plan_s, plan_cpu, said = run(folder, "--dry-run", "--quiet", "rules")
        jobs = next(line.split()[1] for line in said.splitlines() if line.startswith("total"))
        pretend_finished(folder)
        idle_s, idle_cpu, said = run(folder)
        if "Nothing to be done" not in said or "missing provenance" in said:
            raise SystemExit(f"{n} volumes: the run does not look finished\n{said}")
    return {
        "jobs": int(jobs),
        "plan: time": plan_s,
        "plan: CPU time": plan_cpu,
        "nothing to do: time": idle_s,
        "nothing to do: CPU time": idle_cpu,
    }


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("volumes", nargs="*", type=int, default=VOLUMES)
    sizes = sorted(parser.parse_args().volumes)
    print("measure\tvalue\tunit\tbaseline\tratio", flush=True)
    found = []
    for n in sizes:
        found.append(measure(n))
        for name, value in found[-1].items():
            if name == "jobs":
                print(f"{n} volumes, jobs\t{value}\t\t\t")
                continue
            first = found[0][name]
            ratio = first / sizes[0] / (value / n)
            print(f"{n} volumes, {name}\t{value:.2f}\ts\t{first:.2f}\t{ratio:.1f}", flush=True)
    if len(sizes) > 1:
        for name in list(found[0])[1:]:
            slope = np.polyfit(sizes, [figures[name] for figures in found], 1)[0]
            print(f"a further volume, {name}\t{1000 * slope:.1f}\tms\t\t")


if __name__ == "__main__":
    main()
