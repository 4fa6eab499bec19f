"""The pixel level: map files of any methods -> what their maps say of the annotated pixels."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from anogan.evidence.measures import Measured, bootstrap_seed, cautions_on, smaller_group
from anogan.evidence.pixels import (
    Tally,
    choose_threshold,
    join,
    label_regions,
    pixel_metrics,
    pixel_truth,
    tally,
)
from anogan.evidence.score_tables import order_methods
from anogan.evidence.statistics import OperatingPoint, draw_patients, patient_strata
from anogan.maps.file import open_maps
from preprocessing.errors import InputError

SUBSET = "test"
MAPS = {"residual": "{}_residual", "score": "{}"}  # of a method's name, what its maps are called


@dataclass
class Tallies:
    """The tallies of a map over all volumes of a split, and the patient of each."""

    patient: list[str] = field(default_factory=list)
    tally: list[Tally] = field(default_factory=list)

    def anomalous_patients(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (patients (p,), sorted; True for those with an anomalous pixel (p,))."""
        label = np.array([one.n_anomalous > 0 for one in self.tally])
        return patient_strata(np.array(self.patient), label)


def measure_pixels(
    paths: Iterable[str | Path], specificity: float, replicates: int, seed: int
) -> tuple[Measured, dict[str, OperatingPoint]]:
    """Return (metrics of every map on the test volumes, its operating point by name).

    Maps are named by `MAPS`. In memory are one volume at a time and the tallies of one method.
    Raises InputError when methods have maps of different volumes.
    """
    points, values, repeated, cautions = {}, {}, {}, []
    reference = None
    for method, files in _by_method(paths).items():
        for name, splits in _tallies(method, files).items():
            points[name] = choose_threshold(splits["validation"].tally, specificity)
            test = splits["test"]
            if not test.tally:
                continue
            reference = reference or (name, test)
            cautions += _compare(name, test, *reference)
            threshold = points[name].threshold
            values[name], repeated[name] = _measure(test, threshold, replicates, seed)
    if reference is None:
        caution = "no pixel carries a label, nothing is measured"
        return Measured("pixel", SUBSET, cautions=[caution]), points
    first = values[reference[0]]
    anomalous = reference[1].anomalous_patients()[1]
    cautions += cautions_on(first["n"], first["n_anomalous"], anomalous)
    n_group = smaller_group(anomalous)
    return Measured("pixel", SUBSET, values, repeated, n_group, cautions), points


def _by_method(paths: Iterable[str | Path]) -> dict[str, dict[str, str | Path]]:
    """Return the file of each volume by method; InputError unless all have the same volumes."""
    found = {}
    for path in paths:
        with open_maps(path) as file:
            files = found.setdefault(file.method, {})
            twice = sorted(set(files) & set(file.volumes))
            if twice:
                raise InputError(
                    f"{path}: {twice[0]} of {file.method} is also in {files[twice[0]]}; give each "
                    "map file once"
                )
            files.update(dict.fromkeys(file.volumes, path))
    first, *others = methods = order_methods(found)
    for method in others:
        different = sorted(set(found[first]) ^ set(found[method]))
        if different:
            raise InputError(
                f"{different[0]}: {first} and {method} do not both have maps of it; give the map "
                "files of the same volumes for every method"
            )
    return {method: dict(sorted(found[method].items())) for method in methods}


def _tallies(method: str, files: dict[str, str | Path]) -> dict[str, dict[str, Tallies]]:
    """Return the tallies of a method's maps by name and split; those without label give none."""
    found = {}
    for volume, path in files.items():
        with open_maps(path) as file:
            if file.facts(volume)["split"] not in ("validation", "test"):
                continue
            maps = file[volume]
        truth = pixel_truth(maps)
        region = label_regions(truth)
        for kind, name in MAPS.items():
            values = getattr(maps, kind)
            if values is None:
                continue
            of_map = found.setdefault(
                name.format(method), {"validation": Tallies(), "test": Tallies()}
            )
            one = tally(values, truth, region)
            if one.n:
                of_map[maps.split].patient.append(maps.patient)
                of_map[maps.split].tally.append(one)
    return found


def _compare(name: str, test: Tallies, first_name: str, first: Tallies) -> list[str]:
    """Return a caution where a map covers other pixels than the first.

    Raises InputError where these are of other patients.
    """
    pairs = zip(test.anomalous_patients(), first.anomalous_patients(), strict=True)
    if not all(np.array_equal(here, there) for here, there in pairs):
        raise InputError(
            f"{name}: its maps cover pixels of other patients than those of {first_name}; make the "
            "maps of all methods with the same stride and quality tables, by models that work"
        )
    n, expected = (sum(one.n for one in tallies.tally) for tallies in (test, first))
    if n == expected:
        return []
    return [
        f"{name} covers {n} labelled pixels and {first_name} {expected}, so they are not quite "
        "comparable"
    ]


def _measure(
    test: Tallies, threshold: float, replicates: int, seed: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return (metrics of a map, the same in every replicate, where there can be any)."""
    values, counts = join(test.tally)
    everything = pixel_metrics(values, counts, threshold, np.ones((1, len(test.tally))))
    patients, anomalous = test.anomalous_patients()
    metrics = {
        "n": sum(one.n for one in test.tally),
        "n_anomalous": sum(one.n_anomalous for one in test.tally),
        "n_regions": round(counts[2].sum()),
        "n_patients": len(patients),
        **{metric: float(value[0]) for metric, value in everything.items()},
        "threshold": threshold,
    }
    if smaller_group(anomalous) < 2:
        return metrics, {}
    draws = draw_patients(anomalous, replicates, bootstrap_seed(seed, SUBSET))
    drawn = draws[:, np.searchsorted(patients, test.patient)]
    return metrics, pixel_metrics(values, counts, threshold, drawn)
