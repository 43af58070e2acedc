"""A cache of spans on the local disk, shared by all processes of a node, so that a second epoch reads no store.

A file for each span, in one folder for each user. It is written under a temporary name and renamed, so a file
with its real name is whole; readers check what they get, since a disk errs too. The processes share a ledger of
the bytes, guarded by a file lock, which the kernel releases with the process that holds it.
"""

import fcntl
import hashlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOM = 0.9
"""The share of the limit that stays when files are removed, so that this is rare: it looks at all of them."""
LEFTOVER_S = 600.0
"""A temporary file that nobody has written to for so long was left by a process that was killed."""

_OURS = re.compile(r"[0-9a-f]{64}(-\d+-\d+\.tmp)?")
"""Names of files that are counted and removed: the folder that a person named may hold others too."""
_DIGITS = 20
"""Of the ledger: always as many, so that one write replaces the number."""


@dataclass(eq=False)
class SpanCache:
    """Spans that were read before, in `limit` bytes of a folder: the least recently used ones go first.

    Where the disk is full or cannot be written, it says so once in each process, and keeps what it has.
    """

    folder: Path
    limit: int
    writable: bool = field(default=True, repr=False)

    def get(self, name: str) -> bytes | None:
        """What was put under a name, if it is still there."""
        path = self._path(name)
        try:
            if not self._is_ours():
                return None
            data = path.read_bytes()
        except OSError:
            return None
        with suppress(OSError):  # another process removed it, or the disk is read-only
            os.utime(path)
        return data

    def has(self, name: str) -> bool:
        """Whether something was put under a name and is still there."""
        return self._path(name).exists()

    def put(self, name: str, data: bytes) -> None:
        """Keeps a span, if there is room for one of its size at all."""
        if not self.writable or len(data) > self.limit * ROOM:
            return
        path = self._path(name)
        temporary = path.with_name(f"{path.name}-{os.getpid()}-{time.monotonic_ns()}.tmp")
        try:
            self._reserve(temporary, len(data))
            try:
                with temporary.open("r+b") as file:
                    file.write(data)
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            self.writable = False
            print(
                f"nothing more is kept in the cache {self.folder}: {error.strerror or error}. The run goes on "
                "without it; --data.cache-folder names another folder, --data.cache-gb 0 turns it off",
                file=sys.stderr,
                flush=True,
            )

    def _path(self, name: str) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()
        return self.folder / digest[:2] / digest

    def _reserve(self, file: Path, size: int) -> None:
        """Makes an empty file of this size and enters it into the ledger, after removing old ones if need be."""
        with self._ledger() as ledger:
            known = ledger.read(_DIGITS)
            total = int(known) if known.isdigit() else self.limit  # a new folder, or one that was tampered with
            if total + size > self.limit:
                total = self._shrink(int(self.limit * ROOM) - size)
            ledger.seek(0)
            ledger.write(str(total + size).zfill(_DIGITS).encode())
            file.parent.mkdir(exist_ok=True)
            with file.open("wb") as new:
                new.truncate(size)  # here, so that nobody who adds up the files now misses it

    @contextmanager
    def _ledger(self) -> Iterator[Any]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._is_ours():
            raise PermissionError("it belongs to another user")
        with open(os.open(self.folder / "ledger", os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _is_ours(self) -> bool:
        """Whether nobody else can put images here: the temporary folder is everybody's."""
        return self.folder.stat().st_uid == os.getuid()

    def _shrink(self, goal: int) -> int:
        """Removes the files that were used longest ago until the rest has `goal` bytes; returns what it has."""
        files, total = [], 0
        for path in self.folder.glob("??/*"):
            if not _OURS.fullmatch(path.name):
                continue
            with suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix == ".tmp" and time.time() - status.st_mtime > LEFTOVER_S:
                    path.unlink()
                else:
                    files.append((status.st_mtime_ns, status.st_size, path))
                    total += status.st_size
        for _, size, path in sorted(files):
            if total <= goal:
                break
            if path.suffix != ".tmp":
                path.unlink(missing_ok=True)
                total -= size
        return total


def default_folder() -> Path:
    """In the temporary folder: it is on the node itself, where a home folder may be shared or small."""
    return Path(tempfile.gettempdir()) / f"pirl-cache-{os.getuid()}"
