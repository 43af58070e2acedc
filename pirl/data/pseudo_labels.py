"""Pseudo-labels: a cluster for each image of a data set, in a folder of their own on any disk or store."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from pirl.data.dataset import Dataset
from pirl.data.described import described, description, write_described
from pirl.errors import ConfigError
from pirl.storage.folder import Folder

NAME = "pseudo_labels"
"""Of its two files."""

MAKE = "python jobs/clusterfit.py RUN --clusters 50 makes them, and trains"


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """Clusters of the images of a data set.

    Attributes:
        labels: int32 (N,), from 0 on; -1 where an image has none.
        centroids: float32 (k, D), of which each has one image or more.
        about: How they were made; with `data_uri`, `data_fingerprint`, `images` and the `sizes` of the clusters.
    """

    labels: NDArray[np.int32]
    centroids: NDArray[np.float32]
    about: Mapping[str, Any]

    def applied_to(self, dataset: Dataset) -> Dataset:
        """The same images, with clusters in place of their labels."""
        names = [f"cluster {number}" for number in range(len(self.centroids))]
        return replace(dataset, assigned=self.labels, labels=names, class_rows=list(self.about["sizes"]))


def write_pseudo_labels(folder: Folder, found: PseudoLabels) -> None:
    """Writes them; what was half written before is replaced."""
    data = safetensors.numpy.save({"labels": found.labels, "centroids": found.centroids})
    write_described(folder, NAME, data, found.about)


def read_pseudo_labels(folder: Folder, dataset: Dataset) -> PseudoLabels:
    """Those of a folder, which are to be of these images.

    Raises:
        ConfigError: There are none, they are damaged, or of another data set.
        StorageError: The store did not give them.
    """
    about = description(folder, NAME)
    if about is None:
        raise ConfigError(f"data.pseudo_labels {folder} holds no pseudo-labels: {MAKE}")
    if about["data_fingerprint"] != dataset.fingerprint:
        raise ConfigError(
            f"data.pseudo_labels {folder} are of other images, {about['images']:,} of {about['data_uri']}, than those "
            f"of {dataset.uri}: type --data.uri {about['data_uri']}, or make others: {MAKE}"
        )
    tensors = safetensors.numpy.load(described(folder, NAME, about["sha256"]))
    return PseudoLabels(tensors["labels"], tensors["centroids"], about)
