"""What it costs to bring a volume from its file to `flat.nii.gz`: CPU time and memory.

Usage: python benchmarks/preprocessing.py [--folder TMP]

Every command runs as a process of its own, interpreter start included. Measured are volumes of
49 x 496 x 512: a real HEYEX export where OCT_TEST_DATA is set, and a phantom as NIfTI; and
phantoms of more and fewer B-scans. Prints a TSV table, measure value unit baseline ratio: the
baseline of `load` and `prepare` is the same work by the six stages one after the other.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

# The package cannot be imported here, as this file has its name: only its commands are used.

B_SCANS = (12, 49, 98, 196)
IDS = ["--volume", "v", "--patient", "p"]


def cost(*command: str | Path) -> tuple[float, float]:
    """Return CPU seconds and peak megabytes of `python -m preprocessing COMMAND`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "preprocessing", *map(str, command)], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: python -m preprocessing {' '.join(map(str, command))}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def by_workflow(source: Path, folder: Path) -> tuple[float, float]:
    """Return the CPU seconds and the peak of `load` and `prepare`, the cheapest of three."""
    volume = folder / "volume.nii.gz"
    costs = []
    for _ in range(3):
        load = cost("load", "--input", source, *IDS, "--output", volume)
        prepare = cost("prepare", "--input", volume, "--folder", folder)
        costs.append((load[0] + prepare[0], max(load[1], prepare[1])))
    return min(costs)


def by_stages(source: Path, folder: Path) -> tuple[float, float]:
    """Return the CPU seconds of all six stages together, and the highest peak."""
    files = {
        name: folder / f"{name}.nii.gz" for name in ("volume", "normalised", "resampled", "flat")
    }
    layers = folder / "layers.npz"
    costs = [
        cost("load", "--input", source, *IDS, "--output", files["volume"]),
        cost("normalise", "--input", files["volume"], "--output", files["normalised"]),
        cost("resample", "--input", files["normalised"], "--output", files["resampled"]),
        cost("segment", "--input", files["resampled"], "--output", layers),
        cost(
            "qc", "--input", files["resampled"], "--layers", layers, "--output", folder / "qc.tsv"
        ),
        cost(
            "flatten", "--input", files["resampled"], "--layers", layers, "--output", files["flat"]
        ),
    ]
    seconds, peaks = zip(*costs, strict=True)
    return sum(seconds), max(peaks)


def make_phantom(path: Path) -> np.ndarray:
    """Make a phantom of 12 B-scans of 496 x 512 at `path`; return it, axes (x, z, b)."""
    shape = ("--bscans", "12", "--depth", "496", "--width", "512")
    cost("phantom", "--volume", "v", "--label", "healthy", *shape, "--output", path)
    return np.asarray(nib.load(path).dataobj.get_unscaled())


def write_repeated(phantom: np.ndarray, n_bscans: int, path: Path) -> Path:
    """Write a NIfTI volume of `n_bscans`, those of `phantom` (x, z, b) forth and back."""
    n = phantom.shape[2]
    order = np.arange(n_bscans) % (2 * n)
    order = np.minimum(order, 2 * n - 1 - order)
    nib.Nifti1Image(phantom[:, :, order], np.diag([0.0117, 0.00387, 0.12, 1])).to_filename(path)
    return path


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="for temporary files")
    args = parser.parse_args()
    print("measure\tvalue\tunit\tbaseline\tratio")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        phantom = make_phantom(folder / "phantom.nii.gz")
        sources = {"phantom NIfTI": write_repeated(phantom, 49, folder / "49.nii.gz")}
        if "OCT_TEST_DATA" in os.environ:
            real = Path(os.environ["OCT_TEST_DATA"]) / "heyex_volumes" / "AMD_patient1"
            sources["real HEYEX export"] = real
        for kind, source in sources.items():
            seconds, peak = by_workflow(source, folder)
            apart, apart_peak = by_stages(source, folder)
            print(f"{kind}: CPU time\t{seconds:.2f}\ts\t{apart:.2f}\t{apart / seconds:.2f}")
            print(f"{kind}: peak memory\t{peak:.0f}\tMB\t{apart_peak:.0f}\t{apart_peak / peak:.2f}")
        times = []
        for n in B_SCANS:
            seconds, peak = by_workflow(write_repeated(phantom, n, folder / f"{n}.nii.gz"), folder)
            times.append(seconds)
            print(f"{n} B-scans: CPU time\t{seconds:.2f}\ts\t\t")
            print(f"{n} B-scans: peak memory\t{peak:.0f}\tMB\t\t", flush=True)
        slope, start = np.polyfit(B_SCANS, times, 1)
        worst = np.abs(np.polyval((slope, start), B_SCANS) / times - 1).max()
        print(f"a further B-scan\t{1000 * slope:.1f}\tms\t\t")
        print(f"start of the process\t{start:.2f}\ts\t\t")
        print(f"largest departure from a straight line\t{100 * worst:.1f}\t%\t\t")
    return 0


if __name__ == "__main__":
    sys.exit(main())
