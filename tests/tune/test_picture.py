"""The picture of a sweep, by what is drawn: axes, lines, points and words."""

import itertools
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from matplotlib.text import Text

from pirl.recipes import digits
from tests.tune.test_rows import VALUES, rows_of
from tune.curve import Point
from tune.points import trials_at, trials_of
from tune.rows import Row
from tune.show.picture import draw, png_of


def grid(axes: Mapping[str, Sequence[Any]], seeds: int = 1) -> list[Row]:
    """Trials that were trained for 40 epochs, and reached other numbers."""
    trials = trials_of(digits(), axes, seeds)
    return [Row(trial, "done", [Point(40, 0.5 + number / 100, 60.0)]) for number, trial in enumerate(trials)]


def searched(axes: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Points with the first, the second ... value of each setting."""
    points = [dict(zip(axes, values, strict=True)) for values in zip(*axes.values(), strict=True)]
    trials = [trials_at(digits(), point, 1)[0] for point in points]
    return [Row(trial, "done", [Point(40, 0.5 + number / 100, 60.0)]) for number, trial in enumerate(trials)]


def ticks(panel: Any) -> list[str]:
    panel.figure.canvas.draw()
    low, high = panel.get_xlim()
    labels = zip(panel.get_xticks(), panel.get_xticklabels(), strict=True)
    return [label.get_text() for place, label in labels if low <= place <= high]


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_picture_has_a_line_for_each_number_of_epochs_and_a_curve_for_each_trial():
    rows = rows_of(VALUES)
    figure = draw(rows, "linear_res5", "digits")
    left, right = figure.axes
    assert legend(figure) == ["epochs 2", "epochs 4"]
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


def test_a_setting_with_one_value_is_in_the_title_and_goes_not_across():
    figure = draw(grid({"loss.num_negatives": [256], "optim.lr": [0.03, 0.1]}), "linear_res5", "digits")
    left, _ = figure.axes
    assert left.get_xlabel() == "optim.lr"
    assert len(left.containers) == 1, "one line with both rates"
    assert figure.get_suptitle() == "digits   (num_negatives 256)"


def test_negatives_are_on_a_log_axis_however_near_they_are():
    left, _ = draw(grid({"loss.num_negatives": [256, 1024]}), "linear_res5", "digits").axes
    assert (left.get_xscale(), left.get_xlabel()) == ("log", "loss.num_negatives (log scale)")
    assert ticks(left) == ["256", "1024"]


def test_a_null_stands_beside_numbers():
    """As a word: with one line it is across, with two it may be in one line alone."""
    left, _ = draw(grid({"optim.clip_norm": [None, 1.0, 0.5]}, seeds=2), "knn", "digits").axes
    assert ticks(left) == ["0.5", "1", "null"]
    points = left.containers[0].lines[0]
    assert points.get_xdata().tolist() == [0, 1, 2]
    assert points.get_linestyle() == "None", "nothing lies between words"
    two = grid({"optim.clip_norm": [None, 0.5], "pretext.name": ["jigsaw", "rotation"]})
    figure = draw(two, "knn", "digits")
    assert ticks(figure.axes[0]) == ["0.5", "null"]
    assert legend(figure) == ["name jigsaw", "name rotation"]


def test_the_points_of_a_search_are_not_joined_and_have_round_ticks():
    rates = [float(f"{0.001 * 300 ** (number * 7 % 20 / 19):.3g}") for number in range(20)]
    figure = draw(searched({"optim.lr": rates}), "linear_res5", "digits", searched=True)
    left, _ = figure.axes
    assert {bars.lines[0].get_linestyle() for bars in left.containers} == {"None"}
    assert sum(len(bars.lines[0].get_xdata()) for bars in left.containers) == 20
    assert ticks(left) == ["0.001", "0.002", "0.005", "0.01", "0.02", "0.05", "0.1", "0.2"]
    assert legend(figure) == ["other points", f"best: lr {rates[-1]:g}"]


def test_a_search_of_one_point_has_nothing_but_a_best_one():
    figure = draw(searched({"optim.lr": [0.01], "loss.temperature": [0.1]}), "loss", "digits", searched=True)
    assert legend(figure) == ["best: lr 0.01"]
    waiting = searched({"optim.lr": [0.01, 0.02]})
    for row in waiting:
        row.state, row.curve = "waiting", []
    assert legend(draw(waiting, "loss", "digits", searched=True)) == ["other points", "2 waiting"]


def test_points_that_are_no_grid_are_drawn_against_each_setting():
    axes = {"optim.lr": [0.01, 0.03, 0.1], "loss.temperature": [0.05, 0.1, 0.07]}
    figure = draw(searched(axes), "linear_res5", "digits")
    *lefts, right = figure.axes
    assert [panel.get_xlabel() for panel in lefts] == ["optim.lr (log scale)", "loss.temperature"]
    assert right.get_xlabel() == "seconds of training"
    for panel, values in zip(lefts, axes.values(), strict=True):
        drawn = [tuple(xy) for bars in panel.containers for xy in bars.lines[0].get_xydata().tolist()]
        assert sorted(drawn) == [pytest.approx(xy) for xy in sorted(zip(values, (50, 51, 52), strict=True))]


def test_nine_lines_are_told_apart_and_named_beside_the_panels():
    axes = {"loss.num_negatives": [256, 1024], "optim.lr": [0.01, 0.03, 0.1], "loss.temperature": [0.05, 0.07, 0.1]}
    figure = draw(grid(axes), "linear_res5", "digits")
    left, right = figure.axes
    lines = [bars.lines[0] for bars in left.containers]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 9
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 9
    assert len(legend(figure)) == 9
    figure.canvas.draw()
    assert not any(figure.legends[0].get_window_extent().overlaps(panel.get_window_extent()) for panel in (left, right))


def test_the_texts_beside_the_ends_do_not_lie_on_each_other():
    rows = grid({"loss.pretext_weight": [number / 10 for number in range(11)]})
    for row in rows:
        row.curve = [Point(40, 0.9, 60.0)]
    _, right = draw(rows, "linear_res5", "digits").axes
    right.figure.canvas.draw()
    extents = [Text.get_window_extent(text) for text in right.texts]  # without the line to the curve's end
    places = sorted(extent.y0 for extent in extents)
    assert len(places) == 11
    letters = extents[0].height
    assert all(high - low >= 0.9 * letters for low, high in itertools.pairwise(places))


def test_times_are_in_a_unit_that_is_read_easily():
    rows = grid({"optim.lr": [0.01, 0.03]})
    for seconds, words, end in [(90.0, "seconds", 90), (1200.0, "minutes", 20), (36000.0, "hours", 10)]:
        rows[1].curve = [Point(20, 0.4, seconds / 2), Point(40, 0.5, seconds)]
        _, right = draw(rows, "linear_res5", "digits").axes
        assert right.get_xlabel() == f"{words} of training"
        assert max(line.get_xdata()[-1] for line in right.lines) == end


def test_a_trial_that_did_not_reach_its_end_is_counted_and_marked():
    rows = rows_of(VALUES)
    rows[0].state, rows[1].state, rows[2].state, rows[2].curve = "stopped", "failed", "failed", []
    figure = draw(rows, "linear_res5", "digits")
    assert legend(figure) == ["epochs 2", "epochs 4", "1 stopped", "2 failed"]
    assert [line.get_marker() for line in figure.axes[1].lines if line.get_marker() in "Xs"] == ["X", "s"]


def test_a_point_of_which_a_seed_was_stopped_is_not_drawn_and_the_line_has_a_gap():
    rows = grid({"loss.num_negatives": [64, 256, 1024], "optim.lr": [0.01, 0.03]}, seeds=2)
    rows[4].state = "stopped"
    left, _ = draw(rows, "linear_res5", "digits").axes
    first, second = (bars.lines[0].get_xydata().tolist() for bars in left.containers)
    assert [x for x, y in first if not math.isnan(y)] == [64, 1024]
    assert [x for x, _ in first] == [x for x, _ in second] == [64, 256, 1024]


def test_one_epoch_is_a_point_and_close_numbers_stay_close():
    left, right = draw(grid({"optim.lr": [0.01, 0.03]}), "linear_res5", "digits").axes
    assert right.get_xlim()[0] == 0
    assert right.get_xlim()[1] > 60
    low, high = left.get_ylim()
    assert high - low == pytest.approx(1.1)
    assert not any(math.isnan(y) for bars in left.containers for y in bars.lines[0].get_ydata())
