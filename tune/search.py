"""`--search optuna`: points that the tree of Parzen estimators chooses (TPE, Bergstra et al. 2011), round by round.

The points of a round follow from the seed and from what the rounds before reached, and from nothing else, such as
the order in which trials end. So the same command asks for the same points again, after a kill too.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pirl.config import Config, leaves
from pirl.errors import ConfigError
from tune.curve import Metric
from tune.points import Trial, group_name, trials_at, trials_of
from tune.rows import Row, groups_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

ROUND = 4
"""Points in a round; without another number, so that a sweep is the same on clusters of all sizes."""

AT_RANDOM = 8
"""Points before those that learn from others."""

TRIES = 1000
"""Points that are looked at for a round: a range may have more that are not allowed than that are."""

DIGITS = 3
"""Of a value that is chosen from a range: names of trials stay short."""


@dataclass(frozen=True)
class Search:
    """What is searched, and how long.

    Attributes:
        base: The config of all trials, with a value of what is searched.
        axes: By dotted name what was typed: values, or one range LOW..HIGH.
        seeds: Trials of each point; it is judged by their mean.
        number: Points. One that is chosen again counts, and is not trained again.
        round: Points that are chosen at once.
        metric: Larger is better, but for the loss.
    """

    base: Config
    axes: Mapping[str, Sequence[Any]]
    seeds: int
    number: int
    round: int
    metric: Metric

    def check(self) -> None:
        """Refuses values that are not allowed, and combinations of the ends of ranges; raises ConfigError."""
        for name in self.axes:
            if name.startswith("cluster."):
                raise ConfigError(
                    f"--search optuna cannot learn anything from {name}, which does not change what is learned: fix it "
                    f"with --{name} VALUE, or compare with --search grid"
                )
        trials_of(self.base, {name: _range(values) or values for name, values in self.axes.items()}, seeds=1)
        self.distributions()

    def trials(self, rows: Sequence[Row]) -> tuple[list[Trial], int]:
        """What follows from the trials of the rounds before.

        Returns:
            All trials of these rounds and of the next one, each once; and how many points are left after them.
        """
        ended = {group_name(row.trial): False for row in rows}
        ended |= {name: all(row.ended for row in rows if group_name(row.trial) == name) for name in ended}
        points: list[dict[str, Any]] = []
        trials: dict[str, Trial] = {}
        while len(points) < self.number and all(ended.get(group_name(trial)) for trial in trials.values()):
            points += self.next_round(points, rows)
            trials |= {trial.name: trial for point in points for trial in trials_at(self.base, point, self.seeds)}
        return list(trials.values()), self.number - len(points)

    def next_round(self, points: Sequence[dict[str, Any]], rows: Sequence[Row]) -> list[dict[str, Any]]:
        """The points after `points`, whose trials are among the rows; raises ConfigError if too few are allowed."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        seed = random.Random(f"{self.base.seed} {len(points)}").getrandbits(32)
        study = optuna.create_study(
            direction="minimize" if self.metric == "loss" else "maximize",
            sampler=optuna.samplers.TPESampler(n_startup_trials=AT_RANDOM, seed=seed),
        )
        study.add_trials([self.told(point, rows) for point in points])
        distributions = self.distributions()
        found: list[dict[str, Any]] = []
        for _ in range(TRIES):
            point = _rounded(study.ask(distributions).params, distributions)
            found += [point] if self.allows(point) else []
            if len(found) == min(self.round, self.number - len(points)):
                return found
        raise ConfigError(f"--search optuna: of {TRIES} points only {len(found)} are allowed: choose other ranges")

    def allows(self, point: Mapping[str, Any]) -> bool:
        """Whether the settings of a point fit together, such as a batch and its streams."""
        try:
            return bool(trials_at(self.base, point, 1))
        except ConfigError:
            return False

    def told(self, point: dict[str, Any], rows: Sequence[Row]) -> "FrozenTrial":
        """What optuna is told of a point: the mean over its seeds, or that it failed."""
        from optuna.trial import TrialState, create_trial

        name = group_name(trials_at(self.base, point, 1)[0])
        [group] = groups_of(row for row in rows if group_name(row.trial) == name)
        return create_trial(
            params=point,
            distributions=self.distributions(),
            value=group.mean,
            state=TrialState.FAIL if group.mean is None else TrialState.COMPLETE,
        )

    def distributions(self) -> "dict[str, BaseDistribution]":
        """By dotted name: a range, with logarithmic steps where its end is a hundred times its begin, or categories.

        Raises:
            ConfigError: There is no optuna, a range without width, or one of what is no number.
        """
        try:
            from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
        except ImportError:
            raise ConfigError("--search optuna needs the package optuna: pip install -r requirements.lock") from None
        found: dict[str, BaseDistribution] = {}
        held = leaves(self.base)
        for name, values in self.axes.items():
            ends = _range(values)
            if not ends:
                found[name] = CategoricalDistribution(tuple(values))
                continue
            low, high = float(ends[0]), float(ends[1])
            if type(held[name]) not in (int, float):
                raise ConfigError(f"--set {name} {values[0]}: it is no number, so give values and not a range")
            if low >= high:
                raise ConfigError(f"--set {name} {values[0]}: the first number is to be the smaller one")
            log = low > 0 and high >= 100 * low
            if isinstance(held[name], int):
                found[name] = IntDistribution(int(low), int(high), log=log)
            else:
                found[name] = FloatDistribution(low, high, log=log)
        return found


def ends_of(value: Any) -> tuple[str, str] | None:
    """The ends of a range LOW..HIGH; None for another value."""
    low, dots, high = str(value).partition("..")
    try:
        return (low, high) if dots and (float(low), float(high)) else None
    except ValueError:  # a path, say
        return None


def _range(values: Sequence[Any]) -> tuple[str, str] | None:
    return ends_of(values[0]) if len(values) == 1 else None


def _rounded(point: dict[str, Any], distributions: "Mapping[str, BaseDistribution]") -> dict[str, Any]:
    from optuna.distributions import FloatDistribution

    def rounded(name: str, value: Any) -> Any:
        distribution = distributions[name]
        if not isinstance(distribution, FloatDistribution):
            return value
        return min(max(float(f"{value:.{DIGITS}g}"), distribution.low), distribution.high)

    return {name: rounded(name, value) for name, value in point.items()}
