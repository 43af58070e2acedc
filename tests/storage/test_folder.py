import errno
import gc
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pirl.errors import ConfigError, StorageError
from pirl.storage import client, reading, writing
from pirl.storage.folder import Folder
from pirl.storage.retry import take_count


def test_reads_a_span(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    folder = Folder(str(tmp_path))
    assert folder.read_bytes("file", 10, 5) == bytes(range(10, 15))
    assert folder.read_bytes("file", 98, 5) == bytes([98, 99])
    assert folder.read_bytes("file", 98) == bytes([98, 99])
    assert folder.read_bytes("file") == (folder / "file").read_bytes() == bytes(range(100))


def test_a_written_file_appears_whole_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b"
    with Folder(str(tmp_path)).writing("a/b") as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert os.listdir(path.parent) == ["b"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Else the name may outlive a power loss and the bytes not."""
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(os.fstat(file).st_size), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("replace"), replace(*paths)))
    Folder(str(tmp_path)).write("file", "text")
    assert done == [len("text"), "replace"]


def test_an_exception_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted():
        with Folder(str(path)).writing() as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_exception_leaves_no_object(s3_environment, tmp_path):
    fsspec.filesystem("s3").makedirs("storage", exist_ok=True)
    at = Folder(f"s3://storage/{tmp_path.name}")

    def interrupted(size):
        with at.writing() as file:
            file.write(b"x" * size)
            raise KeyboardInterrupt

    # Less than a part of an upload, and more: s3fs sends parts of 50 MB.
    for size in (100, 60 * 2**20):
        with pytest.raises(KeyboardInterrupt):
            interrupted(size)
        gc.collect()  # the destructor of a file completes what was not closed
        assert not at.exists()
    at.write("", "whole")
    assert at.read() == "whole"


@pytest.mark.parametrize("scheme", ["local", "memory"])
def test_lists_finds_and_removes(tmp_path, scheme):
    # fsspec's memory store has keys and no folders of its own, as object stores do.
    root = Folder(str(tmp_path) if scheme == "local" else f"memory://{tmp_path.name}")
    for name in ("b.txt", "a/c.txt", "a/d.bin"):
        root.write(name, b"x")
    assert root.sizes() == {"a/c.txt": 1, "a/d.bin": 1, "b.txt": 1}
    assert (root / "a").is_folder()
    assert not (root / "b.txt").is_folder()
    (found,) = map(Folder, (root / "a" / "*.bin").matches())
    assert found.read_bytes() == b"x"
    found.parent.remove(found.name)
    assert not found.exists()
    assert root.exists("a/c.txt")
    assert (root / "none").sizes() == {}


class StalledOnce(MemoryFileSystem):
    """A filesystem without an event loop, of which one answer does not come."""

    cachable = False
    stalls = 1

    def cat_file(self, *args, **kw):
        if self.stalls:
            self.stalls -= 1
            threading.Event().wait()
        return super().cat_file(*args, **kw)


def test_a_stall_is_broken_off_whatever_the_filesystem():
    take_count()
    fs = StalledOnce()
    fs.pipe_file("/stalled", b"x")
    assert client.Address(fs, "/stalled", "memory://stalled", deadline_s=3).ask("reading", "cat_file") == b"x"
    assert take_count() == 1


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("folder", ["", "a"])
def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path, monkeypatch, number, folder):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"12")
    (tmp_path / "link").symlink_to("nothing")
    assert Folder(str(tmp_path)).sizes().keys() == {"a/b", "link"}
    scandir, failures = os.scandir, [number, number]

    def fail(path):
        if os.path.join(tmp_path, folder).rstrip("/") == os.fspath(path) and failures:
            raise OSError(failures.pop(), "on purpose", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    if number == errno.EACCES:
        with pytest.raises(PermissionError):
            Folder(str(tmp_path)).sizes()
    else:  # an NFS server that comes back
        assert Folder(str(tmp_path)).sizes().keys() == {"a/b", "link"}


def test_reading_is_seekable(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with Folder(str(path)).reading() as file:
        file.seek(4)
        assert file.read(2) == b"45"


def test_an_unknown_scheme_is_a_wrong_request():
    with pytest.raises(ConfigError, match="nonsense://x is not a path or URL"):
        Folder("nonsense://x").exists()


DATA = bytes(range(256)) * 40
SHORT = 30.0
"""A deadline that allows each try two seconds, and pauses of up to one: eight faults in a row fit in."""


@pytest.fixture
def remote(store):
    """An object, through the proxy; it was written past it."""
    store.past("folder").write("object", DATA)
    return store.folder("folder", "object", deadline_s=SHORT)


@pytest.mark.parametrize("fault", ["slowdown", "unavailable", "error", "reset", "truncate"])
@pytest.mark.parametrize("times", [1, 3, 8])
def test_faults_are_read_over(store, remote, fault, times):
    store.fail(fault, times)
    take_count()
    assert remote.read_bytes(offset=100, length=1000) == DATA[100:1100]
    # Nobody but us tries again: as many requests as tries, and no other kind of request.
    assert [(entry["method"], entry["fault"]) for entry in store.log()] == [("GET", fault)] * times + [("GET", "")]
    # But for aiohttp, which asks once more where a connection that it had kept has ended.
    assert take_count() == times if fault != "reset" else take_count() <= times


def test_a_stall_is_broken_off(store, remote):
    store.fail("stall", 1)
    assert remote.read_bytes(offset=100, length=1000) == DATA[100:1100]
    assert [entry["fault"] for entry in store.log()] == ["stall", ""]


def test_past_the_deadline_the_error_names_object_span_tries_and_cause(store, remote):
    store.fail("slowdown", 10_000)
    with pytest.raises(
        StorageError, match=rf"bytes 100 to 1100 of {remote}: gave up after \d+ tries .*(SlowDown|stalled)"
    ):
        replace(remote, deadline_s=1.5).read_bytes(offset=100, length=1000)  # 0.1 s a try: some may be late
    assert len(store.log()) > 3


def test_what_is_missing_or_refused_is_asked_for_once(store, remote):
    with pytest.raises(FileNotFoundError):
        store.folder().read_bytes("nothing", 0, 10)
    store.fail("refused")
    with pytest.raises(StorageError, match=rf"{remote}: the store refused: PermissionError"):
        remote.read_bytes(length=10)
    assert len(store.log()) == 2


def test_a_span_behind_the_end_is_empty(store, remote):
    assert remote.read_bytes(offset=len(DATA) + 5, length=10) == b""
    assert remote.read_bytes(offset=len(DATA) - 5, length=10) == DATA[-5:]
    assert remote.read_bytes(offset=len(DATA) - 5) == DATA[-5:]


@pytest.mark.parametrize("fault", ["slowdown", "error", "reset"])
def test_a_write_is_sent_again_as_a_whole(store, fault):
    store.fail(fault, 3, method="PUT")
    store.folder(deadline_s=SHORT).write("new", DATA)
    assert [entry["fault"] for entry in store.log() if entry["method"] == "PUT"] == [fault] * 3 + [""]
    assert store.past("new").read_bytes() == DATA


def test_an_exception_writes_no_object(store):
    def interrupted():
        with store.folder("new").writing() as file:
            file.write(DATA)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert store.log() == []


def test_reading_here_and_there_is_tried_again_too(store, remote):
    store.fail("truncate", 2)
    with remote.reading() as file:
        file.seek(-6, os.SEEK_END)
        assert file.read(4) == DATA[-6:-2]
        file.seek(1000)
        assert file.read() == DATA[1000:]


def test_objects_are_found_listed_and_removed(store, remote):
    assert remote.exists()
    assert store.folder().exists("folder/object")
    assert remote.parent.is_folder()
    assert remote.size() == len(DATA)
    assert store.folder().sizes() == {"folder/object": len(DATA)}
    assert store.folder("folder", "*").matches() == [remote.uri]
    remote.parent.remove("object", "object")
    assert not remote.exists()


def test_threads_share_one_filesystem_and_its_connections(store, remote):
    with ThreadPoolExecutor(8) as pool:
        spans = list(pool.map(lambda n: remote.read_bytes(offset=n, length=10), range(32)))
    assert spans == [DATA[n : n + 10] for n in range(32)]
    found = {id(fs) for (_, uri, _), fs in client._filesystems.items() if store.bucket in uri}
    assert len(found) == 2  # past the proxy, and through it


def test_the_endpoint_may_come_from_the_environment(store, remote, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.options["endpoint_url"])
    assert Folder(remote.uri).read_bytes(length=10) == DATA[:10]
    assert len(store.log()) == 1


@pytest.mark.usefixtures("small_pieces")
def test_where_readers_pay_each_request_says_so(store, tmp_path):
    at = Folder(store.uri("folder"), store.options | {"requester_pays": True})
    at.write("new", LONG)
    assert at.read_bytes("new") == LONG
    assert at.exists("new")
    assert at.sizes() == {"new": len(LONG)}
    at.remove("new")
    # S3 wants it of all that reads and writes an object.
    asked = [entry["payer"] for entry in store.log() if "/folder/new" in entry["path"]]
    assert len(asked) > 8
    assert set(asked) == {"requester"}


def test_a_server_that_gives_the_whole_file_for_a_span_is_refused(tmp_path):
    # Python's own file server does not know ranges.
    (tmp_path / "file").write_bytes(DATA)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        with pytest.raises(StorageError, match="/file: this web server sends the whole file and no spans"):
            Folder(f"http://127.0.0.1:{server.server_port}", {}, SHORT).read_bytes("file", 0, 100)
        server.shutdown()


@pytest.mark.parametrize("name", ["exists", "read_bytes", "size"])
def test_what_others_write_is_seen(store, name):
    """The client would answer from a listing that it keeps."""
    assert store.folder("folder").sizes() == {}
    store.past("folder").write("a", DATA)
    assert store.folder("folder").sizes() == {"a": len(DATA)}
    store.past("folder").write("b", DATA)
    assert getattr(store.folder("folder"), name)("b")


@pytest.mark.parametrize("fault", ["flip", "truncate"])
def test_what_changes_on_its_way_to_the_store_is_sent_again(store, fault):
    store.fail(fault, 3, method="PUT")
    store.folder(deadline_s=SHORT).write("new", DATA)
    assert store.past("new").read_bytes() == DATA


LONG = random.Random(0).randbytes(5 * 2**20 + 1)
"""Two parts: a part that is not the last has 5 MB at least."""


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(reading, "PIECE", 5 * 2**20)
    monkeypatch.setattr(writing, "PIECE", 5 * 2**20)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("pattern", ["partNumber=2", ""])
def test_of_a_long_file_only_the_part_that_failed_is_sent_again(store, pattern):
    store.fail("reset", 3, method="PUT", pattern=pattern)
    store.fail("slowdown", 3, method="PUT", pattern=pattern)
    store.fail("unavailable", 2, pattern="new")
    store.fail("error", 2, method="POST", pattern="uploadId")
    store.folder(deadline_s=SHORT).write("new", LONG)
    good = [entry["method"] for entry in store.log() if not entry["fault"]]
    assert good == ["POST", "PUT", "PUT", "POST", "GET", "GET"]  # no part twice, and each piece read back once
    assert store.past("new").read_bytes() == LONG


@pytest.mark.usefixtures("small_pieces")
def test_a_long_file_is_read_in_pieces_that_are_tried_again(store):
    store.past().write("long", LONG)
    long = store.folder("long", deadline_s=SHORT)
    store.fail("truncate", 2)
    assert long.read_bytes() == LONG
    store.fail("truncate", 2)
    assert long.read_bytes(offset=1, length=2 * len(LONG)) == LONG[1:]
    spans = [entry["range"] for entry in store.log() if not entry["fault"]]
    starts = [0, *(2**n for n in range(16, 24))]
    assert spans[:8] == [f"bytes={a}-{b - 1}" for a, b in pairwise(starts)]
    assert spans[8:] == [f"bytes=1-{5 * 2**20}", f"bytes={5 * 2**20 + 1}-{10 * 2**20}"]


def test_a_stall_is_broken_off_soon_where_the_length_is_not_known(store, remote):
    store.fail("stall", 3)
    began = time.monotonic()
    assert remote.read_bytes() == DATA
    assert time.monotonic() - began < SHORT  # 2 s a try; for a whole piece it were more than two minutes


@pytest.mark.usefixtures("small_pieces")
def test_an_upload_that_fails_leaves_no_parts_and_no_object(store, tmp_path):
    (tmp_path / "new").write_bytes(LONG)
    store.fail("slowdown", 10_000, method="PUT", pattern="partNumber=2")
    with pytest.raises(StorageError, match=r"writing part 2 of .*: gave up after"):
        store.folder(deadline_s=2).copy_in(tmp_path / "new")
    assert [entry["method"] for entry in store.log()][-1] == "DELETE"
    assert not store.past("new").exists()


@pytest.mark.usefixtures("small_pieces")
def test_each_piece_of_a_long_file_has_a_deadline_of_its_own(store, tmp_path):
    """Three slow answers, together longer than the deadline of 2 s."""
    (tmp_path / "new").write_bytes(LONG)
    for method, pattern in (("PUT", "partNumber=1"), ("PUT", "partNumber=2"), ("GET", "new")):
        store.fail("latency", 1, method=method, pattern=pattern, seconds=1.2)
        store.fail("reset", 1, method=method, pattern=pattern)
    store.folder(deadline_s=2).copy_in(tmp_path / "new")
    assert store.past("new").read_bytes() == LONG
