"""Reads the shard format: a data set by its manifest, and a row group by one ranged read.

The manifest holds the span of every row group and footer, so nothing is ever listed or searched for.
"""

import io
import json
import zlib
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pirl import storage
from pirl.config import Config, ConfigError
from pirl.digits import ensure_digits
from pirl.shard_writer import MANIFEST, VERSION

Ints = NDArray[np.int64]


class CorruptImage(RuntimeError):  # noqa: N818 - what is wrong says more than Error
    """Bytes of a shard are not those that were written, or are not an image."""


@dataclass(frozen=True, eq=False)
class Group:
    """The rows of a row group.

    Attributes:
        ids: int64 (R,), ids of the rows in the data set.
        images: R encoded images.
        labels: int64 (R,), the classes, -1 where a row has none; None if the data set has no labels.
    """

    ids: Ints
    images: list[bytes]
    labels: Ints | None


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: what its manifest says. It pickles small, and opens nothing before it is read.

    Attributes:
        uri: The folder.
        rows: Number of images; their ids are 0 to rows - 1.
        starts: int64 (G+1,), the first row of each row group, then `rows`.
        labels: Names of the classes 0, 1, ..., or None if the images have no labels.
        shards: Names of the S files.
        first_groups: int64 (S+1,), the first row group of each shard, then G.
        spans: int64 (G, 2), offset and length of each row group in its shard, in bytes.
        footers: int64 (S, 2), offset and length of each shard's footer, in bytes.
        fingerprint: A number that other images, or the same in another order, would not have.
    """

    uri: str
    rows: int
    starts: Ints
    labels: list[str] | None
    shards: list[str]
    first_groups: Ints
    spans: Ints
    footers: Ints
    fingerprint: int
    storage_options: dict[str, Any]
    _read_footers: dict[int, pq.FileMetaData] = field(default_factory=dict, init=False, repr=False)

    def read_group(self, number: int) -> Group:
        """Reads a row group, and checks every image in it.

        Raises:
            CorruptImage: An image does not have its checksum; says shard, row and id.
        """
        shard = int(np.searchsorted(self.first_groups, number, side="right")) - 1
        within = number - int(self.first_groups[shard])
        offset, length = (int(value) for value in self.spans[number])
        data = storage.read_bytes(self._shard_uri(shard), offset, length, self.storage_options)
        try:
            source = pa.PythonFile(_Span(data, offset), mode="r")
            table = pq.ParquetFile(source, metadata=self._footer(shard)).read_row_group(within)
        except (pa.ArrowException, OSError) as error:
            raise self._corrupt(shard, f"row group {within} cannot be read ({error})") from None
        images: list[bytes] = table["image"].to_pylist()
        ids = table["index"].to_numpy()
        for row, (image, crc) in enumerate(zip(images, table["crc32"].to_pylist(), strict=True)):
            if zlib.crc32(image) != crc:
                at = int(self.starts[number] - self.starts[self.first_groups[shard]]) + row
                raise self._corrupt(shard, f"row {at} (id {ids[row]}) does not have its checksum")
        return Group(ids, images, None if self.labels is None else table["label"].fill_null(-1).to_numpy())

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles without the footers: each process reads those that it needs."""
        return Dataset, (
            self.uri,
            self.rows,
            self.starts,
            self.labels,
            self.shards,
            self.first_groups,
            self.spans,
            self.footers,
            self.fingerprint,
            self.storage_options,
        )

    def _footer(self, shard: int) -> pq.FileMetaData:
        if shard not in self._read_footers:
            offset, length = (int(value) for value in self.footers[shard])
            data = storage.read_bytes(self._shard_uri(shard), offset, length, self.storage_options)
            self._read_footers[shard] = pq.read_metadata(pa.BufferReader(data))
        return self._read_footers[shard]

    def _shard_uri(self, shard: int) -> str:
        return storage.join(self.uri, self.shards[shard])

    def _corrupt(self, shard: int, what: str) -> CorruptImage:
        return CorruptImage(
            f"{self._shard_uri(shard)}: {what}, so the file changed after it was written: copy it again, or "
            "write the data set again with python jobs/prepare.py"
        )


def open_dataset(uri: str, storage_options: dict[str, Any] | None = None) -> Dataset:
    """Reads the manifest of a data set.

    Args:
        uri: A folder written by jobs/prepare.py, by any URL that fsspec reads, or `digits`.
        storage_options: Passed to fsspec.

    Raises:
        ConfigError: There is no data set, or not one of this version.
    """
    folder = ensure_digits() if uri == "digits" else uri
    options = storage_options or {}
    try:
        manifest = json.loads(storage.read_all(storage.join(folder, MANIFEST), options))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{uri} is not a data set (it has no {MANIFEST}). Write one from a folder of images or a Parquet "
            "file: python jobs/prepare.py SOURCE DESTINATION, then --data.uri DESTINATION"
        ) from None
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{storage.join(folder, MANIFEST)} cannot be read: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        raise ConfigError(
            f"{storage.join(folder, MANIFEST)} is not a manifest of version {VERSION}: write the data set "
            f"again with python jobs/prepare.py SOURCE {folder} --overwrite"
        )
    return _from_manifest(folder, manifest, options)


def test_uri(uri: str, storage_options: dict[str, Any] | None = None) -> str | None:  # noqa: PT028 - not a test
    """The folder of the held-out split of a data set, or None if it has none."""
    folder = storage.join(ensure_digits() if uri == "digits" else uri, "test")
    return folder if storage.exists(storage.join(folder, MANIFEST), storage_options) else None


def _from_manifest(uri: str, manifest: dict[str, Any], storage_options: dict[str, Any]) -> Dataset:
    shards = manifest["shards"]
    groups = np.array([group for shard in shards for group in shard["groups"]], np.int64).reshape(-1, 3)
    return Dataset(
        uri=uri,
        rows=manifest["rows"],
        starts=np.concatenate([[0], np.cumsum(groups[:, 2])]),
        labels=manifest["classes"],
        shards=[shard["path"] for shard in shards],
        first_groups=np.array([0, *accumulate(len(shard["groups"]) for shard in shards)]),
        spans=groups[:, :2].copy(),
        footers=np.array([shard["footer"] for shard in shards], np.int64).reshape(-1, 2),
        fingerprint=zlib.crc32(json.dumps(shards).encode()),
        storage_options=storage_options,
    )


class _Span(io.BytesIO):
    """A file of which only the bytes from `offset` on are there; Parquet seeks in it as in the whole file."""

    def __init__(self, data: bytes, offset: int) -> None:
        super().__init__(data)
        self.offset = offset

    def seek(self, position: int, whence: int = 0) -> int:
        return super().seek(position - self.offset if whence == 0 else position, whence) + self.offset

    def tell(self) -> int:
        return super().tell() + self.offset


def check_data(config: Config, dataset: Dataset) -> None:
    """Refuses a data set that is smaller than the batch or the negatives.

    Raises:
        ConfigError: What is too large, and the largest value that fits.
    """
    if config.data.batch_size > dataset.rows:
        raise ConfigError(
            f"data.batch_size {config.data.batch_size} is more than the {dataset.rows} images of {dataset.uri}: "
            f"use a smaller --data.batch-size"
        )
    if config.loss.num_negatives >= dataset.rows:
        raise ConfigError(
            f"loss.num_negatives {config.loss.num_negatives} needs more than the {dataset.rows} images of "
            f"{dataset.uri}: use --loss.num-negatives {dataset.rows - 1} or less"
        )
