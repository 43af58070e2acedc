"""What a run tells people and programs while it goes: lines, metrics.jsonl and TensorBoard events."""

import json
import math
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from pirl.runs.metrics import Metrics
from pirl.runs.progress_lines import progress_line
from pirl.runs.run import reports_in
from pirl.runs.run_files import RunFile
from pirl.storage.folder import HURRY_S, Folder
from pirl.storage.temporary import temporary_folder

EVERY_S = 5.0
BYTES_PER_S = 10**5
"""Objects are sent whole, so a file that grows is sent as much less often as it is longer: one of 10 MB every 100 s."""

BOARD = (
    *("loss", "loss_image", "loss_pretext", "pretext_accuracy", "lr", "samples_per_s", "data_wait_share"),
    *("bank_effective_rank", "bank_uniformity", "bank_mean_norm", "batch_effective_rank"),
)
"""Numbers that TensorBoard gets, where a report has them."""


class RunLog:
    """Writes the progress of a run into its folder; used by one rank, in a `with` block.

    Args:
        folder: The run folder. Gets `metrics.jsonl`, `train.log` and TensorBoard events.
        first_step: Steps done before: what an interrupted run wrote after them is dropped.
        show: Takes each line of progress as well.
    """

    def __init__(self, folder: Folder, first_step: int, show: Callable[[str], None] | None) -> None:
        self.show = show
        self.folder = folder.path or Path(tempfile.mkdtemp(dir=temporary_folder()))
        self.folder.mkdir(parents=True, exist_ok=True)
        if not folder.path:
            for name in (RunFile.METRICS, RunFile.LOG):
                (self.folder / name).write_text(folder.find(name) or "")
        keep_until(self.folder / RunFile.METRICS, first_step)
        self.board = SummaryWriter(str(self.folder), purge_step=first_step + 1)
        self.mirror = None if folder.path else Mirror(self.folder, folder)

    def add(self, metrics: Metrics) -> None:
        """Records one report, whose `step` is the number of steps done."""
        with (self.folder / RunFile.METRICS).open("a") as file:
            file.write(json.dumps(metrics) + "\n")
        for name in BOARD:
            if name in metrics:
                self.board.add_scalar(name, metrics[name], int(metrics["step"]))
        self.board.flush()
        self.line(progress_line(metrics))

    def line(self, text: str) -> None:
        """Records a line of text."""
        with (self.folder / RunFile.LOG).open("a") as file:
            file.write(text + "\n")
        if self.show:
            self.show(text)

    def send(self) -> None:
        """Returns when all that was recorded is in the run folder; raises StorageError."""
        if self.mirror:
            self.mirror.send()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leaves all that was recorded in the run folder, or raises StorageError; after a failure, what goes soon."""
        self.board.close()
        if self.mirror:
            try:
                self.mirror.abandon() if kind else self.mirror.close()
            finally:
                shutil.rmtree(self.folder)


def keep_until(path: Path, step: int) -> None:
    """Drops the lines of a metrics file that were written after `step`, and a last line that was cut off."""
    if not path.exists():
        return
    kept = [report for report in reports_in(path.read_text(errors="replace")) if report["step"] <= step]
    Folder(str(path)).write("", "".join(json.dumps(report) + "\n" for report in kept))


class Mirror:
    """Keeps a folder in a store, where files cannot be appended to, as a growing local one is.

    Sends the files that have changed, from time to time and when told to.
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
