"""Finds the images in a row group without a copy of any: Parquet's readers copy each value twice.

Knows what `pirl.shard_writer` writes, values as they are in one page for each column; anything else is left to Arrow.
"""

import struct
from collections.abc import Sequence

import pyarrow.parquet as pq

Bytes = bytes | memoryview

_I32 = 0x15
"""Thrift's compact protocol: the next field, a number of 32 bits. A page's header begins with three: its kind, and its
bytes without and with compression."""


def images_of(span: bytes, file: "pq.ParquetFile") -> Sequence[Bytes]:
    """The values of the column `image` of a row group, as views into it where they lie there as they are.

    Args:
        span: The row group, with its footer; as it was written, since not all that damage can do is noticed here.
        file: The same, opened.

    Raises:
        pyarrow.ArrowException: It cannot be read.
    """
    column = file.metadata.row_group(0).column(file.schema_arrow.get_field_index("image"))
    start = column.data_page_offset
    chunk = memoryview(span)[start : start + column.total_compressed_size]
    try:
        if column.compression != "UNCOMPRESSED" or column.has_dictionary_page:
            raise ValueError("the values do not lie there as they are")
        return _values(chunk, column.num_values)
    except (ValueError, IndexError, struct.error):
        images: list[bytes] = file.read_row_group(0, ["image"], use_threads=False)["image"].to_pylist()
        return images


def _values(chunk: memoryview, count: int) -> list[memoryview]:
    """The values of the one page of a chunk: each behind its length, all behind which of them are not null.

    Raises:
        ValueError, IndexError, struct.error: It is not such a page.
    """
    at = 0
    for _ in range(3):
        if chunk[at] != _I32:
            raise ValueError("not the header of a page")
        size, at = _number(chunk, at + 1)
    at = len(chunk) - size
    at += 4 + struct.unpack_from("<I", chunk, at)[0]
    values = []
    for _ in range(count):
        (length,) = struct.unpack_from("<I", chunk, at)
        values.append(chunk[at + 4 : at + 4 + length])
        at += 4 + length
    if at != len(chunk):
        raise ValueError("more than one page, or values that are null")
    return values


def _number(data: memoryview, at: int) -> tuple[int, int]:
    """A number that is not negative, seven bits in each byte, the lowest first and a sign below them; what follows."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value >> 1, at
