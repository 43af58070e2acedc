"""What a sweep shows while it runs, and the tables that it ends with."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.console import Group as Lines
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pirl.wording import short_names, text_of
from tune.curve import Metric
from tune.rows import Row, groups_of

COLORS = {
    "running": "cyan",
    "starting": "cyan",
    "failed": "red",
    "done": "green",
    "stopped": "yellow",
    "waiting": "dim",
}
"""Of the states; those come first that are shown where a terminal has no room for all trials."""

AROUND = 4
"""Lines around the trials that are shown: the table's head, the counts, and where a shell writes."""

FRAME: dict[str, Any] = {"box": SIMPLE_HEAD, "show_edge": False, "padding": (0, 1, 0, 0), "pad_edge": False}
"""Of tables."""


def open_console() -> Console:
    """Where a sweep is shown. Texts are shown as they are: errors have words in brackets, too."""
    return Console(width=None if sys.stdout.isatty() else 140, markup=False, emoji=False, highlight=False)


@contextmanager
def showing(console: Console, rows: list[Row], metric: Metric) -> Iterator[Callable[[Row, str], None]]:
    """Shows the trials while the block runs: a table in a terminal, else a line for each change.

    Yields:
        What is to be called after each change of a row, with its state before.
    """
    if console.is_terminal:
        with Live(
            get_renderable=lambda: live_view(rows, metric, console.height),
            console=console,
            refresh_per_second=2,
            transient=True,  # in its place comes the table of all trials
        ):
            yield lambda row, before: None
    else:
        yield lambda row, before: console.print(change_line(row, before, metric), soft_wrap=True)


def live_view(rows: list[Row], metric: Metric, height: int) -> Lines:
    """The trials that there is room for in a terminal of some lines, in their order, and the counts of all."""
    room = max(1, height - AROUND)
    chosen = sorted(range(len(rows)), key=lambda number: [*COLORS].index(rows[number].state))[:room]
    left = len(rows) - len(chosen)
    more = f"; {left} not shown" if left else ""
    table = trials_table([rows[number] for number in sorted(chosen)], metric, wrap=False)
    return Lines(table, Text(counts(rows) + more, no_wrap=True, overflow="ellipsis"))


def trials_table(rows: list[Row], metric: Metric, wrap: bool = True) -> Table:
    """Trial by trial: parameters, epoch, metric, time of training, state, and errors if there are any.

    A trial may take several lines (`wrap`), or its texts are cut.
    """

    def cell(text: str) -> Text:
        return Text(text, no_wrap=not wrap, overflow="fold" if wrap else "ellipsis")

    names = [*rows[0].trial.values]
    failed = any(row.error for row in rows)
    table = Table(**FRAME)
    for name in [*short_names(names).values(), "seed", "epoch", label(metric), "time"]:
        table.add_column(cell(name), justify="right")
    for name in ["state", "error"] if failed else ["state"]:
        table.add_column(cell(name))
    for row in rows:
        epochs, seconds = row.trained
        texts = [
            *(text_of(row.trial.values[name]) for name in names),
            str(row.trial.seed),
            f"{round(epochs, 1):g}/{row.trial.config.optim.epochs}",
            shown(row.last.metric, metric) if row.last else "",
            str(timedelta(seconds=round(seconds))),
            row.state,
            *([(row.error or "").partition("\n")[0]] if failed else []),
        ]
        table.add_row(*map(cell, texts), style=COLORS[row.state])
    return table


def counts(rows: list[Row]) -> str:
    """How many trials are in which state."""
    number = {state: sum(row.state == state for row in rows) for state in COLORS}
    return ", ".join(f"{number[state]} {state}" for state in COLORS if number[state])


def groups_table(rows: list[Row], metric: Metric) -> Table:
    """Mean and deviation over seeds for each point of the grid."""
    groups = groups_of(rows)
    table = Table(title=f"{label(metric)}, mean ± standard deviation over seeds", title_justify="left", **FRAME)
    for name in [*short_names([*groups[0].values]).values(), label(metric), "trials"]:
        table.add_column(name, justify="right")
    for group in groups:
        mean = "" if group.mean is None else shown(group.mean, metric)
        spread = "" if group.deviation is None else f" ± {shown(group.deviation, metric)}"
        counted = str(group.done) if group.done == group.of else f"{group.done} of {group.of}"
        stopped = f", {group.stopped} stopped" if group.stopped else ""
        table.add_row(*map(text_of, group.values.values()), mean + spread, counted + stopped)
    return table


def change_line(row: Row, before: str, metric: Metric) -> str:
    """One change, for a log."""
    if row.state != "running" or before != "running":
        what = f"{row.state}: {row.error}" if row.error else row.state
    else:
        what = f"epoch {row.last.epoch}/{row.trial.config.optim.epochs}" if row.last else "running"
    number = f"   {label(metric)} {shown(row.last.metric, metric)}" if row.last else ""
    return f"{row.trial.name}   {what}{number}"


def label(metric: Metric) -> str:
    """The metric and its unit."""
    return {"linear_res5": "linear res5 %", "knn": "kNN res5 %", "loss": "loss"}[metric]


def shown(value: float, metric: Metric) -> str:
    """A value in the unit of `label`."""
    return f"{value:.3f}" if metric == "loss" else f"{100 * value:.1f}"
