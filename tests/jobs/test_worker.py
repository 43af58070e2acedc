"""What a worker does with checkpoints: one on its way at a time, none broken off, none completed by others' files."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jobs.run.worker import work
from pirl.config import override
from pirl.recipes import digits
from pirl.runs.checkpoint_folder import newest_checkpoint
from pirl.runs.metrics import Metrics
from pirl.storage.folder import Folder

CONFIG = override(
    digits(),
    {
        "model.width": 4,
        "memory.init": "random",
        "loss.num_negatives": 200,
        "optim.epochs": 1,
        "evaluation.enabled": False,
        "cluster.loader_processes": 0,
        "checkpoint.every_steps": 2,
        "checkpoint.log_every_steps": 1,
    },
)
"""12 steps, 6 checkpoints."""


class Background:
    """Publishes as Ray does, in a thread that removes what is sent; the first waits until it may go."""

    def __init__(self) -> None:
        self.may_go = threading.Event()
        self.on_disk: list[int] = []

    def __call__(self, _: Metrics, checkpoint: Path, send: Callable[[Path], None]) -> None:
        self.on_disk.append(len(list(checkpoint.parent.glob("checkpoint_*"))))

        def run() -> None:
            self.may_go.wait()
            send(checkpoint)
            shutil.rmtree(checkpoint)

        threading.Thread(target=run).start()


def test_checkpoints_do_not_pile_up_where_the_storage_is_slower_than_they_come(tmp_path: Path) -> None:
    folder, publish = Folder(str(tmp_path / "a")), Background()

    def show(line: str) -> None:
        if line.startswith("waiting for the checkpoint before"):
            assert publish.on_disk == [1]
            publish.may_go.set()

    work(CONFIG, folder, tmp_path / "scratch", publish, torch.device("cpu"), show)
    assert len(publish.on_disk) == 6
    assert max(publish.on_disk) <= 2  # the one before may not be removed yet
    assert folder.read("train.log").count("waiting for the checkpoint before") == 1
    newest = newest_checkpoint(folder)
    assert newest is not None
    assert newest.name == "checkpoint_000000012"  # and the work is not done before it is there


def test_an_exception_does_not_break_off_a_checkpoint_that_is_on_its_way(tmp_path: Path) -> None:
    folder, publish = Folder(str(tmp_path / "a")), Background()

    def fail_after_a_checkpoint(line: str) -> None:
        if "step 3/" in line:
            threading.Timer(0.5, publish.may_go.set).start()
            raise ZeroDivisionError("on purpose")

    with pytest.raises(ZeroDivisionError):
        work(CONFIG, folder, tmp_path / "scratch", publish, torch.device("cpu"), fail_after_a_checkpoint)
    newest = newest_checkpoint(folder)
    assert newest is not None
    assert newest.name == "checkpoint_000000002"


def test_publishing_that_fails_ends_the_work_at_once(tmp_path: Path) -> None:
    """Ray does that where the upload before failed."""

    def publish(_: Metrics, checkpoint: Path, send: Callable[[Path], None]) -> None:
        raise RuntimeError("the upload before failed")

    with pytest.raises(RuntimeError, match="the upload before failed"):
        work(CONFIG, Folder(str(tmp_path)), tmp_path / "scratch", publish, torch.device("cpu"), show=None)


def test_files_of_an_earlier_attempt_do_not_complete_a_checkpoint(tmp_path: Path) -> None:
    """Ray's next attempt may have another number of workers, and writes checkpoints of the same names."""
    folder = Folder(str(tmp_path / "a"))
    earlier = folder / "checkpoint_000000002"
    earlier.write("__1_0.distcp", "of the second of two workers")
    work(CONFIG, folder, tmp_path / "scratch", lambda _, local, send: send(local), torch.device("cpu"), show=None)
    assert "__0_0.distcp" in earlier.sizes()
    assert "__1_0.distcp" not in earlier.sizes()
