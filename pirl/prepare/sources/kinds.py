"""Where images come from before they are a data set: a folder, tar files, or Parquet files.

A source knows its rows, their labels and where the image of each lies.
"""

import sys
import zlib
from dataclasses import replace

import numpy as np
import pyarrow as pa

from pirl.errors import ConfigError
from pirl.prepare.labels import (
    IMAGE_SUFFIXES,
    TEST_NAMES,
    first_and_more,
    split_words,
)
from pirl.prepare.scratch import Progress, Scratch
from pirl.prepare.sources.folder_source import FolderSource, folder_source
from pirl.prepare.sources.parquet_source import ParquetSource, open_parquet, parquet_source
from pirl.prepare.sources.tar_source import TarSource, check_tar, tar_source
from pirl.storage import files as storage

WHAT_A_SOURCE_IS = (
    "SOURCE is a folder of images, best with one folder for each class in it, tar or Parquet files, or digits"
)


Source = FolderSource | ParquetSource | TarSource


def find_source(
    uri: str, image_column: str, label_column: str | None, scratch: Scratch, progress: Progress
) -> tuple[Source, Source | None]:
    """Opens what a person named, and the held-out split in it if there is one.

    A split is a folder, or files whose names begin so: train, and test or val. Beside a test split, files of other
    names are for training where none is called train.

    Args:
        uri: A folder of images or of tar or Parquet files, such a file, or a pattern (`*`, `?`, `[ab]`) for such files.
        image_column: Of Parquet files.
        label_column: Of Parquet files, or of the .json files in tar files; by default `label` where there is one.
        scratch: Takes the images that cannot be read one by one where they are.
        progress: Is told of what is copied there.

    Raises:
        ConfigError: There is nothing, or nothing that is understood.
    """
    folder, names, sizes = _files_of(uri)
    if left := sorted(name for name in sizes.keys() - set(names) if name.lower().endswith((".tar", *IMAGE_SUFFIXES))):
        print(f"{uri}: {first_and_more(left)} not read, beside {first_and_more(names)}", file=sys.stderr)
    if names[0].endswith(".parquet"):
        train, test = _split_files(folder, names)
        held_out = parquet_source(test, image_column, label_column, scratch, progress) if test else None
        return parquet_source(train, image_column, label_column, scratch, progress), held_out
    if names[0].endswith(".tar"):
        train, test = _split_files(folder, names)
        source, inside = tar_source(train, label_column, scratch, progress)
        return source, tar_source(test, label_column, scratch, progress)[0] if test else inside
    return folder_source(folder, pa.array(names, pa.large_string()), np.array([sizes[name] for name in names]))


def check_source(uri: str, image_column: str, label_column: str | None) -> None:
    """Refuses what `find_source` would, as far as the names of the files and the beginning of one show it.

    Raises:
        ConfigError: There is nothing, or nothing that is understood.
    """
    folder, names, _ = _files_of(uri)
    first = storage.join(folder, names[0]) if folder else names[0]
    if first.endswith(".parquet"):
        with storage.reading(first) as file:
            open_parquet(first, file, image_column, label_column)
    if first.endswith(".tar"):
        check_tar(first)


def _files_of(uri: str) -> tuple[str, list[str], dict[str, int]]:
    """The files of a source, all of one kind: the folder and the names in it, or "" and the whole URLs.

    Last come the bytes of each file in the folder, which are listed with it.
    """
    folder, sizes = "", {}
    if storage.is_folder(uri):
        folder, sizes = uri, storage.sizes_below(uri, follow_links=True)
        names = sorted(sizes)
    elif storage.exists(uri):
        names = [uri]
    elif any(mark in uri for mark in "*?["):
        names = storage.matches(uri)
    else:
        raise ConfigError(f"{uri} does not exist: {WHAT_A_SOURCE_IS}")
    for suffix in (".parquet", ".tar"):
        if of_kind := [name for name in names if name.endswith(suffix)]:
            return folder, of_kind, sizes
    if images := [name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and folder]:
        if gone := [name for name in images if sizes[name] < 0]:
            raise ConfigError(f"{first_and_more([storage.join(folder, name) for name in gone])}: a link to nothing")
        return folder, images, sizes
    compressed = next((name for name in names if name.endswith((".tar.gz", ".tgz"))), None)
    if compressed:
        raise ConfigError(f"{compressed} is compressed, so images in it cannot be read one by one: gunzip it first")
    raise ConfigError(
        f"{uri} holds no images ({' '.join(IMAGE_SUFFIXES)}) and no .tar or .parquet files: {WHAT_A_SOURCE_IS}"
    )


def with_classes(source: Source, classes: list[str]) -> Source:
    """The same source, its labels numbered as in another list of classes.

    Raises:
        ConfigError: It has classes that are not in the list.
    """
    own = source.classes or []
    places = {name: at for at, name in enumerate(classes)}
    unknown = [name for name in own if name not in places]
    if unknown:
        raise ConfigError(
            f"the test images have classes that the training images lack: {', '.join(unknown[:5])}. "
            "Both need the same class folders or labels"
        )
    numbers = np.array([*(places[name] for name in own), -1])
    return replace(source, classes=classes, labels=numbers[source.labels])


def _split_files(uri: str, names: list[str]) -> tuple[list[str], list[str]]:
    """The files of the training and of the held-out split; names are whole where `uri` is empty."""

    def word(name: str) -> str:
        parts = name.split("/") if uri else [name.rpartition("/")[2]]
        words = [part.removesuffix(".parquet").removesuffix(".tar").split("-")[0].split("_")[0] for part in parts]
        return next((word for word in words if word in ("train", *TEST_NAMES)), "")

    train, test = split_words({word(name) for name in names})
    chosen = [[name for name in names if split is None or word(name) == split] for split in (train, test)]
    paths = [[storage.join(uri, name) if uri else name for name in names] for names in chosen]
    return paths[0], paths[1] if test else []


def digest(source: Source) -> int:
    """A checksum of what a source says of its images: another one means that the source changed."""
    if isinstance(source, FolderSource):
        index = "\n".join(source.names.to_pylist()).encode() + source.sizes.tobytes()
    else:
        index = (source.places if isinstance(source, TarSource) else np.diff(source.ends)).tobytes()
    return zlib.crc32(source.labels.tobytes(), zlib.crc32(index))
