"""What a sweep knows of its trials, as it is kept in `sweep.json` and `sweep.csv`."""

import csv
import io
import json
import shlex
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from jobs.settings import recipe_for
from pirl.config import leaves
from pirl.storage.folder import Folder
from pirl.wording import text_of, typed
from tune.curve import Metric, Point
from tune.points import RECIPE, Trial, group_name

RowState = Literal["waiting", "starting", "running", "done", "stopped", "failed"]
"""`starting` until the first line of its metrics; `stopped` by the scheduler, before the end. What is cut off with the
sweep is `waiting` again."""

SWEEP = "sweep.json"


@dataclass
class Row:
    """What is known of a trial.

    Attributes:
        state: Where it stands.
        curve: What was measured, in order.
        error: Why it failed.
        told: Epochs and seconds of training that it told of last; more than those of the last measurement.
    """

    trial: Trial
    state: RowState = "waiting"
    curve: list[Point] = field(default_factory=list)
    error: str | None = None
    told: tuple[float, float] = (0.0, 0.0)

    @property
    def last(self) -> Point | None:
        """The newest measurement."""
        return self.curve[-1] if self.curve else None

    @property
    def trained(self) -> tuple[float, float]:
        """Epochs, and seconds of training, until now."""
        return max(self.told, (self.last.epoch, self.last.train_s)) if self.last else self.told

    @property
    def ended(self) -> bool:
        """Whether this sweep is through with it, however it went."""
        return self.state in ("done", "stopped", "failed")

    def as_dict(self, storage: Folder) -> dict[str, Any]:
        """What `sweep.json` says of it."""
        epoch, metric, train_s = self.last or (None, None, None)
        return {
            "name": self.trial.name,
            "values": dict(self.trial.values),
            "seed": self.trial.seed,
            "state": self.state,
            "epoch": epoch,
            "metric": metric,
            "train_s": train_s,
            "error": self.error,
            "folder": str(storage / self.trial.name),
            "curve": self.curve,
        }


@dataclass(frozen=True)
class SeedGroup:
    """Trials that differ in the seed alone; those that were trained to their end count.

    Attributes:
        values: What they have in common.
        done: How many count.
        stopped: How many the scheduler stopped.
        of: How many there are.
        mean: Of the metric. None if none counts, or if one was stopped: seeds that won a race are better than most.
        deviation: Standard deviation over seeds (n - 1); None without a mean, or below two.
    """

    values: dict[str, Any]
    done: int
    stopped: int
    of: int
    mean: float | None
    deviation: float | None

    @property
    def name(self) -> str:
        """As `group_name` calls its trials."""
        return json.dumps(self.values, sort_keys=True)


def groups_of(rows: Iterable[Row]) -> list[SeedGroup]:
    """The groups, in the order of the trials."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(group_name(row.trial), []).append(row)
    return [_group(members) for members in by_name.values()]


def best_of(rows: Iterable[Row], metric: Metric) -> Row | None:
    """The trial with the best last measurement, of those that were trained to their end."""
    done = [row for row in rows if row.state == "done" and row.last]
    sign = -1 if metric == "loss" else 1
    return max(done, key=lambda row: sign * row.curve[-1].metric, default=None)


def repeat(trial: Trial, recipe: str, storage: Folder) -> str:
    """The command that trains a trial alone, beside the sweep's folder: its values, and what is not its recipe's."""
    recipe = trial.values.get(RECIPE, recipe)
    usual, told = leaves(recipe_for(recipe, leaves(trial.config))), {*trial.values, "seed"}
    given = {name: value for name, value in leaves(trial.config).items() if name in told or value != usual[name]}
    settings = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", typed(value))]
    place = ["--run", trial.name, "--storage", str(storage.parent)]
    return shlex.join(["python", "jobs/pretrain.py", recipe, *settings, *place])


def write(storage: Folder, rows: list[Row], metric: Metric, recipe: str, command: str) -> None:
    """Writes `sweep.csv` and `sweep.json` into the sweep's folder; the command makes it again, or goes on with it."""
    best = best_of(rows, metric)
    content = {
        "command": command,
        "metric": metric,
        "config": rows[0].trial.config.model_dump(mode="json"),
        "best": {**best.as_dict(storage), "command": repeat(best.trial, recipe, storage)} if best else None,
        "groups": [asdict(group) for group in groups_of(rows)],
        "trials": [row.as_dict(storage) for row in rows],
    }
    storage.write("sweep.csv", as_csv(rows, metric))
    storage.write(SWEEP, json.dumps(content, indent=2) + "\n")


def as_csv(rows: list[Row], metric: Metric) -> str:
    """A line for each trial, with the mean and the deviation of its group."""
    names = [*rows[0].trial.values]
    groups = {group.name: group for group in groups_of(rows)}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trial", *names, "seed", "state", "epoch", metric, "train_s", "mean", "deviation", "error"])
    for row in rows:
        group = groups[group_name(row.trial)]
        values = [text_of(row.trial.values[name]) for name in names]
        last = row.last or (None, None, None)
        table.writerow(
            [row.trial.name, *values, row.trial.seed, row.state, *last, group.mean, group.deviation, row.error]
        )
    return text.getvalue()


def _group(members: list[Row]) -> SeedGroup:
    reached = [row.curve[-1].metric for row in members if row.state == "done" and row.last]
    stopped = sum(row.state == "stopped" for row in members)
    return SeedGroup(
        values=dict(members[0].trial.values),
        done=len(reached),
        stopped=stopped,
        of=len(members),
        mean=statistics.fmean(reached) if reached and not stopped else None,
        deviation=statistics.stdev(reached) if len(reached) > 1 and not stopped else None,
    )
