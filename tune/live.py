"""What a sweep shows while it runs, and the tables that it ends with."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.live import Live
from rich.table import Table

from tune.measured import Metric
from tune.results import Row, groups_of
from tune.space import short_names

COLORS = {
    "waiting": "dim",
    "starting": "cyan",
    "running": "cyan",
    "done": "green",
    "stopped": "yellow",
    "failed": "red",
}
"""Of the states, in the order in which a trial may have them."""


@contextmanager
def showing(console: Console, rows: list[Row], metric: Metric) -> Iterator[Callable[[Row, str], None]]:
    """Shows the trials while the block runs: a table in a terminal, else a line for each change.

    Yields:
        What is to be called after each change of a row, with its state before.
    """
    if console.is_terminal:
        with Live(get_renderable=lambda: trials_table(rows, metric), console=console, refresh_per_second=2):
            yield lambda row, before: None
    else:
        yield lambda row, before: console.print(change_line(row, before, metric), soft_wrap=True, highlight=False)


def trials_table(rows: list[Row], metric: Metric) -> Table:
    """Trial by trial: parameters, epoch, metric, state and time."""
    names = [*rows[0].trial.values]
    short = short_names(names)
    count = {state: sum(row.state == state for row in rows) for state in COLORS}
    table = Table(caption=", ".join(f"{number} {state}" for state, number in count.items() if number))
    for name in [*(short[name] for name in names), "seed"]:
        table.add_column(name, justify="right")
    for name in ("epoch", label(metric), "time", "state"):
        table.add_column(name, justify="left" if name == "state" else "right")
    for row in rows:
        epochs = row.trial.config.optim.epochs
        table.add_row(
            *(str(row.trial.values[name]) for name in names),
            str(row.trial.seed),
            f"{row.last.epoch}/{epochs}" if row.last else f"0/{epochs}",
            shown(row.last.metric, metric) if row.last else "",
            elapsed(row),
            f"{row.state}: {row.error.splitlines()[0]}" if row.error else row.state,
            style=COLORS[row.state],
        )
    return table


def groups_table(rows: list[Row], metric: Metric) -> Table:
    """Mean and deviation over seeds for each point of the grid."""
    groups = groups_of(rows)
    short = short_names([*groups[0].values])
    table = Table(title=f"{label(metric)}, mean ± standard deviation over seeds")
    for name in short.values():
        table.add_column(name, justify="right")
    table.add_column(label(metric), justify="right")
    table.add_column("trials", justify="right")
    for group in groups:
        mean = "" if group.mean is None else shown(group.mean, metric)
        spread = "" if group.deviation is None else f" ± {shown(group.deviation, metric)}"
        counted = str(group.done) if group.done == group.of else f"{group.done} of {group.of}"
        table.add_row(*map(str, group.values.values()), mean + spread, counted)
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


def elapsed(row: Row) -> str:
    """How long a trial has been running, or for how long it was trained."""
    seconds = row.last.train_s if row.last else 0.0
    if row.state in ("starting", "running"):
        seconds = time.monotonic() - row.began
    return str(timedelta(seconds=round(seconds)))
