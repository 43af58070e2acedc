"""Writes the shard format: Parquet files of encoded images, and a manifest of where each row group lies.

Values lie in the files as they are (PLAIN, uncompressed, no dictionary, one page for each column of a row
group), so each image is one span of bytes. Behind each row group lies a footer for it alone, of about 400 bytes,
which makes its span a Parquet file in itself: one ranged read gives all that reading it takes. The manifest is
written last: a folder without one is not a data set. What a writer has written so far stands in the footer of each
shard, so that another goes on behind it after a kill.
"""

import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pirl.errors import StorageError
from pirl.storage.folder import Folder
from pirl.storage.sealed import SEAL, sealed
from pirl.storage.writing import named_if_full

VERSION = 2
"""2: row groups have footers and checksums of their own."""
MANIFEST = "manifest.json"
ROWS_PER_GROUP = 64
"""Small enough to shuffle by, large enough (7 MB of ImageNet) to be worth a request."""
SHARD_BYTES = 32 * 2**20
"""Sent to a store in one request. Readers take row groups, so nothing is gained by larger ones; and some small stores
take a whole object into their memory for each range of it."""
SHARD = re.compile(r"shard-\d{5,}\.parquet")
RECORD = b"pirl"
GROUPS = b"pirl.groups"
"""Keys in the footer of a shard: the writer's record so far, and the shard's row groups as the manifest has them."""

SCHEMA = pa.schema([("index", pa.int64()), ("image", pa.binary()), ("label", pa.int64()), ("crc32", pa.uint32())])
"""`index` is the row's id in the whole data set, 0 to rows - 1 in file order; `crc32` is that of `image`."""
NAMED_SCHEMA = SCHEMA.append(pa.field("name", pa.string()))
"""With what a person calls the image in the source, for messages."""

LAYOUT = {"compression": "none", "use_dictionary": False, "write_statistics": ["index"], "data_page_size": 2**30}
MAGIC = b"PAR1"
"""What a Parquet file begins with."""


_SHARDS = b', "shards": '
"""What stands in a manifest before its shards and behind them; within a name JSON has a backslash before a quote."""


class ShardWriter:
    """Writes one data set; a context manager that writes the manifest when it is left without an exception.

    `record` holds what else goes into the manifest. Each shard has it too, as it is when the shard ends.

    Args:
        folder: Where it is to be.
        classes: The names of the labels 0, 1, ..., or None for images without labels.
        seed: With what the rows were shuffled, for the record.
        source: Where the images come from, for the record.
        shard_bytes: A shard ends with the row group that brings its images to this size.
        resume: Go on behind the shards that are there; `rows` and `record` are as they were at the end of the last.
        named: Whether rows have names.
    """

    def __init__(
        self,
        folder: Folder,
        *,
        classes: Sequence[str] | None,
        seed: int,
        source: str,
        shard_bytes: int = SHARD_BYTES,
        resume: bool = False,
        named: bool = False,
    ) -> None:
        self.folder, self.shard_bytes, self.named = folder, shard_bytes, named
        self.rows = 0
        self.record: dict[str, Any] = {}
        self._about: dict[str, Any] = {"classes": classes and list(classes), "seed": seed, "source": source}
        self._shards: list[dict[str, Any]] = []
        self._class_rows: Counter[int] = Counter()
        self._images: list[bytes] = []
        self._labels: list[int | None] = []
        self._names: list[str | None] = []
        self._open: _Shard | None = None
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        if resume:
            self._resume()

    def add(self, image: bytes, label: int | None, name: str | None = None) -> None:
        """Appends a row: an encoded image (JPEG or PNG), the number of its class, and its name in the source."""
        self._images.append(image)
        self._labels.append(label)
        self._names.append(name)
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
        about = {"version": VERSION, "rows": self.rows, "rows_per_group": ROWS_PER_GROUP, **self._about}
        self.folder.write(MANIFEST, sealed({**about, **self._record_so_far(), "shards": self._shards}))

    def _resume(self) -> None:
        """Takes over the shards that are there, up to the first that is gone or damaged; removes those behind it."""
        names = [name for name in self.folder.sizes() if SHARD.fullmatch(name)]
        with ThreadPoolExecutor() as pool:
            shards = pool.map(self._read_shard, map(shard_name, range(len(names))))
        found = []
        for shard in shards:
            if shard is None:
                break
            found.append(shard)
        self._shards = [entry for entry, _ in found]
        whole = {entry["path"] for entry in self._shards}
        self.folder.remove(*(name for name in names if name not in whole))
        self.rows = sum(entry["rows"] for entry in self._shards)
        self.record = found[-1][1] if found else {}
        self._class_rows.update(dict(enumerate(self.record.pop("class_rows", []))))

    def _record_so_far(self) -> dict[str, Any]:
        return {**self.record, "class_rows": [self._class_rows[at] for at in range(len(self._about["classes"] or []))]}

    def _read_shard(self, name: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """A shard's entry in the manifest and the record in it; None where it is gone or damaged."""
        try:
            with self.folder.reading(name) as file:
                footer = pq.ParquetFile(file).metadata
                groups = np.frombuffer(footer.metadata[GROUPS], np.int64).reshape(-1, 4).tolist()
                entry = {"path": name, "bytes": file.seek(0, 2), "rows": footer.num_rows, "groups": groups}
                return entry, json.loads(footer.metadata[RECORD])
        except (FileNotFoundError, pa.ArrowException, ValueError, KeyError, TypeError):
            return None
        except OSError as error:
            if isinstance(error, StorageError) or error.errno is not None:
                raise
            return None  # of Arrow, as those above

    def _write_group(self) -> None:
        """Starts to write a row group, once the one before it is written."""
        self._wait()
        images, self._images = self._images, []
        labels, self._labels = self._labels, []
        names, self._names = self._names, []
        columns = {"index": range(self.rows - len(images), self.rows), "image": images, "label": labels, "name": names}
        self._writing = self._thread.submit(self._write, columns, json.dumps(self._record_so_far()))

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, columns: dict[str, Any], record: str) -> None:
        # In the thread: an upload takes its time, and the rows of the next group are made meanwhile.
        schema = NAMED_SCHEMA if self.named else SCHEMA
        if self._open is None:
            self._open = _Shard(self.folder / shard_name(len(self._shards)), schema)
        columns["crc32"] = [zlib.crc32(image) for image in columns["image"]]
        with named_if_full(self._open.file.name):
            self._open.write_group(pa.table([columns[name] for name in schema.names], schema=schema))
            if self._open.file.tell() >= self.shard_bytes:
                self._end_shard(record)

    def _end_shard(self, record: str) -> None:
        if self._open is not None:
            self._shards.append(self._open.close(record))
            self._open = None


def fingerprint(text: bytes) -> int:
    """A number of a manifest that other images, or the same in another order, would not have."""
    begin, end = text.rfind(_SHARDS) + len(_SHARDS), text.rfind(SEAL)
    return zlib.crc32(memoryview(text)[begin:end])


def shard_name(number: int) -> str:
    """Of the shards in a data set, in the order of the ids."""
    return f"shard-{number:05d}.parquet"


class _Shard:
    """A Parquet file that is being written."""

    def __init__(self, at: Folder, schema: pa.Schema) -> None:
        self.name, self.schema = at.name, schema
        self.files = ExitStack()
        self.file: IO[bytes] = self.files.enter_context(at.writing())
        # Arrow counts what goes through its own file object, and nothing else, for the offsets in the footer.
        self.sink = pa.PythonFile(self.file, "w")
        self.parquet = pq.ParquetWriter(self.sink, schema, **LAYOUT)
        self.groups: list[list[int]] = []
        self.rows = 0

    def write_group(self, table: pa.Table) -> None:
        alone = io.BytesIO()
        with pq.ParquetWriter(alone, self.schema, store_schema=False, **LAYOUT) as writer:
            writer.write_table(table)
        whole = alone.getvalue()
        if self.groups:
            self.sink.write(whole[: len(MAGIC)])
        start = self.sink.tell() - len(MAGIC)
        self.parquet.write_table(table)
        self.sink.write(whole[self.sink.tell() - start :])
        self.groups.append([start, len(whole), table.num_rows, zlib.crc32(whole)])
        self.rows += table.num_rows

    def close(self, record: str) -> dict[str, Any]:
        """Completes the file and returns its entry in the manifest."""
        self.parquet.add_key_value_metadata({RECORD: record, GROUPS: np.array(self.groups, np.int64).tobytes()})
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
