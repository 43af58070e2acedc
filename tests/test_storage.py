import gc
import os

import fsspec
import pytest

from pirl import storage
from pirl.config import ConfigError


def test_reads_a_span(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    assert storage.read_bytes(str(path), 10, 5) == bytes(range(10, 15))
    assert storage.read_bytes(str(path), 98, 5) == bytes([98, 99])
    assert storage.read_all(str(path)) == bytes(range(100))


def test_a_written_file_appears_whole_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b"
    with storage.writing(str(path)) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert os.listdir(path.parent) == ["b"]


def test_an_exception_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted():
        with storage.writing(str(path)) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_exception_leaves_no_object(s3_server, tmp_path):
    fsspec.filesystem("s3").makedirs("storage", exist_ok=True)
    uri = f"s3://storage/{tmp_path.name}"

    def interrupted(size):
        with storage.writing(uri) as file:
            file.write(b"x" * size)
            raise KeyboardInterrupt

    # Less than a part of an upload, and more: s3fs sends parts of 50 MB.
    for size in (100, 60 * 2**20):
        with pytest.raises(KeyboardInterrupt):
            interrupted(size)
        gc.collect()  # the destructor of a file completes what was not closed
        assert not storage.exists(uri)
    storage.write_text(uri, "whole")
    assert storage.read_all(uri) == b"whole"


@pytest.mark.parametrize("scheme", ["local", "memory"])
def test_lists_finds_and_removes(tmp_path, scheme):
    # fsspec's memory store has keys and no folders of its own, as object stores do.
    root = str(tmp_path) if scheme == "local" else f"memory://{tmp_path.name}"
    for name in ("b.txt", "a/c.txt", "a/d.bin"):
        with storage.writing(storage.join(root, name)) as file:
            file.write(b"x")
    assert storage.files_below(root) == ["a/c.txt", "a/d.bin", "b.txt"]
    assert storage.is_folder(storage.join(root, "a"))
    assert not storage.is_folder(storage.join(root, "b.txt"))
    found = storage.matches(storage.join(root, "a", "*.bin"))
    assert [storage.read_all(uri) for uri in found] == [b"x"]
    storage.remove(found[0])
    assert not storage.exists(found[0])
    assert storage.exists(storage.join(root, "a", "c.txt"))
    assert storage.files_below(storage.join(root, "none")) == []


def test_reading_is_seekable(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with storage.reading(str(path)) as file:
        file.seek(4)
        assert file.read(2) == b"45"


def test_an_unknown_scheme_is_a_wrong_request():
    with pytest.raises(ConfigError, match="nonsense://x is not a path or URL"):
        storage.exists("nonsense://x")
