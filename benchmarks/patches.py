"""How fast and in how much memory patches are written and read, against the disk and h5py.

Usage: python benchmarks/patches.py [--patches 200000] [--volumes 4] [--folder DIR]

Cuts 64 x 64 patches out of random flat volumes of the size of a Spectralis scan, by the command of
the stage and in this process. Prints a TSV table, measure value unit baseline ratio. The baseline
of writing is plain sequential writing of as many bytes, at most 4 GB, to the same folder, both
until the disk has them; that of the memory is a run with a tenth of the patches; that of reading
shuffled batches of 64 is h5py. "Cold" means after the file has left the memory of the system.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path[0] = str(Path(__file__).parents[1])  # so that preprocessing is the package

from preprocessing.geometry import Geometry, geometry_path, read_geometry, write_geometry
from preprocessing.patch_file import MappedPatches, PatchWriter, open_patches
from preprocessing.patches import append_patches, draw_corners
from preprocessing.volume import Volume, read_volume, write_volume

SHAPE = (49, 207, 272)  # a 6 mm Spectralis volume after flattening
SIZE, BATCH = 64, 64
PATCH_BYTES = 2 * SIZE * SIZE
MOST_PLAIN_BYTES = 4 * 10**9
READ_SECONDS = 5


def write_inputs(folder: Path, n_volumes: int) -> list[Path]:
    """Write flat volumes of noise, every pixel of which is retina, and return their paths."""
    rng = np.random.default_rng(0)
    rows = np.zeros((SHAPE[0], SHAPE[2]), np.float32)
    geometry = Geometry(rows, rows + 1, 1.0, ilm=rows, rpe=rows + 170, bm=rows + SHAPE[1])
    paths = []
    for i in range(n_volumes):
        path = folder / f"v{i}" / "flat.nii.gz"
        volume = Volume(
            rng.uniform(-1, 1, SHAPE).astype(np.float32),
            spacing_mm=(0.12, 0.00387, 0.022),
            valid=np.ones(SHAPE, bool),
            volume=f"v{i}",
            intensity="normalised",
        )
        write_volume(volume, path)
        write_geometry(geometry, geometry_path(path))
        paths.append(path)
    return paths


def to_disk(path: Path) -> None:
    """Wait until the disk has the file."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def plain_rate(folder: Path, n_bytes: int) -> float:
    """Return MB/s of writing random bytes one after the other."""
    block = np.random.default_rng(0).bytes(2**23)
    path = folder / "plain.bin"
    start = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for _ in range(max(1, min(n_bytes, MOST_PLAIN_BYTES) // len(block))):
            file.write(block)
    to_disk(path)
    rate = path.stat().st_size / 1e6 / (time.perf_counter() - start)
    path.unlink()
    return rate


def run_command(inputs: list[Path], count: int, path: Path) -> tuple[float, float]:
    """Run the stage `patches`; return its MB/s, start and reading included, and its peak MB."""
    command = [sys.executable, "-m", "preprocessing", "patches", "--inputs", *map(str, inputs)]
    command += ["--labels", *["healthy"] * len(inputs), "--split", "train", "--total", str(count)]
    start = time.perf_counter()
    child = subprocess.Popen([*command, "--output", str(path)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit("error: the stage patches failed")
    to_disk(path)
    return count * PATCH_BYTES / 1e6 / (time.perf_counter() - start), usage.ru_maxrss / 1024


def write_rate(volume: Volume, geometry: Geometry, count: int, path: Path) -> float:
    """Return MB/s of gray values and masks written from a volume in memory."""
    corners = draw_corners(volume, geometry, count, SIZE, seed=1)
    start = time.perf_counter()
    with PatchWriter(path, SIZE) as writer:
        append_patches(writer, volume, corners, "test", "diseased", 0.01)
    to_disk(path)
    seconds = time.perf_counter() - start
    n_bytes = PATCH_BYTES if volume.annotation is None else 1.5 * PATCH_BYTES
    return len(corners) * n_bytes / 1e6 / seconds


def read_rate(path: Path, read: Callable[[np.ndarray], np.ndarray], n: int, cold: bool) -> float:
    """Return patches/s of `read(rows)` over shuffled batches, for at most `READ_SECONDS`."""
    with open(path, "rb") as file:
        if cold:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while file.read(2**24):
                pass
    order = np.random.default_rng(0).permutation(n)
    batches = order[: n // BATCH * BATCH].reshape(-1, BATCH)
    start, done = time.perf_counter(), 0
    while done < len(batches) and time.perf_counter() - start < READ_SECONDS:
        read(batches[done])
        done += 1
    return done * BATCH / (time.perf_counter() - start)


def show(measure: str, value: float, unit: str, baseline: float, ratio: float) -> None:
    """Print one row."""
    print(f"{measure}\t{value:.0f}\t{unit}\t{baseline:.0f}\t{ratio:.2f}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patches", type=int, default=200_000)
    parser.add_argument("--volumes", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: temporary")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        measure(Path(name), args.patches, args.volumes)


def measure(folder: Path, n: int, n_volumes: int) -> None:
    """Measure in `folder` and print the rows."""
    inputs, path = write_inputs(folder, n_volumes), folder / "patches.h5"
    print("measure\tvalue\tunit\tbaseline\tratio")

    _, small_mb = run_command(inputs, n // 10, path)
    plain = plain_rate(folder, n * PATCH_BYTES)
    rate, peak_mb = run_command(inputs, n, path)
    show(f"command, {n} patches of {n_volumes} volumes", rate, "MB/s", plain, rate / plain)
    show("peak memory of the command", peak_mb, "MB", small_mb, small_mb / peak_mb)

    with open_patches(path) as file:
        mapped, dataset = MappedPatches(file), file["patches"]
        for cold in (True, False):
            reads = (mapped.__getitem__, lambda rows: dataset[np.sort(rows)])
            value, baseline = (read_rate(path, read, n, cold) for read in reads)
            state = "cold" if cold else "warm"
            show(f"shuffled batches, {state}", value, "patches/s", baseline, value / baseline)
    path.unlink()

    volume, geometry = read_volume(inputs[0]), read_geometry(geometry_path(inputs[0]))
    marked = volume.replace(annotation=(volume.data > 0.9).astype(np.float32))
    for what, source in (("gray values", volume), ("gray values and masks", marked)):
        plain = plain_rate(folder, n * PATCH_BYTES)
        rate = write_rate(source, geometry, n, path)
        show(f"{what} from memory", rate, "MB/s", plain, rate / plain)
        path.unlink()


if __name__ == "__main__":
    main()
