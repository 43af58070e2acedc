"""Reads the shard format: a data set by its manifest, and a row group by one ranged read.

The manifest holds span and checksum of every row group, so nothing is ever listed or searched for, and bytes
that are not those that were written are noticed: flipped on the way, damaged, or overwritten since.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pirl.data.digits import ensure_digits
from pirl.data.manifest import ShardTable, parsed
from pirl.data.parquet_pages import Bytes, checked_images, column, images_of, source_names
from pirl.data.writer import MANIFEST, VERSION, fingerprint
from pirl.errors import ConfigError, CorruptImage, StorageError
from pirl.sections import Data
from pirl.storage.cache import SpanCache, default_folder
from pirl.storage.folder import Folder
from pirl.storage.sealed import TRIES, crc32, is_whole, until_whole

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RowGroup:
    """The rows of a row group.

    Attributes:
        ids: int64 (R,), ids of the rows in the data set.
        images: R encoded images, as views into the row group where that saves a copy.
        labels: int64 (R,), the classes, -1 where a row has none; None if the data set has no labels.
        corrupt: Rows whose image must not be used, and why.
        span: The bytes that were read.
    """

    ids: Ints
    images: Sequence[Bytes]
    labels: Ints | None
    corrupt: dict[int, str] = field(default_factory=dict)
    span: bytes = field(default=b"", repr=False)

    def made_from(self, row: int) -> str:
        """What the image of a row was called in the source, for messages, in brackets; empty where nobody knows."""
        name = self.names()[row]
        return "" if name is None else f" (made from {name})"

    def names(self) -> list[str | None]:
        """What the images were called in their source; None where that was not written, or cannot be read."""
        return source_names(self.span) or [None] * len(self.ids)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: what its manifest says. It pickles small, and opens nothing before it is read.

    Attributes:
        rows: Number of images; their ids are 0 to rows - 1.
        starts: int64 (G+1,), the first row of each row group, then `rows`.
        labels: Names of the classes 0, 1, ..., or None if the images have no labels.
        class_rows: Images of each class, or None where an older manifest does not say.
        largest: Pixels of the largest width and of the largest height, or None where the manifest does not say.
        shards: Names of the S files.
        shard_bytes: int64 (S,), their sizes.
        first_groups: int64 (S+1,), the first row group of each shard, then G.
        spans: int64 (G, 2), offset and length of each row group in its shard, in bytes.
        checksums: uint32 (G,), the crc32 of each span.
        fingerprint: A number that other images, or the same in another order, would not have.
        assigned: int32 (rows,), classes that take the place of the labels, -1 for none; None for the labels.
        cache: Where spans are kept that were read.
    """

    folder: Folder
    rows: int
    starts: Ints
    labels: list[str] | None
    class_rows: list[int] | None
    largest: tuple[int, int] | None
    shards: Sequence[str]
    shard_bytes: Ints
    first_groups: Ints
    spans: Ints
    checksums: NDArray[np.uint32]
    fingerprint: int
    cache: SpanCache | None = None
    assigned: NDArray[np.int32] | None = None

    @property
    def uri(self) -> str:
        """Of its folder, for messages."""
        return self.folder.uri

    def held_out(self) -> "Dataset | None":
        """The split that was held out for evaluation, which lies below it; None if it has none."""
        test = self.folder / "test"
        return open_dataset(test, cache=self.cache) if test.exists(MANIFEST) else None

    def read_group(self, number: int) -> RowGroup:
        """Reads a row group, and checks every image in it.

        Raises:
            CorruptImage: The first image that is not the one that was written; says shard, row and id.
            StorageError: The store did not give it.
        """
        group = self.load_group(number)
        for problem in group.corrupt.values():
            raise CorruptImage(problem)
        return group

    def load_group(self, number: int) -> RowGroup:
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
            labels = self._labels_of(ids, file)
            same_rows = whole or np.array_equal(column(file, "index").to_numpy(), ids)
        except StorageError:
            raise
        except Exception as error:  # damaged bytes can make a reader raise anything
            return self._lost(ids, shard, f"row group {within} cannot be read ({error})")
        # Damage shows in some images. Where there is none in any, these are other images, with their checksums.
        if not whole and not (wrong and same_rows):
            return self._lost(ids, shard, f"row group {within} does not have its checksum")
        verdict = self._verdict(shard) if wrong else ""
        group = RowGroup(ids, images, labels, span=data)
        for row in wrong:
            place = self.place(int(ids[row])) + group.made_from(row)
            group.corrupt[row] = f"{place} does not have its checksum; {verdict}"
        return group

    def _labels_of(self, ids: Ints, file: pq.ParquetFile) -> Ints | None:
        if self.assigned is not None:
            return self.assigned[ids].astype(np.int64)
        return None if self.labels is None else column(file, "label").fill_null(-1).to_numpy()

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
        return f"{self._shard(shard)}: row {id - int(self.starts[self.first_groups[shard]])} (id {id})"

    def _read_span(self, number: int) -> tuple[bytes, bool]:
        """The bytes of a row group, and whether they are those that were written."""
        shard, _ = self.shard_of(number)
        checksum = int(self.checksums[number])
        offset, length = (int(value) for value in self.spans[number])
        name = self._cache_name(number)
        if self.cache and (kept := self.cache.get(name)) is not None and crc32(kept) == checksum:
            return kept, True
        read = partial(self._shard(shard).read_bytes, offset=offset, length=length)
        data, whole = until_whole(read, lambda data: crc32(data) == checksum)
        if self.cache and whole:
            self.cache.put(name, data)
        return data, whole

    def _cache_name(self, number: int) -> str:
        offset, length = self.spans[number]
        return f"{self._shard(self.shard_of(number)[0])} {offset} {length} {self.checksums[number]}"

    def _lost(self, ids: Ints, shard: int, what: str) -> RowGroup:
        """A row group of which no image can be used."""
        problem = f"{self._shard(shard)}: {what}; {self._verdict(shard)}"
        labels = None if self.labels is None else np.full(len(ids), -1)
        return RowGroup(ids, [b""] * len(ids), labels, dict.fromkeys(range(len(ids)), problem))

    def _verdict(self, shard: int) -> str:
        """What happened to a file, and what to do."""
        name, expected = self.shards[shard], int(self.shard_bytes[shard])
        again = "copy it again, or write the data set again with python jobs/prepare.py"
        try:
            size = self.folder.size(name)
            if size != expected:
                return (
                    f"the file has {size:,} bytes and had {expected:,} when its manifest was written, so it was "
                    f"overwritten: {again}"
                )
            if self.folder.is_newer(name, MANIFEST):
                return f"the file was written again after its manifest: {again}"
        except FileNotFoundError:
            return f"the file is gone: {again}"
        except (StorageError, NotImplementedError):
            pass  # what the reads gave is known
        return f"the file is damaged, {TRIES} reads gave the same: {again}"

    def _shard(self, shard: int) -> Folder:
        return self.folder / self.shards[shard]


def open_data(data: Data) -> Dataset:
    """Opens the data set of a config, as `open_dataset` does."""
    folder = Path(data.cache_folder).expanduser() if data.cache_folder else default_folder()
    cache = SpanCache(folder, int(data.cache_gb * 1e9)) if data.cache_gb > 0 else None
    return open_dataset(Folder(data.uri, data.storage_options, data.deadline_s), cache=cache)


def open_dataset(place: Folder | str, *, cache: SpanCache | None = None) -> Dataset:
    """Reads the manifest of a data set.

    Args:
        place: A folder written by jobs/prepare.py, or `digits`, which is built in.
        cache: Where to keep what is read; not used for files on a local disk.

    Raises:
        ConfigError: There is no data set, or not one of this version.
        StorageError: The store did not give the manifest.
    """
    folder = Folder(ensure_digits()) if str(place) == "digits" else Folder(place) if isinstance(place, str) else place
    where = folder / MANIFEST
    try:
        text, whole = until_whole(where.read_bytes, is_whole)
        manifest = parsed(text)
    except (FileNotFoundError, NotADirectoryError) as error:
        why = error.strerror if "bucket" in f"{error.strerror}" else f"it has no {MANIFEST}"
        raise ConfigError(
            f"{place} is not a data set ({why}). Write one from a folder of images or a Parquet "
            "file: python jobs/prepare.py SOURCE DESTINATION, then --data.uri DESTINATION"
        ) from None
    except StorageError:
        raise
    except (OSError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise ConfigError(f"{where} cannot be read: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        raise ConfigError(
            f"{where} is not a manifest of version {VERSION}: write the data set again with python jobs/prepare.py "
            f"SOURCE {folder} --overwrite"
        )
    if not whole:
        raise ConfigError(
            f"{where} does not have its checksum, so it was changed after it was written: copy it again, or write the "
            f"data set again with python jobs/prepare.py SOURCE {folder} --overwrite"
        )
    return _from_manifest(folder, manifest, text, None if folder.is_local else cache)


def _from_manifest(folder: Folder, manifest: dict[str, Any], text: bytes, cache: SpanCache | None) -> Dataset:
    shards: ShardTable = manifest["shards"]
    groups = shards.groups
    return Dataset(
        folder=folder,
        rows=manifest["rows"],
        starts=np.concatenate([[0], np.cumsum(groups[:, 2])]),
        labels=manifest["classes"],
        class_rows=manifest.get("class_rows"),
        largest=(manifest["width"][1], manifest["height"][1]) if manifest.get("width") else None,
        shards=shards.names,
        shard_bytes=shards.sizes,
        first_groups=np.concatenate([[0], np.cumsum(shards.counts)]),
        spans=groups[:, :2].copy(),
        checksums=groups[:, 3].astype(np.uint32),
        fingerprint=fingerprint(text),
        cache=cache,
    )
