"""Keep the rows of a sweep up to date with what Ray Tune says of its trials."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune

from jobs.run.outcome import without_guesses
from tune.curve import Point
from tune.rows import Row, RowState


class Follower(tune.Callback):
    """Called by Tune in the driver's process.

    Args:
        rows: Their states, curves and errors are changed.
        changed: Called after each change, with the state before.
        preempted: Set when the sweep is to stop.
    """

    def __init__(self, rows: Sequence[Row], changed: Callable[[Row, str], None], preempted: threading.Event) -> None:
        self.rows = {row.trial.name: row for row in rows}
        self.changed = changed
        self.preempted = preempted

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes its callbacks down, to be found again by who restores, which nobody does here."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its process runs, and starts the workers when there is room."""
        self.turn(self.rows[trial.config["trial"]["name"]], "starting")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """How far it is, a measurement, or the end; what is told again after a lost process is known."""
        row = self.rows[trial.config["trial"]["name"]]
        if "told" in result:
            row.told = result["told"]
            if row.state == "starting":
                self.turn(row, "running")
            return
        if "epoch" in result and (row.last is None or result["epoch"] > row.last.epoch):
            row.curve.append(Point(result["epoch"], result["metric"], result["train_s"]))
        row.error = result.get("error")
        ended: RowState = "failed" if row.error else "waiting" if result.get("to_go_on") else "done"
        # Not "done", which Tune also says of a trial that the scheduler stops.
        self.turn(row, ended if result.get("ended") else "running")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It ended, or the scheduler stopped it."""
        row = self.rows[trial.config["trial"]["name"]]
        if row.state == "running":
            self.turn(row, "waiting" if self.preempted.is_set() else "stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune has given it up."""
        row = self.rows[trial.config["trial"]["name"]]
        row.error = "the process that starts and watches it failed: "
        row.error += without_guesses(str(trial.get_error() or "it was lost"))
        self.turn(row, "failed")

    def turn(self, row: Row, state: RowState) -> None:
        """Changes the state."""
        before, row.state = row.state, state
        self.changed(row, before)


class EndAfterPreemption(tune.Stopper):
    """Ends the sweep on preemption, as soon as the trials that were running have saved their checkpoints."""

    def __init__(self, rows: Sequence[Row], preempted: threading.Event) -> None:
        self.rows = rows
        self.preempted = preempted
        self.saving: list[Row] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as of the follower."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial ends on its own account."""
        return False

    def stop_all(self) -> bool:
        """Whether all ends now. Trials that have not begun to train have nothing to save."""
        if not self.preempted.is_set():
            return False
        if self.saving is None:
            self.saving = [row for row in self.rows if row.state == "running"]
        return not any(row.state == "running" for row in self.saving)
