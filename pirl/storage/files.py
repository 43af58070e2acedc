"""Files and folders by URL, on a disk or in an object store: nobody else asks fsspec, but for client.py and upload.py.

A URL is a local path or anything that fsspec reads (`s3://bucket/key`). `options` go to fsspec as they are.
What a store does wrong for a moment is tried again, see retry.py.
"""

import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem

from pirl.errors import StorageError
from pirl.storage.client import PIECE, Options, ask, filesystem, locate
from pirl.storage.retry import DEADLINE_S, http_status, persistently
from pirl.storage.temporary import temporary_folder
from pirl.storage.upload import send

FIRST_PIECE = 2**16
"""Bytes that are asked for first where it is not known how long a file is."""


def read_bytes(uri: str, offset: int, length: int, options: Options = None, deadline_s: float = DEADLINE_S) -> bytes:
    """Reads one span of a file: one request, or more where it is long. Shorter than `length` only where the file ends.

    Raises:
        FileNotFoundError: There is no such file.
        StorageError: It cannot be read; names file, span, tries and the last cause.
    """
    data = _read(uri, offset, offset + length, options, deadline_s)
    if len(data) > length:
        what = f"reading bytes {offset} to {offset + length} of {uri}"
        raise StorageError(f"{what}: {len(data)} bytes came, so this store does not read spans")
    return data


def read_all(uri: str, options: Options = None, deadline_s: float = DEADLINE_S) -> bytes:
    """Reads a whole file; raises as `read_bytes` does."""
    return _read(uri, 0, None, options, deadline_s)


@contextmanager
def reading(uri: str, options: Options = None) -> Iterator[IO[bytes]]:
    """Opens a file for reading here and there."""
    fs, path = locate(uri, options)
    if isinstance(fs, LocalFileSystem):
        with open(path, "rb") as local:
            yield local
        return
    with io.BufferedReader(_Remote(uri, size_of(uri, options), options), 2**20) as remote:
        yield cast(IO[bytes], remote)


@contextmanager
def writing(uri: str, options: Options = None, deadline_s: float = DEADLINE_S) -> Iterator[IO[bytes]]:
    """Opens a new file, with the folders above it.

    It appears under its name when it is complete, and not at all after an exception. What goes to an object
    store is put together in the temporary folder first, so that `copy_in` can send the whole.
    """
    fs, path = locate(uri, options)
    if not isinstance(fs, LocalFileSystem):
        with tempfile.NamedTemporaryFile(dir=temporary_folder()) as whole:
            yield cast(IO[bytes], whole)
            whole.flush()
            copy_in(whole.name, uri, options, deadline_s)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else the name may outlive a power loss and the bytes not
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_text(uri: str, text: str, options: Options = None) -> None:
    """Writes a whole file at once; a reader sees the old one or the new one."""
    with writing(uri, options) as file:
        file.write(text.encode())


def copy_in(file: str, uri: str, options: Options = None, deadline_s: float = DEADLINE_S) -> None:
    """Copies a file of this machine. In a store it is read back, and sent again where it is not the same.

    S3 itself compares a checksum that the client sends along; not every store does.

    Raises:
        OSError: It cannot be written, as StorageError where a store gave no good answer in time.
    """
    if is_local(uri, options):
        with open(file, "rb") as source, writing(uri, options) as copy:
            shutil.copyfileobj(source, copy)
        return
    send(file, uri, options, deadline_s)


def exists(uri: str, options: Options = None) -> bool:
    """Whether there is a file or a folder."""
    fs, path = locate(uri, options)
    return bool(ask(fs, f"looking for {uri}", "exists", path))


def is_folder(uri: str, options: Options = None) -> bool:
    """Whether there is a folder."""
    fs, path = locate(uri, options)
    return bool(ask(fs, f"looking for {uri}", "isdir", path))


def is_local(uri: str, options: Options = None) -> bool:
    """Whether a URL is on a disk of this machine, as far as it knows."""
    return isinstance(locate(uri, options)[0], LocalFileSystem)


def size_of(uri: str, options: Options = None, deadline_s: float = DEADLINE_S) -> int:
    """Bytes of a file."""
    fs, path = locate(uri, options)
    return int(ask(fs, f"asking for the size of {uri}", "info", path, deadline_s=deadline_s)["size"])


def is_newer(uri: str, than: str, options: Options = None, deadline_s: float = DEADLINE_S) -> bool:
    """Whether a file was written later than another one beside it.

    Raises:
        NotImplementedError: It is on a web server, or in a store that does not tell.
    """
    fs, path = locate(uri, options)
    other = locate(than, options)[1]
    what = f"asking for the time of {uri}"
    return bool(persistently(what, lambda: fs.modified(path) > fs.modified(other), deadline_s))


def files_below(uri: str, options: Options = None) -> list[str]:
    """The files in a folder and in the folders in it: paths relative to it, sorted."""
    return sorted(sizes_below(uri, options))


def sizes_below(
    uri: str, options: Options = None, deadline_s: float = DEADLINE_S, *, follow_links: bool = False
) -> dict[str, int]:
    """Bytes of each file in a folder and in the folders in it, by its path relative to it; none without a folder.

    Where links to folders are followed, a link to nothing has -1 bytes.

    Raises:
        OSError: A folder cannot be read: it is not taken for an empty one.
    """
    fs, path = locate(uri, options)
    if isinstance(fs, LocalFileSystem):
        return persistently(f"listing {uri}", lambda: _local_sizes(path, follow_links), deadline_s)
    prefix = path.rstrip("/") + "/"
    found = ask(fs, f"listing {uri}", "find", path, deadline_s=deadline_s, detail=True)
    return {name.removeprefix(prefix): int(info["size"]) for name, info in found.items()}


def matches(pattern: str, options: Options = None) -> list[str]:
    """The files that a pattern with `*` stands for: whole URLs, sorted."""
    fs, path = locate(pattern, options)
    names = ask(fs, f"listing {pattern}", "glob", path)
    return sorted(fs.unstrip_protocol(name).removeprefix("file://") for name in names)


def remove(uri: str, options: Options = None, deadline_s: float = DEADLINE_S) -> None:
    """Removes one file."""
    fs, path = locate(uri, options)
    ask(fs, f"removing {uri}", "rm_file", path, deadline_s=deadline_s)


def arrow_filesystem(uri: str, options: Options = None) -> tuple[PyFileSystem, str]:
    """For a library that takes a filesystem of pyarrow, and the path in it.

    It goes around retry.py, so S3's client tries again itself; the sum of its pauses is 45 s on average.
    """
    fs = filesystem(uri, options, tries=10)
    return PyFileSystem(FSSpecHandler(fs)), cast(str, fs._strip_protocol(uri))


def join(uri: str, *names: str) -> str:
    """The URL of something in a folder."""
    return "/".join([uri.rstrip("/"), *names])


class _Remote(io.RawIOBase):
    """A file in a store, read span by span."""

    def __init__(self, uri: str, size: int, options: Options) -> None:
        self.uri, self.size, self.options, self.position = uri, size, options, 0

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
            buffer[:length] = read_bytes(self.uri, self.position, length, self.options)
        self.position += length
        return length


def _local_sizes(root: str, follow_links: bool) -> dict[str, int]:
    """`sizes_below` on a disk; fsspec would pass over what cannot be read."""
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
                found[os.path.relpath(path, root)] = -1 if follow_links and not is_there else status.st_size
    return found


def _read(uri: str, start: int, end: int | None, options: Options, deadline_s: float) -> bytes:
    """Bytes from `start` to `end` or to the end of the file; more where the store does not read spans."""
    fs, path = locate(uri, options)
    if end is None and isinstance(fs, LocalFileSystem):
        return cast(bytes, ask(fs, f"reading {uri}", "cat_file", path, deadline_s=deadline_s))
    pieces = []
    while end is None or start < end:
        # Of a file of unknown length as much again as is here: a try may take as long as so many bytes do.
        stop = start + min(max(start, FIRST_PIECE), PIECE) if end is None else min(start + PIECE, end)
        what = f"reading bytes {start} to {stop} of {uri}"
        try:
            piece = ask(fs, what, "cat_file", path, deadline_s=deadline_s, size=stop - start, start=start, end=stop)
        except StorageError as error:
            if error.__cause__ and http_status(error.__cause__) == 416:
                break  # the file ends before the span begins
            raise
        pieces.append(piece)
        if len(piece) != stop - start:
            break
        start = stop
    return b"".join(pieces)
