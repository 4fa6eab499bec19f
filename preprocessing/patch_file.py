"""The HDF5 file of patches: written in constant memory, read in any order.

`patches` (n, size, size) float16 gray values in [-1, 1]; `masks` the same shape, uint8: 1 lesion,
0 none, 255 not examined; `index` a table with a row per patch; `geometry/<volume>` all that maps a
pixel back to the volume as loaded (see `preprocessing.geometry`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np
import pandas as pd

from preprocessing.errors import InputError
from preprocessing.files import atomic_path
from preprocessing.geometry import FIELDS, Geometry

TEXT = h5py.string_dtype("utf-8", 64)
INDEX_DTYPE = np.dtype(
    [
        ("volume", TEXT),
        ("patient", TEXT),
        ("eye", h5py.string_dtype("utf-8", 1)),
        ("split", h5py.string_dtype("utf-8", 16)),
        ("bscan", np.int32),
        ("z", np.int32),  # row of the top left pixel in the flat volume
        ("x", np.int32),  # column of the top left pixel in the flat volume
        (
            "eye_label",
            np.int8,
        ),  # of the whole eye: 1 diseased, 0 healthy, -1 unknown
        ("label", np.int8),  # 1 anomalous, 0 normal, -1 unknown
        ("label_source", h5py.string_dtype("utf-8", 16)),  # annotation, healthy, eye or none
        ("anomalous_fraction", np.float32),  # of the patch's pixels, NaN where not annotated
    ]
)
CHUNK_BYTES = 2**20


class PatchWriter:
    """Appends patches to a new HDF5 file that appears under its name only when it is complete."""

    def __init__(self, path: str | Path, size: int) -> None:
        self.size = size
        self._target = atomic_path(path)
        self._file = h5py.File(self._target.__enter__(), "w")
        per_chunk = max(1, CHUNK_BYTES // (2 * size * size))
        shape = {"shape": (0, size, size), "maxshape": (None, size, size)}
        chunks = (per_chunk, size, size)
        self._file.create_dataset("patches", dtype=np.float16, chunks=chunks, **shape)
        self._file.create_dataset(
            "masks", dtype=np.uint8, chunks=chunks, compression="gzip", compression_opts=1, **shape
        )
        self._file.create_dataset("index", (0,), INDEX_DTYPE, maxshape=(None,), chunks=(4096,))

    def __enter__(self) -> "PatchWriter":
        return self

    def append(self, patches: np.ndarray, masks: np.ndarray, index: np.ndarray) -> None:
        """Append n patches and masks (n, size, size) and their index (n,) of `INDEX_DTYPE`."""
        for name, rows in (("patches", patches), ("masks", masks), ("index", index)):
            dataset = self._file[name]
            start = len(dataset)
            dataset.resize(start + len(rows), axis=0)
            dataset[start:] = rows

    def add_geometry(self, volume: str, geometry: Geometry, facts: dict) -> None:
        """Store the geometry of `volume` and `facts` about it (numbers, strings or tuples)."""
        group = self._file.create_group(f"geometry/{volume}")
        for name in FIELDS:
            group[name] = getattr(geometry, name)
        group.attrs.update(facts)

    def set_attributes(self, **attributes: object) -> None:
        """Store attributes of the whole file."""
        self._file.attrs.update(attributes)

    def __len__(self) -> int:
        return len(self._file["patches"])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        finally:
            self._target.__exit__(kind, error, traceback)


@contextmanager
def open_patches(path: str | Path) -> Iterator[h5py.File]:
    """Open a patch file for reading; InputError when it is missing, damaged or something else."""
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; run the stage patches first") from error
    except OSError as error:
        raise InputError(
            f"{path}: not a readable HDF5 file ({error}); delete it and rerun the stage patches"
        ) from error
    with file:
        missing = {"patches", "masks", "index"} - set(file)
        if missing:
            raise InputError(f"{path}: no dataset '{missing.pop()}'; it is not a patch file")
        yield file


def read_index(file: h5py.File) -> pd.DataFrame:
    """Return the index of an open patch file, one row per patch, text as str."""
    table = pd.DataFrame({name: file["index"][name] for name in INDEX_DTYPE.names})
    for name in INDEX_DTYPE.names:
        if h5py.check_string_dtype(INDEX_DTYPE[name]):
            table[name] = table[name].str.decode("utf-8")
    return table
