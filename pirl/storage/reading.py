"""Reads files span by span, and lists folders; what a store does wrong for a moment is tried again, see retry.py."""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import IO, Any, NamedTuple, cast

from pirl.errors import StorageError, StoreRefusedError
from pirl.storage.causes import http_status
from pirl.storage.client import PIECE, Address

FIRST_PIECE = 2**16
"""Bytes that are asked for first where it is not known how long a file is."""

TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")
"""How filesystems of fsspec call the time when a file was written."""


class FileInfo(NamedTuple):
    """Bytes of a file, and when it was written, as Unix time; None where nobody tells."""

    size: int
    modified: float | None


def read(at: Address, start: int = 0, end: int | None = None) -> bytes:
    """Bytes from `start` to `end`, or to the end of the file: one request, or more where they are many.

    Raises:
        FileNotFoundError: There is no such file.
        StorageError: It cannot be read; names file, span, tries and the last cause.
    """
    if end is None and at.is_local:
        return cast(bytes, at.ask("reading", "cat_file", at.path, start=start))
    pieces = []
    while end is None or start < end:
        # Of a file of unknown length as much again as is here: a try may take as long as so many bytes do.
        stop = start + min(max(start, FIRST_PIECE), PIECE) if end is None else min(start + PIECE, end)
        what, size = f"reading bytes {start} to {stop} of", stop - start
        try:
            piece = at.ask(what, "cat_file", at.path, size=size, start=start, end=stop)
        except StorageError as error:
            if error.__cause__ and http_status(error.__cause__) == 416:
                break  # the file ends before the span begins
            raise
        if len(piece) > size and (end is not None or start > 0):
            raise StorageError(f"{what} {at.uri}: {len(piece)} bytes came, so this store does not read spans")
        pieces.append(piece)
        if len(piece) != size:
            break
        start = stop
    return b"".join(pieces)


@contextmanager
def reading(at: Address) -> Iterator[IO[bytes]]:
    """Opens a file for reading here and there."""
    if at.is_local:
        with open(at.path, "rb") as local:
            yield local
        return
    with io.BufferedReader(_Remote(at), 2**20) as remote:
        yield cast(IO[bytes], remote)


def size_of(at: Address) -> int:
    """Bytes of a file; raises StoreRefusedError where nobody tells."""
    size = at.ask("asking for the size of", "info")["size"]
    if size is None:
        raise StoreRefusedError(f"{at.uri}: this server does not say how long the file is: copy it to a disk first")
    return int(size)


def files_below(at: Address, follow_links: bool) -> dict[str, FileInfo]:
    """See `Folder.files`; raises FileNotFoundError where there is no bucket."""
    if at.is_local:  # fsspec would pass over what cannot be read
        return at.persistently("listing", lambda: _local_files(at.path, follow_links))
    prefix = at.path.rstrip("/") + "/"
    found = at.ask("listing", "find", at.path, detail=True)
    if any(info["size"] is None for info in found.values()):
        raise StoreRefusedError(
            f"{at.uri} is a page of a web server, and no folder that can be listed: name a tar, zip or Parquet file"
        )
    return {name.removeprefix(prefix): FileInfo(int(info["size"]), _time_of(info)) for name, info in found.items()}


def _time_of(info: Mapping[str, Any]) -> float | None:
    """When a file was written, as a store tells it."""
    told = next((info[name] for name in TIMES if info.get(name) is not None), None)
    return told.timestamp() if isinstance(told, datetime) else told if isinstance(told, float) else None


class _Remote(io.RawIOBase):
    """A file in a store, read span by span."""

    def __init__(self, at: Address) -> None:
        self.at, self.size, self.position = at, size_of(at), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = 0) -> int:
        self.position = position + (0, self.position, self.size)[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self.size - self.position))
        if length:
            buffer[:length] = read(self.at, self.position, self.position + length)
        self.position += length
        return length


def _local_files(root: str, follow_links: bool) -> dict[str, FileInfo]:
    seen = set()

    def stop(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # which another process removed meanwhile
            raise error

    found = {}
    for folder, inner, names in os.walk(root, onerror=stop, followlinks=follow_links):
        if (real := os.path.realpath(folder)) in seen:
            inner.clear()  # links may lead in a circle
            continue
        seen.add(real)
        for path in (os.path.join(folder, name) for name in names):
            with suppress(FileNotFoundError):
                is_there = os.path.exists(path)
                status = os.stat(path) if is_there else os.lstat(path)  # a link to nothing is a file too
                size = -1 if follow_links and not is_there else status.st_size
                found[os.path.relpath(path, root)] = FileInfo(size, status.st_mtime)
    return found
