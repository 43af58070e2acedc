"""Filesystems of fsspec by URL, and how they are asked: again where a store errs for a moment, see retry.py.

They are made lazily, in each process of its own.
"""

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import sync
from fsspec.core import url_to_fs
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.local import LocalFileSystem

from pirl.errors import ConfigError
from pirl.storage.retry import DEADLINE_S, persistently
from pirl.storage.secrets import refuse_secret_url, refuse_user_in_environment

Options = Mapping[str, Any] | None
"""For fsspec."""

TRY = 1 / 15
"""The share of the deadline (20 s of 300 s) after which a try has stalled; a large body has longer, at least"""
SLOWEST = 2**19
"""bytes a second."""
PIECE = 2**26
"""Bytes of a long file that are read or sent at a time, each tried again by itself and with a deadline of its own."""

_filesystems: dict[tuple[int, str, str], AbstractFileSystem] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class Address:
    """Where a URL leads, and how long it is asked.

    Attributes:
        fs: The filesystem: one for all threads of this process.
        path: The name in it.
        uri: For messages.
        deadline_s: How long a request is tried again.
    """

    fs: AbstractFileSystem
    path: str
    uri: str
    deadline_s: float = DEADLINE_S

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
        return persistently(f"{what} {self.uri}", lambda: self.once(method, *args, size=size, **kw), self.deadline_s)

    def once(self, method: str, *args: Any, size: int = 0, **kw: Any) -> Any:
        """The same a single time; raises TimeoutError where there is no end in time for so many bytes."""
        is_async = self.fs.async_impl
        call = partial(getattr(self.fs, f"_{method}" if is_async else method), *(args or [self.path]), **kw)
        if self.is_local:
            return call()
        limit_s = self.deadline_s * TRY + size / SLOWEST
        try:
            return sync(self.fs.loop, call, timeout=limit_s) if is_async else _in_a_thread(call).result(limit_s)
        except FSTimeoutError:
            raise TimeoutError(f"it stalled: no end within {limit_s:.1f} s") from None


def resolve(uri: str, options: Options = None, deadline_s: float = DEADLINE_S) -> Address:
    """Where a URL leads; raises ConfigError as `filesystem` does."""
    where = os.path.expanduser(uri)
    key = (os.getpid(), "/".join(where.split("/")[:3]) if "://" in where else "", repr(options))
    with _lock:
        if key not in _filesystems:
            _filesystems[key] = filesystem(where, options)
    return Address(_filesystems[key], _filesystems[key]._strip_protocol(where), uri, deadline_s)


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
