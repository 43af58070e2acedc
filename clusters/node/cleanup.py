"""Leaves nothing of a job on its node, whichever way it ends.

A process of its own waits for the end of the one that started it, even by SIGKILL, then ends all processes of the
job and removes its folder. `python clusters/node/cleanup.py MARK FOLDER`, and its standard input is what it waits on.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

MARK = "PIRL_NODE"
"""Environment variable that all processes of a job on a node inherit, and that tells them from those of others."""

LOCK = "lock"
"""Held in the folder of a job by the process that will remove it."""

NEW_S = 60
"""A folder without a lock that is younger may be about to get one."""


class NodeCleanup:
    """Looks after the folder of a job on this node; after the block nothing is left of it.

    Args:
        folder: Is made, for this user only; what an earlier attempt left there is removed.
        mark: The value of `PIRL_NODE` for all processes of the job on this node.

    Raises:
        OSError: The folder cannot be made.

    Attributes:
        environment: For the processes of the job: the mark, and their temporary files in the folder.
    """

    def __init__(self, folder: Path, mark: str) -> None:
        self.folder = folder
        remove_leftovers(folder.parent)
        kill_all(mark, folder)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)  # one that somebody else has made is refused
        (folder / "tmp").mkdir()
        self.environment = {MARK: mark, "TMPDIR": str(folder / "tmp")}
        # Through a shell that ends at once: a scheduler that ends a job by walking from parent to child misses it.
        command = [sys.executable, __file__, mark, str(folder)]
        shell = ["/bin/sh", "-c", '{ "$@" <&3 & } 3<&0', "sh", *command]
        # Its own process ends when its output does, which it holds open.
        self._process = subprocess.Popen(
            shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, cwd="/"
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # the folder is locked now

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clean()

    def clean(self) -> None:
        """Ends all processes of the job and removes its folder; returns when nothing is left."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.stdout.closed:
            return
        self._process.stdin.close()
        self._process.stdout.read()
        self._process.stdout.close()
        self._process.wait()


def main(mark: str, folder: Path) -> None:
    """What the process does that waits for the end of its starter."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    lock = take_lock(folder)
    print("ready", flush=True)
    sys.stdin.read()
    kill_all(mark, folder)
    shutil.rmtree(folder, ignore_errors=True)
    if lock:
        lock.close()


def take_lock(folder: Path) -> IO[str] | None:
    """The lock of a job's folder, or None while another process holds it."""
    file = (folder / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def remove_leftovers(parent: Path) -> None:
    """Removes the folders of this user's jobs whose clean-up was killed too."""
    for folder in parent.glob("pirl-j*"):
        try:
            status = folder.stat()
            if status.st_uid != os.getuid() or (time.time() - status.st_mtime < NEW_S and not (folder / LOCK).exists()):
                continue
            if lock := take_lock(folder):
                shutil.rmtree(folder, ignore_errors=True)
                lock.close()
        except OSError:  # somebody else is at it
            continue


def kill_all(mark: str, folder: Path) -> None:
    """Kills all processes of a job, and those that they start meanwhile, until there are none."""
    deadline = time.monotonic() + 30
    while (found := processes(mark, folder)) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def processes(mark: str, folder: Path) -> list[int]:
    """Processes of a job that have not ended, other than this one."""
    # As /proc has it; the last part is ours, and others may have put a link there.
    wanted, inside = f"{MARK}={mark}".encode(), f"{folder.parent.resolve() / folder.name}/"
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        try:
            is_marked = wanted in (process / "environ").read_bytes().split(b"\0")
            # A process that changes its title, as Ray's agents do, overwrites its environment; they log to the folder.
            if is_marked or any(target.startswith(inside) for target in open_files(process)):
                found.append(int(process.name))
        except OSError:  # it has ended, or belongs to somebody else
            continue
    return found


def open_files(process: Path) -> Iterator[str]:
    """Paths of the files that a process, given by its folder in /proc, has open."""
    for link in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield os.readlink(link)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
