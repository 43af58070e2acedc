"""Filesystems of fsspec by URL, and how they are asked: again where a store errs for a moment, see retry.py.

They are made lazily, in each process of its own.
"""

import errno
import os
import re
import threading
from asyncio import run_coroutine_threadsafe
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from fsspec.config import conf
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pirl.errors import ConfigError, ObjectRefusedError, StoreRefusedError
from pirl.storage.causes import S3_ADDRESS, advice, code, http_status
from pirl.storage.retry import DEADLINE_S, SAID_AFTER_S, persistently, say_waiting
from pirl.storage.secrets import refuse_secret_url, refuse_user_in_environment

T = TypeVar("T")
Options = Mapping[str, Any] | None
"""For fsspec."""

TRY = 1 / 15
"""The share of the deadline (20 s of 300 s) after which a try has stalled; a large body has longer, at least"""
SLOWEST = 2**19
"""bytes a second."""
PIECE = 2**26
"""Bytes of a long file that are read or sent at a time, each tried again by itself and with a deadline of its own."""

CONNECT_S = 5.0
"""Until a web server takes a connection, as s3fs has it for S3."""
S3 = ("s3://", "s3a://")
PACKAGES = {
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "az", "adl"), "adlfs"),
    "hf": "huggingface_hub",
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
    "smb": "smbprotocol",
    "oci": "ocifs",
    "box": "boxfs",
}
"""What to install for the schemes whose packages have another name; for others fsspec says it."""

_CHAINED = re.compile(r"^\w+::|::\w+://")
"""What fsspec takes for a file in a file."""
_filesystems: dict[tuple[int, str, str], AbstractFileSystem] = {}
_unheard: set[tuple[int, str, str] | None] = set()
"""Those of them that have never answered."""
_is_trusting = False
_lock = threading.Lock()


@dataclass(frozen=True)
class Address:
    """Where a URL leads, and how long it is asked.

    Attributes:
        fs: The filesystem: one for all threads of this process.
        path: The name in it.
        uri: For messages.
        deadline_s: How long a request is tried again.
        store: The key of what `fs` was made for.
    """

    fs: AbstractFileSystem
    path: str
    uri: str
    deadline_s: float = DEADLINE_S
    store: tuple[int, str, str] | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is on a disk of this machine, as far as it knows."""
        return isinstance(self.fs, LocalFileSystem)

    def ask(self, what: str, method: str, *args: Any, size: int = 0, **kw: Any) -> Any:
        """Calls a method of the filesystem, by default with the path, until it goes well; raises as `persistently`.

        Args:
            what: What it does to what is here, for the error.
            size: What it moves, in bytes.
        """
        return self.persistently(what, lambda: self.once(method, *args, size=size, **kw))

    def persistently(self, what: str, attempt: Callable[[], T]) -> T:
        """The same for any function that asks this store."""
        about = f"{what} {self.uri}"
        return persistently(about, attempt, self.deadline_s, uri=self.uri, is_new=lambda: self.store in _unheard)

    def once(self, method: str, *args: Any, size: int = 0, **kw: Any) -> Any:
        """The same a single time; raises TimeoutError where there is no end in time for so many bytes."""
        is_async = self.fs.async_impl
        call = partial(getattr(self.fs, f"_{method}" if is_async else method), *(args or [self.path]), **kw)
        if self.is_local:
            return call()
        future = run_coroutine_threadsafe(call(), self.fs.loop) if is_async else _in_a_thread(call)
        limit_s = self.deadline_s * TRY + size / SLOWEST
        try:
            result = self._result(future, SAID_AFTER_S + size / SLOWEST, limit_s)
        except FileNotFoundError as error:
            # What HTTPFileSystem.info raises whatever went wrong.
            if "http" in self.fs.protocol and error.__cause__ and http_status(error.__cause__) != 404:
                raise error.__cause__ from error.__cause__.__cause__
            _unheard.discard(self.store)
            raise FileNotFoundError(errno.ENOENT, _why_missing(error), self.uri) from error.__cause__
        except ValueError as error:
            if type(error) is not ValueError:  # one of an address that is none has no kind of its own
                raise
            raise StoreRefusedError(f"{self.uri} cannot be asked for: {error}. {S3_ADDRESS}") from error
        finally:
            future.cancel()
        _unheard.discard(self.store)
        return result

    def _result(self, future: "Future[Any]", quiet_s: float, limit_s: float) -> Any:
        """What comes within `limit_s`; after `quiet_s` it says what is waited for."""
        wait([future], min(quiet_s, limit_s))
        if not future.done() and quiet_s < limit_s:
            say_waiting(f"asking for {self.uri}", "no answer yet", quiet_s)
            wait([future], limit_s - quiet_s)
        if not future.done():
            raise TimeoutError(f"it stalled: no end within {limit_s:.1f} s")
        return future.result()


def trust_stores() -> None:
    """Says that what started this process has asked the stores: one that is not there will come back."""
    global _is_trusting
    _is_trusting = True
    _unheard.clear()


def resolve(uri: str, options: Options = None, deadline_s: float = DEADLINE_S) -> Address:
    """Where a URL leads; raises ConfigError as `filesystem` does, ObjectRefusedError for a version of an object."""
    where = os.path.expanduser(uri)
    if "?versionId=" in where and where.startswith(S3):
        raise ObjectRefusedError(f"{uri}: versions of objects are not read: leave out ?versionId=…, or rename it")
    key = (os.getpid(), _store(where), repr(options))
    with _lock:
        if key not in _filesystems:
            _filesystems[key] = filesystem(where, options)
            if not _is_trusting:
                _unheard.add(key)
    return Address(_filesystems[key], _filesystems[key]._strip_protocol(where), uri, deadline_s, key)


def filesystem(uri: str, options: Options, tries: int = 1) -> AbstractFileSystem:
    """A new one, whose own client tries so often.

    Raises ConfigError where there is none for this URL, or the URL or that of the endpoint holds a secret.
    """
    try:
        refuse_secret_url("a URL", uri)
        refuse_user_in_environment()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    arguments = dict(options or {})
    is_s3 = uri.startswith(S3)
    if is_s3:
        # botocore's own retries, and below s3fs's, which would go around them: retry.py is enough.
        retries = {"total_max_attempts": tries, "mode": "standard"}
        given = arguments.get("config_kwargs", conf.get("s3", {}).get("config_kwargs", {}))
        arguments["config_kwargs"] = {"retries": retries, **given}
        arguments["use_listings_cache"] = False  # as below, also in a copy that another process gets
    if uri.startswith(("http://", "https://")):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
        own = {"timeout": timeout, "raise_for_status": _refuse_the_whole}
        arguments["client_kwargs"] = {**own, **arguments.get("client_kwargs", {})}
    try:
        # Without the name in the store, which may hold what fsspec takes for more.
        fs, _ = url_to_fs(uri if _CHAINED.search(uri) else _store(uri) or uri, **arguments)
    except ImportError as error:
        raise ConfigError(f"{uri} needs a package that is not installed: {_package(uri, error)}") from None
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{uri} is not a path or URL that can be read: {error}. Name a folder, or s3://bucket/name, "
            "https://host/name, or a URL of another store that fsspec knows (gs://, abfs://, hf://, ...)"
        ) from None
    except OSError as error:  # of those that connect at once, as ftp://
        why = advice(error) or "check host and port, and whether it runs"
        raise StoreRefusedError(f"{_store(uri)} cannot be reached: {error}; {why}") from error
    fs.dircache.use_listings_cache = False  # others write there too
    if is_s3 and tries == 1:
        fs.retries = 1
    return fs


def _store(uri: str) -> str:
    """Scheme and bucket or host; empty for a path."""
    return "/".join(uri.split("/")[:3]) if "://" in uri else ""


def _package(uri: str, error: ImportError) -> str:
    """What to install for a URL."""
    name = PACKAGES.get(uri.partition("://")[0])
    return f"type pip install {name}" if name else str(error)


def _why_missing(error: FileNotFoundError) -> str:
    return f"there is no such bucket ({advice(error)})" if code(error) == "NoSuchBucket" else "there is no such object"


async def _refuse_the_whole(answer: Any) -> None:
    """Breaks off the answer of a web server that sends all of a file where a span of it was asked for."""
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", answer.request_info.headers.get("Range", ""))
    if asked and answer.status == 200:
        size = answer.content_length
        if int(asked[1]) > 0 or (size is not None and size > int(asked[2]) + 1):
            raise StoreRefusedError(
                f"{answer.url}: this web server sends the whole file and no spans of it: copy the file to a disk or an "
                "object store, and name it there"
            )


def _in_a_thread(call: Callable[[], Any]) -> "Future[Any]":
    """Calls what may never come back: a thread of its own, for which nobody waits at the end of the process."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
