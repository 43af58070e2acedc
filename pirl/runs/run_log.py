"""What a run tells people and programs while it goes: lines, metrics.jsonl and TensorBoard events."""

import json
import shutil
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from pirl.runs.metrics import Metrics
from pirl.runs.mirror import Mirror
from pirl.runs.run import reports_in
from pirl.storage.folder import Folder
from pirl.storage.temporary import temporary_folder


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
            for name in ("metrics.jsonl", "train.log"):
                (self.folder / name).write_text(folder.find(name) or "")
        keep_until(self.folder / "metrics.jsonl", first_step)
        self.board = SummaryWriter(str(self.folder), purge_step=first_step + 1)
        self.mirror = None if folder.path else Mirror(self.folder, folder)

    def add(self, metrics: Metrics) -> None:
        """Records one report, whose `step` is the number of steps done."""
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(metrics) + "\n")
        for name in ("loss", "loss_image", "loss_pretext", "lr", "samples_per_s", "data_wait_share"):
            if name in metrics:
                self.board.add_scalar(name, metrics[name], int(metrics["step"]))
        self.board.flush()
        self.line(progress_line(metrics))

    def line(self, text: str) -> None:
        """Records a line of text."""
        with (self.folder / "train.log").open("a") as file:
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


def progress_line(metrics: Metrics) -> str:
    """One report as a line that a person can follow."""
    epochs = metrics["last_step"] * metrics["epoch"] / metrics["step"]
    terms = [f"{name} {metrics[f'loss_{name}']:.3f}" for name in ("image", "pretext") if f"loss_{name}" in metrics]
    return "   ".join(
        [
            f"epoch {metrics['epoch']:6.2f}/{epochs:.0f}",
            f"step {metrics['step']:,.0f}/{metrics['last_step']:,.0f}",
            f"loss {metrics['loss']:.3f} ({', '.join(terms)})",
            f"lr {metrics['lr']:.2g}",
            f"{metrics['samples_per_s']:,.0f} samples/s",
            f"waiting for data {metrics['data_wait_share']:.0%}",
            f"left {timedelta(seconds=round(metrics['time_left_s']))}",
        ]
    )
