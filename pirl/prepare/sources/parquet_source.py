"""Images in Parquet files: a column of encoded images, and perhaps one of labels.

A value of a Parquet column cannot be read by itself, so the images are copied to the scratch file: one read of
each file from front to back. Where a row has no bytes but a path (Hugging Face's Image), the image is the file there,
in the folder of the Parquet file or below it.
"""

import posixpath
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pirl.data.dataset import Ints
from pirl.errors import ConfigError
from pirl.prepare.labels import first_and_more, number_labels
from pirl.prepare.scratch import Progress, Scratch, Span
from pirl.prepare.sources.parquet_columns import (
    LABEL,
    about,
    check_columns,
    class_names,
    column_bytes,
    holds_images,
    images_and_paths,
    labels_of,
    like_labels,
    partition,
    refuse_encrypted,
    type_in_folders,
)
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
        paths: large_string (N,), the URL of an image that is a file by itself, else null.
    """

    files: list[str]
    counts: list[int]
    ends: Ints
    paths: pa.ChunkedArray

    def name(self, row: int) -> str:
        """Its file, and its place in it."""
        ends = np.cumsum(self.counts)
        file = int(np.searchsorted(ends, row, side="right"))
        path = self.paths[row].as_py()
        return f"{self.files[file]} row {row - int(ends[file]) + self.counts[file]}{f' ({path})' if path else ''}"

    def spans(self, rows: Ints) -> list[Span]:
        """Of the scratch file, or whole files."""
        starts, ends, paths = self.ends[rows].tolist(), self.ends[rows + 1].tolist(), self.paths.take(pa.array(rows))
        places = zip(starts, ends, paths.to_pylist(), strict=True)
        return [Span(path) if path else Span(None, start, end - start) for start, end, path in places]


def _open(found: Found, columns: Columns, scratch: Scratch, progress: Progress) -> Splits:
    files, column = found.files, columns.label or LABEL
    counts: list[int] = []
    labels: list[pa.ChunkedArray] = []
    schemas: dict[str, pa.Schema] = {}  # of the files with rows
    names: dict[str, list[str]] = {}
    size, in_folders = 0, type_in_folders(files, column)
    for path in files:
        with Folder(path).reading() as file, about(path):
            parquet = _footer(path, file, columns)
            counts.append(parquet.metadata.num_rows)
            labels.append(labels_of(path, parquet, column, in_folders))
            size += column_bytes(parquet, columns.image)
            if counts[-1]:
                schemas[path] = parquet.schema_arrow
            if column in parquet.schema_arrow.names and (known := class_names(path, parquet.schema_arrow, column)):
                names[path] = known
    if not schemas:
        raise ConfigError(f"{first_and_more(files)} holds no images")
    _tell(schemas, columns)
    classes, numbers = _numbered(files, columns, labels, names)
    scratch.make_room(size, f"{files[0]} with its {sum(counts):,} images")
    ends, names_of_files = _copy(files, columns.image, sum(counts), scratch, progress)
    paths = _found_beside(found, counts, names_of_files)
    index_crc = zlib.crc32(np.diff(ends).tobytes())
    if paths.null_count < len(paths):
        index_crc = zlib.crc32("\n".join(paths.drop_null().to_pylist()).encode(), index_crc)
    source = ParquetSource(first_and_more(files), classes, numbers, index_crc, files, counts, ends, paths)
    return source, None


def _footer(path: str, file: IO[bytes], columns: Columns) -> pq.ParquetFile:
    """Opens a Parquet file; raises ConfigError if it is none, or has no such columns."""
    with about(path):
        parquet = pq.ParquetFile(file)
        check_columns(path, parquet, columns)
        refuse_encrypted(parquet, file, columns)
        return parquet


PARQUET = SourceKind(
    name="Parquet file",
    suffixes=(".parquet", ".pq", ".parq"),
    help="with a column of JPEG or PNG bytes",
    open=_open,
    check=_footer,
)


def _tell(schemas: dict[str, pa.Schema], columns: Columns) -> None:
    """Says which columns were taken where others could be, and that there are no labels where there may be some."""
    first, schema = next(iter(schemas.items()))

    def say(path: str, what: str) -> None:
        print(f"{path}: {what}", file=sys.stderr)

    images = [field.name for field in schema if holds_images(field.type) and not pa.types.is_null(field.type)]
    if others := [name for name in images if name != columns.image]:
        say(first, f"the images are those of column {columns.image!r}; --image-column takes {' or '.join(others)}")
    if columns.label is not None:
        return
    without = [path for path, own in schemas.items() if LABEL not in own.names and LABEL not in partition(path)]
    others = [name for name in [*like_labels(schema), *partition(first)] if name not in (LABEL, "split")]
    hint = f"; --label-column takes {' or '.join(others)}" if others else ""
    folders = {path.rpartition("/")[0] for path in schemas}
    if without and not others and len(folders) > 1:
        hint = f"; folders name them as label=cat/, not as {Folder(max(folders)).name}/"
    if without and (hint or len(without) < len(schemas)):
        say(first_and_more(without), f"no column {LABEL!r}, so these images have no labels{hint}")
    elif others:
        say(first, f"the labels are those of column {LABEL!r}{hint}")


def _numbered(
    files: list[str], columns: Columns, labels: list[pa.ChunkedArray], names: dict[str, list[str]]
) -> tuple[list[str] | None, Ints]:
    """The names of the classes, and the number of each row's."""
    if len({tuple(known) for known in names.values()}) > 1:
        first, second = next((a, b) for a in names for b in names if names[a] != names[b])
        raise ConfigError(
            f"{first} names its classes {', '.join(names[first][:5])} and {second} {', '.join(names[second][:5])}, so "
            "one number stands for two: make them alike, or prepare each by itself"
        )
    try:
        return number_labels(labels, next(iter(names.values()), None))
    except ConfigError as error:
        if columns.label is not None:
            raise
        print(f"{files[0]}: its column {LABEL!r} is not used: {error}", file=sys.stderr)
        return None, np.full(sum(map(len, labels)), -1)


def _copy(
    files: list[str], column: str, rows: int, scratch: Scratch, progress: Progress
) -> tuple[Ints, pa.ChunkedArray]:
    """Copies the images to the scratch file, one behind the other: their N offsets, and the end of the last.

    Beside them the paths of those of which the files hold nothing else, with nulls for all others.
    """
    ends = np.full(rows + 1, scratch.size)
    done, paths = 0, []
    progress(f"reading {files[0]}", 0, rows, "images")
    for path in files:
        for images, elsewhere in _batches(path, column):
            lengths = pc.binary_length(images).fill_null(0).to_numpy()
            ends[done + 1 : done + len(images) + 1] = scratch.size + np.cumsum(lengths)
            scratch.append(b"".join(image or b"" for image in images.to_pylist()))
            done += len(images)
            paths.append(elsewhere)
            progress(f"reading {path}", done, rows, "images")
    return ends, pa.chunked_array(paths, pa.large_string())


def _batches(path: str, column: str) -> Iterator[tuple[pa.Array, pa.Array]]:
    """The images of a file, some rows at a time, and the paths of those that are not in it."""
    # Otherwise it reads the column of a row group, which may be the whole file, at once; so it reads a page.
    with Folder(path).reading() as file, about(path):
        parquet = pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True)
        if parquet.metadata.num_rows:
            # Where a name has a dot in it, a column and the field of a struct may both be called so, and both are read.
            for batch in parquet.iter_batches(BATCH_ROWS, columns=[column]):
                yield images_and_paths(batch.column(column))


def _found_beside(found: Found, counts: list[int], names: pa.ChunkedArray) -> pa.ChunkedArray:
    """The URLs of images that are files by themselves, by their paths in Parquet files; null where there is none.

    They are looked for below the folder of the Parquet file, then below that of the source, and nowhere else.
    Raises ConfigError where all images are such, and none is found.
    """
    urls: list[str | None] = [None] * len(names)
    listed: dict[str, set[str]] = {}
    for row in np.flatnonzero(names.is_valid().to_numpy()).tolist():
        file = found.files[int(np.searchsorted(np.cumsum(counts), row, side="right"))]
        near = file.rpartition("/")[0] if "/" in file else "."
        for folder in dict.fromkeys([near, *([str(found.folder)] if found.folder else [])]):
            if folder not in listed:
                listed[folder] = set(Folder(folder).sizes(follow_links=True))
            if (name := posixpath.normpath(names[row].as_py())) in listed[folder]:
                urls[row] = url = str(Folder(folder) / name)
                found.used.add(url)
                break
    paths = pa.chunked_array([urls], pa.large_string())
    lost = np.flatnonzero(pc.and_(names.is_valid(), paths.is_null()).to_numpy())
    if len(lost):
        what = (
            f"{first_and_more(found.files)}: of {len(lost):,} of {len(urls):,} images there is only a path, as "
            f"{names[lost[0]].as_py()[:60]!r}, and no such file lies below the folder of the Parquet file"
        )
        if len(lost) == len(urls):
            raise ConfigError(f"{what}: copy the images there, or name the folder that they are in as SOURCE")
        print(f"{what}: they are left out", file=sys.stderr)
    return paths
