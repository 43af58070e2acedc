"""The files of a sweep: curves from run folders, means and deviations, tables, and the picture."""

import csv
import io
import json
import struct
from pathlib import Path

import pytest

from pirl.config import override
from pirl.folder import Folder
from pirl.recipes import digits
from tune.live import groups_table, trials_table
from tune.measured import Point, curve_of
from tune.picture import draw, png_of
from tune.results import Row, as_csv, best_of, groups_of, stopped_before, write
from tune.space import trials_of

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
    rows[1].state = "stopped"  # 64 negatives, 2 epochs, seed 1
    first, second, *_ = groups_of(rows)
    assert (first.values, first.done, first.of) == ({"loss.num_negatives": 64, "optim.epochs": 2}, 1, 2)
    assert (first.mean, first.deviation) == (0.4, None)
    assert second.mean == pytest.approx(0.7)
    assert second.deviation == pytest.approx(0.02**0.5)  # ((0.6 - 0.7)² + (0.8 - 0.7)²) / (2 - 1)


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
    write(storage, rows, "knn", "python tune/sweep.py digits")
    content = json.loads(storage.read("sweep.json"))
    assert content["command"] == "python tune/sweep.py digits"
    assert content["best"]["folder"] == f"{tmp_path}/num_negatives-512_epochs-4_seed-0"
    assert content["trials"][0]["curve"] == [[1, 0.2, 2.0], [2, 0.4, 4.0]]
    assert stopped_before(storage, "knn") == {"num_negatives-64_epochs-2_seed-0": 2}
    assert stopped_before(storage, "loss") == {}, "decided by another metric"

    table = list(csv.DictReader(io.StringIO(as_csv(rows, "knn"))))
    assert len(table) == 8
    assert table[2]["mean"] == table[3]["mean"] == "0.7"
    assert table[7]["error"] == "the loss is nan,\nat step 3"


def test_the_picture_has_a_line_for_each_number_of_epochs_and_a_curve_for_each_trial():
    rows = rows_of(VALUES)
    left, right = draw(rows, "linear_res5", "digits").axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["2 epochs", "4 epochs"]
    assert left.get_xscale() == "log"
    means = [bars.lines[0].get_xydata().tolist() for bars in left.containers]
    assert means == [[[64, 50], [512, pytest.approx(60)]], [[64, 70], [512, 90]]]
    heights = [segment[1][1] - segment[0][1] for segment in left.containers[0].lines[2][0].get_segments()]
    assert heights == pytest.approx([2 * 100 * 0.02**0.5] * 2), "one standard deviation to each side"
    curves = [line.get_xydata().tolist() for line in right.lines if len(line.get_xydata()) > 1]
    assert len(curves) == len(rows)
    assert curves[0] == [[2, 20], [4, 40]]


def test_the_picture_is_drawn_whatever_became_of_the_trials_and_whatever_was_swept():
    rows = rows_of(VALUES)
    for row, state in zip(rows, ["waiting", "running", "stopped", "failed", "done"], strict=False):
        row.state = state
    rows[0].curve = []
    axes = {"pretext.name": ["jigsaw", "rotation"], "loss.pretext_weight": ["0.5", "1"]}
    words = [Row(trial, "done", [Point(4, 0.5, 1.0)]) for trial in trials_of(digits(), axes, 1)]
    for some in (rows, [Row(row.trial) for row in rows], words, words[:1]):
        png = png_of(some, "knn", "digits")
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", png[16:24]) == (1560, 600)


def test_the_tables_show_each_trial_and_each_point():
    rows = rows_of(VALUES)
    rows[0].state, rows[0].error = "failed", "no space left"
    trials, groups = trials_table(rows, "linear_res5"), groups_table(rows, "linear_res5")
    assert (trials.row_count, groups.row_count) == (8, 4)
    assert list(trials.columns[-1].cells)[:2] == ["failed: no space left", "done"]
    assert list(groups.columns[-2].cells)[1] == "70.0 ± 14.1"
