"""The columns of a row group; its images without a copy of any, where Parquet's readers copy each value twice.

Knows what `pirl.data.writer` writes, values as they are in one page for each column; anything else is left to Arrow.
"""

import struct
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pirl.storage.sealed import crc32

Bytes = bytes | memoryview

_I32 = 0x15
"""Thrift's compact protocol: the next field, a number of 32 bits. A page's header begins with three: its kind, and its
bytes without and with compression."""


def images_of(span: bytes, file: pq.ParquetFile) -> Sequence[Bytes]:
    """The values of the column `image` of a row group, as views into it where they lie there as they are.

    Args:
        span: The row group, with its footer; as it was written, since not all that damage can do is noticed here.
        file: The same, opened.

    Raises:
        pyarrow.ArrowException: It cannot be read.
    """
    about = file.metadata.row_group(0).column(file.schema_arrow.get_field_index("image"))
    start = about.data_page_offset
    chunk = memoryview(span)[start : start + about.total_compressed_size]
    try:
        if about.compression != "UNCOMPRESSED" or not {"PLAIN", "RLE"}.issuperset(about.encodings):
            raise ValueError("the values do not lie there as they are")
        return _values(chunk, about.num_values)
    except (ValueError, IndexError, struct.error):
        images: list[bytes] = column(file, "image").to_pylist()
        return images


def checked_images(file: pq.ParquetFile) -> tuple[list[bytes], list[int]]:
    """The images of a row group that may be damaged, and the rows of those without their checksum."""
    images: list[bytes] = column(file, "image").to_pylist()
    sums = column(file, "crc32").to_numpy()
    return images, [row for row, image in enumerate(images) if crc32(image) != sums[row]]


def source_names(span: bytes) -> list[str | None]:
    """What the images of a row group were called where they come from; nothing where that cannot be read."""
    try:
        file = pq.ParquetFile(pa.BufferReader(span))
        names: list[str | None] = column(file, "name").to_pylist() if "name" in file.schema_arrow.names else []
    except Exception:  # damaged bytes can make a reader raise anything
        return []
    return names


def column(file: pq.ParquetFile, name: str) -> pa.ChunkedArray:
    """A column of a row group, read by Arrow."""
    # Not in threads of its own: groups are read in threads already, and handing on costs more than it saves.
    return file.read_row_group(0, [name], use_threads=False)[name]


def _values(chunk: memoryview, count: int) -> list[memoryview]:
    """The values of the one page of a chunk: first which of them are not null, then each value behind its length.

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
