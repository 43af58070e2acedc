"""Which trials are stopped early: ASHA, among trials of one length."""

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from tune.curve import Metric, Point
from tune.rows import Row


class ByLength(FIFOScheduler):
    """ASHA (Li et al., 1810.05934) for each number of epochs on its own.

    A cosine schedule of 5 epochs has cooled down at its fourth, one of 10 has not, so that they are not compared.

    Args:
        lengths: The numbers of epochs that there are.
        metric: Larger is better, but for the loss.
        grace: Epochs that each trial gets.
        reduction: One in so many goes on, at `grace` · reduction^k epochs.
    """

    def __init__(self, lengths: Iterable[int], metric: Metric, grace: int, reduction: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_length = {
            length: ASHAScheduler(
                time_attr="epoch",
                metric="metric",
                mode="min" if metric == "loss" else "max",
                max_t=max(length - 1, grace),  # to stop a trial at its last epoch would save nothing
                grace_period=grace,
                reduction_factor=reduction,
                stop_last_trials=False,
            )
            for length in set(lengths)
        }

    def of(self, trial: Any) -> ASHAScheduler:
        """The one for a trial."""
        return self.by_length[trial.config["trial"]["epochs"]]

    def remember(self, row: Row, curve: Sequence[Point]) -> None:
        """Takes what a trial reached before this sweep was cut off, as if it had just been told.

        One that goes on is not judged again by what it is known to have reached.
        """
        trial = SimpleNamespace(config={"trial": {"name": row.trial.name, "epochs": row.trial.config.optim.epochs}})
        self.on_trial_add(None, trial)
        for point in curve:
            if point.epoch < row.trial.config.optim.epochs:
                self.on_trial_result(None, trial, point._asdict())
        self.on_trial_remove(None, trial)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial waits."""
        self.of(trial).on_trial_add(tune_controller, _by_name(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether it goes on."""
        decision: str = self.of(trial).on_trial_result(tune_controller, _by_name(trial), result)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """A trial is done; its last measurement is compared with none."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """A trial is no more."""
        self.of(trial).on_trial_remove(tune_controller, _by_name(trial))


def _by_name(trial: Any) -> Any:
    """A trial as ASHA knows it: by its name, which is the same when the sweep goes on."""
    return SimpleNamespace(trial_id=trial.config["trial"]["name"])
