"""What people see while long work runs, on a real pseudo-terminal and where there is none."""

import json
import os
import re
import select
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from jobs.live_line import LiveLine, clock
from jobs.run.on_ray import following
from pirl.storage.folder import Folder
from tests.terminal import OnTerminal, Screen, resize

ROOT = Path(__file__).parents[2]

LINES = """
    import sys, time
    from jobs.live_line import LiveLine
    live = LiveLine(sys.stdout)
    with live:
        live.now("starting")
        time.sleep(1.2)
        live.print("a line that stays")
        live.log("epoch   0.50/1   step 5/10   loss 3.000 (image 3.000)   lr 0.03   9 samples/s")
        live.now("step 5/10  left 0:00:10  [red] and so on")
        time.sleep(1.2)
        live.log("epoch   1.00/1   step 10/10   loss 2.000 (image 2.000)   lr 0.03   9 samples/s")
        live.now({last!r})
    print("behind it")
"""
STAYS = "a line that stays"
FIRST = "epoch   0.50/1   step 5/10   loss 3.000 (image 3.000)   lr 0.03   9 samples/s"
LAST = "epoch   1.00/1   step 10/10   loss 2.000 (image 2.000)   lr 0.03   9 samples/s"


def python(code: str, **words: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code).format(**words)]


def live_rows(rows: list[str]) -> list[str]:
    """The rows that begin with the clock."""
    return [row for row in rows if re.match(r"\d+:\d\d  ", row)]


def test_one_line_is_written_anew_and_others_stay_above_it() -> None:
    terminal = OnTerminal(python(LINES, last="evaluating"), columns=100)
    assert terminal.end() == 0
    screens = terminal.screens()
    assert max(len(live_rows(rows)) for rows in screens) == 1
    seen = {row for rows in screens for row in live_rows(rows)}
    assert {"0:00  starting", "0:01  starting"} <= seen  # the clock goes on
    assert any(row.endswith("step 5/10  left 0:00:10  [red] and so on") for row in seen)
    assert screens[-1] == [STAYS, LAST, "0:02  evaluating", "behind it"]


def test_an_empty_text_takes_the_line_away() -> None:
    terminal = OnTerminal(python(LINES, last=""), columns=100)
    assert terminal.end() == 0
    assert terminal.screens()[-1] == [STAYS, LAST, "behind it"]


def test_a_narrow_terminal_cuts_the_live_line_and_no_other() -> None:
    terminal = OnTerminal(python(LINES, last="evaluating with many words"), columns=20)
    assert terminal.end() == 0
    assert max(len(live_rows(rows)) for rows in terminal.screens()) == 1
    *rows, cut, behind = terminal.screens()[-1]
    assert (cut, behind) == ("0:02  evaluating wi…", "behind it")
    assert f"{LAST}\r\n" in terminal.text  # the terminal wraps it, so that it can be copied as one line
    assert rows[0] == STAYS


def test_the_line_follows_the_width_of_the_terminal() -> None:
    code = """
        import sys, time
        from jobs.live_line import LiveLine
        with LiveLine(sys.stdout) as live:
            live.now("a text of some thirty letters.")
            input()
            time.sleep(1.2)
    """
    terminal = OnTerminal(python(code), columns=80)
    terminal.read_until(lambda text: "letters." in text)
    resize(terminal._ours, 16)
    terminal.type("\n")
    assert terminal.end() == 0
    assert terminal.screens()[-1][-1].endswith("a text of…")


@pytest.mark.parametrize("words", [{"NO_COLOR": "1"}, {"TERM": "xterm-256color"}, {"FORCE_COLOR": "1"}])
def test_there_are_no_colours(words: dict[str, str]) -> None:
    terminal = OnTerminal(python(LINES, last="evaluating"), words=words)
    assert terminal.end() == 0
    screen = Screen(80)
    screen.write(terminal.text)
    assert not screen.colored
    assert screen.cursor_shown


def test_a_dumb_terminal_gets_what_a_pipe_gets() -> None:
    command = python(LINES, last="evaluating")
    piped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "FORCE_COLOR": "1"})
    assert piped.stdout.splitlines() == [STAYS, FIRST, LAST, "behind it"]
    terminal = OnTerminal(command, words={"TERM": "dumb"})
    assert terminal.end() == 0
    assert terminal.text.replace("\r\n", "\n") == piped.stdout


def test_of_several_processes_on_a_terminal_one_shows_it() -> None:
    code = """
        import sys
        from jobs.pretrain import live_line
        with live_line() as live:
            live.now("I am shown")
    """
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "WORLD_SIZE": "2"}
    for rank, rows in (("0", ["0:00  I am shown"]), ("1", [""])):
        terminal = OnTerminal(python(code), words={**group, "RANK": rank})
        assert terminal.end() == 0
        assert terminal.screens()[-1:] == ([rows] if rank == "0" else [])


def test_ctrl_c_leaves_a_clean_line() -> None:
    code = """
        import sys, time
        from jobs.live_line import LiveLine
        try:
            with LiveLine(sys.stdout) as live:
                live.now("step 5/10")
                time.sleep(60)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
    """
    terminal = OnTerminal(python(code))
    terminal.read_until(lambda text: "step 5/10" in text)
    terminal.type("\x03")
    assert terminal.end() == 0
    assert terminal.screens()[-1] == ["0:00  step 5/10", "interrupted"]
    assert terminal.text.rindex("\x1b[?25h") > terminal.text.rindex("\x1b[?25l")  # the cursor is back


def test_lines_that_are_followed_come_above_the_live_one(tmp_path: Path) -> None:
    """As the driver of a Ray job does it; no worker tells anything here."""
    ours, theirs = os.openpty()
    log = tmp_path / "train.log"
    with os.fdopen(theirs, "w") as stream, LiveLine(stream) as live:
        live.now("starting 2 workers")
        with following(Folder(str(tmp_path)), "train.log", live):
            for part in (
                "going on\nepoch   0.50/1   st",
                "ep 5/10   loss 3\nfilling the memory bank: step 1/2\nno eval",
            ):
                with log.open("a") as file:
                    file.write(part)
                time.sleep(0.7)  # it is looked at every half second
        live.now("")
        screen = Screen(80)
        written = b""
        while select.select([ours], [], [], 0)[0]:  # at most 4 kB at once
            written += os.read(ours, 2**16)
        screen.write(written.decode())
    assert [row for row in screen.shown() if row] == ["going on", "no eval", *live_rows(screen.shown())]
    os.close(ours)


SMALL = ["--no-ray", "--optim.epochs=2", "--data.batch-size=240", "--model.width=4", "--loss.num-negatives=16"]


def test_a_training_shows_its_steps_in_one_line_and_a_pipe_gets_all_lines(tmp_path: Path) -> None:
    words = [sys.executable, "jobs/pretrain.py", "digits", *SMALL, "--checkpoint.log-every-steps=1"]
    terminal = OnTerminal([*words, f"--storage={tmp_path}/terminal"], columns=150)
    assert terminal.end() == 0
    # The first sign of life comes before what takes seconds to import; a busy machine delays both alike.
    began, first_step = (
        next(at for at, piece in terminal.writes if re.search(text, piece)) for text in ("0:00", r"step \d+/")
    )
    assert began < first_step / 3
    screens = terminal.screens()
    assert max(len(live_rows(rows)) for rows in screens) == 1
    shown = {row for rows in screens for row in live_rows(rows)}
    step = r"\d+:\d\d  step \d+/\d+  left 0:00:\d\d  [\d,]+ samples/s  loss \d\.\d{3}  data wait \d+%  epoch \d\.\d\d/2"
    assert any(re.fullmatch(step, row) for row in shown), shown
    assert live_rows(screens[-1]) == []

    log = (tmp_path / "terminal/digits/train.log").read_text().splitlines()
    passing = [line for line in log if line.startswith(("filling", "epoch"))][:-1]
    numbers = [json.loads(line) for line in (tmp_path / "terminal/digits/metrics.jsonl").read_text().splitlines()]
    assert len([line for line in passing if line.startswith("epoch")]) == len(numbers) - 1
    lasting = [line for line in log if line not in passing]
    assert screens[-1][: len(lasting)] == lasting

    piped = subprocess.run([*words, f"--storage={tmp_path}/pipe"], cwd=ROOT, capture_output=True, text=True)
    assert piped.returncode == 0, piped.stderr
    written = (tmp_path / "pipe/digits/train.log").read_text()
    assert piped.stdout.startswith(written + "\n")
    assert [line.partition("loss")[0] for line in written.splitlines()] == [line.partition("loss")[0] for line in log]
    assert "\x1b" not in piped.stdout + piped.stderr


def test_a_clock_has_hours_where_it_needs_them() -> None:
    assert [clock(seconds) for seconds in (0, 61.9, 3599, 3600, 90_061)] == [
        "0:00",
        "1:01",
        "59:59",
        "1:00:00",
        "25:01:01",
    ]
