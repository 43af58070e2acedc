"""Images in archives, which are spans of the archive or were copied to the scratch file: what tar and zip share.

Archives in an object store are copied to the scratch file first: one read of each from front to back, where reading
the images there one by one would be a request, and 3 ms of processor time, for each.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pirl.data.dataset import Ints
from pirl.errors import ConfigError
from pirl.prepare.labels import (
    IMAGE_SUFFIXES,
    below,
    first_and_more,
    first_folders,
    number_labels,
    number_names,
    split_folders,
)
from pirl.prepare.scratch import Progress, Scratch, Span
from pirl.prepare.sources.source import Source, Splits
from pirl.storage.folder import Folder


@dataclass(frozen=True, eq=False)
class ArchiveSource(Source):
    """Images in archives.

    Attributes:
        names: Path of each image in its archive, a column of strings.
        places: int64 (N, 3), each image's archive, offset and length.
        in_scratch: bool (N,), whether it lies at this offset of the scratch file, and not of its archive.
    """

    files: list[str]
    names: pa.Array
    places: Ints
    in_scratch: NDArray[np.bool_]

    def name(self, row: int) -> str:
        """Its archive, and its path in it."""
        return f"{self.files[self.places[row, 0]]}: {self.names[row]}"

    def spans(self, rows: Ints) -> list[Span]:
        """Of the archives, or of the scratch file."""
        places = zip(self.places[rows].tolist(), self.in_scratch[rows].tolist(), strict=True)
        return [Span(None if copied else self.files[at], offset, size) for (at, offset, size), copied in places]


class Index(NamedTuple):
    """The images of one archive, in the order in which they lie there: paths, and offsets with lengths.

    Attributes:
        labels: None where the folders are all that tells the classes.
        unpacked: Which of them were copied to the scratch file, at the offset that is given.
    """

    names: list[str]
    spans: list[tuple[int, int]]
    labels: list[str | None] | None = None
    unpacked: list[bool] | None = None


def open_archives(
    files: list[str], index_of: Callable[[str, IO[bytes]], Index], scratch: Scratch, progress: Progress
) -> Splits:
    """Opens archives: their images, and the held-out split if there are folders of that name in them.

    `index_of` reads the index of one, from its place in a file, which ends where the archive does. Archives that are
    not on a disk go to the scratch file.

    Raises:
        ConfigError: There are no images, or an archive cannot be read.
    """
    names, labels, places, in_scratch = [], [], [], []
    for at, path in enumerate(files):
        is_far = not Folder(path).is_local
        with scratch.reading(scratch.copy(path, progress)) if is_far else Folder(path).reading() as file:
            index = index_of(path, file)
        names.append(pa.array(index.names, pa.large_string()))
        labels.append(pa.array(index.labels or [None] * len(index.names), pa.large_string()))
        places.append(np.insert(np.array(index.spans, np.int64).reshape(-1, 2), 0, at, axis=1))
        in_scratch.append(np.array(index.unpacked or [False] * len(index.names), bool) | is_far)
    paths, found = pa.concat_arrays(names), pa.chunked_array(labels)
    spans, copied = np.concatenate(places), np.concatenate(in_scratch)
    if len(paths) == 0:
        raise ConfigError(f"{files[0]} holds no images ({' '.join(IMAGE_SUFFIXES)})")
    paths = _below_common_folders(paths)

    def part(folder: str | None) -> ArchiveSource:
        rows, inside = below(paths, folder)
        labelled = number_names(first_folders(inside))
        if found.null_count < len(found):
            labelled = number_labels([_as_numbers(found.take(pa.array(rows)))])
        index_crc = zlib.crc32(spans[rows].tobytes())
        return ArchiveSource(first_and_more(files), *labelled, index_crc, files, inside, spans[rows], copied[rows])

    train, test = split_folders(paths)
    return part(train), part(test) if test else None


def _as_numbers(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """As numbers if all are."""
    return labels.cast(pa.int64()) if pc.all(pc.match_substring_regex(labels, r"^-?\d{1,18}$")).as_py() else labels


def _below_common_folders(names: pa.Array) -> pa.Array:
    """Paths without the folders that all of them lie in, as long as there are folders below."""
    while True:
        folders = first_folders(names)
        deep = pc.any(pc.match_substring_regex(names, "/.*/")).as_py()
        if folders.null_count or len(pc.unique(folders)) > 1 or not deep:
            return names
        names = pc.list_element(pc.split_pattern(names, "/", max_splits=1), 1)
