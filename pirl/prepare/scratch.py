"""Where each image of a source lies: a span of a file, or of a scratch file on a local disk.

What cannot be read here and there (Parquet columns, compressed members of zip files, archives in an object store) is
copied to the scratch file once, from front to back. After that every image can be read by itself, in any order, by any
process.
"""

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from multiprocessing import reduction
from typing import IO, Any, NamedTuple, Self, TypeVar

from pirl.errors import ConfigError
from pirl.storage.folder import Folder

T = TypeVar("T")
Progress = Callable[[str, int, int, str], None]
"""Is told what is done, how much of it, of how much, and the unit."""

COPY_BYTES = 2**24
COPY_THREADS = 8
"""Reads of COPY_BYTES that are under way: enough to fill a network, and 128 MB at most."""


class Span(NamedTuple):
    """Bytes of a file: the whole of it, `length` of them, or `length` bytes of the scratch file if `uri` is None."""

    uri: str | None
    offset: int = 0
    length: int | None = None


class Scratch:
    """A temporary file without a name: it is gone with the last process that has it, however that ends.

    A context manager that closes it. It lies in `folder`, by default the system's for temporary files.
    It goes to other processes when they are started, as an argument; they read it by `os.pread`.
    """

    def __init__(self, folder: str | None = None) -> None:
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - lives as long as this
        except OSError as error:
            raise ConfigError(
                f"--scratch {folder} cannot be written ({error}): name a folder on a local disk"
            ) from None
        self.size = 0

    def append(self, data: bytes) -> int:
        """Writes bytes behind those that are there; returns their offset."""
        at, view = self.size, memoryview(data)
        while view:
            written = os.pwrite(self._file.fileno(), view, self.size)
            self.size, view = self.size + written, view[written:]
        return at

    def make_room(self, size: int, what: str) -> None:
        """Makes sure that the disk has room for so many bytes; else raises ConfigError."""
        disk = os.fstatvfs(self._file.fileno())
        if disk.f_bavail * disk.f_frsize < size:
            raise ConfigError(
                f"{what} needs {size / 1e6:,.0f} MB on a local disk while it is shuffled, and the folder for temporary "
                f"files has {disk.f_bavail * disk.f_frsize / 1e6:,.0f}: name another with --scratch FOLDER"
            )

    def reading(self, offset: int) -> IO[bytes]:
        """The same file as a file object, at an offset."""
        file = os.fdopen(os.dup(self._file.fileno()), "rb")
        file.seek(offset)
        return file

    def copy(self, uri: str, progress: Progress) -> int:
        """Appends a whole file, some ranges at a time; returns the offset."""
        file = Folder(uri)
        size, at = file.size(), self.size
        self.make_room(size, uri)
        progress(f"reading {uri}", 0, size >> 20, "MB")
        with ThreadPoolExecutor(COPY_THREADS) as pool:
            reads = (partial(file.read_bytes, offset=start, length=COPY_BYTES) for start in range(0, size, COPY_BYTES))
            for data in bounded_map(pool, reads, COPY_THREADS):
                self.append(data)
                progress(f"reading {uri}", (self.size - at) >> 20, size >> 20, "MB")
        return at

    def read(self, span: Span) -> bytes:
        """Reads a span of this file or of any other."""
        if span.uri is None:
            return os.pread(self._file.fileno(), span.length or 0, span.offset)
        return Folder(span.uri).read_bytes(offset=span.offset, length=span.length)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _inherit, (reduction.DupFd(self._file.fileno()),)


def _inherit(handle: Any) -> "Scratch":
    scratch = Scratch.__new__(Scratch)
    scratch._file = os.fdopen(handle.detach(), "rb", buffering=0)
    scratch.size = os.fstat(scratch._file.fileno()).st_size
    return scratch


def bounded_map(pool: Executor, calls: Iterable[Callable[[], T]], most: int) -> Iterator[T]:
    """Results of the calls, in order, with at most `most` of them under way: memory stays bounded."""
    pending: deque[Future[T]] = deque()
    for call in calls:
        pending.append(pool.submit(call))
        if len(pending) >= most:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
