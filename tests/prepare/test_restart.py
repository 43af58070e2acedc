"""A real SIGKILL in the middle of writing, and the same command again."""

import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
ROWS = 640
SECONDS = 60
"""What a step of this takes is a few seconds; a busy machine may need many times as long."""


def noise(row):
    """A PNG of 20 KB: 64 of them make a shard of 1 MB."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(row).integers(0, 255, (80, 84, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Parquet with a broken image here and there."""
    path = tmp_path_factory.mktemp("source") / "in.parquet"
    images = [noise(row) if row % 50 else b"broken" for row in range(ROWS)]
    pq.write_table(pa.table({"image": images, "label": np.arange(ROWS) % 4}), path)
    return path


def start(*words):
    command = [sys.executable, str(ROOT / "jobs" / "prepare.py"), *map(str, words), "--shard-mb", "1"]
    # A session of its own, so that its group tells which processes are left of it.
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*words):
    running = start(*words)
    _, messages = running.communicate(timeout=SECONDS)
    return running.returncode, messages


def shards(fs, folder):
    """Size and identity of each shard for training: another writing of it gives another inode or time."""
    fs.invalidate_cache()
    found = fs.find(folder, detail=True) if fs.exists(folder) else {}
    return {
        name.rpartition("/")[2]: [entry.get(key) for key in ("size", "ino", "mtime", "LastModified")]
        for name, entry in found.items()
        if name.endswith(".parquet") and "/test/" not in name
    }


def stop_in_the_middle(how, fs, folder, *words):
    running = start(*words)
    deadline = time.monotonic() + SECONDS
    while len(shards(fs, folder)) < 2:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    running.send_signal(how)
    output = running.communicate(timeout=SECONDS)
    return running, output


def contents(fs, folder):
    return {name.removeprefix(folder): fs.cat_file(name) for name in fs.find(folder)}


def gone(group):
    """Whether no process of a group is left, before long."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """A file system, a folder in it, and its URL."""
    if request.param == "local":
        return fsspec.filesystem("file"), str(tmp_path), str(tmp_path)
    request.getfixturevalue("s3_environment")
    fs = fsspec.filesystem("s3")
    fs.makedirs("restart", exist_ok=True)
    return fs, f"restart/{tmp_path.name}", f"s3://restart/{tmp_path.name}"


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory):
    """What a job writes that nothing stops."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, messages = finish(source, folder / "set", "--test-fraction", 0.2)
    assert code == 0, messages
    return contents(fsspec.filesystem("file"), f"{folder}/set")


@pytest.fixture
def temporary(monkeypatch):
    """The folder for temporary files; its path is short, as sockets lie in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


HOW = {"killed": signal.SIGKILL, "stopped": signal.SIGINT, "terminated": signal.SIGTERM}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_the_same_command_goes_on_and_ends_like_an_undisturbed_job(source, undisturbed, place, how, temporary):
    fs, folder, uri = place
    words = (source, f"{uri}/set", "--test-fraction", 0.2)
    running, (_, messages) = stop_in_the_middle(how, fs, f"{folder}/set", *words)
    assert gone(running.pid)
    assert not [path for path in temporary.iterdir() if path.is_dir()]
    if how != signal.SIGKILL:
        assert running.returncode == 1
        assert "stopped: the same command goes on from here" in messages
        assert "Traceback" not in messages
    before = shards(fs, f"{folder}/set")
    assert not fs.exists(f"{folder}/set/manifest.json")
    code, messages = finish(*words)
    assert code == 0, messages
    assert re.search(r"going on after \d+ of \d+ images", messages)
    after = shards(fs, f"{folder}/set")
    assert len(after) > len(before) >= 2
    assert not [path for path in temporary.iterdir() if path.is_dir()]
    assert {name: after[name] for name in before} == before
    assert contents(fs, f"{folder}/set") == undisturbed
    assert sorted(undisturbed)[0] == "/manifest.json"
    assert not [name for name in undisturbed if "unfinished" in name or "tmp" in name]
