"""Images in archives, which are spans of the archive or were copied to the scratch file: what tar and zip share.

Archives in an object store are copied to the scratch file first: one read of each from front to back, where reading
the images there one by one would be a request, and 3 ms of processor time, for each.
"""

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pirl.data.dataset import Ints
from pirl.errors import ConfigError
from pirl.prepare.labels import first_and_more, number_labels, number_names
from pirl.prepare.scratch import Progress, Scratch, Span
from pirl.prepare.sources.layout import Part, find_layout, first_folders, split_of
from pirl.prepare.sources.not_read import BESIDE, NotRead, suffix_of
from pirl.prepare.sources.source import Found, Source, Splits, with_unlabelled
from pirl.storage.folder import Folder

T = TypeVar("T")

WITHIN = "//"
"""In a path, behind the name of an archive within an archive: no tidy path has two slashes."""
NOTHING = pa.scalar("", pa.large_string())
MOST_LINKS = 40
"""One behind the other; those that lead in a circle end here."""
SHARD = re.compile(r"(?!n\d{8}$)(.*\D)?\d{2,}(-of-\d+)?")
"""A part of a data set, as `train-000012`, `00012` and `part_03-of-17`; `n01440764` is a class of ImageNet."""


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
        return f"{self.files[self.places[row, 0]]}: {str(self.names[row]).replace(WITHIN, '.tar/')}"

    def spans(self, rows: Ints) -> list[Span]:
        """Of the archives, or of the scratch file."""
        places = zip(self.places[rows].tolist(), self.in_scratch[rows].tolist(), strict=True)
        return [Span(None if copied else self.files[at], offset, size) for (at, offset, size), copied in places]


class Index(NamedTuple):
    """The images of one archive: tidy paths, and offsets with lengths.

    Attributes:
        labels: None where the folders are all that tells the classes.
        unpacked: Which of them were copied to the scratch file, at the offset that is given.
    """

    names: list[str]
    spans: list[tuple[int, int]]
    labels: list[str | None] | None = None
    unpacked: list[bool] | None = None


def open_archives(
    found: Found, index_of: Callable[[str, IO[bytes]], Index], scratch: Scratch, progress: Progress
) -> Splits:
    """Opens archives: their images, and the held-out split if there are folders of that name in them.

    `index_of` reads the index of one, from its place in a file, which ends where the archive does. Archives that are
    not on a disk go to the scratch file.

    Raises:
        ConfigError: There are no images, or an archive cannot be read.
    """
    files = found.files
    columns, labels, places, in_scratch = [], [], [], []
    for at, path in enumerate(files):
        is_far = not Folder(path).is_local
        with scratch.reading(scratch.copy(path, progress)) if is_far else Folder(path).reading() as file:
            index = index_of(path, file)
        columns.append(pa.array(index.names, pa.large_string()))
        labels.append(pa.array(index.labels or [None] * len(index.names), pa.large_string()))
        places.append(np.insert(np.array(index.spans, np.int64).reshape(-1, 2), 0, at, axis=1))
        in_scratch.append(np.array(index.unpacked or [False] * len(index.names), bool) | is_far)
    names, given = pa.concat_arrays(columns), pa.chunked_array(labels)
    spans, copied = np.concatenate(places), np.concatenate(in_scratch)
    if len(names) == 0:
        raise ConfigError(f"{first_and_more(files)} holds no images{found.not_read.hint()}")
    is_labelled = given.is_valid().to_numpy() if given.null_count < len(given) else None
    paths = _class_paths(files, columns, is_labelled is not None)

    def source(part: Part) -> ArchiveSource:
        labelled = number_names(first_folders(part.paths))
        if is_labelled is not None:
            labelled = number_labels([_as_numbers(given.take(pa.array(part.rows)))])
        rows, index_crc = part.rows, zlib.crc32(spans[part.rows].tobytes())
        own = names.take(pa.array(rows))
        return ArchiveSource(first_and_more(files), *labelled, index_crc, files, own, spans[rows], copied[rows])

    layout = find_layout(paths, is_labelled, found.also, found.not_read)
    train = with_unlabelled(source(layout.train), layout.also and source(layout.also))
    return train, layout.test and source(layout.test)


def resolve_links(links: dict[str, str], known: dict[str, T], not_read: NotRead) -> dict[str, T]:
    """What links lead to; counts those that lead nowhere.

    Args:
        links: The path of each link, and the one that it leads to, which may be another link.
        known: What there is, by tidy path.
    """
    found: dict[str, T] = {}
    folders = {path.rpartition("/")[0] for path in known} if links else set()
    for name in links:
        target, steps = name, 0
        while target in links and target not in known and steps < MOST_LINKS:
            target, steps = links[target], steps + 1
        if target in known:
            found[name] = known[target]
        elif target in folders:
            not_read.add("links to folders that are read already", name, may_be_images=False)
        else:
            not_read.add("links to no image", name, may_be_images=suffix_of(name) not in BESIDE)
    return found


def _as_numbers(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """As numbers if all are."""
    return labels.cast(pa.int64()) if pc.all(pc.match_substring_regex(labels, r"^-?\d{1,18}$")).as_py() else labels


def _class_paths(files: list[str], columns: list[pa.Array], are_labelled: bool) -> pa.Array:
    """Paths in which an archive is a folder where it stands for a class or a split, and nothing where it does not.

    It stands for a class where there is nothing else to tell one: neither labels nor folders in any archive, nor
    names of archives that are numbered parts of a whole.
    """
    if len(files) > 1:
        stems = [pa.scalar(Folder(path).name.rpartition(".")[0] + WITHIN, pa.large_string()) for path in files]
        columns = [
            pc.binary_join_element_wise(stem, names, NOTHING) for stem, names in zip(stems, columns, strict=True)
        ]
    paths = pa.concat_arrays(columns)
    above = pc.replace_substring_regex(paths, "^(.*//)?.*$", r"\1").dictionary_encode()
    inside = pc.replace_substring_regex(paths, "^.*//", "")
    places = above.dictionary.to_pylist()
    archives = {_stem(place) for place in places if place}
    in_archives = inside.filter(pc.not_equal(above.cast(pa.large_string()), ""))
    has_folders = pc.any(pc.match_substring(in_archives, "/")).as_py()
    if are_labelled or has_folders or len(archives) < 2 or all(map(SHARD.fullmatch, archives)):
        places = ["".join(_without_stem(part) for part in place.split(WITHIN)[:-1]) for place in places]
    places = pa.array([place.replace(WITHIN, "/") for place in places], pa.large_string())
    return pc.binary_join_element_wise(places.take(above.indices), inside, NOTHING)


def _stem(place: str) -> str:
    """The name of the archive in which images lie, as `c` of `a//b/c//`."""
    return place.removesuffix(WITHIN).rpartition("/")[2]


def _without_stem(place: str) -> str:
    """The folders above an archive; with the archive where it is called like a split."""
    folders, slash, stem = place.rpartition("/")
    return f"{place}/" if split_of(stem) else folders + slash
