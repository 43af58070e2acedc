"""Which columns of a Parquet file hold images and labels, and what they hold, whatever type a writer gave them."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pirl.data.writer import MANIFEST, SCHEMA
from pirl.errors import ConfigError, StorageError
from pirl.prepare.sources.source import Columns
from pirl.storage.folder import Folder

LABEL = "label"
"""The column of labels where nobody names one."""
_LIKE_A_LABEL = re.compile(r"label|class|categor|target|^(cls|y)$", re.IGNORECASE)
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""What Hive and Spark call a folder without a value."""


@contextmanager
def about(path: str) -> Iterator[None]:
    """Names the file in what Arrow says of it; what a store or a disk says goes through as it is."""
    try:
        yield
    except ConfigError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, StorageError) or getattr(error, "errno", None) is not None:
            raise
        what = f"{' '.join(str(error).split())}. If it is damaged, copy it again, or leave it out of SOURCE"
        if "crypt" in what:
            what = "it is encrypted, so write it again without that"
        raise ConfigError(f"{path} cannot be read as Parquet: {what}") from None


def check_columns(path: str, parquet: pq.ParquetFile, columns: Columns) -> None:
    """Raises ConfigError where a file has no such columns; one without rows may lack them."""
    schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
    if not rows:
        return
    names = schema.names
    for name in filter(None, columns):
        if names.count(name) > 1:
            raise ConfigError(f"{path} has {names.count(name)} columns {name!r}: give each a name of its own")
    able = [field.name for field in schema if holds_images(field.type)]
    # Words may be paths of images; they are not offered, since most are something else.
    if (column := columns.image) not in [*able, *(field.name for field in schema if _is_text(field.type))]:
        kind = schema.field(column).type if column in names else None
        what = f"its column {column!r} is {kind}" if kind is not None else "none"
        if kind is not None and _is_list(kind):
            what += ", and a row is one image: write a row for each"
        raise ConfigError(
            f"{path} has no column {column!r} of encoded images ({what}): use --image-column with one of "
            f"{', '.join(able) or 'its columns, but none holds bytes'}"
        )
    if columns.label is not None and columns.label not in [*names, *partition(path)]:
        raise ConfigError(f"{path} has no column {columns.label!r}: it has {', '.join([*names, *partition(path)])}")


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold encoded images, or where they lie."""
    if pa.types.is_struct(kind):
        return any(f.name == "bytes" and not pa.types.is_struct(f.type) and holds_images(f.type) for f in kind)
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = ("binary", "large_binary", "binary_view", "fixed_size_binary", "null")
    return any(getattr(pa.types, f"is_{test}")(kind) for test in tests)


def images_and_paths(column: pa.Array) -> tuple[pa.Array, pa.Array]:
    """The images as large_binary, and where those lie that have no bytes, as large_string; both with nulls."""
    nothing = pa.nulls(len(column))
    images, paths = _decoded(column), nothing
    if pa.types.is_struct(images.type):
        fields = {field.name for field in images.type}
        paths = _decoded(pc.struct_field(images, "path")) if "path" in fields else nothing
        images = _decoded(pc.struct_field(images, "bytes"))
    elif _is_text(images.type):
        images, paths = nothing, images
    paths = (paths if _is_text(paths.type) else nothing).cast(pa.large_string())
    images = images.cast(pa.large_binary())
    known = pc.and_(images.is_null(), pc.not_equal(paths, "").fill_null(False))
    return images, pc.if_else(known, paths, pa.scalar(None, pa.large_string()))


def refuse_encrypted(parquet: pq.ParquetFile, file: IO[bytes], columns: Columns) -> None:
    """Raises OSError where a column is encrypted: to ask Arrow how large such a one is would end the process.

    Such a file has a signature behind its footer, which belongs to its length.
    """
    file.seek(-8, 2)
    if int.from_bytes(file.read(4), "little") > parquet.metadata.serialized_size:
        names = [name for name in columns if name in parquet.schema_arrow.names]
        next(parquet.iter_batches(1, columns=names), None)


def column_bytes(parquet: pq.ParquetFile, column: str) -> int:
    """Size of a column, with all that a struct has in it."""
    footer, schema = parquet.metadata, parquet.schema
    parts = [at for at in range(footer.num_columns) if f"{schema.column(at).path}.".startswith(f"{column}.")]
    groups = (footer.row_group(at) for at in range(footer.num_row_groups))
    return sum(group.column(part).total_uncompressed_size for group in groups for part in parts)


def labels_of(path: str, parquet: pq.ParquetFile, column: str, folders: pa.DataType) -> pa.ChunkedArray:
    """The labels of a file's rows: a column, else what its folders say (`label=3/`), as this type; else nulls."""
    if column in parquet.schema_arrow.names:
        return _plain(parquet.read([column])[column])
    rows, value = parquet.metadata.num_rows, partition(path).get(column)
    if value is None:
        return pa.chunked_array([pa.nulls(rows)])
    return pa.chunked_array([pa.repeat(pa.scalar(int(value) if folders == pa.int64() else value, folders), rows)])


def type_in_folders(files: list[str], column: str) -> pa.DataType:
    """Of the labels that folders say: numbers where all of them are some, as Hive and Spark read them; else words."""
    values = [partition(path).get(column, "0") for path in files]
    return pa.int64() if all(re.fullmatch(r"-?\d{1,18}", value) for value in values) else pa.large_string()


def partition(path: str) -> dict[str, str]:
    """What the folders on the way to a file say as Hive writes it: `split=train/label=3/` is {split: train, label: 3}.

    A folder for rows without a value says nothing.
    """
    pairs = (folder.partition("=") for folder in path.split("/")[:-1] if "=" in folder)
    return {unquote(name): unquote(value) for name, _, value in pairs if name and value != NO_PARTITION}


def like_labels(schema: pa.Schema) -> list[str]:
    """Columns that may hold labels, by their names or as Hugging Face's datasets says."""
    classes = {name for name, feature in _features(schema).items() if isinstance(feature, dict) and "names" in feature}
    able = [field.name for field in schema if not holds_images(field.type) and not pa.types.is_nested(field.type)]
    return [name for name in able if name in classes or _LIKE_A_LABEL.search(name)]


def class_names(path: str, schema: pa.Schema, column: str) -> list[str] | None:
    """Names of the classes, where Hugging Face's datasets wrote the file, or this program."""
    manifest = Folder("".join(path.rpartition("/")[:2]) + MANIFEST)
    if schema.names[: len(SCHEMA)] == SCHEMA.names and column == LABEL and manifest.exists():
        names: list[str] | None = json.loads(manifest.read()).get("classes")
        return names
    feature = _features(schema).get(column)
    names = feature.get("names") if isinstance(feature, dict) else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _features(schema: pa.Schema) -> dict[str, object]:
    """What Hugging Face's datasets says of the columns."""
    with suppress(ValueError, AttributeError):  # others may write anything there
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        return features if isinstance(features, dict) else {}
    return {}


def _plain(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """Labels of unusual types as numbers or words; others as they are."""
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    kind = labels.type
    if pa.types.is_boolean(kind):
        return pc.if_else(labels, "true", "false")
    if any(getattr(pa.types, f"is_{test}")(kind) for test in ("binary", "large_binary", "binary_view", "string_view")):
        with suppress(pa.ArrowException):  # bytes that are no text
            return labels.cast(pa.large_string())
    return labels


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
