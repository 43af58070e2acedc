"""A warning that the end is near (SIGUSR2 to the driver): the workers save a checkpoint and stop.

SLURM and other schedulers send such a signal some seconds before they take the nodes away.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

POLL_S = 1.0
SPACE = "pirl"
"""Of Ray's key-value store, which the driver and all of its workers see."""


@contextmanager
def warnings_heard() -> Iterator[threading.Event]:
    """While the block runs, SIGUSR2 to this process sets the event that the block gets."""
    warned = threading.Event()
    before = signal.signal(signal.SIGUSR2, lambda *_: warned.set())
    try:
        yield warned
    finally:
        # Not to the default, which would end the process: who sends one warning may send two.
        signal.signal(signal.SIGUSR2, signal.SIG_IGN if before == signal.SIG_DFL else before)


@contextmanager
def warnings_for_workers() -> Iterator[threading.Event]:
    """The same in the driver of a Ray job, for all of its workers, who ask `warned`."""
    from ray.experimental.internal_kv import _internal_kv_put

    done = threading.Event()

    def pass_on(warned: threading.Event) -> None:
        while not done.is_set():
            if warned.wait(POLL_S):
                _internal_kv_put(_key(), b"1", namespace=SPACE)
                return

    with warnings_heard() as warned:
        thread = threading.Thread(target=pass_on, args=[warned], daemon=True)
        thread.start()
        try:
            yield warned
        finally:
            done.set()
            thread.join()


def warned() -> Callable[[], bool]:
    """In a worker of a Ray job: a function that says, without waiting, whether the driver was warned."""
    from ray.experimental.internal_kv import _internal_kv_exists

    heard = threading.Event()
    key = _key()

    def ask() -> None:
        while not _internal_kv_exists(key, namespace=SPACE):
            if heard.wait(POLL_S):
                return
        heard.set()

    threading.Thread(target=ask, daemon=True).start()
    return heard.is_set


def _key() -> bytes:
    import ray

    return f"stop-{ray.get_runtime_context().get_job_id()}".encode()
