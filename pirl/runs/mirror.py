"""Keeps a folder in an object store, where files cannot be appended to, as a growing local one is."""

import math
import threading
import time
from contextlib import suppress
from pathlib import Path

from pirl.storage.folder import HURRY_S, Folder

EVERY_S = 5.0
BYTES_PER_S = 10**5
"""Objects are sent whole, so a file that grows is sent as much less often as it is longer: one of 10 MB every 100 s."""


class Mirror:
    """Sends the files that have changed, from time to time and when told to.

    Args:
        local: A folder whose files are appended to.
        folder: Gets them, under the same names.
    """

    def __init__(self, local: Path, folder: Folder) -> None:
        self.local, self.folder = local, folder
        self._sent: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()
        self._ending = threading.Event()
        threading.Thread(target=self._keep_sending, name="pirl-mirror", daemon=True).start()

    def send(self) -> None:
        """Returns when all that was written before is sent; raises StorageError."""
        with self._lock:
            self._send(self.folder)

    def close(self) -> None:
        """Sends what is left, and ends; raises StorageError."""
        self._ending.set()
        self.send()

    def abandon(self) -> None:
        """Ends, after a failure that is to be told soon, and sends what can be sent in some seconds."""
        self._ending.set()
        if self._lock.acquire(timeout=HURRY_S):
            try:
                with suppress(OSError):  # the failure before is what is told
                    self._send(self.folder.hurried())
            finally:
                self._lock.release()

    def _send(self, folder: Folder, rate: float = math.inf) -> None:
        """Sends each file that has changed, and not more than `rate` bytes a second of it since it was sent last."""
        for file in sorted(self.local.iterdir()):
            sent, sent_at = self._sent.get(file.name, (-1, -math.inf))
            size, now = file.stat().st_size, time.monotonic()
            if size != sent and size <= rate * (now - sent_at):
                folder.write(file.name, file.read_bytes())
                self._sent[file.name] = size, now

    def _keep_sending(self) -> None:
        while not self._ending.wait(EVERY_S):
            with suppress(OSError), self._lock:  # it is sent the next time, or who needs it sent is told
                if self._ending.is_set():
                    return  # the folder may be gone
                self._send(self.folder, BYTES_PER_S)
