"""The HDF5 file of dense maps of one method: a group a volume, in the geometry of the flat volume.

`<volume>/residual` (b, r, c) float16, the mean of |x - rebuilt| (or of the method's own `heat`)
over all patches that cover a pixel, absent where nothing was rebuilt; `<volume>/score` float32, the
same mean of their scores; both NaN where no patch lies. `<volume>/annotation` uint8: 1 lesion, 0
none, 255 not examined (absent where nobody looked). A group's attributes are the other fields of
`VolumeMaps`, the file's those of `MapFile`.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import h5py
import numpy as np

from preprocessing import __version__
from preprocessing.hdf5 import CHECKED, NewFile, new_hdf5, open_hdf5
from preprocessing.own_files import reading

DTYPES = {"residual": np.float16, "score": np.float32, "annotation": np.uint8}
KINDS = ("residual", "score")  # of heat maps


@dataclass(frozen=True)
class VolumeMaps:
    """The maps of a volume, each (b, r, c), and what it is called.

    `eye_label` is 1 for a diseased eye, 0 for a healthy one, -1 unknown.
    """

    volume: str
    patient: str
    eye: str
    split: str
    eye_label: int
    n_patches: int
    score: np.ndarray
    residual: np.ndarray | None = None
    annotation: np.ndarray | None = None


FACTS = {field.name: field.type for field in fields(VolumeMaps) if field.name not in DTYPES}


class MapWriter:
    """Adds volumes to an open map file."""

    def __init__(self, file: NewFile) -> None:
        self._file = file

    def __contains__(self, volume: str) -> bool:
        return volume in self._file

    def append(self, maps: VolumeMaps) -> None:
        """Write the maps of one more volume."""
        group = self._file.create_group(maps.volume)
        group.attrs.update({name: getattr(maps, name) for name in FACTS})
        for name, dtype in DTYPES.items():
            values = getattr(maps, name)
            if values is not None:
                options = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
                chunks = (1, *values.shape[1:])  # a B-scan
                options |= CHECKED
                group.create_dataset(name, data=values.astype(dtype), chunks=chunks, **options)
        self._file.check_room()


@contextmanager
def write_maps(path: str | Path, method: str, stride: int, size: int) -> Iterator[MapWriter]:
    """Yield the writer of a new file, which appears under its name only when it is complete."""
    with new_hdf5(path) as file:
        file.attrs.update(method=method, stride=stride, size=size, version=__version__)
        yield MapWriter(file)


class MapFile:
    """An open map file; iterating over it reads one volume at a time, in the order of names.

    `method` is what scored patches of `size` pixels, `stride` apart.
    """

    def __init__(self, file: h5py.File, path: str | Path) -> None:
        self._file, self.path = file, path
        with _whole(path):
            self.method = str(file.attrs["method"])
            self.stride, self.size = int(file.attrs["stride"]), int(file.attrs["size"])
            self.volumes = list(file)

    def __iter__(self) -> Iterator[VolumeMaps]:
        return (self[volume] for volume in self.volumes)

    def __getitem__(self, volume: str) -> VolumeMaps:
        """Read the maps of one volume."""
        with _whole(self.path):
            group = self._file[volume]
            maps = {name: group[name][:] for name in DTYPES if name in group}
            found = VolumeMaps(**self.facts(volume), **maps)
            if any(m.ndim != 3 or m.shape != found.score.shape for m in maps.values()):
                raise ValueError(f"the maps of {volume} do not fit each other")
            return found

    def facts(self, volume: str) -> dict:
        """Return what a volume is called, without reading its maps."""
        with _whole(self.path):
            attributes = self._file[volume].attrs
            return {name: kind(attributes[name]) for name, kind in FACTS.items()}


@contextmanager
def open_maps(path: str | Path) -> Iterator[MapFile]:
    """Open a map file for reading; InputError when it is missing, damaged or something else.

    Damage that shows only later, when a volume is read, ends in the same InputError.
    """
    with open_hdf5(path, "HDF5 file", "heatmap") as file:
        yield MapFile(file, path)


def _whole(path: str | Path) -> AbstractContextManager:
    return reading(path, "file of maps", "heatmap")
