"""One line of a terminal that says what goes on while long work runs. Other lines come above it."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TextIO

from pirl.runs.progress_lines import is_passing

PER_S = 2
"""How often the line is written anew: the clock in it shows that the work goes on."""


class LiveLine:
    """What goes on, and for how long, as the last line of a terminal; a context manager, which may be entered again.

    Where the stream is no terminal, or one that cannot write a line anew (TERM=dumb), nothing of it is shown. When the
    block is left, the line stays as it was last, unless its text is empty.

    Attributes:
        shown: Whether there is such a line.

    Args:
        stream: Where, as sys.stdout. Meanwhile what Python writes to a terminal comes above it too.
        allowed: Whether this process may show it: of several on one terminal only one does.
    """

    def __init__(self, stream: TextIO, *, allowed: bool = True) -> None:
        self.stream = stream
        self.shown = allowed and stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
        self._began = time.monotonic()
        self._text = ""
        self._live: Any = None

    def now(self, text: str) -> None:
        """Takes what goes on; may be called often, as the line is written anew when its time comes."""
        first, self._text = not self._text, text
        if first and self._live is not None:
            self._live.refresh()

    @contextmanager
    def passing(self, text: str) -> Iterator[None]:
        """Shows a text while the block runs, and nothing of it afterwards."""
        with self:
            self.now(text)
            try:
                yield
            finally:
                self.now("")

    def print(self, line: str) -> None:
        """Prints a line that stays, as it is: above the live one, where there is one."""
        if self._live is None:
            print(line, file=self.stream, flush=True)
        else:
            self._live.console.print(line, soft_wrap=True)

    def log(self, line: str) -> None:
        """Prints a line of `train.log`, but for those whose place the live one takes."""
        if not (self.shown and is_passing(line)):
            self.print(line)

    def line(self) -> str:
        """What is shown: the time since this was made, and what goes on."""
        return f"{clock(time.monotonic() - self._began)}  {self._text}" if self._text else ""

    def __enter__(self) -> Self:
        if self.shown:
            from rich.console import Console  # only where it is shown: it takes time
            from rich.live import Live
            from rich.text import Text

            self._live = Live(
                get_renderable=lambda: Text(self.line(), no_wrap=True, overflow="ellipsis"),
                console=Console(file=self.stream, force_terminal=True, markup=False, emoji=False, highlight=False),
                refresh_per_second=PER_S,
                redirect_stdout=sys.stdout.isatty(),  # what goes into a file stays as it is
                redirect_stderr=sys.stderr.isatty(),
            )
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.transient = not self._text
            self._live.stop()
            self._live = None


def clock(seconds: float) -> str:
    """As 1:02, or 1:02:03 from an hour on."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
