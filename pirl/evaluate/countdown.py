"""How far a long measurement is, and how long it will still take, said now and then."""

import time
from collections.abc import Callable

EVERY_S = 5.0
"""Between two lines; what is done sooner says nothing."""


class Countdown:
    """Counts what is done of a known total.

    Args:
        say: Takes a line.
        what: What is done, such as `features of data/cifar10`.
        total: Of `unit`, known before.
        unit: What is counted.
    """

    def __init__(self, say: Callable[[str], None], what: str, total: int, unit: str = "images") -> None:
        self.say, self.what, self.total, self.unit = say, what, total, unit
        self.done = 0
        self.began = self.said = time.monotonic()

    def add(self, number: int) -> None:
        """Counts `number` more."""
        self.done += number
        now = time.monotonic()
        if now - self.said < EVERY_S or self.done >= self.total:
            return
        self.said = now
        per_s = self.done / (now - self.began)
        left_s = (self.total - self.done) / per_s
        left = f"{left_s:.0f} s" if left_s < 120 else f"{left_s / 60:.0f} min"
        self.say(f"{self.what}: {self.done:,}/{self.total:,} {self.unit}, {per_s:,.0f}/s, {left} left")
