"""The picture of a sweep: what the settings change, and what each trial had reached when."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import offset_copy

from pirl.wording import short_names, text_of
from tune.curve import Metric
from tune.points import group_name
from tune.rows import Row, SeedGroup, groups_of
from tune.show.axis import Axis, axis_of, shortened

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Okabe and Ito's, which people with any kind of colour vision tell apart."""

STYLES = (("-", "o"), ("--", "D"), (":", "^"), ("-.", "v"))
"""Lines and marks; the next ones are taken where the colours begin again."""

ENDS = {"done": "o", "stopped": "X", "failed": "s"}
"""Marks at the ends of curves."""

MEASURED = {
    "linear_res5": "accuracy of a linear probe of res5, %",
    "knn": "accuracy of kNN on res5, %",
    "loss": "loss",
}

NAMED = 24
"""Groups of trials of which each has its value written beside its curve."""

LEAST = {"linear_res5": 1.0, "knn": 1.0, "loss": 0.01}
"""What the axis of the means spans at least: what is closer is not made to look far apart."""

NEAR = 40.0
"""Points between ends whose texts would meet."""

LINE = 10.0
"""Points from a text to the next one above it."""

End = tuple[float, float, float, float, str]
"""Where a curve ends, from the left and from below: in points, in the panel's units; and what is written there."""

Style = dict[str, Any]
"""Colour, line and mark, as matplotlib calls them."""


def png_of(rows: list[Row], metric: Metric, name: str, searched: bool = False) -> bytes:
    """The picture as a PNG file."""
    figure = draw(rows, metric, name, searched)
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=120)
        plt.close(figure)
        return file.getvalue()


def draw(rows: list[Row], metric: Metric, name: str, searched: bool = False) -> Figure:
    """Draws the metric after training against settings, and that of each trial against the time of its training.

    A grid is drawn against one setting, with a line for each combination of the others; points that are no whole
    grid, or that were searched, against each setting on its own.
    """
    groups = groups_of(rows)
    axes = [axis_of(setting, [group.values[setting] for group in groups]) for setting in groups[0].values]
    several = [axis for axis in axes if len(axis.places) > 1] or axes[:1]
    is_grid = not searched and len(groups) == math.prod(len(axis.places) for axis in several)
    across = [main_axis(several)] if is_grid else several
    others = [axis.setting for axis in several if axis not in across]
    lines = lines_by(groups, others) if is_grid else best_and_rest(groups, [axis.setting for axis in across], metric)
    styles = {title: style(number) for number, title in enumerate(lines)}
    figure, (*lefts, right) = panels(len(across) + 1)
    for panel, axis in zip(lefts, across, strict=True):
        draw_means(panel, axis, lines, styles, metric, joined=is_grid)
    by_group = {group.name: title for title, members in lines.items() for group in members}
    draw_curves(right, rows, [styles[by_group[group_name(row.trial)]] for row in rows], metric)
    if is_grid and len(across[0].places) > 1 and len(groups) <= NAMED:
        name_ends(right, rows, across[0].setting, metric)
    for panel in (*lefts, right):
        panel.set_ylabel(MEASURED[metric])
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    explain(figure, styles, rows)
    same = {axis.setting: groups[0].values[axis.setting] for axis in axes if len(axis.places) == 1}
    figure.suptitle(f"{name}   ({in_words(same)})" if same else name, fontweight="bold")
    return figure


def panels(number: int) -> tuple[Figure, list[Axes]]:
    """An empty figure with so many panels, at most three in a row."""
    rows = math.ceil(number / 3)
    columns = math.ceil(number / rows)
    figure, grid = plt.subplots(rows, columns, figsize=(6.5 * columns, 5 * rows), layout="constrained", squeeze=False)
    for spare in grid.flat[number:]:
        spare.remove()
    return figure, [*grid.flat[:number]]


def main_axis(axes: Sequence[Axis]) -> Axis:
    """The setting that goes across: the negatives, else the first with numbers, else the first."""
    return min(axes, key=lambda axis: (axis.setting != "loss.num_negatives", not axis.is_number))


def lines_by(groups: Sequence[SeedGroup], settings: Sequence[str]) -> dict[str, list[SeedGroup]]:
    """The groups that have the same values of some settings, by these in words."""
    lines: dict[str, list[SeedGroup]] = {}
    for group in groups:
        lines.setdefault(in_words({name: group.values[name] for name in settings}), []).append(group)
    return lines


def best_and_rest(groups: Sequence[SeedGroup], settings: Sequence[str], metric: Metric) -> dict[str, list[SeedGroup]]:
    """The best point, by its values in words, and all others."""
    sign = -1 if metric == "loss" else 1
    known = [group for group in groups if group.mean is not None]
    best = max(known, key=lambda group: sign * (group.mean or 0.0), default=None)
    lines = {"other points": [group for group in groups if group is not best]}
    if best:
        lines["best: " + in_words({name: best.values[name] for name in settings})] = [best]
    return {title: members for title, members in lines.items() if members}


def in_words(values: Mapping[str, Any]) -> str:
    """`epochs 5, lr 0.1`."""
    short = short_names([*values])
    return ", ".join(f"{short[name]} {text_of(value)}" for name, value in values.items())


def style(number: int) -> Style:
    """The look of a line, each number's own."""
    line, mark = STYLES[number // len(COLORS) % len(STYLES)]
    return {"color": COLORS[number % len(COLORS)], "linestyle": line, "marker": mark}


def draw_means(
    panel: Axes,
    axis: Axis,
    lines: Mapping[str, Sequence[SeedGroup]],
    styles: Mapping[str, Style],
    metric: Metric,
    joined: bool,
) -> None:
    """The means against a setting; bars of one standard deviation where there is one, beside those of other lines."""
    flat = [group for groups in lines.values() for group in groups]
    overlap = not axis.is_number or any(group.deviation for group in flat)
    apart = min(5.0, 24.0 / len(lines)) if joined and overlap else 0.0
    for number, (title, groups) in enumerate(lines.items()):
        ordered = sorted(groups, key=lambda group: axis.place(group.values))
        x = [axis.place(group.values) for group in ordered]
        y = [in_unit(group.mean, metric) for group in ordered]
        spread = [in_unit(group.deviation, metric) for group in ordered]
        look = styles[title] if joined and axis.is_number else {**styles[title], "linestyle": "none"}
        beside = (number - (len(lines) - 1) / 2) * apart
        place = offset_copy(panel.transData, panel.get_figure(root=True), beside, units="points")
        panel.errorbar(x, y, yerr=spread, capsize=4, linewidth=1.8, transform=place, **look)
    axis.mark(panel)
    seeds = max(group.of for group in flat)
    panel.set_title("after training" + (f": mean and standard deviation over {seeds} seeds" if seeds > 1 else ""))
    means = [(group.mean, group.deviation or 0.0) for group in flat if group.mean is not None]
    ends = [in_unit(mean + side * deviation, metric) for mean, deviation in means for side in (-1, 1)]
    if not ends:
        say(panel, "no trial was trained to its end")
        return
    middle, room = (min(ends) + max(ends)) / 2, max(max(ends) - min(ends), LEAST[metric])
    panel.set_ylim(middle - 0.55 * room, middle + 0.55 * room)


def draw_curves(panel: Axes, rows: Sequence[Row], styles: Sequence[Style], metric: Metric) -> None:
    """All trials; the end of each is marked by what became of it."""
    panel.set_title("each trial during training")
    longest = longest_of(rows)
    unit, name = unit_of_time(longest)
    panel.set_xlabel(f"{name} of training")
    if not longest:
        panel.set_xticks([])
        say(panel, "nothing was measured")
        return
    panel.set_xlim(0, 1.1 * longest / unit)
    for row, look in zip(rows, styles, strict=True):
        if row.last is None:
            continue
        x = [point.train_s / unit for point in row.curve]
        y = [in_unit(point.metric, metric) for point in row.curve]
        panel.plot(x, y, color=look["color"], linestyle=look["linestyle"], linewidth=1.1, alpha=0.7)
        panel.plot(x[-1], y[-1], **end_of(row.state, look["color"]))


def name_ends(panel: Axes, rows: Sequence[Row], setting: str, metric: Metric) -> None:
    """Writes the value of a setting beside the trials' ends, once for those that differ in the seed alone."""
    unit, _ = unit_of_time(longest_of(rows))
    highest: dict[str, tuple[float, float, str]] = {}
    for row in rows:
        if row.last:
            text = shortened(text_of(row.trial.values[setting]))
            end = (in_unit(row.last.metric, metric), row.last.train_s / unit, text)
            highest[group_name(row.trial)] = max(end, highest.get(group_name(row.trial), end))
    panel.autoscale_view()
    scale = 72 / panel.figure.dpi
    ends = [(*panel.transData.transform((x, y)) * scale, x, y, text) for y, x, text in highest.values()]
    for column in columns_of(sorted(ends)):
        right = max(across for across, *_ in column)
        heights = spread_out([up for _, up, *_ in column], panel.bbox.y1 * scale)
        for (across, up, x, y, text), height in zip(column, heights, strict=True):
            panel.annotate(
                text,
                (x, y),
                (right - across + 18, height - up),
                textcoords="offset points",
                va="center",
                fontsize=8,
                arrowprops={"arrowstyle": "-", "color": "gray", "linewidth": 0.6, "relpos": (0, 0.5), "shrinkB": 3},
            )
    panel.set_title(f"each trial during training; beside the highest seed's end: {setting.rpartition('.')[2]}")


def columns_of(ends: Sequence[End]) -> list[list[End]]:
    """Ends, from left to right, that are so near that their texts stand in one column, from below."""
    columns: list[list[End]] = []
    for end in ends:
        if columns and end[0] - columns[-1][-1][0] < NEAR:
            columns[-1].append(end)
        else:
            columns.append([end])
    return [sorted(column, key=lambda end: end[1]) for column in columns]


def spread_out(heights: Sequence[float], ceiling: float) -> list[float]:
    """Heights, from below, moved apart so that a line of text fits at each, around where they are."""
    apart: list[float] = []
    for height in heights:
        apart.append(max(height, apart[-1] + LINE) if apart else height)
    too_high = max((sum(apart) - sum(heights)) / len(heights), apart[-1] - ceiling)
    return [height - too_high for height in apart]


def say(panel: Axes, text: str) -> None:
    """Writes why a panel is empty."""
    panel.set_yticks([])
    panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", color="gray")


def explain(figure: Figure, styles: Mapping[str, Style], rows: Sequence[Row]) -> None:
    """Says below the panels what lines and marks mean, as far as there are several."""
    lines = [Line2D([], [], label=title, **look) for title, look in styles.items() if title]
    count = {state: sum(row.state == state for row in rows) for state in dict.fromkeys(row.state for row in rows)}
    others = [state for state in count if state != "done"]
    ends = [Line2D([], [], label=f"{count[state]} {state}", **end_of(state, "gray")) for state in others]
    if lines or ends:
        figure.legend(handles=[*lines, *ends], loc="outside lower center", ncols=5, frameon=False)


def end_of(state: str, color: str) -> Style:
    """The mark of a trial in that state."""
    face = color if state == "done" else "white"
    return {"color": color, "markerfacecolor": face, "marker": ENDS.get(state, "<"), "linestyle": "", "markersize": 6}


def longest_of(rows: Sequence[Row]) -> float:
    """Seconds of the longest training; 0 before the first measurement."""
    return max((row.last.train_s for row in rows if row.last), default=0.0)


def unit_of_time(longest: float) -> tuple[float, str]:
    """The seconds that a unit has, and its name, for times up to the longest."""
    if longest >= 2 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if longest >= 600 else (1.0, "seconds")


def in_unit(value: float | None, metric: Metric) -> float:
    """A value in the unit of `MEASURED`; not a number, which is not drawn, where there is none."""
    return math.nan if value is None else value if metric == "loss" else 100 * value
