"""What a command line of `tune/sweep.py` asks for, checked."""

import argparse
import math
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.settings import Parser, default_storage, pairs, recipe_for, recipe_name, settings_and_storage, value_of
from pirl.config import Config, override, without_meaning
from pirl.errors import ConfigError
from pirl.recipes import RECIPES
from pirl.runs.run import check_name, storage_at
from pirl.storage.folder import Folder
from pirl.wording import short_names
from tune.curve import Metric
from tune.points import RECIPE, Trial, some_of, trials_of
from tune.search import ROUND, Search, ends_of

EXAMPLES = """
  python tune/sweep.py digits --num-negatives 256 512 1024 --epochs 5 10 --seeds 3
  python tune/sweep.py cifar10 --set loss.pretext_weight 0 0.25 0.5 0.75 1 --optim.epochs 4 --name lambda
  python tune/sweep.py digits --set optim.lr 0.01 0.03 0.1 --set loss.temperature 0.05 0.07 0.1 \\
      --search random --num-samples 4 --scheduler asha
  python tune/sweep.py --set recipe digits digits_npid digits_jigsaw digits_supervised --seeds 3
  python tune/sweep.py digits --set optim.lr 0.001..0.3 --set loss.temperature 0.05 0.07 0.1 \\
      --search optuna --num-samples 20
  ray job submit --working-dir . -- python tune/sweep.py digits --num-negatives 256 1024 --storage /shared/runs
"""

NO_PBT = (
    "--scheduler pbt is not there: population based training copies the weights of one trial into another, and with "
    "them the memory bank, the optimizer and the place in the schedule; runs here only go on from checkpoints of "
    "their own. Use asha or none"
)
PLACES = ("data.uri", "data.cache_folder", "model.weights")
"""Settings whose values may hold commas."""
ALONE = (
    "--search optuna learns from trials that were trained to their end, and which ones asha stops depends on their "
    "order: use --scheduler none"
)


@dataclass(frozen=True)
class SweepRequest:
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


def _from(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")
        return int(text)

    return number


def _options(about: str | None) -> argparse.ArgumentParser:
    """What understands the words of the command line that are no settings."""
    parser = Parser(
        prog="python tune/sweep.py",
        usage="%(prog)s [RECIPE] [--num-negatives N ...] [--epochs N ...] [--set NAME VALUE ...] "
        "[--section.field VALUE ...] ...",
        description=about,
        epilog=f"recipes: {', '.join(RECIPES)} (default: digits)\nexamples:{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    add = parser.add_argument
    add("--num-negatives", nargs="+", action="append", default=[], metavar="N", help="values of loss.num_negatives")
    add("--epochs", nargs="+", action="append", default=[], metavar="N", help="values of optim.epochs")
    add("--set", nargs="+", action="append", default=[], metavar="NAME VALUE", help="values of any other setting")
    add("--seeds", type=_from(1), default=1, metavar="N", help="trials for each point, with seeds from --seed on")
    add("--search", choices=["grid", "random", "optuna"], default="grid", help="all points (default), or some")
    add("--num-samples", type=_from(1), metavar="N", help="points that random and optuna try")
    add("--metric", choices=["linear_res5", "knn", "loss"], default="linear_res5", help="default: linear_res5")
    add("--evaluate-every", type=_from(1), default=1, metavar="EPOCHS", help="between measurements (default: 1)")
    add("--scheduler", choices=["none", "asha", "pbt"], default="none", help="asha stops trials that are behind")
    add("--grace", type=_from(1), metavar="EPOCHS", help="that asha gives each trial (default: 1)")
    add("--reduction", type=_from(2), metavar="N", help="of asha: one in N goes on (default: 3)")
    add("--max-concurrent", type=_from(1), metavar="N", help="trials at once (default: as many as there is room for)")
    add("--name", help="of the sweep and its folder (default: the recipe's and those of the settings)")
    add("--storage", metavar="URI", help=f"where its folder lies, a folder or s3://… (default: {default_storage()})")
    add("--cluster", metavar="FILE", help="a profile (clusters/*.toml): how many workers each trial has, which storage")
    add("--check", action="store_true", help="say what would be trained and in which folder, start nothing")
    add("-h", "--help", action="store_true", help="this text")
    return parser


def parse(argv: list[str], about: str | None = None) -> SweepRequest:
    """Reads the command line; raises ConfigError for what is not allowed, in whichever trial, or without effect."""
    parser = _options(about)
    given, rest = parser.parse_known_args(argv)
    recipe, fixed = pairs(rest)
    if given.help:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends without a word
        parser.print_help()
        sys.exit(0)
    axes = _axes(given, fixed)
    name = recipe_name(recipe)
    if recipe is None:
        _refuse_recipe_among_values(axes)
    elif RECIPE in axes:
        raise ConfigError(f"recipe is given twice, {recipe} and {', '.join(axes[RECIPE])}: leave the first out")
    refuse_without_effect(given, axes, fixed)
    refuse_unlike_losses(given.metric, axes)
    measured = {} if given.metric == "loss" else {"evaluation.every_epochs": given.evaluate_every}
    settings, storage = settings_and_storage(given)
    recipes = _recipes(axes, {**measured, **settings}, fixed)
    first = {axis: (ends_of(values[0]) or values)[0] for axis, values in axes.items()}  # fits to what is fixed
    settings = {**measured, **settings, **fixed, **first}
    base = next(iter(recipes.values())) if recipes else override(recipe_for(name, settings), settings)
    trials, search = _trials(given, base, axes, recipes)
    grace = (given.grace or 1) if given.scheduler == "asha" else None
    if grace:
        refuse_no_race(trials, grace, given.evaluate_every)
    sweep = "-".join([name, *short_names([*axes]).values()]) if given.name is None else given.name
    check_name("--name", sweep)
    return SweepRequest(
        recipe=name,
        trials=trials,
        search=search,
        folder=storage_at(storage, base) / sweep,
        metric=given.metric,
        every=given.evaluate_every,
        grace=grace,
        reduction=given.reduction or 3,
        max_concurrent=given.max_concurrent,
        check=given.check,
        command=shlex.join(["python", "tune/sweep.py", *(word for word in argv if word != "--check")]),
    )


def refuse_without_effect(given: argparse.Namespace, axes: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Refuses options that go with others, and would change nothing here; raises ConfigError."""
    if given.scheduler == "pbt":
        raise ConfigError(NO_PBT)
    if given.search == "optuna" and given.scheduler != "none":
        raise ConfigError(ALONE)
    if given.search == "optuna" and RECIPE in axes:
        raise ConfigError("--set recipe compares recipes, and optuna searches settings of one: use --search grid")
    if given.search != "grid" and given.num_samples is None:
        raise ConfigError(f"--search {given.search} needs --num-samples: how many points are tried")
    if given.search == "grid" and given.num_samples is not None:
        raise ConfigError(
            f"--num-samples {given.num_samples} goes with a search, and --search grid trains all points: "
            "add --search random or optuna"
        )
    for option in ("grace", "reduction"):
        value = getattr(given, option)
        if value is not None and given.scheduler != "asha":
            raise ConfigError(f"--{option} {value} says when trials are stopped: add --scheduler asha")
    if given.metric != "loss" and "evaluation.every_epochs" in {*axes, *_underscored(fixed)}:
        raise ConfigError(f"evaluation.every_epochs follows --metric {given.metric}: type --evaluate-every EPOCHS")
    for axis, values in axes.items():
        for value in values:
            if ends_of(value) and (given.search != "optuna" or len(values) > 1):
                raise ConfigError(
                    f"--set {axis} {value} is a range, from which optuna chooses: give values, or this range alone "
                    f"with --search optuna --num-samples N"
                )


def refuse_unlike_losses(metric: Metric, axes: Mapping[str, Any]) -> None:
    """Raises ConfigError where losses are not on one scale, as settings of the sweep change what the loss is."""
    unlike = [name for name in axes if name.startswith((RECIPE, "method.", "loss.", "pretext.", "data.", "augment."))]
    if metric == "loss" and unlike:
        raise ConfigError(
            f"--metric loss cannot compare trials with other {', '.join(unlike)}: it changes what the loss is, not "
            "only what is learned. Use --metric linear_res5 or knn"
        )


def refuse_no_race(trials: Sequence[Trial], grace: int, every: int) -> None:
    """Raises ConfigError where asha could stop no trial, as no two of one length are measured in time."""
    first = every * math.ceil(grace / every)
    lengths = Counter(trial.config.optim.epochs for trial in trials)
    if not any(number > 1 and first < length for length, number in lengths.items()):
        raise ConfigError(
            "--scheduler asha compares trials of the same optim.epochs before their end, and there are no two: "
            f"optim.epochs is {', '.join(map(str, lengths))}, and the first measurement that counts comes after "
            f"{first} (--grace {grace}, --evaluate-every {every}). Use smaller ones, or --scheduler none"
        )


def _refuse_recipe_among_values(axes: Mapping[str, Sequence[Any]]) -> None:
    for axis, (*_, last) in axes.items():
        if axis not in ("data.uri", RECIPE) and str(last).replace("-", "_") in RECIPES:
            raise ConfigError(
                f"{last!r} is read as a value of {axis}: a recipe comes before the options, "
                f"python tune/sweep.py {last} ..."
            )


def _axes(given: argparse.Namespace, fixed: Mapping[str, Any]) -> dict[str, list[Any]]:
    listed = [["loss.num_negatives", *words] for words in given.num_negatives]
    listed += [["optim.epochs", *words] for words in given.epochs]
    axes: dict[str, list[Any]] = {}
    for typed, *words in [*listed, *given.set]:
        name = typed.partition("=")[0].replace("-", "_")
        if not words or "=" in typed:
            values = _apart([*filter(None, [typed.partition("=")[2]]), *words]) or ["VALUE"]
            example = " ".join([*values, "VALUE ..."] if len(values) == 1 else values)
            raise ConfigError(f"--set {typed} needs values behind the name, with spaces: --set {name} {example}")
        if name not in PLACES and (joined := [word for word in words if "," in word and not word.startswith("{")]):
            example = f"--set {name} {' '.join(_apart(words))}"
            raise ConfigError(f"{joined[0]!r} is one value of {name}: type several with spaces between, {example}")
        if name in axes:
            raise ConfigError(f"{name} is given twice: write all of its values behind one --set {name}")
        # A profile's are given as fixed ones where the sweep is a job on SLURM.
        if name in _underscored(fixed) and not name.startswith("cluster."):
            raise ConfigError(f"{name} is given twice, with values to compare and as fixed: leave one of them out")
        if name == "seed":
            raise ConfigError("seeds are given by number: --seeds 3, from --seed on")
        axes[name] = [value_of(word, f"--set {name}") for word in words]
    if not axes:
        raise ConfigError("nothing to compare: give --num-negatives, --epochs or --set NAME with values")
    return axes


def _apart(words: Iterable[str]) -> list[str]:
    """The values of words that were typed with commas or in brackets."""
    return [value for word in words for value in word.strip("[]()").replace(",", " ").split()]


def _recipes(
    axes: Mapping[str, Sequence[Any]], given: Mapping[str, Any], fixed: Mapping[str, Any]
) -> dict[str, Config]:
    """What the recipes to compare mean, with those of the fixed settings that mean something to each.

    Raises:
        ConfigError: There is no such recipe, a setting means nothing to all of them, or does not go with one.
    """
    axis = axes.get(RECIPE, [])
    if len(axis) > len({recipe_name(word) for word in axis}):
        raise ConfigError(f"--set {RECIPE} {' '.join(axis)}: a recipe is given twice")
    found, used = dict[str, Config](), set[str]()
    for word in axis:
        recipe = recipe_for(recipe_name(word), {**given, **fixed})
        left_out = without_meaning(recipe, fixed)
        own = {name: value for name, value in fixed.items() if name not in left_out}
        used |= own.keys()
        found[word] = override(recipe, {**given, **own})
    if axis and (unused := [name for name in fixed if name not in used]):
        raise ConfigError(f"{', '.join(unused)} means nothing to any of {', '.join(axis)}: leave it away")
    return found


def _trials(
    given: argparse.Namespace, base: Config, axes: Mapping[str, Sequence[Any]], recipes: Mapping[str, Config]
) -> tuple[list[Trial], Search | None]:
    """The trials, or those of a search's first round; and the search."""
    if given.search == "optuna":
        search = Search(base, axes, given.seeds, given.num_samples, given.max_concurrent or ROUND, given.metric)
        search.check()
        return search.trials([])[0], search
    trials = trials_of(base, axes, given.seeds, recipes)
    return some_of(trials, given.num_samples) if given.search == "random" else trials, None


def _underscored(names: Iterable[str]) -> set[str]:
    return {name.replace("-", "_") for name in names}
