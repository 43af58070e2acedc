import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pirl.config import ConfigError
from pirl.parquet_source import parquet_source


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


@pytest.mark.parametrize("bucket_bytes", [2**29, 5000, 100])
def test_images_come_in_the_order_that_is_asked_for(tmp_path, bucket_bytes):
    # One bucket, a few, and hundreds of a handful of rows: each must give the same.
    source = replace(parquet_source(two_files(tmp_path), "image", None), bucket_bytes=bucket_bytes)
    order = np.random.default_rng(0).permutation(1000)[:900]
    assert list(source.images(order)) == [(row, image(row)) for row in order]


def test_no_rows_are_no_images(tmp_path):
    source = parquet_source(two_files(tmp_path), "image", None)
    assert list(source.images(np.arange(0))) == []


def test_rows_have_names(tmp_path):
    a, b = two_files(tmp_path)
    source = parquet_source([a, b], "image", None)
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
    source = parquet_source([write(tmp_path / "x.parquet", {"pic": column})], "pic", None)
    assert list(source.images(np.array([2, 0, 1]))) == [(2, None), (0, b"x"), (1, b"y")]


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
    source = parquet_source([path], "image", None)
    assert (source.classes, source.labels.tolist()) == (classes, numbers)


def test_names_of_classes_come_from_huggingface(tmp_path):
    about = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": ["ant", "cat"]}}}}
    metadata = {"huggingface": json.dumps(about)}
    path = write(tmp_path / "x.parquet", {"image": [b"x"] * 3, "label": [1, 1, 0]}, metadata)
    assert parquet_source([path], "image", None).classes == ["ant", "cat"]


def test_without_a_label_column_there_are_no_labels(tmp_path):
    path = write(tmp_path / "x.parquet", {"image": [b"x"] * 3})
    source = parquet_source([path], "image", None)
    assert (source.classes, source.labels.tolist()) == (None, [-1, -1, -1])


@pytest.mark.parametrize(
    ("image_column", "label_column", "message"),
    [
        ("pic", None, "no column 'pic' of encoded images .*--image-column with one of image"),
        ("size", None, "its column 'size' is int64"),
        ("image", "kind", "no column 'kind': it has image, size, label"),
        ("image", "label", "the labels are double: .*--label-column"),
    ],
)
def test_wrong_columns_are_refused(tmp_path, image_column, label_column, message):
    path = write(tmp_path / "x.parquet", {"image": [b"x"], "size": [1], "label": [0.5]})
    with pytest.raises(ConfigError, match=message):
        parquet_source([path], image_column, label_column)


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigError, match=r"x\.parquet cannot be read as Parquet"):
        parquet_source([str(tmp_path / "x.parquet")], "image", None)
