import pyarrow as pa
import pytest

from pirl.errors import ConfigError
from pirl.prepare.labels import number_labels, number_names


def column(*names):
    return pa.array(names, pa.large_string())


def test_names_are_numbered_in_alphabetical_order():
    classes, labels = number_names(column("b", None, "a", "b"))
    assert (classes, labels.tolist()) == (["a", "b"], [1, -1, 0, 1])
    classes, labels = number_names(column(None, None))
    assert (classes, labels.tolist()) == (None, [-1, -1])


def columns(*files):
    return [pa.chunked_array([values if isinstance(values, pa.Array) else pa.array(values)]) for values in files]


def test_numbers_stay_as_they_are():
    classes, labels = number_labels(columns([2, None], [-5, 0]))
    assert (classes, labels.tolist()) == (["0", "1", "2"], [2, -1, -1, 0])
    assert number_labels(columns([1, 0]), ["ant", "bee"])[0] == ["ant", "bee"]
    # Names that do not reach the largest number are of something else.
    assert number_labels(columns([1, 2]), ["ant", "bee"])[0] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("files", "classes", "expected"),
    [
        ([pa.array([1], pa.int64()), pa.array([0], pa.int32()), pa.array([2], pa.uint8())], "012", [1, 0, 2]),
        ([[1], [None]], "01", [1, -1]),
        (
            [["b"], [None], pa.array(["a"], pa.large_string()), pa.array(["c"]).dictionary_encode()],
            "abc",
            [1, -1, 0, 2],
        ),
        # What pandas makes of whole numbers where some are missing.
        ([[1.0, float("nan"), None], [float("nan")]], "01", [1, -1, -1, -1]),
        ([[None]], "", [-1]),
        ([[100_000]], map(str, range(100_001)), [100_000]),
    ],
    ids=["of other widths", "one without", "words", "floats", "none", "a class of many"],
)
def test_files_may_have_labels_of_other_types(files, classes, expected):
    found, labels = number_labels(columns(*files))
    assert (found or [], labels.tolist()) == (list(classes), expected)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([[0.5]], "the labels are double .*--label-column"),
        ([[float("inf")]], "the labels are double"),
        ([pa.array([2**64 - 1], pa.uint64())], "the labels are uint64"),
        ([[[1]]], "the labels are list"),
        ([[1], ["a"]], "the labels are int64 in one file and large_string in another"),
        # They would be the numbers of as many classes, each with a name, in each shard.
        ([range(5), [3_000_000]], "label 3,000,000 .* 6 images"),
        ([[9 * 10**11]], "label 900,000,000,000 "),
    ],
)
def test_other_labels_are_refused(files, message):
    with pytest.raises(ConfigError, match=message):
        number_labels(columns(*files))


def test_an_empty_word_is_no_label_and_accents_are_one_however_they_are_written():
    words = pa.chunked_array([["caf\u00e9", "", "cafe\u0301", " ", "a"]])
    classes, numbers = number_labels([words])
    assert classes == ["a", "caf\u00e9"]
    assert numbers.tolist() == [1, -1, 1, -1, 0]
