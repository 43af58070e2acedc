"""The growing local folder that is kept in a store: how often it is sent, and how it ends."""

import shutil
import threading
import time

import pytest

from pirl.runs import run_log as mirror
from pirl.runs.run_log import Mirror
from pirl.storage.folder import Folder


@pytest.fixture
def local(tmp_path):
    folder = tmp_path / "local"
    folder.mkdir()
    (folder / "train.log").write_text("one\n")
    return folder


def puts(store):
    return [entry for entry in store.log() if entry["method"] == "PUT"]


def test_what_has_changed_is_sent_from_time_to_time_and_a_longer_file_less_often(store, local, monkeypatch):
    monkeypatch.setattr(mirror, "EVERY_S", 0.05)
    monkeypatch.setattr(mirror, "BYTES_PER_S", 1000)
    folder = Folder(store.uri("run"), store.options)
    sender = Mirror(local, folder)
    while not puts(store):
        time.sleep(0.05)
    time.sleep(0.3)
    assert len(puts(store)) == 1  # it has not changed
    (local / "train.log").write_text("two\n" * 10_000)  # 40 s at this rate
    time.sleep(0.3)
    assert folder.read("train.log") == "one\n"
    sender.send()  # as before a checkpoint: at once
    assert folder.read("train.log") == "two\n" * 10_000
    sender.close()
    assert len(puts(store)) == 2


def test_a_mirror_that_is_abandoned_while_it_sends_ends_without_a_word(store, local, monkeypatch):
    """Its folder is removed at once, as it is when a run fails; an exception of a thread would fail this test."""
    monkeypatch.setattr(mirror, "EVERY_S", 0.01)
    monkeypatch.setattr(mirror, "HURRY_S", 0.2)  # for the lock
    for n in range(20):
        (local / "events").write_bytes(b"x" * n)
        (local / "train.log").write_text("two\n" * n)
        store.reset()
        store.fail("latency", 100, method="PUT", seconds=0.02 * (n % 5))
        sender = Mirror(local, Folder(store.uri("run"), store.options, deadline_s=10))
        copy = local.with_name(f"copy {n}")
        shutil.copytree(local, copy)
        time.sleep(0.01 * (n % 3))
        sender.abandon()
        shutil.rmtree(local)
        copy.rename(local)
    for thread in [thread for thread in threading.enumerate() if thread.name == "pirl-mirror"]:
        thread.join(20)
        assert not thread.is_alive()


def test_abandoning_gives_the_lock_back_when_the_disk_fails(store, local):
    sender = Mirror(local, Folder(store.uri("run"), store.options))
    shutil.rmtree(local)
    sender.abandon()
    assert sender._lock.acquire(timeout=1)
