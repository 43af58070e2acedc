"""Views of row groups by loader processes against a plain loop; what is left when reading ends early."""

import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pirl.data.dataset import Dataset, open_dataset
from pirl.data.writer import ShardWriter
from pirl.errors import CorruptImage, StorageError
from pirl.loading import group_views
from pirl.loading.crops import plain_view, ten_views, whole_view
from pirl.loading.decode import decode
from pirl.loading.group_views import read_views
from pirl.loading.prefetch import READERS
from pirl.storage.folder import Folder
from tests.loading.test_loader import session

BAD = 200
"""The image that cannot be decoded, in the fourth row group."""


def png(row: int) -> bytes:
    sides = (20 + row % 3, 18 + row % 5, 3)
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(row).integers(0, 256, sides, np.uint8)).save(file, "PNG")
    return file.getvalue()


def label(row: int) -> int | None:
    return row % 2 if row % 10 else None


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """330 images of several sizes in six row groups; every tenth has no label, and one is broken."""
    folder = tmp_path_factory.mktemp("set")
    about = {"classes": ["even", "odd"], "seed": 0, "source": "a test", "shard_bytes": 60_000}
    with ShardWriter(Folder(str(folder)), **about) as writer:  # type: ignore[arg-type]
        for row in range(330):
            writer.add(b"no image" if row == BAD else png(row), label(row))
    dataset = open_dataset(str(folder))
    assert len(dataset.shards) > 1
    return dataset


@pytest.fixture
def worth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loader processes pay for few images too."""
    monkeypatch.setattr(group_views, "WORTH_IMAGES", 1)


@pytest.fixture
def children() -> Callable[[], int]:
    """Gives the number of processes that were started since; other tests have some that stay."""
    before = {process.pid for process in multiprocessing.active_children()}
    return lambda: len({process.pid for process in multiprocessing.active_children()} - before)


def end_soon(children: Callable[[], int]) -> bool:
    """Whether all of these processes do."""
    deadline = time.monotonic() + 30
    while children() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not children()


def test_loader_processes_read_what_a_plain_loop_reads(
    dataset: Dataset, worth: None, children: Callable[[], int]
) -> None:
    numbers = [5, 0, 3, 1]
    for view in (
        partial(plain_view, image_size=16),
        partial(ten_views, image_size=8),
        partial(whole_view, image_size=9),
    ):
        expected = []
        for number in numbers:
            rows = range(64 * number, min(64 * number + 64, 330))
            images = [torch.zeros(3, 8, 8, dtype=torch.uint8) if row == BAD else decode(png(row)) for row in rows]
            labels = [-1 if row == BAD or label(row) is None else label(row) for row in rows]
            expected.append((torch.stack([view(image) for image in images]), labels))
        for processes in (0, 1, 2):
            found = list(read_views(dataset, numbers, view, skip=True, processes=processes))
            assert len(found) == len(numbers)
            for (views, labels), group in zip(expected, found, strict=True):
                assert torch.equal(group.pixels.movedim(-1, -3), views)
                assert group.labels.tolist() == labels
                assert group.pixels.is_shared() == (processes > 0)
    assert end_soon(children)


def test_a_broken_image_is_told_alike_and_ends_the_processes(
    dataset: Dataset, worth: None, children: Callable[[], int]
) -> None:
    said = []
    for processes in (0, 2):
        with pytest.raises(CorruptImage) as failure:
            list(read_views(dataset, range(6), partial(plain_view, image_size=16), skip=False, processes=processes))
        said.append(str(failure.value))
    assert said[0] == said[1]
    assert f"(id {BAD})" in said[0]
    assert "Traceback" not in said[1]
    assert end_soon(children)  # though the error is still held


def test_a_shard_that_is_gone_is_told_alike(tmp_path: Path, worth: None) -> None:
    with ShardWriter(Folder(str(tmp_path)), classes=None, seed=0, source="a test") as writer:
        for row in range(80):
            writer.add(png(row), None)
    dataset = open_dataset(str(tmp_path))
    next(tmp_path.glob("*.parquet")).unlink()
    said = []
    for processes in (0, 1):
        with pytest.raises((CorruptImage, StorageError)) as failure:
            list(read_views(dataset, range(2), partial(plain_view, image_size=16), skip=False, processes=processes))
        said.append(str(failure.value))
    assert said[0] == said[1]


def test_who_reads_no_further_leaves_no_process(dataset: Dataset, worth: None, children: Callable[[], int]) -> None:
    read = read_views(dataset, [0, 1] * 20, partial(plain_view, image_size=16), skip=True, processes=2)
    next(read)
    assert children() == 2
    read.close()
    assert end_soon(children)


def test_few_images_are_read_without_another_process(dataset: Dataset, children: Callable[[], int]) -> None:
    read = read_views(dataset, range(3), partial(plain_view, image_size=16), skip=True, processes=2)
    assert not next(read).pixels.is_shared()
    assert not children()


def test_no_more_is_read_ahead_than_the_readers_hold(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    load = Dataset.load_group

    def counted(self: Dataset, number: int) -> object:
        asked.append(number)
        return load(self, number)

    monkeypatch.setattr(Dataset, "load_group", counted)
    read = read_views(dataset, [0, 1] * 20, partial(plain_view, image_size=16), skip=True)
    for _ in range(5):
        next(read)
    assert len(asked) <= 5 + READERS
    read.close()


ENDLESS = """
import sys
from functools import partial
from pirl.loading import group_views
from pirl.loading.crops import plain_view
from pirl.data.dataset import open_dataset

if __name__ == "__main__":
    group_views.WORTH_IMAGES = 1
    views = group_views.read_views(
        open_dataset(sys.argv[1]), [0, 1] * 10**6, partial(plain_view, image_size=16), skip=True, processes=2
    )
    for number, _ in enumerate(views):
        if number == 3:
            print("going", flush=True)
"""


def test_an_interrupted_reader_leaves_neither_process_nor_file(dataset: Dataset, tmp_path: Path) -> None:
    """Ctrl-C goes to all processes of a terminal."""
    (tmp_path / "endless.py").write_text(ENDLESS)
    temporary = Path(tempfile.mkdtemp(dir="/tmp"))  # short, as sockets lie in it
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(temporary)}
    reader = subprocess.Popen(
        [sys.executable, str(tmp_path / "endless.py"), dataset.uri],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "going\n", reader.communicate()[1]
        assert len(session(reader.pid)) >= 4  # itself, the fork server and two loader processes
        os.killpg(reader.pid, signal.SIGINT)
        assert "KeyboardInterrupt" in reader.communicate(timeout=60)[1]
        deadline = time.monotonic() + 30
        while (session(reader.pid) or list(temporary.iterdir())) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not session(reader.pid)
        assert not list(temporary.iterdir())
    finally:
        for number in session(reader.pid):
            os.kill(number, signal.SIGKILL)
        reader.communicate()
        shutil.rmtree(temporary)
