"""The tables of the stage: a row per region, and a row per cluster with what was measured in it."""

import numpy as np
import pandas as pd

from anogan.discovery.frequency import Frequency, compare

EYES = {1: "diseased", 0: "healthy", -1: "unknown"}
REGION_COLUMNS = (
    *("region", "cluster", "fitted", "volume", "patient", "eye", "eye_label", "split"),
    *("bscan", "z", "x", "z0", "z1", "x0", "x1", "vendor_bscan", "vendor_x"),
    *("flat_z", "flat_x", "flat_z0", "flat_z1", "flat_x0", "flat_x1"),
    *("width_um", "height_um", "area_um2", "depth", "above_bm_um"),
    *("gray_inside", "gray_outside", "excess", "distance"),
)
MEASURED = ("width_um", "height_um", "depth", "above_bm_um")  # median and quartiles of each
CLUSTER_COLUMNS = (
    *("cluster", "regions", "volumes", "patients", "diseased", "healthy", "unknown"),
    *(f"{name}{end}" for name in MEASURED for end in ("", "_q1", "_q3")),
    *("gray_inside", "gray_outside"),
    *("per_10mm_diseased", "per_10mm_healthy", "ratio", "ratio_low", "ratio_high", "why_not"),
    "description",
)
CONTRAST = 0.1  # of gray values from -1 to 1: below, a cluster is as bright as its surroundings
NEAR_BM_UM = 60  # photoreceptors and RPE
INNER = 0.5  # of the way from ILM to Bruch's membrane


def cluster_table(
    regions: pd.DataFrame, volumes: pd.DataFrame, replicates: int, seed: int
) -> pd.DataFrame:
    """Return a row per cluster of `regions`, whose `cluster` is any number, first the one that is
    most surely more frequent in diseased eyes (`Frequency.order`), of equal ones the largest.

    `volumes` are those that `compare` takes. The columns are `CLUSTER_COLUMNS`; `cluster` keeps the
    numbers of `regions`.
    """
    rows = []
    for number, own in regions.groupby("cluster"):
        frequency = compare(own["volume"].value_counts(), volumes, replicates, seed)
        measured = {"cluster": number, **_counts(own), **_medians(own), **_columns(frequency)}
        rows.append({**measured, "description": describe(measured)})
    rows.sort(key=lambda row: (-np.nan_to_num(row["order"]), -row["regions"], row["cluster"]))
    return pd.DataFrame(rows, columns=list(CLUSTER_COLUMNS))


def describe(row: dict) -> str:
    """Return what was measured in a cluster, a row of `cluster_table`, in plain words."""
    contrast = row["gray_inside"] - row["gray_outside"]
    gray = "About as bright as"
    if abs(contrast) >= CONTRAST:
        gray = "Brighter than" if contrast > 0 else "Darker than"
    place = "in the outer half of the retina"
    if row["above_bm_um"] <= NEAR_BM_UM:
        place = "next to Bruch's membrane"
    elif row["depth"] < INNER:
        place = "in the inner half of the retina"
    size = f"about {row['width_um']:.0f} um wide and {row['height_um']:.0f} um high"
    return f"{gray} what surrounds them, {place}, {size}"


def _counts(own: pd.DataFrame) -> dict[str, int]:
    sides = own["eye_label"].value_counts()
    return {
        "regions": len(own),
        "volumes": own["volume"].nunique(),
        "patients": own["patient"].nunique(),
        **{name: int(sides.get(name, 0)) for name in EYES.values()},
    }


def _medians(own: pd.DataFrame) -> dict[str, float]:
    found = {}
    for name in MEASURED:
        quartiles = np.quantile(own[name], [0.5, 0.25, 0.75])
        found |= dict(zip((name, f"{name}_q1", f"{name}_q3"), quartiles, strict=True))
    return found | {name: own[name].median() for name in ("gray_inside", "gray_outside")}


def _columns(frequency: Frequency) -> dict[str, float | str]:
    return {
        "per_10mm_diseased": frequency.diseased,
        "per_10mm_healthy": frequency.healthy,
        "ratio": frequency.ratio,
        "ratio_low": frequency.low,
        "ratio_high": frequency.high,
        "why_not": frequency.why_not,
        "order": frequency.order,
    }


def tsv(table: pd.DataFrame) -> str:
    """Return a table as text: numbers to five digits, `n.a.` where there is none."""
    return table.to_csv(sep="\t", index=False, float_format="%.5g", na_rep="n.a.")
