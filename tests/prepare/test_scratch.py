import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context

import pytest

from pirl.errors import ConfigError
from pirl.prepare import scratch as module
from pirl.prepare.scratch import Scratch, Span, bounded_map
from pirl.storage.folder import Folder


@pytest.fixture
def scratch(tmp_path):
    with Scratch(str(tmp_path)) as scratch:
        yield scratch


def test_what_is_appended_is_read_again_and_has_no_name(tmp_path, scratch):
    assert [scratch.append(data) for data in (b"abc", b"", b"defgh")] == [0, 3, 3]
    assert scratch.read(Span(None, 3, 5)) == b"defgh"
    assert scratch.read(Span(None, 1, 0)) == b""
    assert os.listdir(tmp_path) == []


def test_spans_of_other_files(tmp_path, scratch):
    (tmp_path / "file").write_bytes(b"0123456789")
    assert scratch.read(Span(str(tmp_path / "file"), 2, 3)) == b"234"
    assert scratch.read(Span(str(tmp_path / "file"))) == b"0123456789"


def test_a_far_file_is_copied_in_ranges(tmp_path, scratch, monkeypatch):
    monkeypatch.setattr(module, "COPY_BYTES", 7)
    uri, data = f"memory://{tmp_path.name}", bytes(range(200))
    Folder(uri).write("", data)
    scratch.append(b"before")
    told = []
    assert scratch.copy(uri, lambda *words: told.append(words)) == 6
    assert scratch.read(Span(None, 6, 200)) == data
    with scratch.reading(6 + 50) as file:
        assert file.read(10) == data[50:60]
    assert told[0][1] == 0


_inherited = []


def test_other_processes_read_it_too(scratch):
    scratch.append(b"from the first process")
    # As the workers get it: when they are started, and what is appended later is there for them as well.
    with ProcessPoolExecutor(1, get_context("forkserver"), _take, (scratch,)) as pool:
        assert pool.submit(_read, Span(None, 5, 3)).result() == b"the"
        at = scratch.append(b"later")
        assert pool.submit(_read, Span(None, at, 5)).result() == b"later"


def _take(scratch):
    _inherited.append(scratch)


def _read(span):
    return _inherited[0].read(span)


def test_too_little_room_says_what_to_type(scratch):
    with pytest.raises(ConfigError, match=r"x\.tar needs 1,000,000,000 MB on a local disk .*--scratch FOLDER"):
        scratch.make_room(10**15, "x.tar")


def test_a_folder_that_is_not_there_says_what_to_type():
    with pytest.raises(ConfigError, match="--scratch /absent cannot be written"):
        Scratch("/absent")


def test_results_come_in_order_and_no_more_than_a_few_are_under_way():
    begun = []
    calls = (partial(lambda at: begun.append(at) or at, at) for at in range(50))
    with ThreadPoolExecutor(4) as pool:
        for at, result in enumerate(bounded_map(pool, calls, 6)):
            assert result == at
            assert len(begun) <= at + 6
