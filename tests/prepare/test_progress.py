"""What a person sees of `prepare` on a real pseudo-terminal, and that the cores change nothing that is written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.terminal import OnTerminal, Screen

ROOT = Path(__file__).resolve().parents[2]
LIVE = r"\d:\d\d  \d+%, [\d,]+ of [\d,]+ images, [\d,]+/s(, \d:\d\d:\d\d left)?: writing .*"


def make(folder: Path, rows: int) -> Path:
    folder.mkdir()
    for row in range(rows):
        noise = np.random.default_rng(row).integers(0, 255, (90, 90, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{row:05}.png", compress_level=0)
    return folder


def command(*words: object) -> list[str]:
    return [sys.executable, str(ROOT / "jobs" / "prepare.py"), *map(str, words)]


def test_a_terminal_shows_share_speed_and_time_left_within_a_second(tmp_path):
    source = make(tmp_path / "in", 1500)
    terminal = OnTerminal(command(source, tmp_path / "out"), columns=200)
    assert terminal.end() == 0
    began = next(at for at, piece in terminal.writes if f"looking through {source}" in piece)
    assert began < 2  # a second where nothing else runs
    screens = terminal.screens()
    live = [[row for row in rows if re.match(r"\d:\d\d  ", row)] for rows in screens]
    assert max(map(len, live)) == 1
    assert any(re.fullmatch(LIVE, row) for rows in live for row in rows), live[-1]
    assert live[-1] == []
    assert re.fullmatch(rf"writing {tmp_path}/out: 1,500 of 1,500 images, [\d,]+/s", screens[-1][0])
    assert screens[-1][1].startswith(f"{tmp_path}/out: 1,500 images")


def test_ctrl_c_leaves_a_clean_line_and_the_next_says_where_it_goes_on(tmp_path):
    source = make(tmp_path / "in", 3000)
    words = (source, tmp_path / "out", "--shard-mb", 1)
    terminal = OnTerminal(command(*words), columns=200)
    terminal.read_until(lambda text: re.search(r"[\d,]{3,} of 3,000 images", text) is not None)
    terminal.type("\x03")
    assert terminal.end() == 1
    last, *rest = terminal.screens()[-1]
    assert re.fullmatch(LIVE, last)
    assert rest == ["stopped: the same command goes on from here"]
    screen = Screen(200)
    screen.write(terminal.text)
    assert screen.cursor_shown
    again = OnTerminal(command(*words), columns=200)
    assert again.end() == 0
    first, second, *_ = again.screens()[-1]
    assert re.fullmatch(rf"writing {tmp_path}/out: going on after [\d,]+ of 3,000 images", first)
    assert second.startswith(f"writing {tmp_path}/out: 3,000 of 3,000 images")


def test_one_core_or_all_write_the_same_bytes(tmp_path):
    source = make(tmp_path / "in", 300)

    def written(name: str, cores: set[int]) -> dict[str, bytes]:
        subprocess.run(
            command(source, tmp_path / name, "--shard-mb", 1, "--test-fraction", 0.2),
            check=True, capture_output=True, preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        return {path.relative_to(tmp_path / name).as_posix(): path.read_bytes() for path in files}

    cores = os.sched_getaffinity(0)
    alone = written("one", {min(cores)})
    assert len(alone) == 7  # 240 images in four shards, 60 in one, and both manifests
    assert written("all", cores) == alone
