"""Images in Parquet files: a column of encoded images, and perhaps one of labels.

A value of a Parquet column cannot be read by itself, so the images are copied to the scratch file: one read of
each file from front to back.
"""

import json
import sys
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pirl.data.dataset import Ints
from pirl.data.writer import MANIFEST, SCHEMA
from pirl.errors import ConfigError
from pirl.prepare.labels import first_and_more, number_labels
from pirl.prepare.scratch import Progress, Scratch, Span
from pirl.prepare.sources.source import Columns, Found, Source, SourceKind, Splits
from pirl.storage.folder import Folder

BATCH_ROWS = 64
BUFFER_BYTES = 2**20


@dataclass(frozen=True, eq=False)
class ParquetSource(Source):
    """Images in a column of Parquet files: bytes, or a struct with `bytes` in it (Hugging Face's Image).

    Attributes:
        counts: Rows of each file.
        ends: int64 (N+1,), where each image begins in the scratch file, and where the last one ends.
    """

    files: list[str]
    counts: list[int]
    ends: Ints

    def name(self, row: int) -> str:
        """Its file, and its place in it."""
        ends = np.cumsum(self.counts)
        file = int(np.searchsorted(ends, row, side="right"))
        return f"{self.files[file]} row {row - int(ends[file]) + self.counts[file]}"

    def spans(self, rows: Ints) -> list[Span]:
        """Of the scratch file."""
        ends = self.ends[rows + 1].tolist()
        return [Span(None, start, end - start) for start, end in zip(self.ends[rows].tolist(), ends, strict=True)]


def _open(found: Found, columns: Columns, scratch: Scratch, progress: Progress) -> Splits:
    files, column = found.files, columns.label or "label"
    counts: list[int] = []
    labels: list[pa.ChunkedArray] = []
    size, names = 0, None
    for path in files:
        with Folder(path).reading() as file:
            parquet = _footer(path, file, columns)
            counts.append(parquet.metadata.num_rows)
            size += _column_bytes(parquet.metadata, columns.image)
            if column in parquet.schema_arrow.names:
                names = names or _class_names(path, parquet.schema_arrow, column)
                labels.append(parquet.read([column])[column])
            else:
                labels.append(pa.chunked_array([pa.nulls(counts[-1])]))
    if not sum(counts):
        raise ConfigError(f"{first_and_more(files)} holds no images")
    classes, numbers = None, np.full(sum(counts), -1)
    try:
        classes, numbers = number_labels(labels, names)
    except ConfigError as error:
        if columns.label is not None:
            raise
        print(f"{files[0]}: its column 'label' is not used: {error}", file=sys.stderr)
    scratch.make_room(size, f"{files[0]} with its {sum(counts):,} images")
    ends = _copy(files, columns.image, sum(counts), scratch, progress)
    index_crc = zlib.crc32(np.diff(ends).tobytes())
    return ParquetSource(first_and_more(files), classes, numbers, index_crc, files, counts, ends), None


def _footer(path: str, file: IO[bytes], columns: Columns) -> pq.ParquetFile:
    """Opens a Parquet file; raises ConfigError if it is none, or has no such columns."""
    try:
        parquet = pq.ParquetFile(file)
    except pa.ArrowException as error:
        raise ConfigError(f"{path} cannot be read as Parquet: {error}") from None
    schema = parquet.schema_arrow
    able = [field.name for field in schema if _holds_bytes(field.type)]
    if (column := columns.image) not in able:
        what = f"its column {column!r} is {schema.field(column).type}" if column in schema.names else "none"
        raise ConfigError(
            f"{path} has no column {column!r} of encoded images ({what}): use --image-column with one of "
            f"{', '.join(able) or 'its columns, but none holds bytes'}"
        )
    if columns.label is not None and columns.label not in schema.names:
        raise ConfigError(f"{path} has no column {columns.label!r}: it has {', '.join(schema.names)}")
    return parquet


PARQUET = SourceKind(
    name="Parquet file", suffixes=(".parquet",), help="with a column of JPEG or PNG bytes", open=_open, check=_footer
)


def _copy(files: list[str], column: str, rows: int, scratch: Scratch, progress: Progress) -> Ints:
    """Copies the images to the scratch file, one behind the other: their N offsets, and the end of the last."""
    ends = np.full(rows + 1, scratch.size)
    done = 0
    progress(f"reading {files[0]}", 0, rows, "images")
    for path in files:
        # Otherwise it reads the column of a row group, which may be the whole file, at once; so it reads a page.
        with Folder(path).reading() as file:
            parquet = pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
            for batch in parquet.iter_batches(BATCH_ROWS, columns=[column]):
                images = batch.column(0)
                if pa.types.is_struct(images.type):
                    images = pc.struct_field(images, "bytes")
                images = images.cast(pa.large_binary())
                lengths = pc.binary_length(images).fill_null(0).to_numpy()
                ends[done + 1 : done + len(images) + 1] = scratch.size + np.cumsum(lengths)
                scratch.append(b"".join(image or b"" for image in images.to_pylist()))
                done += len(images)
                progress(f"reading {path}", done, rows, "images")
    return ends


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _column_bytes(footer: pq.FileMetaData, column: str) -> int:
    """Size of a column, with all that a struct has in it."""
    parts = (footer.row_group(g).column(c) for g in range(footer.num_row_groups) for c in range(footer.num_columns))
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == column)


def _class_names(path: str, schema: pa.Schema, column: str) -> list[str] | None:
    """Names of the classes, where Hugging Face's datasets wrote the file, or this program."""
    manifest = Folder("".join(path.rpartition("/")[:2]) + MANIFEST)
    if schema.equals(SCHEMA) and column == "label" and manifest.exists():
        names: list[str] | None = json.loads(manifest.read()).get("classes")
        return names
    with suppress(ValueError, AttributeError):  # others may write anything there
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = about.get("info", {}).get("features", {}).get(column)
        return feature.get("names") if isinstance(feature, dict) else None
    return None
