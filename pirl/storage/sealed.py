"""Small JSON files that say themselves whether they are whole, and how to get anything whole: by trying again."""

import json
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

from pirl.storage.retry import pause

try:
    from isal import isal_zlib as checksums
except ModuleNotFoundError:  # a machine with a GPU and little else: the same numbers, at a third of the speed
    import zlib as checksums  # type: ignore[no-redef]

crc32: Callable[..., int] = checksums.crc32

T = TypeVar("T")

TRIES = 10
"""Of what moves bytes that came damaged: they may have been right, and changed on their way."""
LONGEST_PAUSE_S = 0.2
"""Between them: nobody is busy, so there is nothing to wait for."""
SEAL = b', "crc32": '
"""What stands before the checksum; within a name JSON has a backslash before a quote."""


def until_whole(
    attempt: Callable[[], T], is_whole: Callable[[T], bool], longest_pause_s: float = LONGEST_PAUSE_S
) -> tuple[T, bool]:
    """Reads or sends, until it is whole or was tried often enough; what came last, and whether that is whole."""
    for failures in range(TRIES):
        if failures:
            pause(failures, longest_pause_s)
        got = attempt()
        if is_whole(got):
            return got, True
    return got, False


def sealed(content: dict[str, Any]) -> bytes:
    """As JSON whose last field is the checksum of all before it."""
    body = json.dumps(content).encode()[:-1]
    return body + SEAL + b"%d}\n" % zlib.crc32(body)


def is_whole(text: bytes) -> bool:
    """Whether a text is as `sealed` wrote it."""
    end = max(text.rfind(SEAL), 0)
    return text[end:] == SEAL + b"%d}\n" % zlib.crc32(memoryview(text)[:end])
