"""Numbers for the classes of images. Labels are columns, not a Python object for each image."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pirl.data.dataset import Ints
from pirl.errors import ConfigError

MOST_UNUSED = 100_000
"""More numbers of classes than there are images: each of them is a name, and a count in each shard."""


def number_names(names: pa.Array | pa.ChunkedArray) -> tuple[list[str] | None, Ints]:
    """Numbers the classes in alphabetical order; -1 is none, and no names at all are no classes."""
    values = pc.unique(names).drop_null()
    classes = sorted(values.to_pylist())
    numbers = pc.index_in(names, pa.array(classes, values.type)).fill_null(-1)
    return classes or None, numbers.cast(pa.int64()).to_numpy()


def number_labels(columns: list[pa.ChunkedArray], names: list[str] | None = None) -> tuple[list[str] | None, Ints]:
    """Numbers labels: numbers stay as they are, below 0 there is no label; words become classes, but for empty ones.

    There is a column of each file. The names are those of the classes 0, 1, ..., where they are known.

    Raises:
        ConfigError: They are neither whole numbers nor words, or are numbers but not those of classes.
    """
    labels = _joined([_numbers_or_words(column) for column in columns])
    if pa.types.is_large_string(labels.type):
        return number_names(labels)
    numbers = np.maximum(labels.fill_null(-1).to_numpy(), -1)
    count = int(numbers.max(initial=-1)) + 1
    if names and len(names) >= count:
        return names if count else None, numbers
    if count > len(numbers) + MOST_UNUSED:
        raise ConfigError(
            f"label {count - 1:,} is the number of a class, and there are {len(numbers):,} images: "
            "number the classes 0, 1, ..., or let words name them"
        )
    return [str(at) for at in range(count)] or None, numbers


def _numbers_or_words(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """As int64 or large_string; as null where there are none."""
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    kind, problem = labels.type, ""
    if pa.types.is_null(kind):
        return labels
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        words = pc.utf8_normalize(labels.cast(pa.large_string()), "NFC")  # as for names of folders
        return pc.if_else(pc.equal(pc.utf8_trim_whitespace(words), ""), None, words)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        try:
            # pandas makes floats of whole numbers where some are missing.
            known = labels if pa.types.is_integer(kind) else pc.if_else(pc.is_nan(labels), None, labels)
            return known.cast(pa.int64())
        except pa.ArrowException as error:
            problem = f" ({error})"
    raise ConfigError(f"the labels are {kind}{problem}: name a column of whole numbers or names (--label-column)")


def _joined(columns: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    kinds = sorted({column.type for column in columns} - {pa.null()}, key=str)
    if len(kinds) > 1:
        raise ConfigError(f"the labels are {kinds[0]} in one file and {kinds[1]} in another: make them alike")
    kind = kinds[0] if kinds else pa.int64()
    return pa.chunked_array([chunk for column in columns for chunk in column.cast(kind).chunks], kind)


def first_and_more(files: list[str]) -> str:
    """The first of some files, and how many more there are, for people."""
    return f"{files[0]} and {len(files) - 1} more" if len(files) > 1 else files[0]
