import pyarrow as pa
import pytest

from pirl.config import ConfigError
from pirl.labels import below, first_folders, number_labels, number_names, split_folders


def column(*names):
    return pa.array(names, pa.large_string())


def test_names_are_numbered_in_alphabetical_order():
    classes, labels = number_names(column("b", None, "a", "b"))
    assert (classes, labels.tolist()) == (["a", "b"], [1, -1, 0, 1])
    classes, labels = number_names(column(None, None))
    assert (classes, labels.tolist()) == (None, [-1, -1])


def test_numbers_stay_as_they_are():
    classes, labels = number_labels(pa.chunked_array([[2, None], [-5, 0]]))
    assert (classes, labels.tolist()) == (["0", "1", "2"], [2, -1, -1, 0])
    assert number_labels(pa.chunked_array([[1, 0]]), ["ant", "bee"])[0] == ["ant", "bee"]
    # Names that do not reach the largest number are of something else.
    assert number_labels(pa.chunked_array([[1, 2]]), ["ant", "bee"])[0] == ["0", "1", "2"]


def test_other_labels_are_refused():
    with pytest.raises(ConfigError, match="the labels are double"):
        number_labels(pa.chunked_array([[0.5]]))


def test_folders():
    names = column("a/b/1.png", "2.png", "c/3.png")
    assert first_folders(names).to_pylist() == ["a", None, "c"]
    rows, rest = below(names, "a")
    assert (rows.tolist(), rest.to_pylist()) == ([0], ["b/1.png"])
    assert first_folders(column()).to_pylist() == []


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (["train/a.png", "val/a.png"], ("train", "val")),
        (["train/a.png"], ("train", None)),
        (["train/a.png", "car/a.png"], (None, None)),
        (["a.png"], (None, None)),
    ],
)
def test_splits(names, split):
    assert split_folders(column(*names)) == split
