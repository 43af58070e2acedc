"""The trials of a sweep: points of a grid over fields of the config, each with a name that its values alone decide."""

import hashlib
import itertools
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.settings import absolute
from pirl.config import Config, leaves, override
from pirl.errors import ConfigError
from pirl.wording import short_names, text_of

RECIPE = "recipe"
"""The axis whose values are recipes, each with all of its settings."""

LONGEST_NAME = 100
"""Letters of a trial's name, which is that of a folder; longer ones are cut and end with a digest."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: Of its run and folder: the same for the same values, whenever and wherever it is made.
        values: By dotted name what the sweep sets, without the seed; as the config holds it.
        config: The whole run.
    """

    name: str
    values: Mapping[str, Any]
    config: Config

    @property
    def seed(self) -> int:
        """The seed, which tells the trials of a group apart."""
        return self.config.seed


def trials_of(
    base: Config, axes: Mapping[str, Sequence[Any]], seeds: int, recipes: Mapping[str, Config] | None = None
) -> list[Trial]:
    """All points of the grid, each with `seeds` seeds from the config's on; the last axis changes fastest.

    Args:
        recipes: What the values of the axis `recipe` mean, where there is one, in place of `base`.

    Raises:
        ConfigError: A name, a value or a combination that is not allowed, in whichever trial; a value that is
            given twice.
    """
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    bases = [(recipes or {}).get(point.get(RECIPE, ""), base) for point in points]
    trials = [trial for start, point in zip(bases, points, strict=True) for trial in trials_at(start, point, seeds)]
    seen: dict[str, int] = {}
    for number, trial in enumerate(trials):
        if seen.setdefault(trial.name, number) != number:
            raise ConfigError(f"{trial.name} would be trained twice: a value of the sweep is given twice")
    return trials


def trials_at(base: Config, point: Mapping[str, Any], seeds: int) -> list[Trial]:
    """The trials of one point, with seeds from the config's on; raises ConfigError if it is not allowed."""
    settings = {name: value for name, value in point.items() if name != RECIPE}
    configs = [override(base, {**settings, "seed": base.seed + number}) for number in range(seeds)]
    return [_trial(absolute(config), point) for config in configs]


def some_of(trials: list[Trial], number: int) -> list[Trial]:
    """A random choice of `number` groups of trials that differ in the seed alone, in the grid's order.

    The choice is a function of the grid, and a larger one has all of a smaller one, so that what was trained stays.
    """
    names = sorted({group_name(trial) for trial in trials})
    order = random.Random(json.dumps(names)).sample(names, len(names))
    chosen = set(order[:number])
    return [trial for trial in trials if group_name(trial) in chosen]


def group_name(trial: Trial) -> str:
    """What a trial has in common with those of other seeds."""
    return json.dumps(dict(trial.values), sort_keys=True)


def _trial(config: Config, point: Mapping[str, Any]) -> Trial:
    held = {**leaves(config), RECIPE: point.get(RECIPE)}
    values = {name.replace("-", "_"): held[name.replace("-", "_")] for name in point}
    short = short_names(list(values))
    told = [(short[name], text_of(value)) for name, value in values.items()] + [("seed", str(config.seed))]
    plain = [f"{name}-{re.sub(r'[^A-Za-z0-9.]+', '-', value).strip('-.')}" for name, value in told]
    name = "_".join(plain)
    if len(name) > LONGEST_NAME or plain != [f"{key}-{value}" for key, value in told]:
        name = f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]}"
    return Trial(name, values, config)
