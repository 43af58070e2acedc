import io
import os

import numpy as np
import pytest
from PIL import Image

from pirl.prepare.scratch import Scratch
from pirl.prepare.sources.kinds import find_source
from pirl.prepare.sources.source import Columns
from pirl.prepare.workers import CHUNK_ROWS, Workers


@pytest.fixture
def scratch():
    with Scratch() as scratch:
        yield scratch


def make(folder, rows):
    for row in range(rows):
        file = io.BytesIO()
        Image.fromarray(np.full((8, 8 + row, 3), row, np.uint8)).save(file, "PNG")
        (folder / f"{row:03}.png").write_bytes(file.getvalue() if row % 10 else b"broken")


@pytest.mark.parametrize("count", [1, 3])
def test_rows_come_in_order_with_what_was_found(tmp_path, scratch, count):
    rows = 5 * CHUNK_ROWS + 3
    make(tmp_path, rows)
    source, _ = find_source(str(tmp_path), Columns(), scratch, lambda *_: None)
    order = np.random.default_rng(0).permutation(rows)
    with Workers(scratch, count=count) as workers:
        found = list(workers.check(source, order))
        assert list(workers.check(source, order[:0])) == []
    assert [row for row, _ in found] == order.tolist()
    assert [checked.size for _, checked in found] == [(8 + row, 8) if row % 10 else (0, 0) for row in order]


def test_the_images_are_checked_elsewhere(tmp_path, scratch):
    make(tmp_path, 40)
    source, _ = find_source(str(tmp_path), Columns(), scratch, lambda *_: None)
    with Workers(scratch, count=2) as workers:
        list(workers.check(source, np.arange(40)))
        processes = set(workers._pool._processes)
    assert 1 <= len(processes) <= 2
    assert os.getpid() not in processes


def test_a_file_that_is_gone_is_an_error(tmp_path, scratch):
    make(tmp_path, 20)
    source, _ = find_source(str(tmp_path), Columns(), scratch, lambda *_: None)
    (tmp_path / "007.png").unlink()
    with Workers(scratch, count=1) as workers, pytest.raises(FileNotFoundError, match=r"007\.png"):
        list(workers.check(source, np.arange(20)))
