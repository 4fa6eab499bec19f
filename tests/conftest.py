"""What several tests need: small volumes, real data where there are any."""

import gzip
import os
import zipfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: threads would only wait

import h5py
import numpy as np
import pandas as pd
import pytest

from preprocessing.layers import Layers
from preprocessing.volume import Volume


def plain_bytes(path: Path) -> bytes:
    """Return all that a file says, with every compression undone, to search it for names."""
    if path.name.endswith(".gz"):
        return gzip.decompress(path.read_bytes())
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            return b"".join(name.encode() + archive.read(name) for name in archive.namelist())
    if path.suffix == ".h5":
        parts = []
        with h5py.File(path) as file:
            file.visititems(lambda name, item: parts.append(_everything(name, item)))
        return b"".join(parts)
    if path.suffix == ".parquet":
        return pd.read_parquet(path).to_csv().encode()
    return path.read_bytes()


def _everything(name: str, item: h5py.Group | h5py.Dataset) -> bytes:
    values = [item[()].tobytes()] if isinstance(item, h5py.Dataset) else []
    return b"".join([name.encode(), str(dict(item.attrs)).encode(), *values])


@pytest.fixture
def real_data() -> Path:
    """The folder of real OCT files; the test is skipped where there is none."""
    folder = os.environ.get("OCT_TEST_DATA")
    if not folder:
        pytest.skip("OCT_TEST_DATA is not set: real OCT files are not part of the project")
    return Path(folder).resolve()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def volume(rng) -> Volume:
    """A normalised random volume of 3 B-scans, 200 x 100 pixels, with a marked pixel block."""
    data = rng.uniform(-1, 1, (3, 200, 100)).astype(np.float32)
    annotation = np.zeros(data.shape, np.float32)
    annotation[1, 110:120, 40:60] = 1
    return Volume(
        data=data,
        spacing_mm=(0.12, 0.004, 0.022),
        valid=np.ones(data.shape, bool),
        volume="v1",
        patient="p1",
        eye="R",
        intensity="normalised",
        annotation=annotation,
    )


@pytest.fixture
def layers() -> Layers:
    """Layers for `volume`: a tilted retina 60 pixels thick."""
    bm = np.tile(140 + 0.2 * np.arange(100, dtype=np.float32), (3, 1))
    return Layers(ilm=bm - 60, rpe=bm - 5, bm=bm, confidence=np.ones_like(bm))
