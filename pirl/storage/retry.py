"""Tries again what may go well the next time: one layer for every store, with full jitter and one deadline.

The clients' own retries are turned off (see client.py): they differ from store to store, and nested ones multiply.
"""

import itertools
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from pirl.errors import ObjectRefusedError, StorageError, StoreRefusedError
from pirl.storage.causes import advice, code, http_status, is_any_of, is_passing, is_wrong_address, speaks_tls

T = TypeVar("T")

DEADLINE_S = 300.0
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE = 1 / 30
"""As a share of the deadline."""

FIRST_S = 6.0
"""How long a store that has never answered may say that it is not there: it may be about to come up."""
SAID_AFTER_S = 5.0
"""Whoever waits longer than this is told for what."""

_ABOUT_A_NAME = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)

_random = random.SystemRandom()  # forked loader processes share the state of any other
_lock = threading.Lock()
_retries = 0
_is_said = False


def persistently(
    what: str,
    attempt: Callable[[], T],
    deadline_s: float = DEADLINE_S,
    *,
    uri: str = "",
    is_new: Callable[[], bool] = lambda: False,
) -> T:
    """Calls `attempt` until it goes well; no try begins later than the deadline.

    Args:
        what: What is done and to which object, for the error.
        uri: The object.
        is_new: Whether the store has never answered: then an address at which there is none is no passing fault.

    Raises:
        StorageError: The deadline is over; StoreRefusedError where the store refused, or is not at this address, and
            ObjectRefusedError where it refuses this object alone.
        Exception: What `attempt` raises, where it is not about a store, or says that a name exists or does not.
    """
    began = time.monotonic()
    for tries in itertools.count(1):
        try:
            result = attempt()
        except StorageError:
            raise  # of another call of this function, which had the same deadline
        except Exception as error:
            waited_s = time.monotonic() - began
            if is_new() and tries == 1 and speaks_tls(error, uri):
                hint = "What answers there speaks TLS: type https:// instead of http://"
                raise StoreRefusedError(f"{what}: {_in_words(error)}. {hint}") from error
            if not is_passing(error):
                if (refusal := _refusal(what, error)) is error:
                    raise
                raise refusal from error
            if is_new() and is_wrong_address(error) and waited_s >= min(deadline_s, FIRST_S):
                raise StoreRefusedError(f"{what}: {tries} tries ended with {_in_words(error)}{_hint(error)}") from error
            left = deadline_s - waited_s
            if left <= 0:
                _say_again()
                raise StorageError(
                    f"{what}: gave up after {tries} tries in {waited_s:.0f} s "
                    f"(data.deadline_s {deadline_s:g}); the last one ended with {_in_words(error)}"
                ) from error
            if waited_s > SAID_AFTER_S:
                say_waiting(what, _in_words(error), waited_s)
            pause(tries - 1, min(left, deadline_s * LONGEST_PAUSE))
        else:
            _say_again()
            return result
    raise AssertionError("unreachable")


def say_waiting(what: str, why: str, waited_s: float) -> None:
    """Tells who watches this process what it waits for: once, until something has gone well or was given up."""
    global _is_said
    with _lock:
        if _is_said:
            return
        _is_said = True
    print(f"waiting for the store, {what}: {why} ({waited_s:.0f} s)", file=sys.stderr, flush=True)


def _say_again() -> None:
    global _is_said
    _is_said = False


def _refusal(what: str, error: Exception) -> Exception:
    """What is raised for an error that would come again: itself where it is not about a store."""
    of_a_store = http_status(error) or is_any_of(error, {"BotoCoreError", "ClientError", "SSLError"})
    if isinstance(error, _ABOUT_A_NAME) or not of_a_store:
        return error
    kind = ObjectRefusedError if code(error) == "InvalidObjectState" else StoreRefusedError
    return kind(f"{what}: the store refused: {_in_words(error)}{_hint(error)}")


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".")


def _hint(error: Exception) -> str:
    text = advice(error)
    return f". {text[0].upper()}{text[1:]}" if text else ""


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
