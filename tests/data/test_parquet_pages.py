import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pirl.data.parquet_pages import images_of
from pirl.data.writer import LAYOUT, SCHEMA

IMAGES = [bytes([number]) * (number * 1000 % 977) for number in range(64)]
"""Of many lengths, none at all among them."""


def written(images=IMAGES, **changes):
    """A row group as a Parquet file, by the layout of shards or another."""
    table = pa.table([range(len(images)), images, [1] * len(images), [2] * len(images)], schema=SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **(LAYOUT | changes))
    return sink.getvalue().to_pybytes()


def read(span):
    return images_of(span, pq.ParquetFile(pa.BufferReader(span)))


@pytest.mark.parametrize("images", [IMAGES, IMAGES[-1:], [b""] * 3, [b"x" * 300_000] * 2])
def test_images_are_views_into_the_row_group(images):
    span = written(images)
    found = read(span)
    assert found == images
    assert all(image.obj is span for image in found)


@pytest.mark.parametrize(
    "changes",
    [
        {"compression": "snappy"},
        {"use_dictionary": True},
        {"data_page_size": 1000, "write_batch_size": 4},
        {"data_page_version": "2.0"},
        {"column_encoding": {"image": "DELTA_LENGTH_BYTE_ARRAY"}},
        {"column_encoding": {"image": "DELTA_BYTE_ARRAY"}},
    ],
    ids=str,
)
def test_another_layout_is_left_to_arrow(changes):
    found = read(written(**changes))
    assert found == IMAGES
    assert all(isinstance(image, bytes) for image in found)


def test_so_are_rows_without_an_image():
    images = [*IMAGES[:5], None, *IMAGES[5:]]
    assert read(written(images)) == images


def test_statistics_and_checksums_of_pages_change_nothing():
    found = read(written(write_statistics=True, write_page_checksum=True))
    assert found == IMAGES
    assert all(isinstance(image, memoryview) for image in found)
