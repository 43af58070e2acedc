"""A folder for the temporary files of this process; what processes left there that were killed is removed.

Each process holds a lock on its folder, which the kernel releases with the process, however that ends.
"""

import fcntl
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.util import Finalize
from pathlib import Path

LAST = -200
"""When the folder is removed at the end: after what multiprocessing removes itself, which is at -100."""
PATIENCE_S = 5.0
"""For processes that are ending and still write there: Ray's."""

_folders: dict[tuple[int, Path], tuple[Path, int]] = {}
"""Of each process, with the open folder that is locked: a forked process must not take its parent's."""


def temporary_folder(longest: int | None = None) -> Path:
    """Made when it is asked for first, in TMPDIR, and removed when the process ends.

    Args:
        longest: Letters that its path may have, for sockets: where it is longer, there is one in /tmp.
    """
    parent, prefix = Path(tempfile.gettempdir()), f"pirl-{os.getuid()}-"
    if longest is not None and len(f"{parent}/{prefix}") + 8 > longest:
        parent = Path("/tmp")
    key = (os.getpid(), parent)
    if key not in _folders:
        _folders[key] = _make(parent, prefix)
    return _folders[key][0]


def lend_to_multiprocessing() -> None:
    """Has the sockets of multiprocessing lie in the folder of this process, those of the processes that it starts too.

    By itself it makes one for each process, which stays where one is ended without Python's clean-up.
    """
    about: dict[str, object] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    about["tempdir"] = str(temporary_folder())


def remove_temporary_folder() -> None:
    """Removes it, and those of processes of this user that are gone; for what ends without Python's clean-up."""
    for key in [key for key in _folders if key[0] == os.getpid()]:
        folder, lock = _folders.pop(key)
        end = time.monotonic() + PATIENCE_S
        while folder.exists() and time.monotonic() < end:
            shutil.rmtree(folder, ignore_errors=True)
            if folder.exists():
                time.sleep(0.1)
        os.close(lock)
    for parent in {Path(tempfile.gettempdir()), Path("/tmp")}:
        with suppress(OSError), _guarding(parent, f"pirl-{os.getuid()}-"):
            pass


def _make(parent: Path, prefix: str) -> tuple[Path, int]:
    with _guarding(parent, prefix):
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = _locked(folder)
    # Not atexit: the processes of multiprocessing do not come to that.
    Finalize(None, remove_temporary_folder, exitpriority=LAST)
    return folder, lock


@contextmanager
def _guarding(parent: Path, prefix: str) -> Iterator[None]:
    """Keeps other processes from making or removing such folders, after those that nobody has were removed."""
    path = parent / f"{prefix}lock"
    guard = _lock_of(path)  # else another might find a new folder that is not locked yet
    try:
        for old in parent.glob(f"{prefix}*/"):
            with suppress(OSError):
                os.close(_locked(old))
                shutil.rmtree(old)
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # nothing stays; who waits for it makes it anew
        os.close(guard)


def _lock_of(path: Path) -> int:
    """A file that is locked for this process alone, made if there is none."""
    while True:
        guard = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        fcntl.flock(guard, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):  # the process that had it before removed it
            if os.path.samestat(os.fstat(guard), os.stat(path)):
                return guard
        os.close(guard)


def _locked(folder: Path) -> int:
    """The folder, opened and locked; raises OSError where a living process has it, or it is another user's."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(opened).st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user")
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(opened)
        raise
    return opened
