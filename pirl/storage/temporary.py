"""A folder for the temporary files of this process; what processes left there that were killed is removed.

Each process holds a lock on its folder, which the kernel releases with the process, however that ends.
"""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path

_folders: dict[int, tuple[Path, int]] = {}
"""Of each process, with the open folder that is locked: a forked process must not take its parent's."""


def temporary_folder() -> Path:
    """Made when it is asked for first, in TMPDIR, and removed when the process ends."""
    if os.getpid() not in _folders:
        _folders[os.getpid()] = _make(Path(tempfile.gettempdir()), f"pirl-{os.getuid()}-")
    return _folders[os.getpid()][0]


def _make(parent: Path, prefix: str) -> tuple[Path, int]:
    guard = os.open(parent / f"{prefix}lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)  # else another might find a new folder that is not locked yet
        for old in parent.glob(f"{prefix}*/"):
            with suppress(OSError):
                os.close(_locked(old))
                shutil.rmtree(old)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = _locked(folder)
    finally:
        os.close(guard)
    # Not atexit: the processes of multiprocessing do not come to that.
    Finalize(None, partial(shutil.rmtree, folder, ignore_errors=True), exitpriority=0)
    return folder, lock


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
