"""What a sweep finds before it starts: which trials are known, and which folders and data cannot be."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pirl.config import Config
from pirl.errors import ConfigError
from pirl.recipes import digits
from pirl.runs.run import Run
from pirl.storage.folder import Folder
from tests.digits import write_digits_to
from tune import sweep
from tune.curve import Point, write_stopped
from tune.points import trials_of
from tune.request import parse
from tune.rows import Row, write
from tune.run import tuner
from tune.run.trial import RunTrial
from tune.sweep import known_rows

ROOT = Path(__file__).parents[2]


def begin(folder: Folder, config: Config, epochs: int, result: str | None = None) -> None:
    """A run folder with a step, and a loss, for each epoch."""
    Run(folder, config).write_config()
    line = '{{"step": {0}, "epoch": {0}, "loss": 1.0, "samples_per_s": 128.0, "last_step": {1}}}\n'
    lines = [line.format(epoch, config.optim.epochs) for epoch in range(1, epochs + 1)]
    folder.write("metrics.jsonl", "".join(lines))
    if result:
        folder.write("result.json", result)


def test_a_folder_that_is_something_else_is_refused_with_what_to_type_for_a_sweep(tmp_path: Path) -> None:
    """A run of that name, and trials of that name with other settings."""
    begin(Folder(f"{tmp_path}/run"), digits(), epochs=1)
    with pytest.raises(ConfigError, match="is a run: choose another --name"):
        known_rows(parse(["--epochs", "5", f"--storage={tmp_path}", "--name=run"]))
    request = parse(["--epochs", "5", "6", f"--storage={tmp_path}", "--name=sweep"])
    begin(request.folder / request.trials[1].name, request.trials[0].config, epochs=1)
    with pytest.raises(ConfigError, match=r"(?s)trial epochs-6_seed-0: .*optim.epochs: 5 -> 6.*another --name") as told:
        known_rows(request)
    assert "--run" not in str(told.value)
    assert "--resume" not in str(told.value)


@pytest.mark.parametrize(
    ("arguments", "differs"),
    [
        ("--set optim.lr 0.3 0.4 --loss.temperature 0.5", "loss.temperature: 0.1 -> 0.5"),
        ("--set optim.lr 0.1 0.2 --seed 7", "seed: 0 -> 7"),
        ("--set optim.momentum 0.1 0.2", "compared: optim.lr -> optim.momentum"),
        ("--set optim.lr 0.1 0.2 --set optim.momentum 0.1", "compared: optim.lr -> optim.lr, optim.momentum"),
        ("--set optim.lr 0.1 0.2 --evaluation.knn-k 7", "evaluation.knn_k: 20 -> 7"),
        ("--set optim.lr 0.3 0.4 --seeds 2 --cluster.workers 1", None),
    ],
)
def test_a_table_is_not_lost_to_a_sweep_of_other_settings(tmp_path: Path, arguments: str, differs: str | None) -> None:
    """Also where no trial has the name of one that is there."""
    common = ["digits", f"--storage={tmp_path}", "--name=sweep"]
    before = parse([*common, "--set", "optim.lr", "0.1", "0.2"])
    write(before.folder, [Row(trial) for trial in before.trials], "linear_res5", before.recipe, before.command)
    after = parse([*common, *arguments.split()])
    if differs is None:
        assert len(known_rows(after)) == 4
        return
    with pytest.raises(ConfigError, match="choose another --name") as told:
        known_rows(after)
    assert [line.strip() for line in str(told.value).splitlines()][1:-1] == [differs]


def test_a_command_with_some_of_the_values_forgets_of_no_trial_that_it_was_stopped(tmp_path: Path) -> None:
    arguments = ["--optim.epochs=4", "--metric=loss", f"--storage={tmp_path}", "--name=sweep"]
    asha = ["--scheduler=asha", *arguments]
    whole = parse(["--set", "optim.lr", "0.1", "0.2", "0.3", *asha])
    slow = whole.trials[0]
    begin(whole.folder / slow.name, slow.config, epochs=2)
    write_stopped(whole.folder / slow.name, "loss", 1)
    narrower = parse(["--set", "optim.lr", "0.2", "0.3", *asha])
    write(narrower.folder, known_rows(narrower), "loss", narrower.recipe, narrower.command)
    first, *others = known_rows(whole)
    assert (first.state, first.curve) == ("stopped", [Point(1, 1.0, 1.0)])
    assert {row.state for row in others} == {"waiting"}
    write_stopped(whole.folder / slow.name, "knn", 2)
    assert known_rows(whole)[0].state == "stopped", "judging by another metric takes nothing back"
    alone = parse(["--set", "optim.lr", "0.1", "0.2", *arguments])
    assert {row.state for row in known_rows(alone)} == {"waiting"}, "without asha all are trained to their end"


def test_accuracies_are_refused_of_each_data_set_on_which_there_are_none(tmp_path: Path) -> None:
    alone = write_digits_to(str(tmp_path / "set"), {})
    swept = ["--set", "data.uri", "digits", alone, f"--storage={tmp_path}"]
    with pytest.raises(ConfigError, match=f"--metric knn cannot be measured: {alone} has no test split"):
        known_rows(parse([*swept, "--metric=knn"]))
    with pytest.raises(ConfigError, match=r"nowhere is not a data set"):
        known_rows(parse(["--set", "data.uri", "digits", "nowhere", f"--storage={tmp_path}"]))
    fixed = ["--epochs", "5", "6", f"--data.uri={alone}", f"--storage={tmp_path}", "--metric=loss"]
    assert [row.state for row in known_rows(parse(fixed))] == ["waiting", "waiting"]


def test_a_run_that_is_done_without_its_last_number_is_a_failed_trial(tmp_path: Path) -> None:
    """As the sweep finds it, and as the process that watches the trial tells it, not the number of epoch 2."""
    request = parse(["--epochs", "4", "--metric=loss", f"--storage={tmp_path}"])
    [trial] = request.trials
    begin(request.folder / trial.name, trial.config, epochs=2, result="{}")
    [row] = known_rows(request)
    assert row.state == "failed"
    assert "has no loss after epoch 4" in (row.error or "")
    asked = {"storage": request.folder, "name": trial.name, "config": trial.config.model_dump_json()}
    watcher = RunTrial({"trial": {**asked, "metric": "loss", "every": 1}})
    assert [watcher.step()["epoch"] for _ in range(2)] == [1, 2]
    assert watcher.step() == {"done": True, "ended": True, "error": row.error}


def test_whatever_ends_a_trial_is_its_error(tmp_path: Path) -> None:
    """Here a folder where `result.json` is to be, beside a `failure.json` that was cut off."""
    [trial] = trials_of(digits(), {"optim.epochs": [2]}, seeds=1)
    begin(Folder(str(tmp_path)) / trial.name, trial.config, epochs=0)
    (tmp_path / trial.name / "result.json").mkdir()
    (tmp_path / trial.name / "failure.json").write_text("{")
    asked = {"storage": Folder(str(tmp_path)), "name": trial.name, "config": trial.config.model_dump_json()}
    watcher = RunTrial({"trial": {**asked, "metric": "loss", "every": 1}})
    assert "JSONDecodeError" in watcher.step()["error"]


def test_what_is_done_takes_no_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of two CPUs, which hold two trials of one worker, and none of the 64 that a trial had elsewhere."""
    node = {"Alive": True, "Resources": {"CPU": 2.0}, "NodeID": "a", "NodeManagerAddress": "127.0.0.1"}
    monkeypatch.setattr("ray.nodes", lambda: [node])
    monkeypatch.setattr(tuner, "check_nodes", lambda *_: None)
    base = digits()
    small, large = (Row(trial) for trial in trials_of(base, {"cluster.workers": [1, 64]}, seeds=1))
    with pytest.raises(ConfigError, match="do not fit"):
        tuner.concurrency(Folder(str(tmp_path)), [small, large])
    large.state = "done"
    assert tuner.concurrency(Folder(str(tmp_path)), [small, large]) == 2


def test_a_storage_below_a_file_is_the_fault_of_the_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["sweep.py", "--epochs", "1", "2", f"--storage={tmp_path}/file/runs"])
    assert sweep.main() == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_ctrl_c_before_the_training_is_told_in_a_line(tmp_path: Path) -> None:
    """While a store that says nothing is asked for the data."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}/set"
        command = [sys.executable, "tune/sweep.py", "--epochs", "1", "2", f"--data.uri={uri}", f"--storage={tmp_path}"]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "interrupted; to go on, type the same command again\n")
