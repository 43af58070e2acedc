"""What a source is, whatever its kind: rows with labels, each with an image that lies somewhere; and what a kind is."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import IO, NamedTuple, Self

import numpy as np

from pirl.data.dataset import Ints
from pirl.errors import ConfigError
from pirl.prepare.scratch import Progress, Scratch, Span
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
        sizes: Bytes of each file of the folder; -1 of a link to nothing.
    """

    folder: Folder | None
    names: list[str]
    sizes: dict[str, int] = field(default_factory=dict)

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
        compressed: What names of such files end with that have to be unpacked first.
    """

    name: str
    suffixes: tuple[str, ...]
    help: str
    open: Callable[[Found, Columns, Scratch, Progress], Splits]
    check: Callable[[str, IO[bytes], Columns], object] | None = None
    compressed: tuple[str, ...] = ()
