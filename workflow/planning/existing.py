"""Patch files that were made elsewhere: each takes the place of the volumes of its split."""

from pathlib import Path

from planning.errors import PlanningError

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
    files: dict[str, list[str]], size: int, patients: dict[str, str], results: str
) -> None:
    """Refuse patch files that cannot stand for their split; PlanningError names file and remedy.

    `size` is what the config says of patches, `patients` the split of each patient of the sample
    sheet, `results` the folder that this run writes to.
    """
    split_of = {patient.lower(): split for patient, split in patients.items()}
    for split, paths in files.items():
        for path in paths:
            if Path(results).resolve() in Path(path).resolve().parents:
                raise PlanningError(
                    f"config: existing_patches: {split}: {path} lies in results_dir, where patches "
                    "are cut; copy it, or set another results_dir"
                )
            for patient in sorted(_patients(path, split, size)):
                other = split_of.setdefault(patient.lower(), split)
                if other != split:
                    raise PlanningError(
                        f"config: existing_patches: {split}: {path}: patient '{patient}' is in "
                        f"{other} as well; all eyes of a patient must be in one split"
                    )


def _patients(path: str, split: str, size: int) -> set[str]:
    """Return the patients of a patch file; PlanningError when it is none of `split` and `size`."""
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
            splits, patients = (
                {text.decode() for text in set(index[column].tolist())}
                for column in ("split", "patient")
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
    return patients
