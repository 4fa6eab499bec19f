"""The HDF5 file of patches: written in constant memory, read in any order.

`patches` (n, size, size) float16 gray values in [-1, 1]; `masks` the same shape, uint8: 1 lesion,
0 none, 255 not examined (takes no space where nobody looked); `index` a table with a row per patch;
`geometry/<volume>` all that maps a pixel back to the volume as loaded and to the vendor's file (see
`preprocessing.geometry`).
"""

import json
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import h5py
import numpy as np

from preprocessing.errors import InputError
from preprocessing.files import atomic_path
from preprocessing.geometry import FIELDS, Geometry
from preprocessing.untrusted import check_self_contained
from preprocessing.volume import NOT_EXAMINED

if TYPE_CHECKING:
    import pandas as pd

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
        ("eye_label", np.int8),  # of the whole eye: 1 diseased, 0 healthy, -1 unknown
        ("bscan_label", np.int8),  # of the whole B-scan: 1 anomalous, 0 normal, -1 unknown
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
        # without a cache, HDF5 passes whole chunks and parts of them straight on to the file
        self._file = h5py.File(self._target.__enter__(), "w", rdcc_nbytes=0)
        per_chunk = max(1, CHUNK_BYTES // (2 * size * size))
        shape = {"shape": (0, size, size), "maxshape": (None, size, size)}
        chunks = (per_chunk, size, size)
        self._file.create_dataset(
            "patches", dtype=np.float16, chunks=chunks, fill_time="never", **shape
        )
        self._file.create_dataset(
            "masks", dtype=np.uint8, chunks=chunks, fillvalue=NOT_EXAMINED, **shape
        )
        self._file.create_dataset("index", (0,), INDEX_DTYPE, maxshape=(None,), chunks=(4096,))

    def __enter__(self) -> "PatchWriter":
        return self

    def append(self, patches: np.ndarray, masks: np.ndarray | None, index: np.ndarray) -> None:
        """Append n patches and masks (n, size, size) and their index (n,) of `INDEX_DTYPE`.

        Masks None says that nobody examined these patches.
        """
        start = len(self)
        for name, rows in (("patches", patches), ("masks", masks), ("index", index)):
            dataset = self._file[name]
            dataset.resize(start + len(patches), axis=0)
            if rows is not None:
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
            f"{path}: not a readable HDF5 file ({error}); rerun the stage patches, or give its file"
        ) from error
    with file:
        check_self_contained(file)
        missing = {"patches", "masks", "index"} - set(file)
        if missing:
            raise InputError(f"{path}: no dataset '{missing.pop()}'; it is not a patch file")
        yield file


class MappedPatches:
    """The patches of a file as an array whose rows are read from the disk when asked for.

    `mapped[rows]` is (k, size, size) for row numbers or a slice, in any order; the file may be
    closed by then. h5py takes 50 times as long to find scattered rows.
    """

    def __init__(self, file: h5py.File) -> None:
        dataset = file["patches"]
        if not dataset.chunks or dataset.id.get_create_plist().get_nfilters():
            raise InputError(f"{file.filename}: compressed or repacked; rerun the stage patches")
        self.shape, self.dtype = dataset.shape, dataset.dtype
        self._per_chunk = dataset.chunks[0]
        self._starts = np.zeros(-(-len(self) // self._per_chunk), np.int64)

        def remember(chunk: h5py.h5d.StoreInfo) -> None:
            self._starts[chunk.chunk_offset[0] // self._per_chunk] = chunk.byte_offset

        dataset.id.chunk_iter(remember)
        self._bytes = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        with open(file.filename, "rb") as content:
            self._map = mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ)
        self._at_byte = np.lib.stride_tricks.sliding_window_view(
            np.frombuffer(self._map, np.uint8), self._bytes
        )

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        if len(rows) and not 0 <= np.min(rows) <= np.max(rows) < len(self):
            raise IndexError(f"rows outside 0..{len(self) - 1}")
        chunk, within = np.divmod(rows, self._per_chunk)
        places = self._starts[chunk] + within * self._bytes
        for place in places.tolist():  # asked for all at once, the disk need not be waited for
            page = place - place % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, place - page + self._bytes)
        return self._at_byte[places].view(self.dtype).reshape(-1, *self.shape[1:])


def read_geometry_of(file: h5py.File, volume: str) -> tuple[Geometry, dict]:
    """Return the geometry of `volume` in an open patch file, and the facts stored with it."""
    group = file["geometry"][volume]
    fields = {name: group[name][()] for name in FIELDS}
    return Geometry(**{**fields, "x_factor": float(fields["x_factor"])}), dict(group.attrs)


def shared_settings(parameters: dict) -> dict:
    """Return what a volume's stages did, by stage, without what follows from the volume alone."""
    of_this_volume = {"normalise": ("black", "white"), "resample": ("upsampled",)}
    return {
        stage: {k: v for k, v in used.items() if k not in of_this_volume.get(stage, ())}
        for stage, used in parameters.items()
    }


def common_preprocessing(file: h5py.File) -> dict:
    """Return the settings of the stages before, by stage; the same for every volume of the file.

    Raises InputError when its volumes were preprocessed in different ways.
    """
    settings = None
    for group in file.get("geometry", {}).values():
        found = shared_settings(json.loads(group.attrs["parameters"]))
        if settings not in (None, found):
            raise InputError(
                f"{file.filename}: its volumes were preprocessed in different ways; cut the "
                "patches again"
            )
        settings = found
    return settings or {}


def read_index(file: h5py.File) -> "pd.DataFrame":
    """Return the index of an open patch file, one row per patch, text as str.

    Raises InputError when it lacks a column.
    """
    import pandas as pd

    rows = file["index"][:]
    missing = sorted(set(INDEX_DTYPE.names) - set(rows.dtype.names))
    if missing:
        raise InputError(
            f"{file.filename}: its index lacks {', '.join(missing)}; rerun the stage patches, as "
            "the file is of another version"
        )
    table = pd.DataFrame({name: rows[name] for name in INDEX_DTYPE.names})
    for name in INDEX_DTYPE.names:
        if h5py.check_string_dtype(INDEX_DTYPE[name]):
            table[name] = table[name].str.decode("utf-8")
    return table
