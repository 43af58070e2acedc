"""Reads the shard format: a data set by its manifest, and a row group by one ranged read.

The manifest holds span and checksum of every row group, so nothing is ever listed or searched for, and bytes
that are not those that were written are noticed: flipped on the way, damaged, or overwritten since.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from pirl.config import Data
from pirl.data.digits import ensure_digits
from pirl.data.parquet_pages import Bytes, checked_images, column, images_of
from pirl.data.writer import MANIFEST, VERSION, fingerprint, parsed
from pirl.errors import ConfigError, CorruptImage, StorageError
from pirl.storage import files as storage
from pirl.storage.cache import SpanCache, default_folder
from pirl.storage.retry import DEADLINE_S, pause
from pirl.storage.sealed import is_whole

Ints = NDArray[np.int64]

READS = 10
"""Of a row group with a wrong checksum: it may have been right, and changed on its way here."""
LONGEST_PAUSE_S = 0.2
"""Between them: nobody is busy, so there is nothing to wait for."""


@dataclass(frozen=True, eq=False)
class Group:
    """The rows of a row group.

    Attributes:
        ids: int64 (R,), ids of the rows in the data set.
        images: R encoded images, as views into the row group where that saves a copy.
        labels: int64 (R,), the classes, -1 where a row has none; None if the data set has no labels.
        corrupt: Rows whose image must not be used, and why.
    """

    ids: Ints
    images: Sequence[Bytes]
    labels: Ints | None
    corrupt: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: what its manifest says. It pickles small, and opens nothing before it is read.

    Attributes:
        uri: The folder.
        rows: Number of images; their ids are 0 to rows - 1.
        starts: int64 (G+1,), the first row of each row group, then `rows`.
        labels: Names of the classes 0, 1, ..., or None if the images have no labels.
        class_rows: Images of each class, or None where an older manifest does not say.
        shards: Names of the S files.
        shard_bytes: int64 (S,), their sizes.
        first_groups: int64 (S+1,), the first row group of each shard, then G.
        spans: int64 (G, 2), offset and length of each row group in its shard, in bytes.
        checksums: uint32 (G,), the crc32 of each span.
        fingerprint: A number that other images, or the same in another order, would not have.
        storage_options: Passed to fsspec.
        deadline_s: How long a read is tried.
        cache: Where spans are kept that were read.
    """

    uri: str
    rows: int
    starts: Ints
    labels: list[str] | None
    class_rows: list[int] | None
    shards: list[str]
    shard_bytes: Ints
    first_groups: Ints
    spans: Ints
    checksums: NDArray[np.uint32]
    fingerprint: int
    storage_options: dict[str, Any]
    deadline_s: float = DEADLINE_S
    cache: SpanCache | None = None

    def read_group(self, number: int) -> Group:
        """Reads a row group, and checks every image in it.

        Raises:
            CorruptImage: The first image that is not the one that was written; says shard, row and id.
            StorageError: The store did not give it.
        """
        group = self.load_group(number)
        for problem in group.corrupt.values():
            raise CorruptImage(problem)
        return group

    def load_group(self, number: int) -> Group:
        """Reads a row group, and says which images in it are not those that were written.

        Raises:
            StorageError: The store did not give it.
        """
        ids = np.arange(self.starts[number], self.starts[number + 1])
        shard, within = self.shard_of(number)
        try:
            data, whole = self._read_span(number)
            file = pq.ParquetFile(pa.BufferReader(data))
            images, wrong = (images_of(data, file), []) if whole else checked_images(file)
            labels = None if self.labels is None else column(file, "label").fill_null(-1).to_numpy()
            same_rows = whole or np.array_equal(column(file, "index").to_numpy(), ids)
        except StorageError:
            raise
        except Exception as error:  # damaged bytes can make a reader raise anything
            return self._lost(ids, shard, f"row group {within} cannot be read ({error})")
        # Damage shows in some images. Where there is none in any, these are other images, with their checksums.
        if not whole and not (wrong and same_rows):
            return self._lost(ids, shard, f"row group {within} does not have its checksum")
        verdict = self._verdict(shard) if wrong else ""
        corrupt = {row: f"{self.place(int(ids[row]))} does not have its checksum; {verdict}" for row in wrong}
        return Group(ids, images, labels, corrupt)

    def is_cached(self, number: int) -> bool:
        """Whether a row group is on the disk of this node, though perhaps no longer when it is read."""
        return self.cache is not None and self.cache.has(self._cache_name(number))

    def shard_of(self, number: int) -> tuple[int, int]:
        """The shard of a row group, and its number within it."""
        shard = int(np.searchsorted(self.first_groups, number, side="right")) - 1
        return shard, number - int(self.first_groups[shard])

    def group_of(self, id: int) -> tuple[int, int]:
        """The row group of an image, and its row within it."""
        (number,), (row,) = self.groups_of(np.array([id]))
        return number, row

    def groups_of(self, ids: Ints) -> tuple[list[int], list[int]]:
        """The row groups of images, and their rows within them: as cheap for a whole batch as for one image."""
        numbers = np.searchsorted(self.starts, ids, side="right") - 1
        return numbers.tolist(), (ids - self.starts[numbers]).tolist()

    def place(self, id: int) -> str:
        """Where an image lies, for messages."""
        shard, _ = self.shard_of(self.group_of(id)[0])
        return f"{self._shard_uri(shard)}: row {id - int(self.starts[self.first_groups[shard]])} (id {id})"

    def _read_span(self, number: int) -> tuple[bytes, bool]:
        """The bytes of a row group, and whether they are those that were written."""
        shard, _ = self.shard_of(number)
        uri, checksum = self._shard_uri(shard), int(self.checksums[number])
        offset, length = (int(value) for value in self.spans[number])
        name = self._cache_name(number)
        if self.cache and (kept := self.cache.get(name)) is not None and crc32(kept) == checksum:
            return kept, True
        for failures in range(READS):
            if failures:
                pause(failures, LONGEST_PAUSE_S)
            data = storage.read_bytes(uri, offset, length, self.storage_options, self.deadline_s)
            if crc32(data) == checksum:
                if self.cache:
                    self.cache.put(name, data)
                return data, True
        return data, False

    def _cache_name(self, number: int) -> str:
        offset, length = self.spans[number]
        return f"{self._shard_uri(self.shard_of(number)[0])} {offset} {length} {self.checksums[number]}"

    def _lost(self, ids: Ints, shard: int, what: str) -> Group:
        """A row group of which no image can be used."""
        problem = f"{self._shard_uri(shard)}: {what}; {self._verdict(shard)}"
        labels = None if self.labels is None else np.full(len(ids), -1)
        return Group(ids, [b""] * len(ids), labels, dict.fromkeys(range(len(ids)), problem))

    def _verdict(self, shard: int) -> str:
        """What happened to a file, and what to do."""
        uri, expected = self._shard_uri(shard), int(self.shard_bytes[shard])
        again = "copy it again, or write the data set again with python jobs/prepare.py"
        try:
            size = storage.size_of(uri, self.storage_options, self.deadline_s)
            if size != expected:
                return (
                    f"the file has {size:,} bytes and had {expected:,} when its manifest was written, so it was "
                    f"overwritten: {again}"
                )
            if storage.is_newer(uri, storage.join(self.uri, MANIFEST), self.storage_options, self.deadline_s):
                return f"the file was written again after its manifest: {again}"
        except FileNotFoundError:
            return f"the file is gone: {again}"
        except (StorageError, NotImplementedError):
            pass  # what the reads gave is known
        return f"the file is damaged, {READS} reads gave the same: {again}"

    def _shard_uri(self, shard: int) -> str:
        return storage.join(self.uri, self.shards[shard])


def open_data(data: Data, uri: str | None = None) -> Dataset:
    """Opens the data set of a config, or another one in the same way, as `open_dataset` does."""
    folder = Path(data.cache_folder).expanduser() if data.cache_folder else default_folder()
    cache = SpanCache(folder, int(data.cache_gb * 1e9)) if data.cache_gb > 0 else None
    return open_dataset(uri or data.uri, data.storage_options, deadline_s=data.deadline_s, cache=cache)


def open_dataset(
    uri: str,
    storage_options: dict[str, Any] | None = None,
    *,
    deadline_s: float = DEADLINE_S,
    cache: SpanCache | None = None,
) -> Dataset:
    """Reads the manifest of a data set.

    Args:
        uri: A folder written by jobs/prepare.py, by any URL that fsspec reads, or `digits`.
        storage_options: Passed to fsspec.
        deadline_s: How long each read is tried.
        cache: Where to keep what is read; not used for files on a local disk.

    Raises:
        ConfigError: There is no data set, or not one of this version.
        StorageError: The store did not give the manifest.
    """
    folder = ensure_digits() if uri == "digits" else uri
    options = storage_options or {}
    try:
        text = _read_whole(storage.join(folder, MANIFEST), options, deadline_s)
        manifest = parsed(text)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{uri} is not a data set (it has no {MANIFEST}). Write one from a folder of images or a Parquet "
            "file: python jobs/prepare.py SOURCE DESTINATION, then --data.uri DESTINATION"
        ) from None
    except StorageError:
        raise
    except (OSError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise ConfigError(f"{storage.join(folder, MANIFEST)} cannot be read: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        raise ConfigError(
            f"{storage.join(folder, MANIFEST)} is not a manifest of version {VERSION}: write the data set "
            f"again with python jobs/prepare.py SOURCE {folder} --overwrite"
        )
    if not is_whole(text):
        raise ConfigError(
            f"{storage.join(folder, MANIFEST)} does not have its checksum, so it was changed after it was written: "
            f"copy it again, or write the data set again with python jobs/prepare.py SOURCE {folder} --overwrite"
        )
    if storage.is_local(folder, options):
        cache = None
    return _from_manifest(folder, manifest, text, options, deadline_s, cache)


def test_uri(uri: str, storage_options: dict[str, Any] | None = None) -> str | None:  # noqa: PT028 - not a test
    """The folder of the held-out split of a data set, or None if it has none."""
    folder = storage.join(ensure_digits() if uri == "digits" else uri, "test")
    return folder if storage.exists(storage.join(folder, MANIFEST), storage_options) else None


def _read_whole(uri: str, options: dict[str, Any], deadline_s: float) -> bytes:
    """The text of a manifest, as it was written if one of a few reads gives that."""
    for failures in range(READS):
        if failures:
            pause(failures, LONGEST_PAUSE_S)
        text = storage.read_all(uri, options, deadline_s)
        if is_whole(text):
            break
    return text


def _from_manifest(
    uri: str, manifest: dict[str, Any], text: bytes, options: dict[str, Any], deadline_s: float, cache: SpanCache | None
) -> Dataset:
    shards = manifest["shards"]
    groups = np.concatenate([np.empty((0, 4), np.int64), *(shard["groups"] for shard in shards)])
    return Dataset(
        uri=uri,
        rows=manifest["rows"],
        starts=np.concatenate([[0], np.cumsum(groups[:, 2])]),
        labels=manifest["classes"],
        class_rows=manifest.get("class_rows"),
        shards=[shard["path"] for shard in shards],
        shard_bytes=np.array([shard["bytes"] for shard in shards], np.int64),
        first_groups=np.array([0, *accumulate(len(shard["groups"]) for shard in shards)]),
        spans=groups[:, :2].copy(),
        checksums=groups[:, 3].astype(np.uint32),
        fingerprint=fingerprint(text),
        storage_options=options,
        deadline_s=deadline_s,
        cache=cache,
    )
