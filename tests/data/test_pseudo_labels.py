"""Pseudo-labels as files: what was written, of the images that they are of, or an error that says what to type."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pirl.data.dataset import open_dataset
from pirl.data.pseudo_labels import PseudoLabels, read_pseudo_labels, write_pseudo_labels
from pirl.errors import ConfigError
from pirl.storage.folder import Folder


@pytest.fixture
def written(tmp_path):
    """Clusters of the digits by the remainder of their ids; the first image has none."""
    dataset = open_dataset("digits")
    labels = (np.arange(dataset.rows) % 3).astype(np.int32)
    labels[0] = -1
    sizes = np.bincount(labels[1:]).tolist()
    about = {"data_uri": "digits", "data_fingerprint": dataset.fingerprint, "images": dataset.rows, "sizes": sizes}
    found = PseudoLabels(labels, np.eye(3, dtype=np.float32), about)
    write_pseudo_labels(Folder(str(tmp_path)), found)
    return found


def test_clusters_take_the_place_of_labels(written, tmp_path):
    dataset = open_dataset("digits")
    read = read_pseudo_labels(Folder(str(tmp_path)), dataset)
    changed = read.applied_to(dataset)
    assert changed.labels == ["cluster 0", "cluster 1", "cluster 2"]
    assert changed.class_rows == written.about["sizes"]
    for number in (0, 7, len(dataset.starts) - 2):
        before, after = dataset.read_group(number), changed.read_group(number)
        assert after.labels.tolist() == [int(id) % 3 if id else -1 for id in before.ids]
        assert after.labels.dtype == before.labels.dtype
        assert list(after.images) == list(before.images)
    assert np.array_equal(read.centroids, written.centroids)
    assert changed.fingerprint == dataset.fingerprint


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "pseudo_labels.json").unlink(), "holds no pseudo-labels: python jobs/clusterfit.py RUN"),
        (lambda path: (path / "pseudo_labels.json").write_text("{"), "pseudo_labels.json is damaged: remove"),
        (lambda path: (path / "pseudo_labels.safetensors").unlink(), "is not the file that was written: remove"),
        (lambda path: flip(path / "pseudo_labels.safetensors"), "is not the file that was written: remove"),
    ],
)
def test_what_is_gone_or_damaged_is_said(written, tmp_path, damage, message):
    damage(tmp_path)
    with pytest.raises(ConfigError, match=message):
        read_pseudo_labels(Folder(str(tmp_path)), open_dataset("digits"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def test_those_of_other_images_are_refused(written, tmp_path):
    other = replace(open_dataset("digits"), fingerprint=5)
    with pytest.raises(ConfigError, match=r"are of other images, 1,438 of digits, than those of .*: type --data.uri"):
        read_pseudo_labels(Folder(str(tmp_path)), other)
