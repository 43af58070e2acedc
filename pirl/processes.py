"""What processes know of those that they belong to."""

import ctypes
import multiprocessing
import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress

CLOSING_S = 5.0
"""What the kernel may take to close the files of a process."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Of mallopt(3)."""


def end_with_parent(last: Callable[[], object] = lambda: None) -> None:
    """Lets this process end when the one that started it is killed, after a last step.

    By itself it would wait for ever: its parent by number is the fork server, which lives as long as its children.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        with suppress(OSError, AttributeError):  # it has gone; no Linux
            # Its pipe has closed, which may be before other files of it do, and with them its locks.
            select.select([os.pidfd_open(parent.pid or 0)], [], [], CLOSING_S)
        with suppress(Exception):
            last()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def keep_freed_memory() -> None:
    """Lets this process use the memory again that it freed, up to pieces of 32 MB, where the allocator is glibc's.

    By itself it gives the kernel megabytes back, which clears them before they come again: for an image of 100 KB that
    takes longer than to read it.
    """
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 1)  # each thread would keep memory of its own
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**25)


def torchrun(name: str) -> int | None:
    """A number that torchrun gives its processes, as RANK; None in others, where one of that name means nothing.

    Other launchers count too that set all that a process group needs: each process would train alone otherwise.
    """
    has_group = os.environ.keys() >= {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"}
    return int(os.environ[name]) if has_group and name in os.environ else None
