"""Preemption: SIGUSR2 to the driver says that the end is near, and the workers save a checkpoint and stop.

SLURM and other schedulers send such a signal some seconds before they take the nodes away: docs/preemption.md.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

POLL_S = 1.0


@contextmanager
def preemption_signal() -> Iterator[threading.Event]:
    """While the block runs, SIGUSR2 to this process sets the event that the block gets."""
    preempted = threading.Event()
    before = signal.signal(signal.SIGUSR2, lambda *_: preempted.set())
    try:
        yield preempted
    finally:
        # Not to the default, which would end the process: who sends one signal may send two.
        signal.signal(signal.SIGUSR2, signal.SIG_IGN if before == signal.SIG_DFL else before)


@contextmanager
def preemption_for_workers() -> Iterator[threading.Event]:
    """The same in the driver of a Ray job, for all of its workers, who ask `preempted`."""
    from jobs.run.ray_internals import tell_workers

    done = threading.Event()

    def pass_on(preempted: threading.Event) -> None:
        while not done.is_set():
            if preempted.wait(POLL_S):
                tell_workers(_word())
                return

    with preemption_signal() as preempted:
        thread = threading.Thread(target=pass_on, args=[preempted], daemon=True)
        thread.start()
        try:
            yield preempted
        finally:
            done.set()
            thread.join()


def preempted() -> Callable[[], bool]:
    """In a worker of a Ray job: a function that says, without waiting, whether the driver got the signal."""
    from jobs.run.ray_internals import is_told

    heard = threading.Event()
    word = _word()

    def ask() -> None:
        while not is_told(word):
            if heard.wait(POLL_S):
                return
        heard.set()

    threading.Thread(target=ask, daemon=True).start()
    return heard.is_set


def _word() -> str:
    import ray

    return f"stop-{ray.get_runtime_context().get_job_id()}"
