"""Writes the shard format: Parquet files of encoded images, and a manifest of where each row group lies.

Values lie in the files as they are (PLAIN, uncompressed, no dictionary, one page for each column of a row
group), so a row group is one span of bytes and one ranged read, and so is each image. The manifest is written
last: a folder without one is not a data set. What a writer has written so far stands in the footer of each shard,
so that another goes on behind it after a kill.
"""

import json
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import IO, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pirl import storage
from pirl.config import ConfigError

VERSION = 1
MANIFEST = "manifest.json"
ROWS_PER_GROUP = 64
"""Small enough to shuffle by, large enough (7 MB of ImageNet) to be worth a request."""
SHARD_BYTES = 256 * 2**20
SHARD = re.compile(r"shard-\d{5,}\.parquet")
RECORD = b"pirl"
"""The record's key in the footer of a shard."""

SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("image", pa.binary()),
        ("label", pa.int64()),
        ("crc32", pa.uint32()),
    ]
)
"""`index` is the row's id in the whole data set, 0 to rows - 1 in file order; `crc32` is that of `image`."""


class ShardWriter:
    """Writes one data set; a context manager that writes the manifest when it is left without an exception.

    `record` holds what else goes into the manifest. Each shard has it too, as it is when the shard ends.

    Args:
        uri: The folder, by any URL that fsspec writes.
        classes: The names of the labels 0, 1, ..., or None for images without labels.
        seed: With what the rows were shuffled, for the record.
        source: Where the images come from, for the record.
        shard_bytes: A shard ends with the row group that brings its images to this size.
        resume: Go on behind the shards that are there; `rows` and `record` are as they were at the end of the last.

    Raises:
        ConfigError: One of the shards to go on behind is gone.
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
        resume: bool = False,
    ) -> None:
        self.uri, self.storage_options, self.shard_bytes = uri, storage_options, shard_bytes
        self.rows = 0
        self.record: dict[str, Any] = {}
        self._about: dict[str, Any] = {
            "classes": None if classes is None else list(classes),
            "seed": seed,
            "source": source,
        }
        self._shards: list[dict[str, Any]] = []
        self._class_rows: Counter[int] = Counter()
        self._images: list[bytes] = []
        self._labels: list[int | None] = []
        self._open: _Shard | None = None
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        if resume:
            self._resume()

    def add(self, image: bytes, label: int | None) -> None:
        """Appends a row: an encoded image (JPEG or PNG) and the number of its class."""
        self._images.append(image)
        self._labels.append(label)
        if label is not None:
            self._class_rows[label] += 1
        self.rows += 1
        if len(self._images) == ROWS_PER_GROUP:
            self._write_group()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._thread.shutdown()
            if self._open is not None:
                self._open.abandon(kind, error, trace)
            return
        if self._images:
            self._write_group()
        self._wait()
        self._thread.shutdown()
        self._end_shard(json.dumps(self._record_so_far()))
        manifest = {
            "version": VERSION,
            "rows": self.rows,
            "rows_per_group": ROWS_PER_GROUP,
            **self._about,
            **self._record_so_far(),
            "shards": self._shards,
        }
        with storage.writing(storage.join(self.uri, MANIFEST), self.storage_options) as file:
            file.write(json.dumps(manifest).encode() + b"\n")

    def _resume(self) -> None:
        """Takes over the shards that are there: a shard has its name only when it is complete."""
        found_names = set(filter(SHARD.fullmatch, storage.files_below(self.uri, self.storage_options)))
        names = [_shard_name(number) for number in range(len(found_names))]
        if found_names != set(names):
            raise ConfigError(f"{self.uri} lacks a shard of {len(names)}: add --overwrite to begin anew")
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(self._read_shard, names))
        self._shards = [entry for entry, _ in found]
        self.rows = sum(entry["rows"] for entry in self._shards)
        self.record = found[-1][1] if found else {}
        self._class_rows.update(dict(enumerate(self.record.pop("class_rows", []))))

    def _record_so_far(self) -> dict[str, Any]:
        return {**self.record, "class_rows": [self._class_rows[at] for at in range(len(self._about["classes"] or []))]}

    def _read_shard(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        with storage.reading(storage.join(self.uri, name), self.storage_options) as file:
            footer = pq.ParquetFile(file).metadata
            return _entry(name, footer, file.seek(0, 2)), json.loads(footer.metadata[RECORD])

    def _write_group(self) -> None:
        """Starts to write a row group, once the one before it is written."""
        self._wait()
        images, self._images = self._images, []
        labels, self._labels = self._labels, []
        ids = range(self.rows - len(images), self.rows)
        self._writing = self._thread.submit(self._write, ids, images, labels, json.dumps(self._record_so_far()))

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, ids: range, images: list[bytes], labels: list[int | None], record: str) -> None:
        # In the thread: an upload takes its time, and the rows of the next group are made meanwhile.
        if self._open is None:
            name = _shard_name(len(self._shards))
            self._open = _Shard(name, storage.join(self.uri, name), self.storage_options)
        crcs = [zlib.crc32(image) for image in images]
        self._open.write_group(pa.table([ids, images, labels, crcs], schema=SCHEMA))
        if self._open.file.tell() >= self.shard_bytes:
            self._end_shard(record)

    def _end_shard(self, record: str) -> None:
        if self._open is not None:
            self._shards.append(self._open.close(record))
            self._open = None


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.parquet"


class _Shard:
    """A Parquet file that is being written."""

    def __init__(self, name: str, uri: str, storage_options: storage.Options) -> None:
        self.name = name
        self.files = ExitStack()
        self.file: IO[bytes] = self.files.enter_context(storage.writing(uri, storage_options))
        self.footers: list[pq.FileMetaData] = []
        self.parquet = pq.ParquetWriter(
            self.file,
            SCHEMA,
            compression="none",
            use_dictionary=False,
            write_statistics=["index"],
            data_page_size=2**30,
            metadata_collector=self.footers,
        )

    def write_group(self, table: pa.Table) -> None:
        self.parquet.write_table(table)

    def close(self, record: str) -> dict[str, Any]:
        """Completes the file and returns its entry in the manifest."""
        self.parquet.add_key_value_metadata({RECORD: record})
        self.parquet.close()
        size = self.file.tell()
        self.files.close()
        return _entry(self.name, self.footers[0], size)

    def abandon(self, kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        """Removes the file."""
        # An interrupted writer may fail in any way, and left open it would try again when it is deleted.
        with suppress(Exception):
            self.parquet.close()
        self.parquet.is_open = False
        self.files.__exit__(kind, error, trace)


def _entry(name: str, footer: pq.FileMetaData, size: int) -> dict[str, Any]:
    """What the manifest says of a shard of `size` bytes."""
    groups = [_span(footer.row_group(number)) for number in range(footer.num_row_groups)]
    end = groups[-1][0] + groups[-1][1]
    return {
        "path": name,
        "bytes": size,
        "rows": footer.num_rows,
        "footer": [end, size - end],
        "groups": groups,
    }


def _span(group: pq.RowGroupMetaData) -> list[int]:
    """Offset, length in bytes and rows of a row group: its columns lie one after another."""
    first, last = group.column(0), group.column(group.num_columns - 1)
    end = last.data_page_offset + last.total_compressed_size
    return [first.data_page_offset, end - first.data_page_offset, group.num_rows]
