"""Files of a run that grow while it goes on, of which only what is new is read: numbers, and lines for people."""

import json
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pirl.runs.progress_lines import is_passing
from pirl.storage.folder import Folder
from pirl.storage.reading import FileInfo

MOST_NOTES = 40
"""Lines of a train.log that are kept, the newest ones."""

MOST = 10**15
"""Integers from here on are no numbers of a run, and cannot all be floats."""

_STEP = re.compile(r"epoch +\S+   step ([\d,]+)/[\d,]+   loss ")
_AGAIN = re.compile(r"going on from checkpoint_(\d+), with (\d+) workers")


class Appended:
    """Reads a file that others append to, whole lines at a time.

    A run that goes on may have dropped the end of its numbers: then the line that was read last is no longer at its
    place, and all of it is read anew.
    """

    def __init__(self, file: Folder) -> None:
        self.file = file
        self._info = FileInfo(0, None)
        self._end = 0
        self._last = b""

    def news(self, info: FileInfo | None) -> tuple[bool, list[bytes]]:
        """Whether the file was begun anew, and the lines that came since the last call; raises StorageError."""
        if info is None or info == self._info:
            return False, []
        try:
            return self._read(info)
        except FileNotFoundError:  # since it was listed
            return False, []

    def _read(self, info: FileInfo) -> tuple[bool, list[bytes]]:
        start, anew = self._end - len(self._last), False
        data = self.file.read_bytes("", start) if info.size >= self._end else b""
        if self._end and not data.startswith(self._last):
            data, start, anew, self._last = self.file.read_bytes(), 0, True, b""
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole[len(self._last) :].splitlines(keepends=True)
        self._info, self._end = info, start + len(whole)
        self._last = lines[-1] if lines else self._last
        return anew, lines


class Numbers:
    """The reports of a run: a column for each number, which is NaN where a report has not got it."""

    def __init__(self) -> None:
        self.rows = 0
        self._columns: dict[str, array[float]] = {}

    def add(self, line: bytes) -> None:
        """Takes a line of metrics.jsonl; one that is damaged is passed over."""
        try:
            report = json.loads(line)
        except ValueError:
            return
        if not isinstance(report, dict):
            return
        for name, value in report.items():
            if isinstance(value, float) or (isinstance(value, int) and abs(value) < MOST):
                column = self._columns.setdefault(name, array("d", [np.nan]) * self.rows)
                column.append(value)
        self.rows += 1
        for column in self._columns.values():
            if len(column) < self.rows:
                column.append(np.nan)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        """All values of a number, float64 (rows,)."""
        return np.array(self._columns.get(name, array("d", [np.nan]) * self.rows), np.float64)

    def last(self, name: str) -> float | None:
        """The newest value of a number that is one."""
        known = self[name]
        known = known[~np.isnan(known)]
        return float(known[-1]) if len(known) else None

    def seconds(self, batch_size: int) -> NDArray[np.float64]:
        """Seconds of training until each report (rows,), without starts, measurements and what was lost."""
        steps = np.diff(self["step"], prepend=0.0)
        return np.cumsum(np.nan_to_num(steps * batch_size / self["samples_per_s"]))


@dataclass(frozen=True)
class Restart:
    """A run went on from a checkpoint.

    Attributes:
        step: Of the checkpoint.
        lost: Steps that its log tells of and that were trained again: what was lost is this at least.
        workers: How many there were from then on.
    """

    step: int
    lost: int
    workers: int


@dataclass
class LogStory:
    """What a train.log tells beside the numbers.

    Attributes:
        last: The newest line.
        notes: Lines that do not only say how far it is, the newest ones; `dropped` is the number of the others.
        done: Steps of the newest line of progress.
    """

    restarts: list[Restart] = field(default_factory=list)
    last: str = ""
    notes: list[str] = field(default_factory=list)
    dropped: int = 0
    done: int = 0

    def add(self, line: bytes) -> None:
        """Takes a line of the log."""
        text = line.decode(errors="replace").rstrip()
        if not text:
            return
        self.last = text
        if step := _STEP.match(text):
            self.done = int(step[1].replace(",", ""))
        elif again := _AGAIN.match(text):
            first = int(again[1])
            self.restarts.append(Restart(first, max(0, self.done - first), int(again[2])))
            self.done = first
        elif not is_passing(text):
            self.notes.append(text)
            self.dropped += max(0, len(self.notes) - MOST_NOTES)
            del self.notes[:-MOST_NOTES]


def groups_of_points(rows: int, most: int) -> Iterator[slice]:
    """Neighbouring reports that are drawn as one point, so that there are `most` at the most."""
    size = max(1, -(-rows // most))
    yield from (slice(start, start + size) for start in range(0, rows, size))
