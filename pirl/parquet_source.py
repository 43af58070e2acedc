"""Images in Parquet files: a column of encoded images, and perhaps one of labels."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pirl import storage
from pirl.config import ConfigError

Ints = NDArray[np.int64]
Row = tuple[int, bytes | None]
"""The number of a row in its source, and its encoded image, or None where there is none."""

BATCH_ROWS = 256


@dataclass(frozen=True, eq=False)
class ParquetSource:
    """Images in a column of Parquet files: bytes, or a struct with `bytes` in it (Hugging Face's Image).

    Attributes:
        files: The files.
        column: Name of the column of images.
        counts: Rows of each file.
        size: Bytes of all images.
        classes: Names of the labels, or None if there are none.
        labels: int64, each row's label, -1 where there is none.
        bucket_bytes: Bytes of images that are held in memory at a time.
    """

    files: list[str]
    column: str
    counts: list[int]
    size: int
    classes: list[str] | None
    labels: Ints
    bucket_bytes: int = 2**29

    @property
    def uri(self) -> str:
        """The first file, and how many more there are."""
        more = len(self.files) - 1
        return f"{self.files[0]} and {more} more" if more else self.files[0]

    def images(self, order: Ints) -> Iterator[Row]:
        """Yields the images of these rows, in this order.

        The files are read once, from front to back. Each image goes to the temporary file of its bucket,
        which holds the rows of one stretch of `order`; then bucket after bucket is put in order.
        """
        position = np.full(sum(self.counts), -1)
        position[order] = np.arange(len(order))
        buckets = max(1, -(-self.size // self.bucket_bytes))
        bucket_rows = max(1, -(-len(order) // buckets))
        with tempfile.TemporaryDirectory(prefix="pirl-prepare-") as folder:
            paths = [str(Path(folder, str(bucket))) for bucket in range(buckets)]
            self._deal(position, bucket_rows, paths)
            for path in paths:
                with pa.memory_map(path) as file:
                    table = pa.ipc.open_stream(file).read_all()
                    at = table["position"].to_numpy()
                    for row in np.argsort(at):
                        yield int(order[at[row]]), table["image"][int(row)].as_py()
                Path(path).unlink()

    def name(self, row: int) -> str:
        """What a person calls a row."""
        ends = np.cumsum(self.counts)
        file = int(np.searchsorted(ends, row, side="right"))
        return f"{self.files[file]} row {row - int(ends[file]) + self.counts[file]}"

    def _deal(self, position: Ints, bucket_rows: int, paths: list[str]) -> None:
        """Writes the images and their positions to one file for each stretch of `bucket_rows` positions."""
        schema = pa.schema([("position", pa.int64()), ("image", pa.large_binary())])
        done = 0
        with ExitStack() as stack:
            buckets = [stack.enter_context(pa.ipc.new_stream(path, schema)) for path in paths]
            for images in self._batches():
                at = position[done : done + len(images)]
                done += len(images)
                for bucket in np.unique(at[at >= 0] // bucket_rows):
                    chosen = np.flatnonzero(at // bucket_rows == bucket)
                    columns = [pa.array(at[chosen]), images.take(pa.array(chosen))]
                    buckets[bucket].write_batch(pa.record_batch(columns, schema=schema))

    def _batches(self) -> Iterator[pa.Array]:
        for path in self.files:
            with storage.reading(path) as file:
                for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=[self.column]):
                    images = batch.column(0)
                    if pa.types.is_struct(images.type):
                        images = pc.struct_field(images, "bytes")
                    yield images.cast(pa.large_binary())


def parquet_source(files: list[str], image_column: str, label_column: str | None) -> ParquetSource:
    """The rows of Parquet files.

    Raises:
        ConfigError: A file is not Parquet, or has no such columns.
    """
    counts: list[int] = []
    size, names = 0, None
    labels: list[pa.ChunkedArray] = []
    for path in files:
        with storage.reading(path) as file:
            try:
                parquet = pq.ParquetFile(file)
            except pa.ArrowException as error:
                raise ConfigError(f"{path} cannot be read as Parquet: {error}") from None
            schema = parquet.schema_arrow
            _check_images(path, schema, image_column)
            if label_column is None and not counts and "label" in schema.names:
                label_column = "label"
            if label_column is not None and label_column not in schema.names:
                raise ConfigError(f"{path} has no column {label_column!r}: it has {', '.join(schema.names)}")
            counts.append(parquet.metadata.num_rows)
            size += _column_bytes(parquet.metadata, image_column)
            if label_column is not None:
                names = _class_names(schema, label_column)
                labels.append(parquet.read([label_column])[label_column])
    classes, numbers = _number(labels, names) if labels else (None, np.full(sum(counts), -1))
    return ParquetSource(files, image_column, counts, size, classes, numbers)


def _check_images(path: str, schema: pa.Schema, column: str) -> None:
    """Refuses a file without a column of encoded images."""
    able = [field.name for field in schema if _holds_bytes(field.type)]
    if column not in able:
        what = f"its column {column!r} is {schema.field(column).type}" if column in schema.names else "none"
        raise ConfigError(
            f"{path} has no column {column!r} of encoded images ({what}): use --image-column with one of "
            f"{', '.join(able) or 'its columns, but none holds bytes'}"
        )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _column_bytes(footer: pq.FileMetaData, column: str) -> int:
    """Size of a column, with all that a struct has in it."""
    parts = (footer.row_group(g).column(c) for g in range(footer.num_row_groups) for c in range(footer.num_columns))
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == column)


def _class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Names of the classes, where Hugging Face's datasets wrote the file."""
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = about.get("info", {}).get("features", {}).get(column)
    return feature.get("names") if isinstance(feature, dict) else None


def _number(columns: list[pa.ChunkedArray], names: list[str] | None) -> tuple[list[str] | None, Ints]:
    """Numbers the labels of Parquet files: numbers stay as they are, and below 0 there is no label."""
    labels = pa.chunked_array([chunk for column in columns for chunk in column.chunks], columns[0].type)
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if pa.types.is_string(labels.type) or pa.types.is_large_string(labels.type):
        return number_names(labels.to_pylist())
    if not pa.types.is_integer(labels.type):
        raise ConfigError(f"the labels are {labels.type}: name a column of whole numbers or names (--label-column)")
    numbers = np.maximum(labels.cast(pa.int64()).fill_null(-1).to_numpy(), -1)
    count = int(numbers.max(initial=-1)) + 1
    return (names or [str(at) for at in range(count)]) if count else None, numbers


def number_names(labels: list[str | None]) -> tuple[list[str] | None, Ints]:
    """Numbers the classes in alphabetical order; -1 is none, and no names at all are no classes."""
    classes = sorted({name for name in labels if name is not None})
    number: dict[str | None, int] = {name: at for at, name in enumerate(classes)}
    return classes or None, np.array([number.get(name, -1) for name in labels], np.int64)
