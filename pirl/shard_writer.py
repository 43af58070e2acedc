"""Writes the shard format: Parquet files of encoded images, and a manifest of where each row group lies.

Values lie in the files as they are (PLAIN, uncompressed, no dictionary, one page for each column of a row
group), so each image is one span of bytes. Behind each row group lies a footer for it alone, of about 400 bytes,
which makes its span a Parquet file in itself: one ranged read gives all that reading it takes. The manifest is
written last: a folder without one is not a data set.
"""

import io
import json
import zlib
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import IO, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pirl import storage

VERSION = 2
"""2: row groups have footers and checksums of their own."""
MANIFEST = "manifest.json"
ROWS_PER_GROUP = 64
"""Small enough to shuffle by, large enough (7 MB of ImageNet) to be worth a request."""
SHARD_BYTES = 256 * 2**20

SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("image", pa.binary()),
        ("label", pa.int64()),
        ("crc32", pa.uint32()),
    ]
)
"""`index` is the row's id in the whole data set, 0 to rows - 1 in file order; `crc32` is that of `image`."""

LAYOUT = {"compression": "none", "use_dictionary": False, "write_statistics": ["index"], "data_page_size": 2**30}
MAGIC = b"PAR1"
"""What a Parquet file begins with."""


_SEAL = b', "crc32": '


class ShardWriter:
    """Writes one data set; a context manager that writes the manifest when it is left without an exception.

    Args:
        uri: The folder, by any URL that fsspec writes.
        classes: The names of the labels 0, 1, ..., or None for images without labels.
        seed: With what the rows were shuffled, for the record.
        source: Where the images come from, for the record.
        shard_bytes: A shard ends with the row group that brings its images to this size.
    """

    def __init__(
        self,
        uri: str,
        *,
        classes: Sequence[str] | None,
        seed: int,
        source: str,
        storage_options: storage.Options = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.uri, self.storage_options, self.shard_bytes = uri, storage_options, shard_bytes
        self.rows = 0
        self._about = {"classes": None if classes is None else list(classes), "seed": seed, "source": source}
        self._shards: list[dict[str, Any]] = []
        self._images: list[bytes] = []
        self._labels: list[int | None] = []
        self._open: _Shard | None = None

    def add(self, image: bytes, label: int | None) -> None:
        """Appends a row: an encoded image (JPEG or PNG) and the number of its class."""
        self._images.append(image)
        self._labels.append(label)
        self.rows += 1
        if len(self._images) == ROWS_PER_GROUP:
            self._write_group()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            if self._open is not None:
                self._open.abandon(kind, error, trace)
            return
        if self._images:
            self._write_group()
        self._end_shard()
        manifest = {
            "version": VERSION,
            "rows": self.rows,
            "rows_per_group": ROWS_PER_GROUP,
            **self._about,
            "shards": self._shards,
        }
        with storage.writing(storage.join(self.uri, MANIFEST), self.storage_options) as file:
            file.write(sealed(manifest))

    def _write_group(self) -> None:
        if self._open is None:
            name = f"shard-{len(self._shards):05d}.parquet"
            self._open = _Shard(name, storage.join(self.uri, name), self.storage_options)
        crcs = [zlib.crc32(image) for image in self._images]
        ids = range(self.rows - len(self._images), self.rows)
        self._open.write_group(pa.table([ids, self._images, self._labels, crcs], schema=SCHEMA))
        self._images, self._labels = [], []
        if self._open.file.tell() >= self.shard_bytes:
            self._end_shard()

    def _end_shard(self) -> None:
        if self._open is not None:
            self._shards.append(self._open.close())
            self._open = None


def sealed(manifest: dict[str, Any]) -> bytes:
    """A manifest as JSON whose last field is the checksum of all before it."""
    body = json.dumps(manifest).encode()[:-1]
    return body + _SEAL + b"%d}\n" % zlib.crc32(body)


def is_whole(text: bytes) -> bool:
    """Whether a manifest is as `sealed` wrote it."""
    body, _, rest = text.rpartition(_SEAL)
    return rest == b"%d}\n" % zlib.crc32(body)


class _Shard:
    """A Parquet file that is being written."""

    def __init__(self, name: str, uri: str, storage_options: storage.Options) -> None:
        self.name = name
        self.files = ExitStack()
        self.file: IO[bytes] = self.files.enter_context(storage.writing(uri, storage_options))
        # Arrow counts what goes through its own file object, and nothing else, for the offsets in the footer.
        self.sink = pa.PythonFile(self.file, "w")
        self.parquet = pq.ParquetWriter(self.sink, SCHEMA, **LAYOUT)
        self.groups: list[list[int]] = []
        self.rows = 0

    def write_group(self, table: pa.Table) -> None:
        alone = io.BytesIO()
        with pq.ParquetWriter(alone, SCHEMA, store_schema=False, **LAYOUT) as writer:
            writer.write_table(table)
        whole = alone.getvalue()
        if self.groups:
            self.sink.write(whole[: len(MAGIC)])
        start = self.sink.tell() - len(MAGIC)
        self.parquet.write_table(table)
        self.sink.write(whole[self.sink.tell() - start :])
        self.groups.append([start, len(whole), table.num_rows, zlib.crc32(whole)])
        self.rows += table.num_rows

    def close(self) -> dict[str, Any]:
        """Completes the file and returns its entry in the manifest."""
        self.parquet.close()
        size = self.file.tell()
        self.files.close()
        return {"path": self.name, "bytes": size, "rows": self.rows, "groups": self.groups}

    def abandon(self, kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        """Removes the file."""
        # An interrupted writer may fail in any way, and left open it would try again when it is deleted.
        with suppress(Exception):
            self.parquet.close()
        self.parquet.is_open = False
        self.files.__exit__(kind, error, trace)
