"""k-means by faiss, an iteration at a time, to be watched; a function of the rows, the settings and the seed.

Shapes: N rows of D values, k clusters.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pirl.errors import ConfigError
from pirl.evaluate.countdown import Countdown
from pirl.sections import Count, Section

UnitRows = NDArray[np.float32]

FIRST = 20
"""Rows for each cluster, of which the first centroids are chosen: k-means++ takes longer the more there are."""

SAME = 1e-6
"""Of values of unit rows that differ by less, nothing but rounding is seen."""


class KMeans(Section):
    """How clusters are sought: as the official code does, with faiss's own choices beside."""

    clusters: Count
    iterations: Count = 50
    """Fewer where an iteration changes nothing."""
    redo: Count = 3
    """Starts from other rows; the clusters with the smallest inertia are kept. The official code starts once."""
    max_points_per_centroid: Count = 256
    """Rows that a start looks at, for each cluster: of more, as many are drawn. All are assigned at the end."""
    spherical: bool = False
    """Whether centroids have length 1, too."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """What k-means found.

    Attributes:
        centroids: float32 (k', D): those of the k that have rows.
        labels: int32 (N,), the nearest of them.
        inertia: Sum of the squared distances to it.
        iterations: How many were made, from the start that was kept.
    """

    centroids: UnitRows
    labels: NDArray[np.int32]
    inertia: float
    iterations: int

    @property
    def sizes(self) -> list[int]:
        """Rows of each cluster."""
        return [int(size) for size in np.bincount(self.labels, minlength=len(self.centroids))]


def kmeans(rows: UnitRows, settings: KMeans, seed: int, say: Callable[[str], None] = lambda line: None) -> Clusters:
    """Clusters rows of length 1.

    A cluster that loses its rows takes some of a large one (faiss). One that is empty in the end, as where there are
    fewer different rows than clusters, is left out, which is said.

    The first centroids are chosen by k-means++ of scikit-learn: far from each other. The official code takes any rows,
    with which the inertia is up to 3 % higher.

    Memory: the rows, 4·N·D bytes; once more what is drawn of them to choose from, and to look at, if not all are; and
    the centroids.

    Raises:
        ConfigError: There are fewer rows than clusters, or all rows are the same.
    """
    number, width = rows.shape
    if settings.clusters > number:
        raise ConfigError(f"--clusters {settings.clusters} is more than the {number:,} images: use fewer")
    if settings.clusters < 2 or np.ptp(rows, axis=0).max() < SAME:
        what = "one cluster" if settings.clusters < 2 else "all features are the same"
        raise ConfigError(f"{what}, which tells no images apart: use 2 clusters or more of a network that has learned")
    drawn = settings.clusters * settings.max_points_per_centroid
    held = 4 * width * (number + min(FIRST * settings.clusters, number) + (drawn if drawn < number else 0))
    say(f"k-means of {number:,} x {width:,} features, {held / 1e6:,.1f} MB, into {settings.clusters:,} clusters")
    import faiss  # noqa: F401 - before the clock runs: it takes a second, and who does not cluster needs none of it

    progress = Countdown(say, "k-means", settings.iterations * settings.redo, "iterations")
    found = [_from_start(rows, settings, seed + start * 2**16, progress) for start in range(settings.redo)]
    best = min(found, key=lambda clusters: clusters.inertia)
    if empty := settings.clusters - len(best.centroids):
        say(f"{empty:,} of {settings.clusters:,} clusters are empty, and left out")
    return best


def _from_start(rows: UnitRows, settings: KMeans, seed: int, progress: Countdown) -> Clusters:
    import faiss
    from sklearn.cluster import kmeans_plusplus

    draws = np.random.default_rng(seed)
    some = draws.permutation(len(rows))[: FIRST * settings.clusters]
    chosen, _ = kmeans_plusplus(rows[some], settings.clusters, random_state=int(draws.integers(2**31)))
    centroids: UnitRows = np.asarray(chosen, np.float32)
    for done in range(1, settings.iterations + 1):
        step = faiss.Kmeans(
            rows.shape[1],
            settings.clusters,
            niter=1,
            seed=seed % 2**31,
            spherical=settings.spherical,
            min_points_per_centroid=1,  # it warns below
            max_points_per_centroid=settings.max_points_per_centroid,
        )
        step.train(rows, init_centroids=centroids)
        before, centroids = centroids, np.asarray(step.centroids, np.float32)
        progress.add(1)
        if np.array_equal(before, centroids):
            progress.add(settings.iterations - done)
            break
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(centroids)
    distances, nearest = index.search(rows, 1)
    used, labels = np.unique(nearest, return_inverse=True)
    return Clusters(centroids[used], labels.ravel().astype(np.int32), float(distances.sum(dtype=np.float64)), done)
