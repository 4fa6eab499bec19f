"""Patch files that were made elsewhere: each takes the place of the volumes of its split."""

from collections.abc import Iterable
from pathlib import Path

from planning.errors import PlanningError
from planning.sample_sheet import Row

SPLITS = ("train", "validation", "test", "score")


def existing_patches(section: dict) -> dict[str, list[str]]:
    """Return the patch files named in the config, by split."""
    found = {}
    for split in SPLITS:
        if split in section:
            files = section[split]
            named = [files] if isinstance(files, str) else files
            found[split] = [str(Path(file).expanduser()) for file in named]
    return found


def check_patches(
    files: dict[str, list[str]], size: int, rows: Iterable[Row], results: str
) -> None:
    """Refuse patch files that cannot stand for their split; PlanningError names file and remedy.

    `size` is what the config says of patches, `rows` are those of the sample sheet, `results` is
    the folder that this run writes to.
    """
    split_of, place_of = {}, {}
    for row in rows:
        split_of[row.patient.lower()], place_of[row.volume] = row.split, "the sample sheet"
    for split, paths in files.items():
        for path in paths:
            place = f"config: existing_patches: {split}: {path}"
            if Path(results).resolve() in Path(path).resolve().parents:
                raise PlanningError(
                    f"{place} lies in results_dir, where patches are cut; copy it, or set another "
                    "results_dir"
                )
            patients, volumes = _ids(path, split, size)
            for patient in sorted(patients):
                other = split_of.setdefault(patient.lower(), split)
                if other != split:
                    raise PlanningError(
                        f"{place}: patient '{patient}' is in {other} as well; all eyes of a "
                        "patient must be in one split"
                    )
            for volume in sorted(volumes):
                other = place_of.setdefault(volume, path)
                if other != path:
                    raise PlanningError(
                        f"{place}: volume '{volume}' is in {other} as well; keep all patches of a "
                        "volume in one file"
                    )


def _ids(path: str, split: str, size: int) -> tuple[set[str], set[str]]:
    """Return the patients and volumes of a patch file.

    Raises PlanningError when it is none of `split` and `size`.
    """
    import h5py  # takes as long as a tenth of a plan, and few plans need it

    from preprocessing.errors import InputError
    from preprocessing.untrusted import check_self_contained, parsing

    place = f"config: existing_patches: {split}: {path}"
    if not Path(path).is_file():
        raise PlanningError(f"{place} does not exist; name a file of the stage patches")
    try:
        with parsing(path, "patch file"), h5py.File(path) as file:
            check_self_contained(file)
            patches, index = file["patches"], file["index"]
            n, *shape = patches.shape
            if patches.nbytes > Path(path).stat().st_size:
                raise ValueError(f"it is cut off: {n} patches are more than it holds")
            if len(index) != n:
                raise ValueError(f"{len(index)} rows for {n} patches")
            splits, patients, volumes = (
                {text.decode() for text in set(index[column].tolist())}
                for column in ("split", "patient", "volume")
            )
    except InputError as error:
        raise PlanningError(
            f"config: existing_patches: {split}: {error}; docs/starting.md says how to make one"
        ) from None
    if shape != [size, size]:
        raise PlanningError(
            f"{place} holds patches of {' x '.join(map(str, shape)) or 'no'} pixels, but patches: "
            f"size is {size}; set it so"
        )
    if splits != {split}:
        raise PlanningError(
            f"{place} holds patches of the split {', '.join(sorted(splits)) or 'none'}; "
            "name it there"
        )
    return patients, volumes
