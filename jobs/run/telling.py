"""What the first worker of a Ray job does at the moment, told to the driver, which shows it in a terminal.

It does not go through `train.log`, which lasts, and which a store takes only now and then.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

EVERY_S = 0.5


@contextmanager
def telling_driver(watched: bool) -> Iterator[Callable[[str], None]]:
    """In a worker: yields what takes a text; the newest is sent each EVERY_S by a thread, so nobody waits for it.

    Nothing is sent where it is not `watched`.
    """
    if not watched:
        yield lambda text: None
        return
    from jobs.run.ray_internals import leave_text

    newest, ending = [""], threading.Event()

    def send() -> None:
        sent = ""
        while not ending.wait(EVERY_S):
            text = newest[0]
            if text != sent:
                with suppress(Exception):  # nothing depends on it
                    leave_text(_key(), text)
                sent = text

    thread = threading.Thread(target=send, name="pirl-telling", daemon=True)
    thread.start()
    try:
        yield lambda text: newest.__setitem__(0, text)
    finally:
        ending.set()
        thread.join()


def told_by_worker() -> str:
    """In the driver: the newest text; empty before the first."""
    import ray

    from jobs.run.ray_internals import left_text

    with suppress(Exception):  # Ray may be ending
        return left_text(_key()) if ray.is_initialized() else ""  # to ask for a key would start a Ray
    return ""


def _key() -> str:
    import ray

    return f"now-{ray.get_runtime_context().get_job_id()}"
