"""What a sweep knows of its trials, as it is kept in `sweep.json` and `sweep.csv`."""

import csv
import io
import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pirl.folder import Folder
from tune.measured import Metric, Point
from tune.space import Trial, group_name

State = Literal["waiting", "starting", "running", "done", "stopped", "failed"]
"""`running` from the first measurement on; `stopped` by the scheduler, before the end. What is cut off with the sweep
is `waiting` again."""

SWEEP = "sweep.json"


@dataclass
class Row:
    """What is known of a trial.

    Attributes:
        state: Where it stands.
        curve: What was measured, in order.
        error: Why it failed.
        began: When it started to run in this process, as `time.monotonic()` tells it.
    """

    trial: Trial
    state: State = "waiting"
    curve: list[Point] = field(default_factory=list)
    error: str | None = None
    began: float = 0.0

    @property
    def last(self) -> Point | None:
        """The newest measurement."""
        return self.curve[-1] if self.curve else None

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
class Group:
    """Trials that differ in the seed alone; those that were trained to their end count.

    Attributes:
        values: What they have in common.
        done: How many count.
        of: How many there are.
        mean: Of the metric; None if none counts.
        deviation: Standard deviation over seeds (n - 1); None below two.
    """

    values: dict[str, Any]
    done: int
    of: int
    mean: float | None
    deviation: float | None


def groups_of(rows: Iterable[Row]) -> list[Group]:
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


def write(storage: Folder, rows: list[Row], metric: Metric, command: str) -> None:
    """Writes `sweep.csv` and `sweep.json`.

    Args:
        storage: The sweep's folder.
        rows: All trials.
        metric: What was measured.
        command: Makes the sweep again, or goes on with it.
    """
    best = best_of(rows, metric)
    content = {
        "command": command,
        "metric": metric,
        "best": best.as_dict(storage) if best else None,
        "groups": [asdict(group) for group in groups_of(rows)],
        "trials": [row.as_dict(storage) for row in rows],
    }
    storage.write("sweep.csv", as_csv(rows, metric))
    storage.write(SWEEP, json.dumps(content, indent=2) + "\n")


def as_csv(rows: list[Row], metric: Metric) -> str:
    """A line for each trial, with the mean and the deviation of its group."""
    names = [*rows[0].trial.values]
    groups = {json.dumps(group.values, sort_keys=True): group for group in groups_of(rows)}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trial", *names, "seed", "state", "epoch", metric, "train_s", "mean", "deviation", "error"])
    for row in rows:
        group = groups[group_name(row.trial)]
        values = [row.trial.values[name] for name in names]
        last = row.last or (None, None, None)
        table.writerow(
            [row.trial.name, *values, row.trial.seed, row.state, *last, group.mean, group.deviation, row.error]
        )
    return text.getvalue()


def stopped_before(storage: Folder, metric: Metric) -> dict[str, int]:
    """At which epoch the scheduler stopped which trials, before the same sweep was cut off."""
    known = json.loads(storage.find(SWEEP) or "{}")
    if known.get("metric") != metric:
        return {}
    return {trial["name"]: trial["epoch"] for trial in known["trials"] if trial["state"] == "stopped"}


def _group(members: list[Row]) -> Group:
    reached = [row.curve[-1].metric for row in members if row.state == "done" and row.last]
    return Group(
        values=dict(members[0].trial.values),
        done=len(reached),
        of=len(members),
        mean=statistics.fmean(reached) if reached else None,
        deviation=statistics.stdev(reached) if len(reached) > 1 else None,
    )
