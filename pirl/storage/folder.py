"""A folder by URL, on a disk or in an object store, with what it takes to reach it: where runs are kept."""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pirl.storage import files as storage
from pirl.storage.retry import DEADLINE_S

HURRY_S = 15.0
"""What is left to do after a failure may take: the failure is to be told."""


@dataclass(frozen=True)
class Folder:
    """A folder, which need not exist.

    Its methods raise FileNotFoundError for a file that is not there, OSError where a disk refuses, and StorageError
    where a store refuses or gives no good answer in time.

    Attributes:
        uri: An absolute path, or a URL that fsspec reads.
        options: For fsspec; no secrets, since folders are sent to workers.
        deadline_s: How long a request to a store is tried again.
    """

    uri: str
    options: Mapping[str, Any] = field(default_factory=dict)
    deadline_s: float = DEADLINE_S

    def __truediv__(self, name: str) -> "Folder":
        return Folder(storage.join(self.uri, name), self.options, self.deadline_s)

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
        return Folder(self.uri.rstrip("/").rpartition("/")[0], self.options, self.deadline_s)

    @property
    def path(self) -> Path | None:
        """Where it is on this machine; None in a store."""
        return Path(self.uri) if storage.is_local(self.uri, self.options) else None

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, by its path in the folder; empty where there is no folder, or no bucket."""
        try:
            return storage.sizes_below(self.uri, self.options, self.deadline_s)
        except FileNotFoundError:
            return {}

    def read_bytes(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """A file, or a span of it."""
        where = storage.join(self.uri, name)
        if length is None:
            return storage.read_all(where, self.options, self.deadline_s)
        return storage.read_bytes(where, offset, length, self.options, self.deadline_s)

    def read(self, name: str) -> str:
        """The text of a file."""
        return self.read_bytes(name).decode()

    def find(self, name: str) -> str | None:
        """The text of a file, if it is there."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def write(self, name: str, content: str | bytes) -> None:
        """Writes a file at once: a reader sees the old one or the new one."""
        with storage.writing(storage.join(self.uri, name), self.options, self.deadline_s) as file:
            file.write(content.encode() if isinstance(content, str) else content)

    def copy_in(self, file: Path) -> None:
        """Copies a file of this machine into it, under its name."""
        storage.copy_in(str(file), storage.join(self.uri, file.name), self.options, self.deadline_s)

    def remove(self, *names: str) -> None:
        """Removes files, if they are there, in this order."""
        for name in names:
            with suppress(FileNotFoundError):
                storage.remove(storage.join(self.uri, name), self.options, self.deadline_s)

    def clear(self, first: str) -> None:
        """Removes it with all that is in it; one file before the others."""
        self.remove(first, *self.sizes())
        if self.path:
            shutil.rmtree(self.path, ignore_errors=True)
