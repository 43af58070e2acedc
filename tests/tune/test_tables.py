"""What a sweep shows while it runs: in a terminal of any size, in a log, and how far each trial is."""

import io
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from pirl.config import override
from pirl.recipes import digits
from pirl.storage.folder import Folder
from tune.curve import Point, trained
from tune.points import Trial, trials_at, trials_of
from tune.rows import Row
from tune.run.asha import ByLength
from tune.run.follower import EndAfterPreemption, Follower
from tune.run.trial import RunTrial
from tune.show.tables import live_view, open_console, showing, trials_table

LOST = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.1]:4242 :x:"
CONFIG = override(digits(), {"optim.epochs": 4, "data.batch_size": 100, "evaluation.every_epochs": 2})


def line(step: int, **more: float) -> str:
    """Two steps an epoch, 2 s a step."""
    known = {"step": step, "epoch": step / 2, "loss": 1.0, "samples_per_s": 50.0, "last_step": 8}
    return json.dumps({**known, **more}) + "\n"


def test_an_error_is_shown_as_it_is(capsys) -> None:
    """Rich takes words in brackets for its own, and fails at those that begin with a slash."""
    rows = [Row(trial) for trial in trials_at(digits(), {"optim.lr": "0.1"}, 1)]
    rows[0].state, rows[0].error = "failed", LOST
    with showing(open_console(), rows, "knn") as show:
        show(rows[0], "running")
    assert f"failed: {LOST}" in capsys.readouterr().out
    terminal = Console(file=io.StringIO(), force_terminal=True, width=200, height=20)
    open_console().print(trials_table(rows, "knn"))
    terminal.print(live_view(rows, "knn", 20))
    for text in (capsys.readouterr().out.replace("│", " "), terminal.file.getvalue()):
        assert "[/pytorch/third_party" in text
        assert "[127.0.0.1]:4242" in text


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 10), (200, 60)])
def test_what_runs_and_what_failed_is_seen_in_a_terminal_of_any_size(width: int, height: int) -> None:
    rates = [number / 1000 for number in range(1, 41)]
    rows = [Row(trial) for trial in trials_of(digits(), {"optim.lr": rates}, 1)]
    for row in rows[:30]:
        row.state, row.curve = "done", [Point(40, 0.9, 60.0)]
    rows[20].state, rows[20].error = "failed", LOST
    rows[30].state = "running"
    rows[31].state = "starting"
    terminal = Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)
    terminal.print(live_view(rows, "linear_res5", height))
    text = terminal.file.getvalue()
    assert len(text.splitlines()) < height
    assert "1 running, 1 starting, 1 failed" in text
    for row in (rows[20], rows[30], rows[31]):
        [seen] = [seen for seen in text.splitlines() if seen.split()[0] == f"{row.trial.values['optim.lr']:g}"]
        assert f" {row.state} " in seen
    assert ("0.04 " in text) == (height == 60), "the last one that waits"


def test_the_epoch_is_that_of_the_newest_line_and_the_first_line_makes_it_run(tmp_path: Path) -> None:
    """Without a measurement, which may be far away."""
    folder = Folder(str(tmp_path))
    assert trained(folder, CONFIG) == (0.0, 0.0)
    folder.write("metrics.jsonl", line(1) + line(2) + line(3) + '{"step": 4, "ep')
    assert trained(folder, CONFIG) == (1.5, 6.0)

    [trial] = trials_at(CONFIG, {"optim.lr": "0.1"}, 1)
    changes: list[tuple[str, str]] = []
    row = Row(trial)
    follower = Follower([row], lambda row, before: changes.append((before, row.state)), threading.Event())
    of_tune = SimpleNamespace(config={"trial": {"name": trial.name}})
    follower.on_trial_start(1, [], of_tune)
    assert row.state == "starting"
    for told in [(0.5, 2.0), (1.5, 6.0)]:
        follower.on_trial_result(1, [], of_tune, {"told": told})
    assert changes == [("waiting", "starting"), ("starting", "running")], "a log has no line for each step"
    cells = [list(map(str, column.cells)) for column in trials_table([row], "knn").columns]
    assert cells == [["0.1"], ["0"], ["1.5/4"], [""], ["0:00:06"], ["running"]]
    follower.on_trial_result(1, [], of_tune, {"epoch": 2, "metric": 0.5, "train_s": 8.0})
    assert row.trained == (2, 8.0)


class Waits(RunTrial):
    """A trial whose training is what the test writes."""

    def carry_out(self) -> None:
        go_on.wait(60)


go_on = threading.Event()


def test_a_trial_tells_how_far_it_is_between_its_measurements(tmp_path: Path) -> None:
    """And of what was written before it was cut off it tells only as measurements: it has not begun to train."""
    asked = {"storage": Folder(str(tmp_path)), "name": "one", "config": CONFIG.model_dump_json(), "metric": "knn"}
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text(CONFIG.model_dump_json())
    metrics = tmp_path / "one" / "metrics.jsonl"
    metrics.write_text(line(1) + line(2) + line(3) + line(4, knn=0.25))
    trial = Waits.__new__(Waits)  # without Tune's own part, which needs its process
    trial.setup({"trial": {**asked, "every": 2}})
    try:
        assert trial.step() == {"epoch": 2, "metric": 0.25, "train_s": 8.0, "done": False}
        with metrics.open("a") as file:
            file.write(line(5))
        assert trial.step() == {"told": (2.5, 10.0), "done": False}
        with metrics.open("a") as file:
            file.write(line(6) + line(7) + line(8, knn=0.5))
        assert trial.step() == {"told": (4.0, 16.0), "done": False}, "the last measurement is told with the end"
    finally:
        go_on.set()
        trial.training.join()
    assert trial.step() == {"epoch": 4, "metric": 0.5, "train_s": 16.0, "done": True, "ended": True}


def test_asha_compares_measurements_alone() -> None:
    """Words of progress are not counted: of two trials with a measurement the worse one is stopped, at its own."""
    scheduler = ByLength([4], "knn", grace=1, reduction=2)
    better, worse = (SimpleNamespace(config={"trial": {"name": name, "epochs": 4}}) for name in ("better", "worse"))
    for trial in (better, worse):
        scheduler.on_trial_add(None, trial)
        assert scheduler.on_trial_result(None, trial, {"told": (1.5, 6.0)}) == "CONTINUE"
    assert scheduler.on_trial_result(None, better, {"epoch": 2, "metric": 0.5}) == "CONTINUE"
    assert scheduler.on_trial_result(None, worse, {"told": (2.0, 8.0)}) == "CONTINUE"
    assert scheduler.on_trial_result(None, worse, {"epoch": 2, "metric": 0.4}) == "STOP"


def test_asha_does_not_judge_again_what_goes_on_after_a_kill() -> None:
    """A trial was let go on since it came first; better ones came after it, and are done when the sweep goes on."""
    config = override(digits(), {"optim.epochs": 9})
    early, better, worse, *others = (Row(Trial(name, {}, config)) for name in ("early", "better", "worse", "c", "d"))
    scheduler = ByLength([9], "knn", grace=1, reduction=3)
    scheduler.remember(better, [Point(1, 0.4, 1.0), Point(9, 0.5, 9.0)])
    scheduler.remember(worse, [Point(1, 0.2, 1.0)])
    scheduler.remember(early, [Point(1, 0.3, 1.0), Point(2, 0.35, 2.0)])
    trial = SimpleNamespace(trial_id="0001", config={"trial": {"name": "early", "epochs": 9}})
    scheduler.on_trial_add(None, trial)
    for epoch in (1, 2):
        assert scheduler.on_trial_result(None, trial, {"epoch": epoch, "metric": 0.3}) == "CONTINUE"
    for row, reached in zip(others, (0.6, 0.5), strict=True):
        scheduler.remember(row, [Point(3, reached, 3.0)])
    assert scheduler.on_trial_result(None, trial, {"epoch": 3, "metric": 0.3}) == "STOP", "its next rung"


def test_after_a_warning_the_trials_that_train_are_waited_for() -> None:
    """And not one that waits for workers: it would get those that come free, and has nothing to save."""
    rows = [Row(trial) for trial in trials_of(digits(), {"optim.lr": [0.1, 0.2, 0.3]}, 1)]
    rows[0].state, rows[1].state = "running", "starting"
    preempted = threading.Event()
    end = EndAfterPreemption(rows, preempted)
    assert not end.stop_all()
    preempted.set()
    assert not end.stop_all()
    rows[0].state = "waiting"
    assert end.stop_all()
