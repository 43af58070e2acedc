"""Give back the placement groups, and the resources in them, of trials that were cut off.

Ray removes a group when both the actor and the job that asked for it have ended, and the job of a trial is the whole
sweep; one that was asked for in the moment in which these ended it keeps for ever, so that those of commands that were
killed are given back, too. Ray Train's own cleaner
(2.60) removes a group sooner, but asks Ray's dashboard, which it does not find where Ray was started without one or
where a machine has more than one Ray; and it is told of a group only when all workers have started.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from jobs.run.ray_internals import placement_groups, remove_placement_groups
from tune.rows import Row

EVERY_S = 1.0
"""Between two looks for groups that were left; the next trial may wait for one."""

LOOKS = 10
"""How often in turn, 0.2 s apart, no group must be found; the last one may come after its trial's end."""

LOOK_FOR_S = 60
"""After which groups that do not go stay."""


@contextmanager
def giving_back(rows: Sequence[Row]) -> Iterator[None]:
    """Removes the groups whose actors have ended, while the block runs and after it; of trials cut off then, all."""
    done = threading.Event()
    thread = threading.Thread(target=give_back, args=[done], daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        cut_off = any(row.state in ("starting", "running") for row in rows)
        looks = LOOKS if cut_off else 1
        deadline = time.monotonic() + LOOK_FOR_S
        while looks > 0 and time.monotonic() < deadline:
            found = placement_groups(left=not cut_off)
            remove_placement_groups(found)
            looks = LOOKS if found else looks - 1
            time.sleep(0.2)


def give_back(done: threading.Event) -> None:
    """Removes the groups whose actors have ended, again and again."""
    pause_s = EVERY_S
    while not done.wait(pause_s):
        began = time.monotonic()
        with suppress(Exception):  # whatever Ray raises when it is busy: asked again the next time
            remove_placement_groups(placement_groups(left=True))
        pause_s = max(EVERY_S, 10 * (time.monotonic() - began))  # Ray tells of all groups that there ever were
