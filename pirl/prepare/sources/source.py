"""What a source is, whatever its kind: rows with labels, each with an image that lies somewhere; and what a kind is."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, NamedTuple, Self

import numpy as np

from pirl.data.dataset import Ints
from pirl.errors import ConfigError
from pirl.prepare.scratch import Progress, Scratch, Span
from pirl.prepare.sources.not_read import NotRead
from pirl.storage.folder import Folder


@dataclass(frozen=True, eq=False)
class Source(ABC):
    """Rows of images with labels. A kind of source adds what it takes to find the images.

    Attributes:
        uri: What a person calls it.
        classes: Names of the classes, or None if there are none.
        labels: int64 (N,), each image's class, -1 where there is none.
        index_crc: Checksum of what is known of the images without reading them: another one where they became others.
    """

    uri: str
    classes: list[str] | None
    labels: Ints
    index_crc: int

    @abstractmethod
    def name(self, row: int) -> str:
        """What a person calls a row."""

    @abstractmethod
    def spans(self, rows: Ints) -> list[Span]:
        """Where the images of these rows lie."""

    def digest(self) -> int:
        """A checksum of what it says of its images: another one means that the source changed."""
        return zlib.crc32(self.labels.tobytes(), self.index_crc)

    def with_classes(self, classes: list[str]) -> Self:
        """The same, its labels numbered as in another list of classes; raises ConfigError where that lacks one."""
        own = self.classes or []
        places = {name: at for at, name in enumerate(classes)}
        if unknown := [name for name in own if name not in places]:
            raise ConfigError(
                f"the test images have classes that the training images lack: {', '.join(unknown[:5])}. "
                "Both need the same class folders or labels"
            )
        numbers = np.array([*(places[name] for name in own), -1])
        return replace(self, classes=classes, labels=numbers[self.labels])


@dataclass(frozen=True, eq=False)
class Joined(Source):
    """The rows of two sources, one behind the other."""

    first: Source
    second: Source

    def name(self, row: int) -> str:
        """As in its own source."""
        count = len(self.first.labels)
        return self.first.name(row) if row < count else self.second.name(row - count)

    def spans(self, rows: Ints) -> list[Span]:
        """As in their own sources."""
        count = len(self.first.labels)
        is_first = rows < count
        first, second = iter(self.first.spans(rows[is_first])), iter(self.second.spans(rows[~is_first] - count))
        return [next(first if here else second) for here in is_first.tolist()]


def with_unlabelled(source: Source | None, more: Source | None) -> Source:
    """A source with the images of another one behind its own, without the labels that they had; one may be None."""
    if more is None:
        assert source is not None, "there are images"
        return source
    bare = replace(more, classes=None, labels=np.full(len(more.labels), -1))
    if source is None or not len(source.labels):
        return bare
    labels = np.concatenate([source.labels, bare.labels])
    index_crc = zlib.crc32(repr((source.index_crc, bare.index_crc)).encode())
    return Joined(source.uri, source.classes, labels, index_crc, source, bare)


class Columns(NamedTuple):
    """What images and labels are called where they have names: in Parquet files, and in the .json of WebDataset."""

    image: str = "image"
    label: str | None = None  # that of this name, where there is one


Splits = tuple[Source, Source | None]
"""The images for training, and those of the held-out split where there is one."""


@dataclass(frozen=True)
class Found:
    """Files of one kind, found where a person said.

    Attributes:
        folder: The folder that was named; None where the files themselves were.
        names: Of the files: paths in the folder, or whole URLs. Never empty.
        sizes: Bytes of each file of the folder.
        also: Folders of images that are for training without a label.
        not_read: Where what is not read is counted.
        beside: Files of other kinds there, named in the same way.
        used: The URLs of those that the files name and that are read, as a kind of source adds them.
    """

    folder: Folder | None
    names: list[str]
    sizes: dict[str, int] = field(default_factory=dict)
    also: Sequence[str] = ()
    not_read: NotRead = field(default_factory=NotRead)
    beside: Sequence[str] = ()
    used: set[str] = field(default_factory=set)

    @property
    def files(self) -> list[str]:
        """Their URLs."""
        return self.names if self.folder is None else [str(self.folder / name) for name in self.names]


@dataclass(frozen=True)
class SourceKind:
    """A kind of source. Its functions raise ConfigError for what cannot be read.

    Attributes:
        name: What a person calls such a source.
        suffixes: What the names of its files end with, in small letters.
        help: What is in such a file, for `--help`.
        open: Opens files: what is in them, and the held-out split if they tell it apart themselves.
        check: Refuses what `open` would, as far as the first file, with its URL, shows it without being read whole.
    """

    name: str
    suffixes: tuple[str, ...]
    help: str
    open: Callable[[Found, Columns, Scratch, Progress], Splits]
    check: Callable[[str, IO[bytes], Columns], object] | None = None
