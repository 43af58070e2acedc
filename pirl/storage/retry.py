"""Tries again what may go well the next time: one layer for every store, with full jitter and one deadline.

The clients' own retries are turned off (see client.py): they differ from store to store, and nested ones multiply.
"""

import errno
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from pirl.errors import StorageError, StoreRefusedError

T = TypeVar("T")

DEADLINE_S = 300.0
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE = 1 / 30
"""As a share of the deadline."""

_PASSING = {
    *(errno.EIO, errno.EBUSY, errno.EAGAIN, errno.EPIPE, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO),
    *(errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH),
}
_PASSING_STATUS = {408, 425, 429}
_PASSING_CODES = {"RequestTimeout", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"}
"""What S3 answers with status 400 where the request arrived late or damaged."""
_PASSING_KINDS = {
    *("HTTPClientError", "IncompleteReadError", "FlexibleChecksumError", "ClientError", "HTTPException"),
    *("ConnectionError", "SSLError", "gaierror"),
    *("CredentialRetrievalError", "MetadataRetrievalError", "ResponseParserError"),
}
"""By name, since only the client of the store that is read is installed: botocore's, aiohttp's, Python's own."""
_FINAL_KINDS = {"SSLCertVerificationError", "InvalidURL"}
"""Of these: another server than the one that was named, or none."""
_ABOUT_A_NAME = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)

_random = random.SystemRandom()  # forked loader processes share the state of any other
_lock = threading.Lock()
_retries = 0


def persistently(what: str, attempt: Callable[[], T], deadline_s: float = DEADLINE_S) -> T:
    """Calls `attempt` until it goes well; no try begins later than the deadline.

    `what` says for the error what is done and to which object.

    Raises:
        StorageError: The deadline is over; StoreRefusedError where the store refused.
        Exception: What `attempt` raises, where it is not about a store, or says that a name exists or does not.
    """
    began = time.monotonic()
    for tries in itertools.count(1):
        try:
            return attempt()
        except StorageError:
            raise  # of another call of this function, which had the same deadline
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            if not is_passing(error):
                of_a_store = http_status(error) or _is_any_of(error, {"BotoCoreError", "ClientError", "SSLError"})
                if isinstance(error, _ABOUT_A_NAME) or not of_a_store:
                    raise
                raise StoreRefusedError(f"{what}: the store refused: {cause}") from error
            left = began + deadline_s - time.monotonic()
            if left <= 0:
                raise StorageError(
                    f"{what}: gave up after {tries} tries in {time.monotonic() - began:.0f} s "
                    f"(data.deadline_s {deadline_s:g}); the last one ended with {cause}"
                ) from error
            pause(tries - 1, min(left, deadline_s * LONGEST_PAUSE))
    raise AssertionError("unreachable")


def pause(failures: int, longest_s: float) -> None:
    """Counts a retry, and waits before it: a random time, twice as long on average after each failure."""
    global _retries
    with _lock:
        _retries += 1
    time.sleep(_random.uniform(0, min(longest_s, FIRST_PAUSE_S * 2 ** min(failures, 30))))


def take_count() -> int:
    """The retries of this process since the last call."""
    global _retries
    with _lock:
        taken, _retries = _retries, 0
    return taken


def is_passing(error: BaseException) -> bool:
    """Whether the same request may go well later: not where it is wrong, refused, or asks for what is not there."""
    if status := http_status(error):
        return status >= 500 or status in _PASSING_STATUS or _code(error) in _PASSING_CODES
    if _is_any_of(error, _PASSING_KINDS):  # first, for the numbers in some of them are not the kernel's
        return not any(_is_any_of(one, _FINAL_KINDS) for one in _with_causes(error))
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING
    return isinstance(error, TimeoutError)


def http_status(error: BaseException) -> int:
    """The status of the HTTP answer behind an error, where its client tells; else 0."""
    for one in (error, error.__cause__):
        answer = getattr(one, "response", None)
        if isinstance(answer, dict):  # botocore, which s3fs translates
            return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    for name in ("status", "status_code", "code"):  # aiohttp, azure, gcsfs
        if isinstance(status := getattr(error, name, None), int):
            return status
    return 0


def _code(error: BaseException) -> str:
    answers = [getattr(one, "response", None) for one in (error, error.__cause__)]
    return next((str(answer["Error"].get("Code")) for answer in answers if isinstance(answer, dict)), "")


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_any_of(error: BaseException, kinds: set[str]) -> bool:
    return any(kind.__name__ in kinds for kind in type(error).__mro__)
