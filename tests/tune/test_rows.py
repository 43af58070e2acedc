"""The files of a sweep: curves from run folders, means and deviations, tables, and the picture."""

import csv
import io
import json
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from jobs import pretrain
from pirl.config import override
from pirl.recipes import digits
from pirl.storage.folder import Folder
from tune.curve import Point, curve_of
from tune.points import trials_at, trials_of
from tune.request import parse
from tune.rows import Row, as_csv, best_of, groups_of, repeat, write
from tune.show.tables import groups_table, trials_table
from tune.sweep import finish

CONFIG = override(digits(), {"optim.epochs": 4, "data.batch_size": 100, "evaluation.every_epochs": 2})


def write_run(folder: Folder, measured: dict[int, float], evaluation: float | None) -> None:
    """Two steps an epoch, 50 samples/s: 4 s an epoch; a loss of 8, 7, 6 ..."""
    lines = []
    for step in range(1, 9):
        line = {"step": step, "epoch": step / 2, "loss": 9.0 - step, "samples_per_s": 50.0, "last_step": 8}
        if step in measured:
            line |= {"linear_res5": measured[step], "knn": measured[step] / 2}
        lines.append(json.dumps(line))
    folder.write("metrics.jsonl", "\n".join(lines) + '\n{"step": 9, "ep')
    if evaluation is not None:
        found = {"linear": {"res5": evaluation}, "knn": {"accuracy": evaluation / 2}}
        folder.write("evaluation/pretrain.json", json.dumps(found))


def rows_of(values: dict[tuple[int, int], list[float]]) -> list[Row]:
    """Rows by negatives and epochs, with the metric of each seed, reached half after half of the time."""
    axes = {"loss.num_negatives": sorted({n for n, _ in values}), "optim.epochs": sorted({e for _, e in values})}
    rows = [Row(trial) for trial in trials_of(digits(), axes, seeds=len(next(iter(values.values()))))]
    for row in rows:
        epochs = row.trial.config.optim.epochs
        value = values[row.trial.config.loss.num_negatives, epochs][row.trial.seed]
        row.curve = [Point(epochs // 2, value / 2, epochs * 1.0), Point(epochs, value, epochs * 2.0)]
        row.state = "done"
    return rows


VALUES = {(64, 2): [0.4, 0.6], (512, 2): [0.5, 0.7], (64, 4): [0.6, 0.8], (512, 4): [0.9, 0.9]}


@pytest.mark.parametrize("metric", ["linear_res5", "knn"])
def test_a_curve_has_what_was_measured_during_training_and_after_it(tmp_path: Path, metric):
    folder, scale = Folder(str(tmp_path)), {"linear_res5": 1, "knn": 0.5}[metric]
    write_run(folder, {4: 0.4}, evaluation=0.6)
    assert curve_of(folder, CONFIG, metric, 2) == [Point(2, 0.4 * scale, 8.0), Point(4, 0.6 * scale, 16.0)]


def test_a_loss_is_the_mean_since_the_measurement_before(tmp_path: Path):
    write_run(Folder(str(tmp_path)), {}, evaluation=None)
    assert curve_of(Folder(str(tmp_path)), CONFIG, "loss", 2) == [Point(2, 6.5, 8.0), Point(4, 2.5, 16.0)]
    assert curve_of(Folder(str(tmp_path)), CONFIG, "loss", 3) == [Point(3, 5.5, 12.0), Point(4, 1.5, 16.0)]


def test_a_run_that_has_not_begun_has_no_curve(tmp_path: Path):
    assert curve_of(Folder(str(tmp_path)), CONFIG, "linear_res5", 2) == []


def test_mean_and_deviation_are_over_the_seeds_that_were_trained_to_their_end():
    rows = rows_of(VALUES)
    rows[1].state = "failed"  # 64 negatives, 2 epochs, seed 1
    first, second, *_ = groups_of(rows)
    assert (first.values, first.done, first.of) == ({"loss.num_negatives": 64, "optim.epochs": 2}, 1, 2)
    assert (first.mean, first.deviation) == (0.4, None)
    assert second.mean == pytest.approx(0.7)
    assert second.deviation == pytest.approx(0.02**0.5)  # ((0.6 - 0.7)² + (0.8 - 0.7)²) / (2 - 1)


def test_a_point_of_which_a_seed_was_stopped_has_no_mean():
    """The mean would be that of the seeds that won."""
    rows = rows_of(VALUES)
    rows[1].state = "stopped"  # 64 negatives, 2 epochs, seed 1
    first, *_ = groups_of(rows)
    assert (first.done, first.stopped, first.of, first.mean, first.deviation) == (1, 1, 2, None, None)
    table = groups_table(rows, "linear_res5")
    assert [next(iter(column.cells)) for column in table.columns[-2:]] == ["", "1 of 2, 1 stopped"]
    assert [row["mean"] for row in csv.DictReader(io.StringIO(as_csv(rows, "knn")))][:3] == ["", "", "0.7"]


def test_the_best_trial_is_that_with_the_largest_accuracy_or_the_smallest_loss():
    rows = rows_of(VALUES)
    best, least = best_of(rows, "linear_res5"), best_of(rows, "loss")
    assert best is not None
    assert best.trial.name == "num_negatives-512_epochs-4_seed-0"
    assert least is not None
    assert least.trial.name == "num_negatives-64_epochs-2_seed-0"
    assert best_of([Row(rows[0].trial)], "knn") is None


def test_the_files_say_what_was_reached_and_how_to_make_it_again(tmp_path: Path):
    storage, rows = Folder(str(tmp_path)), rows_of(VALUES)
    rows[0].state = "stopped"
    rows[-1].state, rows[-1].error = "failed", "the loss is nan,\nat step 3"
    write(storage, rows, "knn", "digits", "python tune/sweep.py digits")
    content = json.loads(storage.read("sweep.json"))
    assert content["command"] == "python tune/sweep.py digits"
    assert content["best"]["folder"] == f"{tmp_path}/num_negatives-512_epochs-4_seed-0"
    assert content["trials"][0]["curve"] == [[1, 0.2, 2.0], [2, 0.4, 4.0]]

    table = list(csv.DictReader(io.StringIO(as_csv(rows, "knn"))))
    assert len(table) == 8
    assert table[2]["mean"] == table[3]["mean"] == "0.7"
    assert table[7]["error"] == "the loss is nan,\nat step 3"
    norms = [Row(trial) for trial in trials_of(digits(), {"optim.clip_norm": [None, 1.0]}, 1)]
    assert [row["optim.clip_norm"] for row in csv.DictReader(io.StringIO(as_csv(norms, "knn")))] == ["null", "1"]


def test_the_tables_show_each_trial_and_each_point():
    rows = rows_of(VALUES)
    rows[0].state, rows[0].error = "failed", "no space left"
    trials, groups = trials_table(rows, "linear_res5"), groups_table(rows, "linear_res5")
    assert (trials.row_count, groups.row_count) == (8, 4)
    state, error = (list(map(str, column.cells))[:2] for column in trials.columns[-2:])
    assert (state, error) == (["failed", "done"], ["no space left", ""])
    assert list(groups.columns[-2].cells)[1] == "70.0 ± 14.1"


def test_the_end_shows_all_trials_in_a_terminal_too_and_how_to_train_the_best_alone(tmp_path: Path, capsys):
    """Also where nothing was left to be trained, so that there was no live table."""
    asked = ["digits", "--num-negatives", "64", "512", "--optim.epochs=2", "--seeds=2", f"--storage={tmp_path}/runs"]
    request = parse([*asked, "--name", "sweep"])
    rows = [Row(trial, "done", [Point(2, 0.5, 4.0)]) for trial in request.trials]
    rows[2].curve = [Point(2, 0.75, 4.0)]
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100, height=5, color_system=None)
    assert finish(request, rows, terminal) == 0
    shown = terminal.file.getvalue()
    assert shown.count("2/2") == 4
    assert "4 done" in shown
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  alone")]
    command = line.removeprefix("  alone").strip()
    assert command == json.loads((tmp_path / "runs" / "sweep" / "sweep.json").read_text())["best"]["command"]
    assert command.startswith("python jobs/pretrain.py digits --seed 0 --loss.num-negatives 512 --optim.epochs 2 ")
    _, _, *words = shlex.split(command)
    again = pretrain.parse(words)
    assert again.config == rows[2].trial.config
    assert (str(again.storage), again.name) == (f"{tmp_path}/runs", rows[2].trial.name)


def test_the_command_of_a_trial_says_all_in_which_it_differs_from_its_recipe():
    """Truth values, a null, numbers, a JSON object and words with spaces."""
    fixed = {"optim.clip_norm": 0.5, "optim.bf16": False, "data.storage_options": {"anon": True}, "seed": 7}
    point = {"checkpoint.every_steps": 6, "data.cache_folder": "/a b", "optim.weight_decay": 1e-05}
    [trial] = trials_at(override(digits(), fixed), point, seeds=1)
    [none] = trials_at(trial.config, {"data.cache_folder": None, "optim.clip_norm": None}, seeds=1)
    for one in (trial, none):
        assert pretrain.parse(shlex.split(repeat(one, "digits", Folder("/runs/sweep")))[2:]).config == one.config
    assert "--data.cache-folder null" in repeat(none, "digits", Folder("/runs/sweep")), "as the recipe, but swept"
