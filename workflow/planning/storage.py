"""Files in S3, moved by Snakemake's storage plugin; a plan is made from listings.

The plugin asks the server two or three times for every file of a plan. Here each folder of the
config is listed once, which answers the checks of the sample sheet, and Snakemake while it plans.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from planning.errors import PlanningError

SCHEME = "s3://"
LOCAL_FOLDER = "results"  # of what stays here when the results are elsewhere
REMEDIES = {
    "NoSuchBucket": "there is no such bucket; make it, or mend the name",
    "AccessDenied": "access is denied; the keys must allow to list, read and write there",
    "InvalidAccessKeyId": "the access key is not known there; set SNAKEMAKE_STORAGE_S3_ACCESS_KEY",
    "SignatureDoesNotMatch": "the secret key is wrong; set SNAKEMAKE_STORAGE_S3_SECRET_KEY",
}


@dataclass
class Entry:
    """A file or a folder of a bucket: seconds of its last change, bytes, names in a folder."""

    mtime: float = 0.0
    size: int = 0
    names: set[str] = field(default_factory=set)


class S3Path(PurePosixPath):
    """A place in S3, held as /bucket/key: from a listing it answers as a Path from the disk."""

    def __str__(self) -> str:
        return SCHEME + self.as_posix()[1:]

    def __truediv__(self, other: str) -> "Path | S3Path":
        return Path(other) if Path(other).is_absolute() else super().__truediv__(other)

    def as_posix(self) -> str:
        """Return /bucket/key."""
        return super().__str__()

    def resolve(self) -> "S3Path":
        """Return the place itself: there are no links in S3."""
        return self

    expanduser = resolve  # nor home folders

    def exists(self) -> bool:
        """Tell whether there is a file or a folder."""
        return _storage.entry(self.as_posix()) is not None

    def is_dir(self) -> bool:
        """Tell whether there are files below this place."""
        entry = _storage.entry(self.as_posix())
        return entry is not None and bool(entry.names)

    def is_file(self) -> bool:
        """Tell whether there is a file."""
        return self.exists() and not self.is_dir()

    def iterdir(self) -> Iterator["S3Path"]:
        """Yield what lies in this folder."""
        return (self / name for name in _storage.entry(self.as_posix()).names)

    def open(self, mode: str = "rb") -> BinaryIO:
        """Return the file's bytes as a stream; FileNotFoundError when there is none."""
        if not self.is_file():
            raise FileNotFoundError(f"{self} does not exist")
        _, bucket, *names = self.parts
        return _storage.provider.s3c.Object(bucket, "/".join(names)).get()["Body"]

    def read_text(self, encoding: str) -> str:
        """Return the text of the file."""
        with self.open() as file:
            return file.read().decode(encoding)


def is_remote(path: str) -> bool:
    """Tell whether a path is in S3."""
    return path.startswith(SCHEME)


def path_of(path: str) -> Path | S3Path:
    """Return a file or folder on the disk or in S3."""
    return S3Path("/" + path.removeprefix(SCHEME)) if is_remote(path) else Path(path)


def listed(folder: str) -> Path | S3Path:
    """Return a folder of the config, in S3 listed with all that is below it."""
    if is_remote(folder):
        _storage.list(path_of(folder))
    return path_of(folder)


def local_folder(results: str) -> str:
    """Return where logs, benchmarks and running trainings are written: on the disk in any case."""
    return f"{LOCAL_FOLDER}/{results.removeprefix(SCHEME)}" if is_remote(results) else results


def connect(registry: object, is_planning: Callable[[], bool]) -> None:
    """Name Snakemake's storages; listings stand in for the server as long as `is_planning`."""
    global _storage
    _storage = _Storage(registry, is_planning)


class _Storage:
    """The plugin's connection, made on first use, and what has been listed."""

    def __init__(self, registry: object, is_planning: Callable[[], bool]) -> None:
        self.registry = registry
        self.is_planning = is_planning
        self.listings: dict[str, dict[str, Entry]] = {}
        # of what is there: Snakemake asks for those of all that waiting jobs read, with every job
        self.sizes: dict[str, int] = {}

    @functools.cached_property
    def provider(self) -> object:
        try:
            from snakemake_storage_plugin_s3 import StorageObject
        except ImportError:
            raise PlanningError(
                "config: a folder in S3 needs Snakemake's plugin for it: "
                "pip install snakemake-storage-plugin-s3"
            ) from None

        class PlannedObject(StorageObject):
            @property
            def place(self) -> str:
                return f"/{self.bucket}/{self.key}"

            def is_listed(self) -> bool:
                return storage.is_planning() and storage.covers(self.place)

            def exists(self) -> bool:
                if self.is_listed():
                    return storage.entry(self.place) is not None
                return self.place in storage.sizes or super().exists()

            def mtime(self) -> float:
                return storage.entry(self.place).mtime if self.is_listed() else super().mtime()

            def size(self) -> int:
                if self.place not in storage.sizes:
                    storage.sizes[self.place] = super().size()
                return storage.sizes[self.place]

            def bucket_exists(self) -> bool:
                return True  # it was listed; the plugin would ask for every file, and make one

            def store_object(self) -> None:
                storage.sizes.pop(self.place, None)
                super().store_object()

            def remove(self) -> None:
                # the plugin would remove a bucket with its settings when nothing is left in it
                storage.sizes.pop(self.place, None)
                for item in [*self.get_subkeys()] or [self.s3obj()]:
                    item.delete()

        storage = self
        provider = self.registry.register_storage("s3")
        provider.get_storage_object_cls = lambda: PlannedObject
        return provider

    def list(self, folder: S3Path) -> None:
        """List all that is below a folder; PlanningError when the server refuses."""
        if len(folder.parts) < 2:
            raise PlanningError(f"config: {folder} names no bucket; write s3://bucket/prefix")
        provider = self.provider
        from botocore.exceptions import BotoCoreError, ClientError

        _, bucket, *names = folder.parts
        prefix = "".join(f"{name}/" for name in names)
        entries: dict[str, Entry] = {}
        try:
            for item in provider.s3c.Bucket(bucket).objects.filter(Prefix=prefix):
                if not item.key.endswith("/"):
                    _add(
                        entries, f"/{bucket}/{item.key}", item.last_modified.timestamp(), item.size
                    )
        except ClientError as error:
            code = error.response["Error"]["Code"]
            raise PlanningError(f"{folder}: {REMEDIES.get(code, error)}") from None
        except BotoCoreError as error:
            raise PlanningError(
                f"{folder}: {error}; docs/storage.md says how to name the server and the keys"
            ) from None
        self.listings[folder.as_posix()] = entries
        self.sizes |= {place: entry.size for place, entry in entries.items()}

    def covers(self, place: str) -> bool:
        return any(place.startswith(f"{folder}/") for folder in self.listings)

    def entry(self, place: str) -> Entry | None:
        found = (entries.get(place) for entries in self.listings.values())
        return next((entry for entry in found if entry), None)


def _add(entries: dict[str, Entry], place: str, mtime: float, size: int) -> None:
    """Add a file to a listing and to the folders that hold it."""
    entries[place] = Entry(mtime, size)
    while "/" in place[1:]:
        place, _, name = place.rpartition("/")
        folder = entries.setdefault(place, Entry())
        folder.mtime = max(folder.mtime, mtime)
        folder.size += size
        folder.names.add(name)
