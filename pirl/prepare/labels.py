"""What the names of images say: their classes and splits. Names are columns, not a Python object for each image."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pirl.data.dataset import Ints
from pirl.errors import ConfigError

MOST_UNUSED = 100_000
"""More numbers of classes than there are images: each of them is a name, and a count in each shard."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
TEST_NAMES = ("test", "val", "valid", "validation")


def number_names(names: pa.Array | pa.ChunkedArray) -> tuple[list[str] | None, Ints]:
    """Numbers the classes in alphabetical order; -1 is none, and no names at all are no classes."""
    values = pc.unique(names).drop_null()
    classes = sorted(values.to_pylist())
    numbers = pc.index_in(names, pa.array(classes, values.type)).fill_null(-1)
    return classes or None, numbers.cast(pa.int64()).to_numpy()


def number_labels(columns: list[pa.ChunkedArray], names: list[str] | None = None) -> tuple[list[str] | None, Ints]:
    """Numbers labels: numbers stay as they are, below 0 there is no label; words become classes.

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
        return labels.cast(pa.large_string())
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


def first_folders(names: pa.Array) -> pa.Array:
    """The first folder of each path, null where a path has none."""
    parts = pc.split_pattern(names, "/", max_splits=1)
    folders = pc.list_element(parts, 0)
    return pc.if_else(pc.greater(pc.list_value_length(parts), 1), folders, pa.scalar(None, folders.type))


def below(names: pa.Array, folder: str | None) -> tuple[Ints, pa.Array]:
    """The rows of the paths that lie in a folder, and their paths in it; all of them where none is named."""
    if not folder:
        return np.arange(len(names)), names
    rows = np.flatnonzero(pc.starts_with(names, f"{folder}/").to_numpy(zero_copy_only=False))
    return rows, pc.list_element(pc.split_pattern(names.take(pa.array(rows)), "/", max_splits=1), 1)


def first_and_more(files: list[str]) -> str:
    """The first of some files, and how many more there are, for people."""
    return f"{files[0]} and {len(files) - 1} more" if len(files) > 1 else files[0]


def split_words(words: set[str]) -> tuple[str | None, str | None]:
    """Which of the words stand for the training and for the held-out split; no word, beside test, is training."""
    test = next((name for name in TEST_NAMES if name in words), None)
    if test and "" in words and "train" not in words:
        return "", test
    # `train` may also be a class, beside car and bus.
    return ("train", test) if "train" in words and (test or words == {"train"}) else (None, None)


def split_folders(names: pa.Array) -> tuple[str | None, str | None]:
    """Which of the first folders stand for the training and for the held-out split."""
    return split_words(set(pc.unique(first_folders(names)).drop_null().to_pylist()))
