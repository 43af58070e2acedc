"""Where images come from before they are a data set: a folder, or Parquet files with a column of images.

A source knows its rows and their labels, and yields the encoded images in any order that is asked for.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from pirl import storage
from pirl.config import ConfigError
from pirl.parquet_source import BATCH_ROWS, Ints, ParquetSource, Row, number_names, parquet_source

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
TEST_NAMES = ("test", "val", "valid", "validation")


@dataclass(frozen=True, eq=False)
class FolderSource:
    """Images in a folder: the first folder on the way to an image is its class.

    Attributes:
        uri: The folder.
        names: Path of each image, relative to it.
        classes: Names of the class folders, or None if all images lie in the folder itself.
        labels: int64, each image's class, -1 for an image that lies in the folder itself.
    """

    uri: str
    names: list[str]
    classes: list[str] | None
    labels: Ints

    def images(self, order: Ints) -> Iterator[Row]:
        """Yields the images of these rows, in this order."""
        with ThreadPoolExecutor() as pool:
            for batch in (order[at : at + BATCH_ROWS].tolist() for at in range(0, len(order), BATCH_ROWS)):
                yield from zip(batch, pool.map(self._read, batch), strict=True)

    def name(self, row: int) -> str:
        """What a person calls a row."""
        return storage.join(self.uri, self.names[row])

    def _read(self, row: int) -> bytes:
        return storage.read_all(self.name(row))


Source = FolderSource | ParquetSource


def find_source(uri: str, image_column: str, label_column: str | None) -> tuple[Source, Source | None]:
    """Opens what a person named, and the held-out split in it if there is one.

    A split is a folder, or Parquet files whose names begin so: train, and test or val.

    Args:
        uri: A folder of images or of Parquet files, a Parquet file, or a pattern with `*` for Parquet files.
        image_column: Of Parquet files.
        label_column: Of Parquet files; by default `label` where there is such a column.

    Raises:
        ConfigError: There is nothing, or nothing that is understood.
    """
    given = uri
    if storage.is_folder(uri):
        names = storage.files_below(uri)
    elif storage.exists(uri):
        names, uri = [uri], ""
    elif "*" in uri:
        names, uri = storage.matches(uri), ""
    else:
        raise ConfigError(f"{uri} does not exist: SOURCE is a folder of images, a Parquet file, or digits")
    parquet = [name for name in names if name.endswith(".parquet")]
    images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and uri]
    if parquet:
        train, test = _split_parquet(uri, parquet)
        opened = parquet_source(train, image_column, label_column)
        return opened, parquet_source(test, image_column, label_column) if test else None
    if images:
        split, test_split = _split_names({name.partition("/")[0] for name in images if "/" in name})
        folder = folder_source(uri, images, split)
        return folder, folder_source(uri, images, test_split) if test_split else None
    raise ConfigError(
        f"{given} holds no images ({' '.join(IMAGE_SUFFIXES)}) and no .parquet files: SOURCE is a folder of "
        "images, best with one folder for each class in it, a Parquet file, or digits"
    )


def folder_source(uri: str, names: list[str], split: str | None = None) -> FolderSource:
    """The images of a folder, or of the split in it."""
    if split is not None:
        uri = storage.join(uri, split)
        names = [name.removeprefix(f"{split}/") for name in names if name.startswith(f"{split}/")]
    folders = [name.partition("/")[0] if "/" in name else None for name in names]
    classes, labels = number_names(folders)
    return FolderSource(uri, names, classes, labels)


def with_classes(source: Source, classes: list[str]) -> Source:
    """The same source, its labels numbered as in another list of classes.

    Raises:
        ConfigError: It has classes that are not in the list.
    """
    own = source.classes or []
    unknown = [name for name in own if name not in classes]
    if unknown:
        raise ConfigError(
            f"the test images have classes that the training images lack: {', '.join(unknown[:5])}. "
            "Both need the same class folders or labels"
        )
    numbers = np.array([*(classes.index(name) for name in own), -1])
    return replace(source, classes=classes, labels=numbers[source.labels])


def _split_names(words: set[str]) -> tuple[str | None, str | None]:
    """Which of the words stand for the training and for the held-out split."""
    test = next((name for name in TEST_NAMES if name in words), None)
    # `train` may also be a class, beside car and bus.
    return ("train", test) if "train" in words and (test or words == {"train"}) else (None, None)


def _split_parquet(uri: str, names: list[str]) -> tuple[list[str], list[str]]:
    """The files of the training and of the held-out split; names are whole where `uri` is empty."""

    def word(name: str) -> str:
        parts = name.split("/") if uri else [name.rpartition("/")[2]]
        words = [part.removesuffix(".parquet").split("-")[0].split("_")[0] for part in parts]
        return next((word for word in words if word in ("train", *TEST_NAMES)), "")

    train, test = _split_names({word(name) for name in names})
    chosen = [[name for name in names if split is None or word(name) == split] for split in (train, test)]
    paths = [[storage.join(uri, name) if uri else name for name in names] for names in chosen]
    return paths[0], paths[1] if test else []
