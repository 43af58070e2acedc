import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pirl.storage.cache import LEFTOVER_S, SpanCache

SIZE = 1000


def used(folder):
    return sum(path.stat().st_size for path in folder.glob("??/*"))


def data_of(name):
    return name.encode().ljust(SIZE, b".")


def put_many(folder, names, limit):
    cache = SpanCache(folder, limit)
    for name in names:
        cache.put(name, data_of(name))
        assert cache.get(name) in (data_of(name), None)  # whole, or removed by another process


def test_gives_what_was_put_to_any_cache_of_the_folder(tmp_path):
    SpanCache(tmp_path, 10 * SIZE).put("a", b"one")
    assert SpanCache(tmp_path, 10 * SIZE).get("a") == b"one"
    assert SpanCache(tmp_path, 10 * SIZE).get("b") is None
    assert SpanCache(tmp_path / "none", 10 * SIZE).get("a") is None


def test_nobody_else_can_look_into_a_new_folder(tmp_path):
    SpanCache(tmp_path / "new", 10 * SIZE).put("a", b"one")
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


def test_the_least_recently_used_go_first_and_the_limit_holds(tmp_path):
    cache = SpanCache(tmp_path, 10 * SIZE)
    for number in range(10):
        cache.put(str(number), data_of(str(number)))
        # File times have the resolution of the kernel's clock tick, 4 ms on the coarsest.
        time.sleep(0.006)
    assert used(tmp_path) == 10 * SIZE
    assert cache.get("0") == data_of("0")
    time.sleep(0.006)
    cache.put("new", data_of("new"))
    # Down to nine tenths with the new one: 1 and 2 have gone, 0 was used again.
    assert [name for name in (*map(str, range(10)), "new") if cache.get(name)] == ["0", *"3456789", "new"]
    for number in range(100):
        cache.put(f"more {number}", data_of("more"))
        assert used(tmp_path) <= 10 * SIZE


def test_a_span_larger_than_the_cache_is_not_kept(tmp_path):
    cache = SpanCache(tmp_path, SIZE)
    cache.put("a", b"x" * SIZE)
    assert cache.get("a") is None
    assert cache.writable


def test_many_processes_at_once_keep_the_limit_and_whole_files(tmp_path):
    context = multiprocessing.get_context("spawn")
    names = [str(number) for number in range(150)]
    processes = [context.Process(target=put_many, args=(tmp_path, names[k::2] + names, 60 * SIZE)) for k in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)  # each starts an interpreter
        assert process.exitcode == 0
    # Two may write the same name at the same time, and each enters it into the ledger: never too little.
    assert used(tmp_path) <= int((tmp_path / "ledger").read_bytes()) <= 60 * SIZE
    assert not list(tmp_path.glob("??/*.tmp"))


def test_a_process_killed_before_its_file_has_a_name_leaves_nothing_that_is_used_and_it_is_cleared(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; from pirl.storage.cache import SpanCache\n"
        "def last(*_):\n"
        "    print('written', flush=True); time.sleep(600)\n"
        "os.replace = last\n"
        f"SpanCache(Path(sys.argv[1]), {10 * SIZE}).put('a', b'x' * {SIZE})\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    (leftover,) = tmp_path.glob("??/*.tmp")
    cache = SpanCache(tmp_path, 10 * SIZE)
    assert cache.get("a") is None
    cache.put("a", data_of("a"))  # the lock was released with the process
    assert cache.get("a") == data_of("a")
    for number in range(10):
        cache.put(str(number), data_of(str(number)))
    assert leftover.exists()  # it might still be written to
    os.utime(leftover, (0, time.time() - LEFTOVER_S - 1))
    for number in range(10, 20):
        cache.put(str(number), data_of(str(number)))
    assert not leftover.exists()
    assert used(tmp_path) <= 10 * SIZE


def test_files_of_others_in_the_folder_are_left_alone_and_do_not_count(tmp_path):
    thesis = tmp_path / "en" / "thesis.tmp"
    thesis.parent.mkdir()
    thesis.write_bytes(b"x" * 20 * SIZE)
    os.utime(thesis, (0, 0))
    put_many(tmp_path, [str(number) for number in range(20)], 10 * SIZE)
    assert thesis.stat().st_size == 20 * SIZE
    assert 8 * SIZE < used(tmp_path) - 20 * SIZE <= 10 * SIZE


def test_a_ledger_that_is_wrong_is_made_anew(tmp_path):
    cache = SpanCache(tmp_path, 10 * SIZE)
    cache.put("a", data_of("a"))
    (tmp_path / "ledger").write_bytes(b"nonsense")
    cache.put("b", data_of("b"))
    assert int((tmp_path / "ledger").read_bytes()) == 2 * SIZE


@pytest.mark.parametrize("broken", ["a file where the folder should be", "full disk"])
def test_where_nothing_can_be_written_it_says_so_once_and_goes_on(tmp_path, capsys, broken):
    folder = tmp_path / "cache"
    if broken == "full disk":
        # A device on which every write finds no space, in place of the ledger.
        folder.mkdir()
        (folder / "ledger").symlink_to("/dev/full")
    else:
        folder.write_text("in the way")
    cache = SpanCache(folder, 10 * SIZE)
    for name in ("a", "b"):
        cache.put(name, data_of(name))
        assert cache.get(name) is None
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"nothing more is kept in the cache {folder}" in said[0]
    assert ("No space left" if broken == "full disk" else "File exists") in said[0]
    assert "--data.cache-folder" in said[0]


def test_the_folder_of_another_user_is_not_trusted(tmp_path, capsys):
    if os.getuid() != 0:
        pytest.skip("only root can give a folder away")
    cache = SpanCache(tmp_path / "theirs", 10 * SIZE)
    cache.put("a", data_of("a"))
    os.chown(tmp_path / "theirs", 12345, 12345)
    assert cache.get("a") is None
    cache.put("b", data_of("b"))
    assert "it belongs to another user" in capsys.readouterr().err
