"""Images in tar files: in class folders, or as WebDataset writes them (key.jpg beside key.cls or key.json).

A member of a tar file that is not compressed is a span of it, so the headers are read once and each image then
by itself. Tar files in an object store are copied to the scratch file first: one read of each from front to
back, where reading the images there one by one would be a request, and 3 ms of processor time, for each.
"""

import json
import posixpath
import tarfile
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pirl.errors import ConfigError
from pirl.prepare.labels import (
    IMAGE_SUFFIXES,
    Ints,
    below,
    first_and_more,
    first_folders,
    number_labels,
    number_names,
    split_folders,
)
from pirl.prepare.scratch import Progress, Scratch, Span
from pirl.storage import files as storage


@dataclass(frozen=True, eq=False)
class TarSource:
    """Images in tar files.

    Attributes:
        files: The files.
        names: Path of each image in its file, a column of strings.
        places: int64 (N, 3), each image's file, offset and length; in the scratch file where `in_scratch` says so.
        in_scratch: Of each file, whether it was copied there.
        classes: Names of the classes, or None if there are none.
        labels: int64 (N,), each image's class, -1 where there is none.
    """

    files: list[str]
    names: pa.Array
    places: Ints
    in_scratch: list[bool]
    classes: list[str] | None
    labels: Ints

    @property
    def uri(self) -> str:
        """The first file, and how many more there are."""
        return first_and_more(self.files)

    def name(self, row: int) -> str:
        """What a person calls a row."""
        return f"{self.files[self.places[row, 0]]}: {self.names[row]}"

    def spans(self, rows: Ints) -> list[Span]:
        """Where the images of these rows lie."""
        places = self.places[rows].tolist()
        return [Span(None if self.in_scratch[at] else self.files[at], offset, size) for at, offset, size in places]


@dataclass
class _Index:
    """What the headers of one file say.

    Attributes:
        names: Paths of the images, without a leading `./`.
        spans: Their offsets and lengths.
        labels: What .cls and .json files say, by key: the path up to the first dot of the file's name.
    """

    names: list[str] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)


def tar_source(
    files: list[str], label_field: str | None, scratch: Scratch, progress: Progress
) -> tuple[TarSource, TarSource | None]:
    """Opens tar files: their images, and the held-out split if there are folders of that name in them.

    Args:
        files: The files.
        label_field: Of the .json files of WebDataset; by default `label` where there is one.
        scratch: Takes the files that are not on a disk.
        progress: Is told of what is copied.

    Raises:
        ConfigError: A file is not a whole tar file without compression, or there are no images.
    """
    names, labels, places, in_scratch = [], [], [], []
    for at, path in enumerate(files):
        in_scratch.append(not storage.is_local(path))
        if in_scratch[-1]:
            start = scratch.copy(path, progress)
            with scratch.reading(start) as file:
                index = _index(path, file, label_field)
        else:
            with storage.reading(path) as file:
                index = _index(path, file, label_field)
        names.append(pa.array(index.names, pa.large_string()))
        labels.append(pa.array([index.labels.get(_key(name)) for name in index.names], pa.large_string()))
        places.append(np.insert(np.array(index.spans, np.int64).reshape(-1, 2), 0, at, axis=1))
    paths, found, spans = pa.concat_arrays(names), pa.chunked_array(labels), np.concatenate(places)
    if len(paths) == 0:
        raise ConfigError(f"{files[0]} holds no images ({' '.join(IMAGE_SUFFIXES)})")
    paths = _below_common_folders(paths)

    def part(folder: str | None) -> TarSource:
        rows, inside = below(paths, folder) if folder else (np.arange(len(paths)), paths)
        if found.null_count < len(found):  # in pairs
            labelled = number_labels([_as_numbers(found.take(pa.array(rows)))])
        else:
            labelled = number_names(first_folders(inside))
        return TarSource(files, inside, spans[rows], in_scratch, *labelled)

    train, test = split_folders(paths)
    return part(train), part(test) if test else None


def check_tar(path: str) -> None:
    """Refuses what is no tar file without compression, as far as its beginning shows; raises ConfigError."""
    with storage.reading(path) as file, closing(_members(path, file)) as members:
        next(members, None)


def _index(path: str, file: IO[bytes], label_field: str | None) -> _Index:
    index = _Index()
    links: dict[int, str] = {}
    for member, tar in _members(path, file):
        name = member.name.removeprefix("./")
        suffix = name[name.rfind(".") :].lower()
        if suffix in IMAGE_SUFFIXES:
            if not member.isreg():
                folder = posixpath.dirname(name) if member.issym() else ""
                links[len(index.names)] = posixpath.normpath(posixpath.join(folder, member.linkname))
            index.names.append(name)
            index.spans.append((member.offset_data, member.size))
        elif suffix in (".cls", ".json") and member.isreg():
            data = tar.extractfile(member)
            label = _label(data.read(), suffix, label_field) if data else None
            # Where there are both, .cls holds the class.
            if label is not None and (suffix == ".cls" or _key(name) not in index.labels):
                index.labels[_key(name)] = label
    _follow(links, index)
    return index


def _follow(links: dict[int, str], index: _Index) -> None:
    """Gives links (places in the index, and where they lead) the spans of their images; an empty one without any."""
    if not links:
        return
    spans = {
        name: span for at, (name, span) in enumerate(zip(index.names, index.spans, strict=True)) if at not in links
    }
    for at, target in links.items():
        spans[index.names[at]] = index.spans[at] = spans.get(target, (0, 0))


def _members(path: str, file: IO[bytes]) -> Generator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """The files and links in a tar file, with the tar file itself."""
    try:
        with closing(tarfile.open(fileobj=file, mode="r:")) as tar:
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # it keeps all that it has seen
                if member.isreg() or member.islnk() or member.issym():
                    yield member, tar
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise ConfigError(
            f"{path} cannot be read as a tar file ({error}). If it is compressed, type: gunzip {path}"
        ) from None
    file.seek(end)
    # tarfile takes a damaged header, and the end of a file that was cut off, for the end of the archive.
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise ConfigError(f"{path} is cut off or damaged at byte {end:,}: copy it again")
    while data := file.read(2**20):
        if data.strip(tarfile.NUL):
            raise ConfigError(
                f"{path} goes on behind its end at byte {end:,}, as tar files do that were put together with cat: "
                f"unpack it with tar -xif {path} and name the folder"
            )


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _label(data: bytes, suffix: str, label_field: str | None) -> str | None:
    """The class that a .cls or .json file names; None if it names none."""
    if suffix == ".cls":
        return data.decode(errors="replace").strip() or None
    try:
        about: Any = json.loads(data)
    except ValueError:
        return None
    value = about.get(label_field or "label") if isinstance(about, dict) else None
    return str(value) if isinstance(value, (str, int)) else None


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
