# ruff: noqa: D103
"""The functions that pirl/prepare still uses; gone as soon as it addresses its files by Folder."""

from contextlib import AbstractContextManager
from typing import IO

from pirl.storage.client import Options, resolve
from pirl.storage.folder import Folder
from pirl.storage.reading import sizes_below as sizes
from pirl.storage.retry import DEADLINE_S


def _folder(uri: str, options: Options = None, deadline_s: float = DEADLINE_S) -> Folder:
    return Folder(uri, options or {}, deadline_s)


def read_bytes(uri: str, offset: int, length: int, options: Options = None, deadline_s: float = DEADLINE_S) -> bytes:
    return _folder(uri, options, deadline_s).read_bytes("", offset, length)


def read_all(uri: str, options: Options = None, deadline_s: float = DEADLINE_S) -> bytes:
    return _folder(uri, options, deadline_s).read_bytes()


def reading(uri: str, options: Options = None) -> AbstractContextManager[IO[bytes]]:
    return _folder(uri, options).reading()


def writing(uri: str, options: Options = None) -> AbstractContextManager[IO[bytes]]:
    return _folder(uri, options).writing()


def write_text(uri: str, text: str, options: Options = None) -> None:
    _folder(uri, options).write("", text)


def exists(uri: str, options: Options = None) -> bool:
    return _folder(uri, options).exists()


def is_folder(uri: str, options: Options = None) -> bool:
    return _folder(uri, options).is_folder()


def is_local(uri: str, options: Options = None) -> bool:
    return _folder(uri, options).is_local


def size_of(uri: str, options: Options = None) -> int:
    return _folder(uri, options).size()


def files_below(uri: str, options: Options = None) -> list[str]:
    return sorted(sizes(resolve(uri, options), False))


def sizes_below(uri: str, options: Options = None, *, follow_links: bool = False) -> dict[str, int]:
    return sizes(resolve(uri, options), follow_links)


def matches(pattern: str, options: Options = None) -> list[str]:
    return _folder(pattern, options).matches()


def remove(uri: str, options: Options = None) -> None:
    resolve(uri, options).ask("removing", "rm_file")


def join(uri: str, *names: str) -> str:
    return "/".join([uri.rstrip("/"), *names])
