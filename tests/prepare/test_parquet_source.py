import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pirl.errors import ConfigError
from pirl.prepare.scratch import Scratch
from pirl.prepare.sources.parquet_source import PARQUET
from pirl.prepare.sources.source import Columns, Found

SCRATCH = Scratch()


@pytest.fixture(autouse=True, scope="module")
def _close():
    with SCRATCH:
        yield


def open_files(files, image_column="image", label_column=None):
    return PARQUET.open(Found(None, files), Columns(image_column, label_column), SCRATCH, lambda *_: None)[0]


def images(source, rows):
    return [SCRATCH.read(span) for span in source.spans(np.array(rows, int))]


def image(row):
    return f"image {row} ".encode() * 5


def write(path, columns, metadata=None):
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, row_group_size=30)
    return str(path)


def two_files(folder):
    return [
        write(
            folder / f"{name}.parquet",
            {"image": [image(row) for row in rows], "label": [row % 4 for row in rows]},
        )
        for name, rows in (("a", range(700)), ("b", range(700, 1000)))
    ]


def test_images_come_in_the_order_that_is_asked_for(tmp_path):
    source = open_files(two_files(tmp_path))
    order = np.random.default_rng(0).permutation(1000)[:900]
    assert images(source, order) == [image(row) for row in order]
    assert images(source, []) == []


def test_two_sources_share_a_scratch_file(tmp_path):
    a, b = two_files(tmp_path)
    first, second = open_files([a]), open_files([b])
    assert images(first, [3, 699]) == [image(3), image(699)]
    assert images(second, [3, 299]) == [image(703), image(999)]


def test_rows_have_names(tmp_path):
    a, b = two_files(tmp_path)
    source = open_files([a, b])
    assert [source.name(row) for row in (0, 699, 700, 999)] == [
        f"{a} row 0",
        f"{a} row 699",
        f"{b} row 0",
        f"{b} row 299",
    ]
    assert source.uri == f"{a} and 1 more"


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"x", b"y", None], pa.binary()),
        pa.array([b"x", b"y", None], pa.large_binary()),
        pa.array([{"bytes": b"x", "path": "a"}, {"bytes": b"y", "path": None}, {"bytes": None, "path": "c"}]),
    ],
    ids=["binary", "large_binary", "huggingface"],
)
def test_columns_of_bytes(tmp_path, column):
    source = open_files([write(tmp_path / "x.parquet", {"pic": column})], "pic")
    assert images(source, [2, 0, 1]) == [b"", b"x", b"y"]


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (pa.array([1, 0, 3], pa.int16()), ["0", "1", "2", "3"], [1, 0, 3]),
        (pa.array([1, -1, None], pa.int64()), ["0", "1"], [1, -1, -1]),
        (pa.array([-1, -1, None], pa.int64()), None, [-1, -1, -1]),
        (pa.array(["cat", "ant", None]), ["ant", "cat"], [1, 0, -1]),
        (pa.array(["cat", "ant", "cat"]).dictionary_encode(), ["ant", "cat"], [1, 0, 1]),
    ],
)
def test_labels(tmp_path, labels, classes, numbers):
    path = write(tmp_path / "x.parquet", {"image": [b"x"] * 3, "label": labels})
    source = open_files([path])
    assert (source.classes, source.labels.tolist()) == (classes, numbers)


def test_names_of_classes_come_from_huggingface(tmp_path):
    about = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": ["ant", "cat"]}}}}
    metadata = {"huggingface": json.dumps(about)}
    path = write(tmp_path / "x.parquet", {"image": [b"x"] * 3, "label": [1, 1, 0]}, metadata)
    assert open_files([path]).classes == ["ant", "cat"]


@pytest.mark.parametrize("metadata", ["not json", "[]", '{"info": {"features": null}}'])
def test_what_else_stands_there_is_no_name(tmp_path, metadata):
    path = write(tmp_path / "x.parquet", {"image": [b"x"] * 2, "label": [1, 0]}, {"huggingface": metadata})
    assert open_files([path]).classes == ["0", "1"]


def test_without_a_label_column_there_are_no_labels(tmp_path):
    path = write(tmp_path / "x.parquet", {"image": [b"x"] * 3})
    source = open_files([path])
    assert (source.classes, source.labels.tolist()) == (None, [-1, -1, -1])


def test_files_may_differ_in_their_labels(tmp_path):
    labels = {"a": pa.array([1], pa.int64()), "b": pa.array([0], pa.int32()), "c": pa.nulls(1)}
    files = [write(tmp_path / f"{name}.parquet", {"image": [b"x"], "label": kind}) for name, kind in labels.items()]
    files.append(write(tmp_path / "d.parquet", {"image": [b"x"]}))
    source = open_files(files)
    assert (source.classes, source.labels.tolist()) == (["0", "1"], [1, 0, -1, -1])


def test_a_label_that_nobody_named_and_cannot_be_used_is_passed_over(tmp_path, capsys):
    path = write(tmp_path / "x.parquet", {"image": [b"x"], "label": [0.5]})
    source = open_files([path])
    assert (source.classes, source.labels.tolist()) == (None, [-1])
    assert f"{path}: its column 'label' is not used: the labels are double" in capsys.readouterr().err


def test_files_without_rows_are_refused(tmp_path):
    path = write(tmp_path / "x.parquet", {"image": pa.array([], pa.binary())})
    with pytest.raises(ConfigError, match=r"x\.parquet holds no images"):
        open_files([path])


@pytest.mark.parametrize(
    ("image_column", "label_column", "message"),
    [
        ("pic", None, "no column 'pic' of encoded images .*--image-column with one of image"),
        ("size", None, "its column 'size' is int64"),
        ("image", "kind", "no column 'kind': it has image, size, label"),
        ("image", "label", "the labels are double .*--label-column"),
    ],
)
def test_wrong_columns_are_refused(tmp_path, image_column, label_column, message):
    path = write(tmp_path / "x.parquet", {"image": [b"x"], "size": [1], "label": [0.5]})
    with pytest.raises(ConfigError, match=message):
        open_files([path], image_column, label_column)


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigError, match=r"x\.parquet cannot be read as Parquet"):
        open_files([str(tmp_path / "x.parquet")])
