"""The one way to address bytes: a folder or a file by URL, on a disk or in an object store, and how to reach it."""

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, cast

from pyarrow.fs import FSSpecHandler, PyFileSystem

from pirl.storage.client import Address, filesystem, resolve
from pirl.storage.reading import FileInfo, files_below, read, reading, size_of
from pirl.storage.retry import DEADLINE_S
from pirl.storage.writing import send, writing

HURRY_S = 15.0
"""What is left to do after a failure may take: the failure is to be told."""


@dataclass(frozen=True)
class Folder:
    """A folder, which need not exist; where a method is given no name, the file at this URL.

    Its methods raise FileNotFoundError for a file that is not there, OSError where a disk refuses, and StorageError
    where a store refuses or gives no good answer in time.

    Attributes:
        uri: A local path, or a URL that fsspec reads (`s3://bucket/key`).
        options: For fsspec; no secrets, since folders are sent to workers.
        deadline_s: How long a request to a store is tried again.
    """

    uri: str
    options: Mapping[str, Any] = field(default_factory=dict)
    deadline_s: float = DEADLINE_S

    def __truediv__(self, name: str) -> "Folder":
        return replace(self, uri=f"{self.uri.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.uri

    def hurried(self) -> "Folder":
        """The same, for use after a failure: soon given up."""
        return replace(self, deadline_s=min(self.deadline_s, HURRY_S))

    @property
    def name(self) -> str:
        """The last part of its URL."""
        return self.uri.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> "Folder":
        """The folder that it is in."""
        return replace(self, uri=self.uri.rstrip("/").rpartition("/")[0])

    @property
    def is_local(self) -> bool:
        """Whether it is on a disk of this machine, as far as it knows."""
        return self._at().is_local

    @property
    def path(self) -> Path | None:
        """Where it is on this machine; None in a store."""
        return Path(self._at().path) if self.is_local else None

    def overlaps(self, other: "Folder") -> bool:
        """Whether one of the two lies in the other, or is it, however their URLs are spelled."""
        a, b = (folder.path.resolve() if folder.path else Path(folder._at().path) for folder in (self, other))
        return type(self._at().fs) is type(other._at().fs) and (a.is_relative_to(b) or b.is_relative_to(a))

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or a folder."""
        at = self._at(name)
        strict = {"strict": True} if "http" in at.fs.protocol else {}  # else whatever goes wrong is "no"
        return bool(at.ask("looking for", "exists", at.path, **strict))

    def is_folder(self) -> bool:
        """Whether there is a folder."""
        return bool(self._at().ask("looking for", "isdir"))

    def size(self, name: str = "") -> int:
        """Bytes of a file."""
        return size_of(self._at(name))

    def is_newer(self, name: str, than: str) -> bool:
        """Whether a file was written later than another one; raises NotImplementedError where nobody tells."""
        at, other = self._at(name), self._at(than)

        def compare() -> bool:
            return bool(at.fs.modified(at.path) > other.fs.modified(other.path))

        return at.persistently("asking for the time of", compare)

    def sizes(self, *, follow_links: bool = False) -> dict[str, int]:
        """Bytes of each file in it and in the folders in it, by its path in it; none where there is no folder.

        Where links to folders are followed, a link to nothing has -1 bytes. A folder that cannot be read is not taken
        for an empty one: that raises OSError.
        """
        return {name: info.size for name, info in self.files(follow_links=follow_links).items()}

    def files(self, *, follow_links: bool = False) -> dict[str, FileInfo]:
        """As `sizes`, with the time when each file was written."""
        try:
            return files_below(self._at(), follow_links)
        except FileNotFoundError:  # no bucket
            return {}

    def matches(self) -> list[str]:
        """The files that its URL, a pattern with `*`, stands for: whole URLs, sorted."""
        at = self._at()
        return sorted(at.fs.unstrip_protocol(name).removeprefix("file://") for name in at.ask("listing", "glob"))

    def read_bytes(self, name: str = "", offset: int = 0, length: int | None = None) -> bytes:
        """A file, or a span of it: shorter than `length` only where the file ends."""
        return read(self._at(name), offset, None if length is None else offset + length)

    def read(self, name: str = "") -> str:
        """The text of a file."""
        return self.read_bytes(name).decode()

    def find(self, name: str) -> str | None:
        """The text of a file, if it is there."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def reading(self, name: str = "") -> AbstractContextManager[IO[bytes]]:
        """Opens a file for reading here and there."""
        return reading(self._at(name))

    def writing(self, name: str = "") -> AbstractContextManager[IO[bytes]]:
        """Opens a new file, which appears when it is complete, with the folders above it; not after an exception."""
        return writing(self._at(name))

    def write(self, name: str, content: str | bytes) -> None:
        """Writes a file at once: a reader sees the old one or the new one."""
        with self.writing(name) as file:
            file.write(content.encode() if isinstance(content, str) else content)

    def copy_in(self, file: Path) -> None:
        """Copies a file of this machine into it, under its name."""
        at = self._at(file.name)
        if at.is_local:
            with file.open("rb") as source, writing(at) as copy:
                shutil.copyfileobj(source, copy)
        else:
            send(str(file), at)

    def remove(self, *names: str) -> None:
        """Removes files, if they are there, in this order."""
        for name in names:
            with suppress(FileNotFoundError):
                self._at(name).ask("removing", "rm_file")

    def clear(self, first: str) -> None:
        """Removes it with all that is in it; one file before the others."""
        self.remove(first, *self.sizes())
        if self.path:
            shutil.rmtree(self.path, ignore_errors=True)

    def arrow_filesystem(self) -> tuple[PyFileSystem, str]:
        """For a library that takes a filesystem of pyarrow, and the path in it.

        It goes around retry.py, so S3's client tries again itself; the sum of its pauses is 45 s on average.
        """
        fs = filesystem(self.uri, self.options, tries=10)
        return PyFileSystem(FSSpecHandler(fs)), cast(str, fs._strip_protocol(self.uri))

    def _at(self, name: str = "") -> Address:
        return resolve((self / name if name else self).uri, self.options, self.deadline_s)
