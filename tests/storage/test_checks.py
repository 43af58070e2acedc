"""Whether a folder can be written is found out truly, and leaves nothing behind."""

import os
from pathlib import Path

import pytest

from pirl.errors import ConfigError
from pirl.storage.checks import check_can_write, check_place
from pirl.storage.folder import Folder


@pytest.mark.parametrize("name", ["", "new", "new/deep"])
def test_a_disk_that_takes_files_is_left_as_it_was(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for uri in (str(tmp_path / name), f"file://{tmp_path}/{name}", name or ".", f"~/{name}"):
        check_can_write("--storage", Folder(uri))
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--storage .*/file/runs cannot be written: .*Not a directory"):
        check_can_write("--storage", Folder(str(tmp_path / "file" / "runs")))


def test_what_access_rights_do_not_tell_is_refused():
    # Root may write everywhere, says os.access; /proc takes no file nevertheless.
    assert os.geteuid() != 0 or os.access("/proc", os.W_OK)
    with pytest.raises(ConfigError, match="--storage /proc/runs cannot be written"):
        check_can_write("--storage", Folder("/proc/runs"))


def test_stores_are_written_to_and_left_empty(store):
    folder = Folder(store.uri("runs"), store.options)
    check_can_write("--storage", folder)
    assert folder.sizes() == {}
    with pytest.raises(ConfigError, match="--storage s3://no-such-bucket/runs cannot be written"):
        check_can_write("--storage", Folder("s3://no-such-bucket/runs", store.options))
    store.fail("refused", 9, method="PUT")
    with pytest.raises(ConfigError, match="the store refused"):
        check_can_write("--storage", folder)


@pytest.mark.parametrize(
    "uri",
    [
        *("runs", "/", "~", "./a:/b", "file:/runs"),
        *("s3://bucket", "file:///runs", "memory://", "memory:///runs", "abfss://box@account/x"),
    ],
)
def test_places(uri: str):
    check_place("--storage", uri, "runs")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "--storage is empty"),
        ("s3://", "--storage s3:// names no bucket: type s3://bucket/runs"),
        ("gs:///", "--storage gs:/// names no bucket: type gs://bucket/runs"),
        ("s3:/bucket/photos", "--storage s3:/bucket/photos has one slash behind its colon: type s3://bucket/photos"),
        ("memory:/runs", "--storage memory:/runs has one slash"),
        ("s3://me:hidden@host/x", "--storage has a user name or a password"),
    ],
)
def test_what_is_no_place_says_what_to_type(uri: str, message: str):
    with pytest.raises(ConfigError) as refused:
        check_place("--storage", uri, "runs")
    assert str(refused.value).startswith(message)
    assert "hidden" not in str(refused.value)


def test_a_web_server_is_no_place_to_write():
    """It is not asked: nobody listens there."""
    with pytest.raises(
        ConfigError, match=r"--storage http://127\.0\.0\.1:1/runs is on a web server, which is read alone"
    ):
        check_can_write("--storage", Folder("http://127.0.0.1:1/runs"))
