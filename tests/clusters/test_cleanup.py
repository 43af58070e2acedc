"""Nothing of a job is left on its node, and nothing of others is touched."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clusters.node import cleanup
from clusters.node.cleanup import NodeCleanup

SLEEP = [sys.executable, "-c", "import time; time.sleep(1000)"]


def test_the_cleanup_ends_all_processes_and_removes_the_folder(tmp_path: Path):
    folder = tmp_path / "pirl-j1-0"
    look_after = NodeCleanup(folder, "test-1.0")
    env = {**os.environ, **look_after.environment}
    # One has left its parent, and one has overwritten its environment but has a file open, as Ray's agents do.
    subprocess.run(["sh", "-c", "setsid sleep 1000 & "], env=env, check=True)
    with (folder / "log").open("w") as log:
        agent = subprocess.Popen(SLEEP, stdout=log)
    other = subprocess.Popen(SLEEP, env={**os.environ, cleanup.MARK: "test-2.0"})
    try:
        assert len(cleanup.processes("test-1.0", folder)) == 2 + 1  # with the clean-up's own, which holds the lock
        look_after.clean()
        assert agent.wait(10) == -signal.SIGKILL
        assert cleanup.processes("test-1.0", folder) == []
        assert not folder.exists()
        assert other.poll() is None
        look_after.clean()  # again, which does nothing
    finally:
        other.kill()
        other.wait()


def test_the_cleanup_finds_open_files_where_the_temporary_folder_is_a_link(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "scratch").symlink_to(tmp_path / "disk")
    folder = tmp_path / "scratch/pirl-j1-0"
    look_after = NodeCleanup(folder, "test-link.0")
    with (folder / "log").open("w") as log:
        agent = subprocess.Popen(SLEEP, stdout=log)
    try:
        look_after.clean()
        assert agent.wait(10) == -signal.SIGKILL
    finally:
        agent.kill()
        agent.wait()


def test_a_link_in_the_place_of_the_folder_makes_no_process_the_jobs(tmp_path: Path):
    """Whoever may write into the temporary folder would have others' processes killed: here one in `home`."""
    (tmp_path / "home").mkdir()
    (tmp_path / "pirl-j1-0").symlink_to(tmp_path / "home")
    with (tmp_path / "home/log").open("w") as log:
        other = subprocess.Popen(SLEEP, stdout=log)
    try:
        assert cleanup.processes("test-link.1", tmp_path / "pirl-j1-0") == []
    finally:
        other.kill()
        other.wait()


def test_the_folder_is_the_user_s_own(tmp_path: Path):
    look_after = NodeCleanup(tmp_path / "pirl-j2-0", "test-2.0")
    assert (tmp_path / "pirl-j2-0").stat().st_mode & 0o777 == 0o700
    look_after.clean()
    (tmp_path / "pirl-j3-0").symlink_to(tmp_path)  # as somebody else may have put it there
    with pytest.raises(FileExistsError):
        NodeCleanup(tmp_path / "pirl-j3-0", "test-3.0")


def test_the_cleanup_comes_after_a_kill(tmp_path: Path):
    folder = tmp_path / "pirl-j1-0"
    code = f"""
import subprocess, sys, time, os
from pathlib import Path
from clusters.node.cleanup import NodeCleanup
look_after = NodeCleanup(Path({str(folder)!r}), "test-kill.0")
subprocess.Popen(["sleep", "1000"], env={{**os.environ, **look_after.environment}})
print("up", flush=True)
time.sleep(1000)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    assert len(cleanup.processes("test-kill.0", folder)) == 1 + 1
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 20
    while folder.exists() or cleanup.processes("test-kill.0", folder):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_killed_cleanup_left_goes_with_the_next_job(tmp_path: Path):
    left, used, young = (tmp_path / f"pirl-j{n}-0" for n in (1, 2, 3))
    for folder in (left, used, young):
        folder.mkdir()
    (left / cleanup.LOCK).touch()
    held = cleanup.take_lock(used)
    cleanup.remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == [used, young]
    assert held is not None
    held.close()
