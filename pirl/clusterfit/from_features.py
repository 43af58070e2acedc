"""Targets of a network's features: pseudo-labels, and a classifier for a network that has none."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pirl.clusterfit.feature_rows import unit_rows
from pirl.clusterfit.kmeans import KMeans, kmeans
from pirl.config import Config
from pirl.data.pseudo_labels import PseudoLabels
from pirl.errors import ConfigError
from pirl.methods.distill import LinearClassifier
from pirl.runs.checkpoint import load_classifier
from pirl.runs.weights import Weights
from pirl.storage.folder import Folder

JUDGED = 4096
"""Rows of which the temperature of the softmax over clusters is found; the images of a data set lie in random order."""


def pseudo_labels_of(
    features: Folder, settings: KMeans, seed: int, about: Mapping[str, Any], say: Callable[[str], None]
) -> PseudoLabels:
    """Clusters the features of an embedding; images without features get no label.

    Args:
        about: What else is written down of them.

    Raises:
        ConfigError: As `kmeans`.
    """
    rows, usable = unit_rows(features)
    found = kmeans(rows if usable.all() else rows[usable], settings, seed, say)
    labels = np.full(len(usable), -1, np.int32)
    labels[usable] = found.labels
    sizes = found.sizes
    say(f"clusters of {min(sizes):,} to {max(sizes):,} images, inertia {found.inertia:.6g}")
    result = {"sizes": sizes, "inertia": found.inertia, "iterations_made": found.iterations}
    result["temperature"] = temperature(rows[usable][:JUDGED], found.centroids)
    versions = {name: version(name) for name in ("faiss-cpu", "numpy")}
    return PseudoLabels(labels, found.centroids, {**about, **result, "versions": versions})


def has_classifier(config: Config | None) -> bool:
    """Whether a network of such a run says a class of an image as it is; a covariant one says what was done to it."""
    return config is not None and config.method.name in ("supervised", "clusterfit", "distillation")


def own_classifier(weights: Weights) -> LinearClassifier:
    """That with which a network was trained; raises ConfigError where it has none of images."""
    if weights.checkpoint is None or not has_classifier(weights.config):
        raise ConfigError(f"{weights.uri} has no classifier of images")
    return LinearClassifier(*load_classifier(weights.checkpoint))


def classifier_of(found: PseudoLabels, tap: str) -> LinearClassifier:
    """Scores -d² / T, of distances d of a unit row x to the centroids and their `temperature` T; less what all share.

    With m the mean of the centroids and c one of them less m, d² is |x - m|² - 2 (x - m)·c + |c|², of which the first
    term is shared: the others are linear in x, and small where all centroids are near each other.
    """
    rows, scale = torch.from_numpy(found.centroids).double(), float(found.about["temperature"])
    mean = rows.mean(dim=0)
    apart = rows - mean
    bias = -(2 * apart @ mean + apart.square().sum(dim=1)) / scale
    return LinearClassifier((2 * apart / scale).float(), bias.float(), tap, unit=True)


def temperature(rows: NDArray[np.float32], centroids: NDArray[np.float32]) -> float:
    """T with which the softmax of -d² / T is half-way between knowing nothing and being sure.

    The largest probability of a row is 1 / k for the one and 1 for the other; its mean over the rows is the middle of
    both. So it does not matter on which scale distances are, which is another one for each network and tap.
    """
    scores = -torch.cdist(torch.from_numpy(rows).double(), torch.from_numpy(centroids).double()).square()
    scores -= scores.amax(dim=1, keepdim=True)
    low, high = 1e-9, 1e3  # of unit rows no distance is larger than 2
    for _ in range(60):
        middle = (low * high) ** 0.5
        certain = float((scores / middle).softmax(dim=1).amax(dim=1).mean())
        low, high = (middle, high) if certain > (1 + 1 / len(centroids)) / 2 else (low, middle)
    return low
