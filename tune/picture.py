"""The picture of a sweep: what the settings change, and what each trial had reached when."""

import io
from collections.abc import Mapping
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from tune.measured import Metric
from tune.results import Group, Row, groups_of
from tune.space import group_name, short_names, text_of

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Okabe and Ito's, which people with any kind of colour vision tell apart."""

ENDS = {"done": "o", "stopped": "X", "failed": "s"}
"""Marks at the ends of curves."""

MEASURED = {
    "linear_res5": "accuracy of a linear probe of res5, %",
    "knn": "accuracy of kNN on res5, %",
    "loss": "loss",
}

Line = tuple[tuple[str, Any], ...]
"""The settings that the points of a line have in common."""


def png_of(rows: list[Row], metric: Metric, name: str) -> bytes:
    """The picture as a PNG file."""
    figure = draw(rows, metric, name)
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=120)
        plt.close(figure)
        return file.getvalue()


def draw(rows: list[Row], metric: Metric, name: str) -> Figure:
    """Draws two panels: the metric after training against one setting, a line for each combination of the others;
    and the metric of each trial against the time of its training.
    """
    groups = groups_of(rows)
    across = axis_of(groups)
    short = short_names([*groups[0].values])
    lines = list(dict.fromkeys(line_of(group.values, across) for group in groups))
    colors = {line: COLORS[number % len(COLORS)] for number, line in enumerate(lines)}
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    for line in lines:
        members = [group for group in groups if line_of(group.values, across) == line]
        title = ", ".join(f"{text_of(value)} {short[setting]}" for setting, value in line)
        draw_means(left, members, across, metric, colors[line], title)
    for row in rows:
        draw_curve(right, row, metric, colors[line_of(row.trial.values, across)])
    name_ends(right, rows, across, metric)
    seeds = max(group.of for group in groups)
    left.set_title("after training" + (f": mean and standard deviation over {seeds} seeds" if seeds > 1 else ""))
    left.set_xlabel(across)
    mark_values(left, [group.values[across] for group in groups])
    if lines != [()]:
        left.legend()
    right.set_title(f"each trial during training; the numbers are {short[across]}")
    right.set_xlabel("seconds of training")
    explain_ends(right, {row.state for row in rows})
    for axes in (left, right):
        axes.set_ylabel(MEASURED[metric])
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(name, fontweight="bold")
    return figure


def axis_of(groups: list[Group]) -> str:
    """The setting that goes across: the negatives, else the first with several numbers, else the first."""
    names = [*groups[0].values]
    if "loss.num_negatives" in names:
        return "loss.num_negatives"
    several = [name for name in names if len({group.values[name] for group in groups}) > 1]
    return next((name for name in several if are_numbers([group.values[name] for group in groups])), names[0])


def line_of(values: Mapping[str, Any], across: str) -> Line:
    """What a point has in common with the others of its line."""
    return tuple((name, value) for name, value in values.items() if name != across)


def draw_means(axes: Axes, groups: list[Group], across: str, metric: Metric, color: str, title: str) -> None:
    """One line of means; bars of one standard deviation where there is one."""
    groups = [group for group in groups if group.mean is not None]
    if are_numbers([group.values[across] for group in groups]):
        groups = sorted(groups, key=lambda group: group.values[across])
    x = [place(group.values[across]) for group in groups]
    y = [in_unit(group.mean or 0.0, metric) for group in groups]
    spread = [in_unit(group.deviation or 0.0, metric) for group in groups]
    axes.errorbar(x, y, yerr=spread, color=color, label=title, marker="o", capsize=4, linewidth=1.8)


def draw_curve(axes: Axes, row: Row, metric: Metric, color: str) -> None:
    """One trial; its end is marked by what became of it."""
    if row.last is None:
        return
    x = [point.train_s for point in row.curve]
    y = [in_unit(point.metric, metric) for point in row.curve]
    axes.plot(x, y, color=color, linewidth=1.1, alpha=0.7)
    face = color if row.state == "done" else "white"
    axes.plot(x[-1], y[-1], ENDS.get(row.state, "<"), color=color, markerfacecolor=face, markersize=6)


def name_ends(axes: Axes, rows: list[Row], across: str, metric: Metric) -> None:
    """Writes the setting that goes across beside the trials' ends, once for those that differ in the seed alone."""
    ends: dict[str, Row] = {}
    for row in rows:
        last = ends.get(group_name(row.trial))
        if row.last and (last is None or last.last is None or row.last.metric > last.last.metric):
            ends[group_name(row.trial)] = row
    for row in ends.values():
        end = (row.curve[-1].train_s, in_unit(row.curve[-1].metric, metric))
        value = text_of(row.trial.values[across])
        axes.annotate(value, end, xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8)


def explain_ends(axes: Axes, states: set[str]) -> None:
    """Says what the marks mean, where not all trials are done."""
    if states == {"done"}:
        return
    for state in sorted(states):
        face = "gray" if state == "done" else "white"
        axes.plot([], [], ENDS.get(state, "<"), color="gray", markerfacecolor=face, label=state)
    axes.legend(loc="lower right")


def mark_values(axes: Axes, values: list[Any]) -> None:
    """Puts ticks where the values are; on a log axis where they are far apart."""
    if not are_numbers(values):
        return
    low, high = min(values), max(values)
    if low > 0 and high >= 8 * low:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sorted(set(values)), [text_of(value) for value in sorted(set(values))])


def are_numbers(values: list[Any]) -> bool:
    """Whether all are numbers, and not truth values."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def place(value: Any) -> Any:
    """Where a value lies: a number where it is, anything else as a category."""
    return value if are_numbers([value]) else str(value)


def in_unit(value: float, metric: Metric) -> float:
    """A value in the unit of `MEASURED`."""
    return value if metric == "loss" else 100 * value
