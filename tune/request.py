"""What a command line of `tune/sweep.py` asks for, checked."""

import argparse
import shlex
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clusters.profile import read_profile
from jobs.pretrain import absolute, pairs, storage_uri
from pirl.config import ConfigError, override
from pirl.folder import Folder
from pirl.recipes import RECIPES
from pirl.runs import storage_at
from tune.measured import Metric
from tune.options import options
from tune.search import ROUND, Search
from tune.space import Trial, short_names, some_of, trials_of

NO_PBT = (
    "--scheduler pbt is not there: population based training copies the weights of one trial into another, and with "
    "them the memory bank, the optimizer and the place in the schedule; runs here only go on from checkpoints of "
    "their own. Use asha or none"
)
ALONE = (
    "--search optuna learns from trials that were trained to their end, and which ones asha stops depends on their "
    "order: use --scheduler none"
)


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    recipe: str
    trials: list[Trial]
    """All of them; of a search those of its first round."""
    search: Search | None
    folder: Folder
    metric: Metric
    every: int
    """Epochs between measurements."""
    grace: int | None
    """Epochs that ASHA gives each trial; None without it."""
    reduction: int
    max_concurrent: int | None
    check: bool
    command: str


def parse(argv: list[str], about: str | None = None) -> Request:
    """Reads the command line.

    Raises:
        ConfigError: A recipe, setting or value that is not allowed, in whichever trial.
    """
    parser = options(about)
    given, rest = parser.parse_known_args(argv)
    recipe, fixed = pairs(rest)
    if given.help:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends without a word
        parser.print_help()
        sys.exit(0)
    name = (recipe or "digits").replace("-", "_")
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {recipe!r}: use one of {', '.join(RECIPES)}")
    if given.scheduler == "pbt":
        raise ConfigError(NO_PBT)
    if given.search == "optuna" and given.scheduler != "none":
        raise ConfigError(ALONE)
    if given.search != "grid" and given.num_samples is None:
        raise ConfigError(f"--search {given.search} needs --num-samples: how many points are tried")
    axes = _axes(given, fixed)
    refuse_unlike_losses(given.metric, axes)
    measured = {} if given.metric == "loss" else {"evaluation.every_epochs": given.evaluate_every}
    profile = read_profile(given.cluster) if given.cluster else None
    base = absolute(override(RECIPES[name](), {**measured, **(profile.settings() if profile else {}), **fixed}))
    search = None
    if given.search == "optuna":
        search = Search(base, axes, given.seeds, given.num_samples, given.max_concurrent or ROUND, given.metric)
        search.check()
        trials, _ = search.trials([])
    else:
        trials = trials_of(base, axes, given.seeds)
        trials = some_of(trials, given.num_samples) if given.search == "random" else trials
    sweep = given.name or "-".join([name, *short_names([*axes]).values()])
    if sweep.startswith(".") or "/" in sweep:
        raise ConfigError(f"--name {sweep!r} is not a name for a folder: use letters, digits, - and _")
    return Request(
        recipe=name,
        trials=trials,
        search=search,
        folder=storage_at(storage_uri(given.storage or (profile.storage if profile else None)), base) / sweep,
        metric=given.metric,
        every=given.evaluate_every,
        grace=given.grace if given.scheduler == "asha" else None,
        reduction=given.reduction,
        max_concurrent=given.max_concurrent,
        check=given.check,
        command=shlex.join(["python", "tune/sweep.py", *(word for word in argv if word != "--check")]),
    )


def refuse_unlike_losses(metric: Metric, axes: Mapping[str, Any]) -> None:
    """Refuses to compare losses that are not on one scale.

    Raises:
        ConfigError: A setting of the sweep changes what the loss is.
    """
    unlike = [name for name in axes if name.startswith(("loss.", "pretext.", "data.", "augment."))]
    if metric == "loss" and unlike:
        raise ConfigError(
            f"--metric loss cannot compare trials with other {', '.join(unlike)}: it changes what the loss is, not "
            "only what is learned. Use --metric linear_res5 or knn"
        )


def _axes(given: argparse.Namespace, fixed: Mapping[str, Any]) -> dict[str, list[str]]:
    listed = [["loss.num_negatives", *given.num_negatives], ["optim.epochs", *given.epochs], *given.set]
    axes: dict[str, list[str]] = {}
    for name, *values in listed:
        name = name.replace("-", "_")
        if not values:
            if name not in ("loss.num_negatives", "optim.epochs"):
                raise ConfigError(f"--set {name} needs values: --set {name} VALUE VALUE ...")
            continue
        if name in axes or name in {known.replace("-", "_") for known in fixed}:
            raise ConfigError(f"{name} is given twice")
        if name == "seed":
            raise ConfigError("seeds are given by number: --seeds 3, from --seed on")
        axes[name] = values
    if not axes:
        raise ConfigError("nothing to compare: give --num-negatives, --epochs or --set NAME with values")
    return axes
