"""The temporary folder of a process: one each, and gone however the process ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

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


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path: sockets lie in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


LENDS = (
    "import multiprocessing as m; from pirl.storage import temporary as t; from pirl import processes\n"
    "def sleep(pipe):\n"
    "    processes.end_with_parent(last=t.remove_temporary_folder)\n"
    "    pipe.send(t.temporary_folder()); t.time.sleep(600)\n"
    "if __name__ == '__main__':\n"
    "    t.lend_to_multiprocessing(); context = m.get_context('forkserver'); ours, theirs = context.Pipe()\n"
    "    context.Process(target=sleep, args=(theirs,), daemon=True).start(); print(ours.recv(), flush=True); input()\n"
)
"""Has a child with a folder of its own, and the socket of multiprocessing's fork server."""


@pytest.mark.parametrize("end", ["it ends", "os._exit", signal.SIGINT, signal.SIGKILL])
def test_of_a_family_of_processes_nothing_is_left(short: Path, end: str | signal.Signals) -> None:
    hurry = "    t.remove_temporary_folder(); t.os._exit(0)\n" if end == "os._exit" else ""
    (short / "script.py").write_text(LENDS + hurry)
    env = {**os.environ, "TMPDIR": str(short), "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, short / "script.py"], env=env, stdin=pipe, stdout=pipe, text=True
    ) as process:
        assert process.stdout
        assert Path(process.stdout.readline().strip()).parent == short
        names = {path.name for path in short.iterdir()}
        assert [name for name in names if name.startswith("pymp-")] == []
        if isinstance(end, signal.Signals):
            process.send_signal(end)
        else:
            process.communicate("\n")
    deadline = time.monotonic() + 60  # those that outlive it clean up: at once, on an idle machine
    while (left := left_in(short)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(("pirl-", "pymp-"))]


def test_where_sockets_need_it_the_path_is_short(tmp_path: Path) -> None:
    code = "from pirl.storage.temporary import temporary_folder as f; print(f(40)); print(f()); print(f(40) == f(40))"
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    short, own, same = done.stdout.split()
    assert Path(short).parent == Path("/tmp")
    assert len(short) <= 40
    assert Path(own).parent == tmp_path
    assert same == "True"
    assert not Path(short).exists()
    assert not Path(own).exists()
