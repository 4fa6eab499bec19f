"""New HDF5 files that notice a full disk, and data in them that notice a flipped bit."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from preprocessing.files import atomic_path
from preprocessing.own_files import reading
from preprocessing.untrusted import check_self_contained

CHECKED = {"fletcher32": True}  # of a dataset: a checksum with every chunk, compared on reading


class _Sink(io.FileIO):
    """A file that never tells HDF5 of a full disk, and keeps the error for those who ask.

    HDF5 2.0 writes much on closing, and ends the process by a segmentation fault when it cannot.
    """

    error: OSError | None = None

    def write(self, data: memoryview) -> int:
        rest = memoryview(data)
        try:
            while rest.nbytes:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = self.error or error
        return len(data)


class NewFile(h5py.File):
    """An HDF5 file that is being written; its structure bears checksums (HDF5 1.10)."""

    def __init__(self, sink: _Sink, **options: object) -> None:
        super().__init__(sink, "w", libver="v110", **options)
        self._sink = sink

    def check_room(self) -> None:
        """Raise the OSError of an earlier write that failed, so that no more work is done."""
        if self._sink.error:
            raise self._sink.error


@contextmanager
def new_hdf5(path: str | Path, **options: object) -> Iterator[NewFile]:
    """Yield a file, to appear under its name when it is complete; `options` are those of h5py."""
    with atomic_path(path) as temporary, _Sink(temporary, "w+") as sink:
        try:
            with NewFile(sink, **options) as file:
                yield file
        finally:
            if sink.error:
                raise sink.error


@contextmanager
def open_hdf5(path: str | Path, kind: str, rule: str) -> Iterator[h5py.File]:
    """Open a file of the pipeline for reading; InputError when it is missing or damaged.

    Damage to a dataset shows when it is read, which should be done inside `reading`.
    """
    with reading(path, kind, rule):
        file = h5py.File(path, "r")
    with file:
        with reading(path, kind, rule):
            check_self_contained(file)
        yield file
