"""The one file that knows fsspec: files and folders by URL, on a disk or in an object store.

A URL is a local path or anything that fsspec reads (`s3://bucket/key`). `options` go to fsspec as they are.
What a store does wrong for a moment is tried again, see retry.py. Filesystems are made lazily in each process.
"""

import io
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

from fsspec import AbstractFileSystem
from fsspec.asyn import sync
from fsspec.core import url_to_fs
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem

from pirl.config import ConfigError
from pirl.retry import DEADLINE_S, StorageError, http_status, persistently

Options = Mapping[str, Any] | None

TRY = 1 / 15
"""The share of the deadline (20 s of 300 s) after which a try has stalled; a large body has longer, at least"""
SLOWEST = 2**19
"""bytes a second."""
COMPARED_SPAN = 2**26
"""Bytes of a file that are read back at a time."""

_filesystems: dict[tuple[int, str, str], AbstractFileSystem] = {}
_lock = threading.Lock()


def read_bytes(uri: str, offset: int, length: int, options: Options = None, deadline_s: float = DEADLINE_S) -> bytes:
    """Reads one span of a file: one request. Shorter than `length` only where the file ends.

    Raises:
        FileNotFoundError: There is no such file.
        StorageError: It cannot be read; names file, span, tries and the last cause.
    """
    fs, path = _locate(uri, options)
    what, span = f"reading bytes {offset} to {offset + length} of {uri}", {"start": offset, "end": offset + length}
    try:
        data = cast(bytes, _ask(fs, what, "cat_file", path, deadline_s=deadline_s, size=length, **span))
    except StorageError as error:
        if error.__cause__ and http_status(error.__cause__) == 416:
            return b""  # the file ends before the span begins
        raise
    if len(data) > length:
        raise StorageError(f"{what}: {len(data)} bytes came, so this store does not read spans")
    return data


def read_all(uri: str, options: Options = None, deadline_s: float = DEADLINE_S) -> bytes:
    """Reads a whole file; raises as `read_bytes` does."""
    fs, path = _locate(uri, options)
    return cast(bytes, _ask(fs, f"reading {uri}", "cat_file", path, deadline_s=deadline_s))


@contextmanager
def reading(uri: str, options: Options = None) -> Iterator[IO[bytes]]:
    """Opens a file for reading here and there."""
    fs, path = _locate(uri, options)
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
    fs, path = _locate(uri, options)
    if not isinstance(fs, LocalFileSystem):
        with tempfile.NamedTemporaryFile(prefix="pirl-upload-") as whole:
            yield cast(IO[bytes], whole)
            whole.flush()
            copy_in(whole.name, uri, options, deadline_s)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
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
    fs, path = _locate(uri, options)
    size = os.path.getsize(file)

    def send() -> None:
        _once(fs, "put_file", file, path, limit_s=_limit_s(deadline_s, size))
        with open(file, "rb") as source:
            for start in range(0, size, COMPARED_SPAN):
                sent = source.read(COMPARED_SPAN)
                limit_s = _limit_s(deadline_s, len(sent))
                if sent != _once(fs, "cat_file", path, limit_s=limit_s, start=start, end=start + len(sent)):
                    raise ConnectionError("what the store holds is not what was sent")

    persistently(f"writing {uri}", send, deadline_s)


def exists(uri: str, options: Options = None) -> bool:
    """Whether there is a file or a folder."""
    fs, path = _locate(uri, options)
    return bool(_ask(fs, f"looking for {uri}", "exists", path))


def is_folder(uri: str, options: Options = None) -> bool:
    """Whether there is a folder."""
    fs, path = _locate(uri, options)
    return bool(_ask(fs, f"looking for {uri}", "isdir", path))


def is_local(uri: str, options: Options = None) -> bool:
    """Whether a URL is on a disk of this machine, as far as it knows."""
    return isinstance(_locate(uri, options)[0], LocalFileSystem)


def size_of(uri: str, options: Options = None) -> int:
    """Bytes of a file."""
    fs, path = _locate(uri, options)
    return int(_ask(fs, f"asking for the size of {uri}", "info", path)["size"])


def is_newer(uri: str, than: str, options: Options = None) -> bool:
    """Whether a file was written later than another one beside it."""
    fs, path = _locate(uri, options)
    other = _locate(than, options)[1]
    return bool(persistently(f"asking for the time of {uri}", lambda: fs.modified(path) > fs.modified(other)))


def files_below(uri: str, options: Options = None) -> list[str]:
    """The files in a folder and in the folders in it: paths relative to it, sorted."""
    return sorted(sizes_below(uri, options))


def sizes_below(uri: str, options: Options = None, deadline_s: float = DEADLINE_S) -> dict[str, int]:
    """Bytes of each file in a folder and in the folders in it, by its path relative to it; none without a folder.

    Raises:
        OSError: A folder cannot be read: it is not taken for an empty one.
    """
    fs, path = _locate(uri, options)
    if isinstance(fs, LocalFileSystem):
        return persistently(f"listing {uri}", lambda: _local_sizes(path), deadline_s)
    prefix = path.rstrip("/") + "/"
    found = _ask(fs, f"listing {uri}", "find", path, deadline_s=deadline_s, detail=True)
    return {name.removeprefix(prefix): int(info["size"]) for name, info in found.items()}


def matches(pattern: str, options: Options = None) -> list[str]:
    """The files that a pattern with `*` stands for: whole URLs, sorted."""
    fs, path = _locate(pattern, options)
    names = _ask(fs, f"listing {pattern}", "glob", path)
    return sorted(fs.unstrip_protocol(name).removeprefix("file://") for name in names)


def remove(uri: str, options: Options = None, deadline_s: float = DEADLINE_S) -> None:
    """Removes one file."""
    fs, path = _locate(uri, options)
    _ask(fs, f"removing {uri}", "rm_file", path, deadline_s=deadline_s)


def arrow_filesystem(uri: str, options: Options = None) -> tuple[PyFileSystem, str]:
    """For a library that takes a filesystem of pyarrow, and the path in it.

    It goes around retry.py, so S3's client tries again itself; the sum of its pauses is 45 s on average.
    """
    fs = _filesystem(uri, options, tries=10)
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


def _local_sizes(root: str) -> dict[str, int]:
    """`sizes_below` on a disk; fsspec would pass over what cannot be read."""

    def stop(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # which another process removed meanwhile
            raise error

    found = {}
    for folder, _, names in os.walk(root, onerror=stop):
        for path in (os.path.join(folder, name) for name in names):
            with suppress(FileNotFoundError):
                status = os.stat(path) if os.path.exists(path) else os.lstat(path)  # a link to nothing is a file too
                found[os.path.relpath(path, root)] = status.st_size
    return found


def _ask(
    fs: AbstractFileSystem, what: str, method: str, *args: Any, deadline_s: float = DEADLINE_S, size: int = 0, **kw: Any
) -> Any:
    """Calls a method of a filesystem until it goes well; `size` is what it moves, in bytes."""
    limit_s = _limit_s(deadline_s, size)
    return persistently(what, lambda: _once(fs, method, *args, limit_s=limit_s, **kw), deadline_s)


def _once(fs: AbstractFileSystem, method: str, *args: Any, limit_s: float, **kw: Any) -> Any:
    if not fs.async_impl:
        return getattr(fs, method)(*args, **kw)
    try:
        return sync(fs.loop, getattr(fs, f"_{method}"), *args, timeout=limit_s, **kw)
    except FSTimeoutError:
        raise TimeoutError(f"it stalled: no end within {limit_s:.1f} s") from None


def _limit_s(deadline_s: float, size: int) -> float:
    """After how long a try that moves so many bytes has stalled."""
    return deadline_s * TRY + size / SLOWEST


def _locate(uri: str, options: Options) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a URL, one for all threads of this process, and the path in it."""
    uri = os.path.expanduser(uri)
    key = (os.getpid(), "/".join(uri.split("/")[:3]) if "://" in uri else "", repr(options))
    with _lock:
        if key not in _filesystems:
            _filesystems[key] = _filesystem(uri, options)
    return _filesystems[key], cast(str, _filesystems[key]._strip_protocol(uri))


def _filesystem(uri: str, options: Options, tries: int = 1) -> AbstractFileSystem:
    arguments = dict(options or {})
    is_s3 = uri.startswith(("s3://", "s3a://"))
    if is_s3:
        # botocore's own retries, and below s3fs's, which would go around them: retry.py is enough.
        config = arguments.get("config_kwargs", {})
        retries = {"total_max_attempts": tries, "mode": "standard"}
        arguments["config_kwargs"] = {"retries": retries, **config}
        arguments["use_listings_cache"] = False  # as below, also in a copy that another process gets
    try:
        fs, _ = url_to_fs(uri, **arguments)
    except ImportError as error:
        raise ConfigError(f"{uri} needs a package that is not installed: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{uri} is not a path or URL that can be read: {error}") from None
    fs.dircache.use_listings_cache = False  # others write there too
    if is_s3 and tries == 1:
        fs.retries = 1
    return fs
