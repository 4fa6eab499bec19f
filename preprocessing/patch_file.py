"""The HDF5 file of patches: written in constant memory, read in any order.

`patches` (n, size, size) float16 gray values in [-1, 1]; `masks` the same shape, uint8: 1 lesion,
0 none, 255 not examined (takes no space where nobody looked); `index` a table with a row per patch;
`crc32` (k,) uint32 checksums of the patches in each chunk;
`geometry/<volume>` all that maps a pixel back to the volume as loaded and to the vendor's file (see
`preprocessing.geometry`).
"""

import json
import mmap
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import h5py
import numpy as np

from preprocessing.errors import InputError
from preprocessing.geometry import FIELDS, Geometry, height_px
from preprocessing.hdf5 import CHECKED, new_hdf5, open_hdf5
from preprocessing.own_files import reading
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
        # without a cache, HDF5 passes whole chunks and parts of them straight on to the file
        self._stack = ExitStack()
        self._file = self._stack.enter_context(new_hdf5(path, rdcc_nbytes=0))
        self._stack.push(self._write_checksums)
        self._per_chunk = max(1, CHUNK_BYTES // (2 * size * size))
        self._sums = [0]  # of the chunks that are full, and of the one that is not
        shape = {"shape": (0, size, size), "maxshape": (None, size, size)}
        chunks = (self._per_chunk, size, size)
        self._file.create_dataset(
            "patches", dtype=np.float16, chunks=chunks, fill_time="never", **shape
        )
        self._file.create_dataset(
            "masks", dtype=np.uint8, chunks=chunks, fillvalue=NOT_EXAMINED, **shape, **CHECKED
        )
        self._file.create_dataset(
            "index", (0,), INDEX_DTYPE, maxshape=(None,), chunks=(4096,), **CHECKED
        )

    def __enter__(self) -> "PatchWriter":
        return self

    def append(self, patches: np.ndarray, masks: np.ndarray | None, index: np.ndarray) -> None:
        """Append n patches and masks (n, size, size) and their index (n,) of `INDEX_DTYPE`.

        Masks None says that nobody examined these patches.
        """
        start = len(self)
        patches = np.ascontiguousarray(patches, np.float16)
        self._add_checksums(start, patches)
        for name, rows in (("patches", patches), ("masks", masks), ("index", index)):
            dataset = self._file[name]
            dataset.resize(start + len(patches), axis=0)
            if rows is not None:
                dataset[start:] = rows
        self._file.check_room()

    def _add_checksums(self, start: int, patches: np.ndarray) -> None:
        """Go on with the checksum of each chunk, as HDF5's own would make `MappedPatches` wait."""
        while len(patches):
            room = self._per_chunk - start % self._per_chunk
            self._sums[-1] = zlib.crc32(patches[:room], self._sums[-1])
            if len(patches) >= room:
                self._sums.append(0)
            start, patches = start + room, patches[room:]

    def add_geometry(self, volume: str, geometry: Geometry, facts: dict) -> None:
        """Store the geometry of `volume` and `facts` about it (numbers, strings or tuples)."""
        group = self._file.create_group(f"geometry/{volume}")
        for name in FIELDS:
            values = np.asarray(getattr(geometry, name))
            group.create_dataset(name, data=values, **(CHECKED if values.ndim else {}))
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
        self._stack.__exit__(kind, error, traceback)

    def _write_checksums(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._file["crc32"] = np.array(self._sums, np.uint32)


@contextmanager
def open_patches(path: str | Path, rule: str = "patches") -> Iterator[h5py.File]:
    """Open a patch file for reading; InputError when it is missing, damaged or something else.

    Damage to single values shows only in `check_whole`. `rule` is what has written the file.
    """
    with open_hdf5(path, "HDF5 file", rule) as file:
        missing = {"patches", "masks", "index"} - set(file)
        if missing:
            raise InputError(f"{path}: no dataset '{missing.pop()}'; it is not a patch file")
        yield file


def check_whole(file: h5py.File) -> None:
    """Compare all checksums of an open patch file; InputError where one is wrong."""
    with reading(file.filename, "patch file", "patches"):
        for name in ("masks", "index"):
            starts: list[int] = []  # of the chunks that were ever written
            if file[name].chunks:
                file[name].id.chunk_iter(lambda chunk, to=starts: to.append(chunk.chunk_offset[0]))
            for start in starts:
                file[name][start : start + file[name].chunks[0]]
        if "crc32" in file and len(file["patches"]):
            MappedPatches(file).check(file["crc32"][:])


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

    def check(self, sums: np.ndarray) -> None:
        """Raise ValueError where a chunk does not have its CRC-32 of `sums` (k,)."""
        content = memoryview(self._map)
        for chunk, start in enumerate(self._starts.tolist()):
            rows = min(self._per_chunk, len(self) - chunk * self._per_chunk)
            if zlib.crc32(content[start : start + rows * self._bytes]) != sums[chunk]:
                raise ValueError(f"wrong checksum of the patches from {chunk * self._per_chunk} on")

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


def heights_px(file: h5py.File, index: "pd.DataFrame") -> np.ndarray:
    """Return (n,) float32: how many rows above BM the top row of each patch of an index lies.

    NaN where the file has no geometry of the volume.
    """
    heights = np.full(len(index), np.nan, np.float32)
    for volume, rows in index.groupby("volume").indices.items():
        bm = file.get(f"geometry/{volume}/bm")
        if bm is not None:
            heights[rows] = height_px(bm[:], index["z"].to_numpy()[rows])
    return heights


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
