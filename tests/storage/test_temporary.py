"""The temporary folder of a process: one each, and gone however the process ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

from pirl.storage.temporary import temporary_folder

ROOT = Path(__file__).parents[2]
MAKE = "from pirl.storage.temporary import temporary_folder as f; (f() / 'a').write_text('b'); print(f(), flush=True); "


def start(tmp_path: Path, then: str) -> tuple[subprocess.Popen[str], Path]:
    """A process with a folder, and its folder."""
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE + then], env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    living, kept = start(tmp_path, "input()")
    killed, left = start(tmp_path, "input()")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (tmp_path / "pirl-cache-0").mkdir()
    assert (kept / "a").exists()
    assert (left / "a").exists()
    ended, own = start(tmp_path, "")
    ended.communicate()
    assert (kept / "a").exists()
    assert not left.exists()
    assert not own.exists()
    living.communicate("\n")
    assert not kept.exists()
    assert (tmp_path / "pirl-cache-0").exists()


def test_each_process_has_its_own_and_always_the_same() -> None:
    assert temporary_folder() == temporary_folder()
    assert temporary_folder().is_dir()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        other = pool.apply(temporary_folder)
        assert other != temporary_folder()
        pool.close()
        pool.join()
    assert not other.exists()
    assert temporary_folder().is_dir()
