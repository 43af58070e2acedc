"""What a check has found, a line for each, and what of it is wrong."""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

WORDS = {True: "ok      ", False: "FAILED  ", None: "        "}


@dataclass
class Findings:
    """Prints lines as they come; `failures` keeps those that say that something is wrong."""

    failures: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def say(self, what: str, good: bool | None = None) -> None:
        """Prints a line; `good` is whether it is as it should be, None where it is a figure alone."""
        if good is False:
            self.failures.append(what)
        print(WORDS[good] + what, flush=True)

    def run(self, name: str, part: Callable[[], None]) -> None:
        """Runs a part; one that breaks is a failure, and the others are of use all the same."""
        try:
            part()
        except Exception:
            self.say(f"{name}: {traceback.format_exc().strip()}", False)
        self.say(f"--- {name}: done after {time.perf_counter() - self.began:.0f} s")
