"""Groups of regions that D sees alike."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from preprocessing.seeds import derive_seed

RANGE = (4, 8)  # how many clusters "auto" chooses from: fewer lump what is plainly different
TIE = 0.02  # of silhouettes; then more clusters, as a split one costs a look, a lumped one hides
PER_CLUSTER = 5  # regions, at least, on average
SAMPLED = 5000  # regions that the silhouette, which compares all pairs, is computed on


@dataclass(frozen=True)
class Clustering:
    """Clusters as found.

    Attributes
    ----------
    label : (n,) int, the cluster of each region, from 0.
    distance : (n,) float, of each region to the middle of its cluster.
    silhouettes : mean silhouette by number of clusters, empty where that was not chosen by it.
    """

    label: np.ndarray
    distance: np.ndarray
    silhouettes: dict[int, float]


def cluster(points: np.ndarray, fitted: np.ndarray, wanted: int | None, seed: int) -> Clustering:
    """Return the k-means clusters of `points` (n, d), the same for the same points and seed.

    They are fitted on the points that `fitted` (n,) marks; the others go to the nearest middle.
    None as `wanted` chooses the number within `RANGE` by the mean silhouette (Rousseeuw 1987), the
    largest of those near the highest; fewer than 20 points are one cluster. A number above that of
    different points is lowered.
    """
    own = points[fitted]
    different = len(np.unique(own, axis=0))
    if wanted is None:
        counts = [k for k in range(RANGE[0], RANGE[1] + 1) if k * PER_CLUSTER <= len(own)]
        counts = [k for k in counts if k < different] or [1]
    else:
        counts = [max(1, min(wanted, different))]
    if not len(own):
        return Clustering(np.zeros(0, int), np.zeros(0), {})
    middles = {k: _middles(own, k, seed) for k in counts}
    silhouettes = {}
    if len(counts) > 1:
        silhouettes = {k: _silhouette(own, _nearest(own, middles[k])[0], seed) for k in counts}
    highest = max(silhouettes.values(), default=0)
    best = max(k for k in counts if silhouettes.get(k, 0) >= highest - TIE)
    return Clustering(*_nearest(points, middles[best]), silhouettes)


def renumber(label: np.ndarray, order: pd.Index) -> np.ndarray:
    """Return labels (n,) counted from 1 in the order in which `order` lists them."""
    place = {old: new for new, old in enumerate(order, 1)}
    return np.array([place[old] for old in label], int)


def _middles(points: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Return the middles (k, d) of the k-means clusters of points (n, d)."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    state = derive_seed(seed, "clusters", k) % 2**32
    with threadpool_limits(1):  # sums of several threads differ from run to run
        return KMeans(k, n_init=10, random_state=state).fit(points).cluster_centers_


def _nearest(points: np.ndarray, middles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which of the middles (k, d) is nearest to each of points (n, d), and how far."""
    away = np.stack([np.linalg.norm(points - middle, axis=1) for middle in middles])
    return away.argmin(axis=0), away.min(axis=0)


def _silhouette(points: np.ndarray, label: np.ndarray, seed: int) -> float:
    from sklearn.metrics import silhouette_score

    rng = np.random.default_rng(derive_seed(seed, "silhouette"))
    some = np.sort(rng.permutation(len(points))[:SAMPLED])
    if len(np.unique(label[some])) < 2:
        return -1.0
    return float(silhouette_score(points[some], label[some]))
