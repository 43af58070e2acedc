"""Filesystems of fsspec by URL, and how they are asked: again where a store errs for a moment, see retry.py.

They are made lazily, in each process of its own.
"""

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, cast

from fsspec import AbstractFileSystem
from fsspec.asyn import sync
from fsspec.core import url_to_fs
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.local import LocalFileSystem

from pirl.errors import ConfigError
from pirl.storage.retry import DEADLINE_S, persistently
from pirl.storage.secrets import refuse_secret_url, refuse_user_in_environment

Options = Mapping[str, Any] | None

TRY = 1 / 15
"""The share of the deadline (20 s of 300 s) after which a try has stalled; a large body has longer, at least"""
SLOWEST = 2**19
"""bytes a second."""
PIECE = 2**26
"""Bytes of a long file that are read or sent at a time, each tried again by itself and with a deadline of its own."""

_filesystems: dict[tuple[int, str, str], AbstractFileSystem] = {}
_lock = threading.Lock()


def ask(
    fs: AbstractFileSystem, what: str, method: str, *args: Any, deadline_s: float = DEADLINE_S, size: int = 0, **kw: Any
) -> Any:
    """Calls a method of a filesystem until it goes well; `size` is what it moves, in bytes."""
    limit = limit_s(deadline_s, size)
    return persistently(what, lambda: once(fs, method, *args, limit_s=limit, **kw), deadline_s)


def once(fs: AbstractFileSystem, method: str, *args: Any, limit_s: float, **kw: Any) -> Any:
    """Calls a method of a filesystem; raises TimeoutError where there is no end within the limit."""
    if isinstance(fs, LocalFileSystem):
        return getattr(fs, method)(*args, **kw)
    try:
        if fs.async_impl:
            return sync(fs.loop, getattr(fs, f"_{method}"), *args, timeout=limit_s, **kw)
        return _in_a_thread(partial(getattr(fs, method), *args, **kw)).result(limit_s)
    except FSTimeoutError:
        raise TimeoutError(f"it stalled: no end within {limit_s:.1f} s") from None


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


def limit_s(deadline_s: float, size: int) -> float:
    """After how long a try that moves so many bytes has stalled."""
    return deadline_s * TRY + size / SLOWEST


def locate(uri: str, options: Options) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a URL, one for all threads of this process, and the path in it."""
    uri = os.path.expanduser(uri)
    key = (os.getpid(), "/".join(uri.split("/")[:3]) if "://" in uri else "", repr(options))
    with _lock:
        if key not in _filesystems:
            _filesystems[key] = filesystem(uri, options)
    return _filesystems[key], cast(str, _filesystems[key]._strip_protocol(uri))


def filesystem(uri: str, options: Options, tries: int = 1) -> AbstractFileSystem:
    """A new one, whose own client tries so often.

    Raises:
        ConfigError: There is none for this URL, or the URL or that of the endpoint holds a secret.
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
