"""The sample sheet: one row per volume, checked before any work starts."""

import csv
import hashlib
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from planning.config import load_schema
from planning.errors import PlanningError
from planning.storage import listed

PHANTOM_FOLDER = "phantom"  # below data_dir; what is named there is made, not looked for


@dataclass(frozen=True)
class Row:
    """One volume of the sample sheet; `line` is its line in the file."""

    line: int
    volume: str
    patient: str
    path: str
    split: str
    label: str
    eye: str = ""
    annotation: str = ""
    spacing_um: str = ""
    already: str = ""

    @property
    def is_phantom(self) -> bool:
        """Tell whether the workflow makes this volume itself."""
        return self.path == f"{PHANTOM_FOLDER}/{self.volume}.nii.gz"


class SampleSheet:
    """The rows of a checked sample sheet, in the order of the file."""

    def __init__(self, path: str, rows: list[Row]) -> None:
        self.path = path
        self.rows = {row.volume: row for row in rows}

    def __getitem__(self, volume: str) -> Row:
        if volume not in self.rows:
            raise PlanningError(f"{self.path}: there is no volume '{volume}' in the sample sheet")
        return self.rows[volume]

    def volumes(self, split: str, chunk: int = 0, n_chunks: int = 1) -> list[str]:
        """Return the volume ids of a split, or of one of its chunks.

        The chunk follows from a hash of the id, so a new volume changes one chunk only.
        """
        return [
            row.volume
            for row in self.rows.values()
            if row.split == split and chunk_of(row.volume, n_chunks) == chunk
        ]


def chunk_of(volume: str, n_chunks: int) -> int:
    """Return the chunk (0 to n_chunks - 1) of a volume id."""
    return int.from_bytes(hashlib.sha256(volume.encode()).digest()[:8], "big") % n_chunks


def read_sample_sheet(
    path: str, data_dir: str, needs_training: bool = True, existing: Collection[str] = ()
) -> SampleSheet:
    """Read and check a sample sheet; PlanningError names the file, row, column and remedy.

    Without `needs_training`, because all models exist, no training volume has to be there. The
    patches of the splits in `existing` are there already, so no volume may have these.
    """
    rows = _parse(path)
    if not (rows or existing):
        raise PlanningError(f"{path}: the sample sheet has no rows; add a row per volume")
    _check_volumes(path, rows)
    _check_patients(path, rows)
    _check_already(path, rows)
    _check_splits(path, rows, needs_training, existing)
    _check_files(path, rows, listed(data_dir))
    return SampleSheet(path, rows)


def _parse(path: str) -> list[Row]:
    schema = load_schema("volumes")
    validator = Draft202012Validator(schema)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", restval="")
            columns = reader.fieldnames or []
            records = [(reader.line_num, record) for record in reader]
    except OSError as error:
        raise PlanningError(
            f"{path}: the sample sheet cannot be read ({error.strerror}); "
            "set 'volumes' in the config"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise PlanningError(f"{path}: not a tab-separated UTF-8 text file ({error})") from error
    missing = [name for name in schema["required"] if name not in columns]
    if missing:
        raise PlanningError(
            f"{path}: column '{missing[0]}' is missing; columns are separated by tabs"
        )
    unknown = [name for name in columns if name not in schema["properties"]]
    if unknown:
        known = ", ".join(schema["properties"])
        raise PlanningError(f"{path}: unknown column {unknown[0]!r}; the columns are {known}")
    rows = []
    for line, record in records:
        if None in record:
            raise PlanningError(f"{path}, row {line}: more cells than the {len(columns)} columns")
        record = {name: value.strip() for name, value in record.items()}
        error = best_match(validator.iter_errors(record))
        if error is not None:
            column = error.absolute_path[0]
            hint = schema["properties"][column]["description"]
            raise PlanningError(f"{path}, row {line}, column '{column}': {error.message} ({hint})")
        rows.append(Row(line=line, **record))
    return rows


def _check_volumes(path: str, rows: list[Row]) -> None:
    first: dict[str, Row] = {}
    for row in rows:
        # file systems that ignore case would put both into one folder
        other = first.setdefault(row.volume.lower(), row)
        if other is not row:
            raise PlanningError(
                f"{path}, row {row.line}, column 'volume': '{row.volume}' already stands in row "
                f"{other.line}; give each volume an id of its own"
            )


def _check_patients(path: str, rows: list[Row]) -> None:
    splits: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        splits[row.patient.lower()].setdefault(row.split, row)
    for by_split in splits.values():
        if len(by_split) > 1:
            a, b = list(by_split.values())[:2]
            raise PlanningError(
                f"{path}, rows {a.line} and {b.line}, column 'split': patient '{a.patient}' is in "
                f"{a.split} and in {b.split}; all eyes of a patient must be in one split"
            )


def _check_already(path: str, rows: list[Row]) -> None:
    """Refuse volumes from different stages: no model scores other patches than it learned from."""
    for row in rows:
        if row.already != rows[0].already:
            raise PlanningError(
                f"{path}, rows {rows[0].line} and {row.line}, column 'already': "
                f"'{rows[0].already}' and '{row.already}'; one model is for volumes that were "
                "prepared alike: give all of them the same, or make two runs"
            )


def _check_splits(
    path: str, rows: list[Row], needs_training: bool, existing: Collection[str]
) -> None:
    for row in rows:
        if row.split in existing:
            raise PlanningError(
                f"{path}, row {row.line}, column 'split': the patches of {row.split} are those of "
                "existing_patches in the config; take the row out, or the key"
            )
        if row.split == "train" and row.label != "healthy":
            raise PlanningError(
                f"{path}, row {row.line}, column 'label': a training volume must be healthy, not "
                f"{row.label}; move it to another split"
            )
    splits = {row.split for row in rows} | set(existing)
    if needs_training and "train" not in splits:
        raise PlanningError(
            f"{path}: no healthy training volume; the model learns from healthy eyes: give a row "
            "the split 'train', or name trained models in the config (existing_models)"
        )
    if not splits & {"test", "score"}:
        raise PlanningError(
            f"{path}: no volume to examine; give a row the split 'test' (to measure) or 'score'"
        )
    tested = [row for row in rows if row.split == "test"]
    if tested and all(row.label == "unknown" and not row.annotation for row in tested):
        raise PlanningError(
            f"{path}, column 'label': no test volume has a label or an annotation to measure "
            "against; give one, or use the split 'score'"
        )


def _check_files(path: str, rows: list[Row], data_dir: Path) -> None:
    first: dict[Path, Row] = {}
    for row in rows:
        other = first.setdefault((data_dir / row.path).resolve(), row)
        if other is not row:
            raise PlanningError(
                f"{path}, row {row.line}, column 'path': row {other.line} already names "
                f"{row.path}; list each volume once"
            )
        if row.is_phantom:
            _check_phantom(path, row, data_dir)
            continue
        for column in ("path", "annotation"):
            value = getattr(row, column)
            if ".." in Path(value).parts and not Path(value).is_absolute():
                raise PlanningError(
                    f"{path}, row {row.line}, column '{column}': {value} leads out of data_dir; "
                    "write the absolute path if that is meant"
                )
            if value and not (data_dir / value).exists():
                raise PlanningError(
                    f"{path}, row {row.line}, column '{column}': {data_dir / value} does not "
                    "exist; "
                    "relative paths start at data_dir of the config"
                )


def _check_phantom(path: str, row: Row, data_dir: Path) -> None:
    """Refuse to make a phantom in the place of a file that is none."""
    image = data_dir / row.path
    truth = image.with_name(f"{row.volume}.truth.npz")
    if image.exists() and not truth.exists():
        raise PlanningError(
            f"{path}, row {row.line}, column 'path': {image} is no phantom of this workflow, which "
            f"would overwrite it; keep your own files out of {PHANTOM_FOLDER}/"
        )
