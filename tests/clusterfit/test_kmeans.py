"""k-means beside scikit-learn's and a plain reference, from the pixels of real digits."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as Reference
from sklearn.datasets import load_digits

from pirl.clusterfit.from_features import classifier_of, temperature
from pirl.clusterfit.kmeans import KMeans, kmeans
from pirl.data.pseudo_labels import PseudoLabels
from pirl.errors import ConfigError


@pytest.fixture(scope="module")
def rows():
    pixels = load_digits().data.astype(np.float32)[:1000]
    return pixels / np.linalg.norm(pixels, axis=1, keepdims=True)


def squared_distances(rows, centroids):
    return ((rows[:, None].astype(np.float64) - centroids[None]) ** 2).sum(-1)


@pytest.mark.parametrize("clusters", [10, 50])
def test_the_inertia_is_that_of_scikit_learn(rows, clusters):
    """Within 1 %, and not only as good as any."""
    found = kmeans(rows, KMeans(clusters=clusters), seed=0)
    expected = Reference(clusters, n_init=3, random_state=0).fit(rows).inertia_
    assert found.inertia == pytest.approx(expected, rel=0.01)
    assert Reference(clusters, n_init=1, init="random", max_iter=1, random_state=0).fit(rows).inertia_ > 1.02 * expected


def test_labels_are_the_nearest_centroids_and_those_are_means(rows):
    found = kmeans(rows, KMeans(clusters=20, iterations=200), seed=3)
    distances = squared_distances(rows, found.centroids)
    assert found.labels.tolist() == distances.argmin(1).tolist()
    assert found.inertia == pytest.approx(distances.min(1).sum(), rel=1e-4)  # faiss: |x|² - 2 x·c + |c|² in float32
    assert found.iterations < 200, "it ends where nothing changes"
    for number, size in enumerate(found.sizes):
        members = rows[found.labels == number]
        assert len(members) == size
        np.testing.assert_allclose(found.centroids[number], members.mean(0), atol=1e-5)


def test_it_is_a_function_of_the_seed_and_not_of_the_number_of_threads(rows):
    import faiss

    settings, threads = KMeans(clusters=30, redo=2), faiss.omp_get_max_threads()
    try:
        results = []
        for seed, count in ((5, 1), (5, 2), (6, 1)):
            faiss.omp_set_num_threads(count)
            results.append(kmeans(rows, settings, seed).centroids)
    finally:
        faiss.omp_set_num_threads(threads)
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_more_starts_are_never_worse(rows):
    inertias = [kmeans(rows, KMeans(clusters=30, redo=redo), seed=1).inertia for redo in (1, 4)]
    assert inertias[1] <= inertias[0]


def test_a_part_of_the_rows_is_looked_at_and_all_are_assigned(rows):
    said = []
    found = kmeans(rows, KMeans(clusters=10, max_points_per_centroid=20), 0, said.append)
    assert sum(found.sizes) == len(found.labels) == 1000
    assert found.labels.tolist() == squared_distances(rows, found.centroids).argmin(1).tolist()
    assert said[0] == "k-means of 1,000 x 64 features, 0.4 MB, into 10 clusters"  # 1,400 rows of 256 bytes


def test_spherical_centroids_have_length_1(rows):
    plain, spherical = (kmeans(rows, KMeans(clusters=10, spherical=on), seed=0).centroids for on in (False, True))
    np.testing.assert_allclose(np.linalg.norm(spherical, axis=1), 1, atol=1e-5)
    assert np.linalg.norm(plain, axis=1).max() < 0.999


def test_clusters_without_rows_are_left_out_and_that_is_said(rows):
    few, said = np.repeat(rows[:5], 20, axis=0), []
    found = kmeans(few, KMeans(clusters=8), 0, said.append)
    assert found.sizes == [20] * 5
    assert len({tuple(found.labels[start : start + 20]) for start in range(0, 100, 20)}) == 5
    assert said[-1] == "3 of 8 clusters are empty, and left out"


@pytest.mark.parametrize(
    ("some", "clusters", "message"),
    [
        (slice(0, 9), 10, "--clusters 10 is more than the 9 images"),
        (np.zeros(50, int), 10, "all features are the same, which tells no images apart"),
        (slice(0, 50), 1, "one cluster, which tells no images apart"),
    ],
)
def test_what_cannot_be_clustered_is_refused(rows, some, clusters, message):
    with pytest.raises(ConfigError, match=message):
        kmeans(np.ascontiguousarray(rows[some]), KMeans(clusters=clusters), seed=0)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_the_classifier_of_clusters_is_half_sure_on_whatever_scale_distances_are(rows, scale):
    near = rows[0] + scale * (rows - rows[0])
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    found = kmeans(near, KMeans(clusters=10), seed=0)
    heat = temperature(near, found.centroids)
    classifier = classifier_of(PseudoLabels(found.labels, found.centroids, {"temperature": heat}), "res5")
    scores = torch.from_numpy(near).double() @ classifier.weight.double().T + classifier.bias.double()
    reference = torch.from_numpy(-squared_distances(near, found.centroids) / heat).softmax(1)
    torch.testing.assert_close(scores.softmax(1), reference, atol=0.02, rtol=0)  # float32 scores of up to 1e4
    assert float(reference.amax(1).mean()) == pytest.approx((1 + 1 / 10) / 2, abs=0.01)
