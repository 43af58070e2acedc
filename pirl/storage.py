"""The one file that knows fsspec: files and folders by URL, on a disk or in an object store.

A URL is a local path or anything that fsspec reads (`s3://bucket/key`). `options` go to fsspec as they are.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pirl.config import ConfigError

Options = Mapping[str, Any] | None


def read_bytes(uri: str, offset: int, length: int, options: Options = None) -> bytes:
    """Reads one span of a file: one request. Shorter than `length` only where the file ends."""
    fs, path = _locate(uri, options)
    return cast(bytes, fs.cat_file(path, start=offset, end=offset + length))


def read_all(uri: str, options: Options = None) -> bytes:
    """Reads a whole file."""
    fs, path = _locate(uri, options)
    return cast(bytes, fs.cat_file(path))


@contextmanager
def reading(uri: str, options: Options = None) -> Iterator[IO[bytes]]:
    """Opens a file for reading here and there."""
    fs, path = _locate(uri, options)
    with fs.open(path, "rb") as file:
        yield file


@contextmanager
def writing(uri: str, options: Options = None) -> Iterator[IO[bytes]]:
    """Opens a new file, with the folders above it.

    A file or an object appears under its name when it is complete, and not at all after an exception.
    """
    fs, path = _locate(uri, options)
    if not isinstance(fs, LocalFileSystem):
        file = fs.open(path, "wb")
        try:
            yield file
        except BaseException:
            # Closing it, as `with` and its destructor do, would complete the object with what it has so far.
            with suppress(Exception):
                file.discard()
            with suppress(AttributeError):  # only the memory store's files cannot be told
                file.closed = True
            raise
        file.close()
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


def exists(uri: str, options: Options = None) -> bool:
    """Whether there is a file or a folder."""
    fs, path = _locate(uri, options)
    return bool(fs.exists(path))


def is_folder(uri: str, options: Options = None) -> bool:
    """Whether there is a folder."""
    fs, path = _locate(uri, options)
    return bool(fs.isdir(path))


def is_local(uri: str) -> bool:
    """Whether a URL is a path on a disk, where many small reads are cheap."""
    return isinstance(_locate(uri, None)[0], LocalFileSystem)


def size(uri: str, options: Options = None) -> int:
    """Length of a file in bytes."""
    fs, path = _locate(uri, options)
    return int(fs.size(path))


def files_below(uri: str, options: Options = None) -> list[str]:
    """The files in a folder and in the folders in it: paths relative to it, sorted."""
    fs, path = _locate(uri, options)
    prefix = path.rstrip("/") + "/"
    return sorted(name.removeprefix(prefix) for name in fs.find(path))


def matches(pattern: str, options: Options = None) -> list[str]:
    """The files that a pattern with `*` stands for: whole URLs, sorted."""
    fs, path = _locate(pattern, options)
    return sorted(fs.unstrip_protocol(name).removeprefix("file://") for name in fs.glob(path))


def remove(uri: str, options: Options = None) -> None:
    """Removes one file."""
    fs, path = _locate(uri, options)
    fs.rm_file(path)


def join(uri: str, *names: str) -> str:
    """The URL of something in a folder."""
    return "/".join([uri.rstrip("/"), *names])


def _locate(uri: str, options: Options) -> tuple[AbstractFileSystem, str]:
    try:
        fs, path = url_to_fs(os.path.expanduser(uri), **(options or {}))
    except ImportError as error:
        raise ConfigError(f"{uri} needs a package that is not installed: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{uri} is not a path or URL that can be read: {error}") from None
    return fs, cast(str, path)
