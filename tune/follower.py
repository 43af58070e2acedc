"""Keep the rows of a sweep up to date with what Ray Tune says of its trials."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune

from tune.measured import Point
from tune.results import Row, State


class Follower(tune.Callback):
    """Called by Tune in the driver's process.

    Args:
        rows: Their states, curves and errors are changed.
        changed: Called after each change, with the state before.
    """

    def __init__(self, rows: Sequence[Row], changed: Callable[[Row, str], None]) -> None:
        self.rows = {row.trial.name: row for row in rows}
        self.changed = changed

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes its callbacks down, to be found again by who restores, which nobody does here."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its process runs, and starts the workers when there is room."""
        row = self.rows[trial.config["trial"]["name"]]
        row.began = time.monotonic()
        self.turn(row, "starting")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A measurement, or the end; what is told again after a lost process is known."""
        row = self.rows[trial.config["trial"]["name"]]
        if "epoch" in result and (row.last is None or result["epoch"] > row.last.epoch):
            row.curve.append(Point(result["epoch"], result["metric"], result["train_s"]))
        row.error = result.get("error")
        ended: State = "failed" if row.error else "done"
        # Not "done", which Tune also says of a trial that the scheduler stops.
        self.turn(row, ended if result.get("ended") else "running")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It ended, or the scheduler stopped it."""
        row = self.rows[trial.config["trial"]["name"]]
        if row.state == "running":
            self.turn(row, "stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune has given it up."""
        row = self.rows[trial.config["trial"]["name"]]
        row.error = "the process that starts and watches it failed: " + str(trial.get_error() or "it was lost")
        self.turn(row, "failed")

    def turn(self, row: Row, state: State) -> None:
        """Changes the state."""
        before, row.state = row.state, state
        self.changed(row, before)
