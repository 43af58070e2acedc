"""A terminal for tests: commands run on a real pseudo-terminal, and what they write is drawn as a terminal does it."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

WORDS = re.compile(r"\x1b\[(\?25[hl]|[0-9;]*[AKm])|[\r\n]|[^\x1b\r\n]")
"""What is written: commands to move up, to clear and to colour, the cursor shown or hidden, and single letters."""


class Screen:
    """The rows of a terminal that is as long as it takes."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows, self.row, self.column = [""], 0, 0
        self.cursor_shown, self.colored = True, False

    def write(self, text: str) -> None:
        at = 0
        while at < len(text):
            word = WORDS.match(text, at)
            assert word, f"a terminal was told something else: {text[at : at + 10]!r}"
            at = word.end()
            self._take(word[0])

    def shown(self) -> list[str]:
        """The rows, without blanks at their ends and without empty ones behind the last."""
        return "\n".join(row.rstrip() for row in self.rows).rstrip().split("\n")

    def _take(self, word: str) -> None:
        if word == "\r":
            self.column = 0
        elif word == "\n":
            self._down()
        elif word in ("\x1b[?25h", "\x1b[?25l"):
            self.cursor_shown = word.endswith("h")
        elif word.endswith("A") and word.startswith("\x1b"):
            self.row = max(0, self.row - int(word[2:-1] or 1))
        elif word == "\x1b[2K":
            self.rows[self.row] = ""
        elif word.endswith("m") and word.startswith("\x1b"):
            self.colored |= word != "\x1b[0m"
        else:
            assert len(word) == 1, word
            if self.column == self.columns:
                self.column = 0
                self._down()
            row = self.rows[self.row].ljust(self.column)
            self.rows[self.row] = row[: self.column] + word + row[self.column + 1 :]
            self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append("")


class OnTerminal:
    """A command on a pseudo-terminal; `writes` are what it wrote, piece by piece, each with the seconds until then.

    Args:
        columns: Of the terminal, which has 24 lines.
        env: The environment.
        words: What else is in it, or is another.
    """

    def __init__(
        self,
        command: Sequence[str],
        columns: int = 80,
        env: Mapping[str, str] = os.environ,
        words: Mapping[str, str] | None = None,
    ) -> None:
        self.columns = columns
        self.writes: list[tuple[float, str]] = []
        self._ours, theirs = pty.openpty()
        resize(self._ours, columns)
        self._began = time.monotonic()
        # Those that pytest gives to its processes would count more than the terminal's own size.
        sized = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES")}
        environment = {**sized, "TERM": "xterm", **(words or {})}
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, preexec_fn=own_terminal,
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def read_until(self, enough: Callable[[str], bool] = lambda text: False) -> str:
        """Reads until what was written is enough, or the command has ended; returns all that was written so far."""
        left = b""
        while not enough(self.text):
            try:
                left += os.read(self._ours, 2**16)
            except OSError:  # nobody has the other end any more
                break
            try:
                piece, left = left.decode(), b""
            except UnicodeDecodeError:
                continue
            self.writes.append((time.monotonic() - self._began, piece))
        return self.text

    def end(self) -> int:
        """Reads to the end; returns the exit code."""
        self.read_until()
        os.close(self._ours)
        return self.process.wait()

    @property
    def text(self) -> str:
        return "".join(piece for _, piece in self.writes)

    def screens(self) -> list[list[str]]:
        """What was to be seen after each piece."""
        screen, seen = Screen(self.columns), []
        for _, piece in self.writes:
            screen.write(piece)
            seen.append(screen.shown())
        return seen


def resize(terminal: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


def own_terminal() -> None:
    """In a new process: its standard input becomes its terminal, so that a typed Ctrl-C reaches it."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
