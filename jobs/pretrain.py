"""Train PIRL on the images of a data set, on Ray, and measure what it learned."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import inspect
import json
import os
import signal
import time
from dataclasses import dataclass
from typing import Any

from clusters.profile import read_profile
from pirl.config import Config, ConfigError, override
from pirl.credentials import refuse_user_in_environment
from pirl.folder import Folder
from pirl.processes import torchrun
from pirl.recipes import RECIPES
from pirl.retry import StorageError, StoreRefusedError
from pirl.runs import NameTakenError, Resume, Run, data_of, open_run, storage_at
from pirl.writable import check_can_write, check_place

EXAMPLES = """
  python jobs/pretrain.py                                     the built-in digits, on a Ray of its own
  python jobs/pretrain.py cifar10 --help                      all settings of a recipe
  python jobs/pretrain.py cifar10 --data.uri /shared/cifar10 --loss.num-negatives 8192 --run more-negatives
  ray job submit --working-dir . -- python jobs/pretrain.py cifar10 --data.uri /shared/cifar10 --storage /shared/runs
  python jobs/pretrain.py cifar10 --data.uri s3://bucket/cifar10 --storage s3://bucket/runs
  torchrun --nproc-per-node 2 jobs/pretrain.py digits         the same run without Ray
  python jobs/slurm.py --cluster clusters/slurm-a100.toml -- jobs/pretrain.py cifar10      on SLURM
"""

RANK_0_S = 30
"""Among torchrun's processes the first one says what is wrong, and its end ends the others."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    config: Config
    storage: Folder
    name: str
    resume: Resume
    use_ray: bool
    only_check: bool


def main() -> int:
    """Runs the job.

    Returns:
        The exit code: 0 done, 1 failed while running, 2 the request is wrong and nothing was started.
    """
    try:
        request = parse(sys.argv[1:])
        run = open_run(request.storage, request.name, request.config, request.resume)
        if run.result is None:
            if not torchrun("WORLD_SIZE"):  # its processes ask each other: one alone must not end here
                check_can_write("--storage", request.storage)
            check_request(run, request.use_ray)
        if request.only_check:
            print(run.folder)
            return 0
    except (ConfigError, StoreRefusedError, PermissionError, NotADirectoryError) as error:
        if torchrun("RANK"):
            time.sleep(RANK_0_S)
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StorageError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1

    from jobs.launch import end, run_here, run_on_ray
    from jobs.outcome import show_result

    signal.signal(signal.SIGTERM, end)
    if run.result is not None:
        return show_result(run.folder, run.result, "was done before; --run NAME trains another one")
    try:
        return run_on_ray(run) if request.use_ray else run_here(run)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1


def parse(argv: list[str]) -> Request:
    """Reads the command line.

    Raises:
        ConfigError: A recipe, setting or value that is not allowed.
    """
    parser = argparse.ArgumentParser(
        prog="python jobs/pretrain.py",
        usage="%(prog)s [RECIPE] [--section.field VALUE ...] [--run NAME] [--storage URI] [--resume ...]",
        description=__doc__,
        epilog=f"recipes (default: digits):\n{_recipe_list()}\nexamples:{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--run", metavar="NAME", help="name of the run and of its folder (default: the recipe's)")
    parser.add_argument(
        "--storage", metavar="URI", help=f"where runs lie, a folder or s3://… (default: {default_storage()})"
    )
    parser.add_argument(
        "--resume",
        choices=["auto", "never", "must"],
        default="auto",
        help="go on with a run of that name: if its settings are the same (auto, default), never, or always",
    )
    parser.add_argument(
        "--cluster", metavar="FILE", help="a profile (clusters/*.toml) that says how many workers and which storage"
    )
    parser.add_argument("--check", action="store_true", help="check the request, print the run folder, start nothing")
    parser.add_argument("--no-ray", action="store_true", help="train in this process; torchrun implies it")
    parser.add_argument("-h", "--help", action="store_true", help="this text; with a recipe, all of its settings")
    known, rest = parser.parse_known_args(argv)
    recipe, changes = pairs(rest)
    if known.help:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends without a word
    if known.help and not recipe:
        parser.print_help()
        sys.exit(0)
    name = (recipe or "digits").replace("-", "_")
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {recipe!r}: use one of {', '.join(RECIPES)}")
    if known.help:
        _print_settings(name)
        sys.exit(0)
    profile = None if known.cluster is None else read_profile(known.cluster)
    storage = profile.storage if profile and known.storage is None else known.storage
    config = override(RECIPES[name](), {**(profile.settings() if profile else {}), **changes})
    return Request(
        config=absolute(config),
        storage=storage_at(storage_uri(storage), config),
        name=name if known.run is None else known.run,
        resume=known.resume,
        use_ray=not (known.no_ray or torchrun("WORLD_SIZE")),
        only_check=known.check,
    )


def pairs(rest: list[str]) -> tuple[str | None, dict[str, Any]]:
    """Reads `--section.field VALUE` and `--section.field=VALUE`; `null` and JSON objects are understood.

    Not by argparse, which takes the value of an option that it does not know for the recipe.

    Returns:
        The one word that belongs to no setting, which is the recipe, or None; and the settings.

    Raises:
        ConfigError: A setting without a value, or a second word that belongs to none.
    """
    recipe: str | None = None
    changes: dict[str, Any] = {}
    words = iter(rest)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            if recipe or word.startswith("-"):
                raise ConfigError(f"unexpected {word!r}: settings are typed as --section.field VALUE")
            recipe = word
            continue
        if word == "--":
            raise ConfigError("there is nothing to write behind --: settings are typed as --section.field VALUE")
        if not equals:
            value = next(words, "--")
            if value.startswith("--"):
                raise ConfigError(f"{word} needs a value: {word} VALUE")
        changes[name] = value_of(value, word)
    return recipe, changes


def value_of(text: str, word: str) -> Any:
    """Understands `null`, `None` and JSON objects (or raises ConfigError); the rest stays text, for the config."""
    if text in ("null", "None"):
        return None
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{word}: not a JSON object: {error}") from None  # without it: it may hold secrets


def storage_uri(given: str | None) -> str:
    """What `--storage` means: an absolute path or a URL.

    Raises:
        ConfigError: Nothing in quotes, a URL without a bucket, or with a user or a password.
    """
    try:
        refuse_user_in_environment()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if given is not None:
        check_place("--storage", given, "runs")
    if given and "://" in given and not given.startswith("file://"):
        return given.rstrip("/")
    return str((Path(given.removeprefix("file://")) if given else default_storage()).expanduser().resolve())


def default_storage() -> Path:
    """`runs` in the current folder, or, in a Ray job, whose folder is temporary, in the home folder."""
    return Path.home() / "pirl-runs" if "RAY_JOB_CONFIG_JSON" in os.environ else Path("runs")


def check_request(run: Run, use_ray: bool) -> None:
    """Refuses, before anything starts, what cannot be: data that is missing, too small or not that of the run's
    checkpoint, and without Ray more processes than streams or GPUs.

    Raises:
        ConfigError: What is wrong with it.
        StorageError: The store did not give its manifest.
    """
    from pirl.dealing import check_data
    from pirl.shards import open_data

    config = run.config
    processes = torchrun("WORLD_SIZE") or 1
    if not use_ray and processes > config.data.streams:
        raise ConfigError(
            f"torchrun's {processes} processes are more than data.streams {config.data.streams}, and a stream has "
            f"one reader: use --nproc-per-node {config.data.streams} or --data.streams {processes}"
        )
    dataset = open_data(config.data)
    check_data(config, dataset, config.cluster.workers if use_ray else processes)
    if run.checkpoint and data_of(run.checkpoint) != dataset.fingerprint:
        raise NameTakenError(
            f"{config.data.uri} is not the data set that {run.checkpoint} was trained on: the memory bank has a row "
            "for each of those images",
            f"choose another name (--run {run.name}-2)",
        )
    if not use_ray and config.cluster.gpus_per_worker:
        check_gpus(config.cluster.gpus_per_worker)


def check_gpus(gpus_per_worker: float) -> None:
    """Refuses GPUs that this machine does not have; on a cluster Ray knows them.

    Raises:
        ConfigError: There are too few, or a share of one was asked for.
    """
    import torch

    processes = torchrun("LOCAL_WORLD_SIZE") or 1
    if gpus_per_worker != 1:
        raise ConfigError(f"cluster.gpus_per_worker {gpus_per_worker:g} needs Ray: without it use 1 or 0")
    if torch.cuda.device_count() < processes:
        raise ConfigError(
            f"cluster.gpus_per_worker 1 with {processes} processes needs as many GPUs, and this machine has "
            f"{torch.cuda.device_count()}: add --cluster.gpus-per-worker 0 to train on the CPU"
        )


def absolute(config: Config) -> Config:
    """Makes a local data folder absolute: the workers run in other folders."""
    uri = config.data.uri
    if uri == "digits" or "://" in uri:
        return config
    return override(config, {"data.uri": str(Path(uri).expanduser().resolve())})


def _recipe_list() -> str:
    lines = ((name, (inspect.getdoc(recipe) or "").splitlines()[0]) for name, recipe in RECIPES.items())
    return "\n".join(f"  {name:<18}{line}" for name, line in lines)


def _print_settings(name: str) -> None:
    """Prints a recipe's text and all settings with its values as defaults."""
    import tyro

    recipe = RECIPES[name]
    print(
        f"python jobs/pretrain.py {name} [--section.field VALUE ...] [--run NAME] [--storage URI] ...\n\n"
        f"{inspect.getdoc(recipe)}\n\n"
        "--run, --storage, --resume, --cluster, --check, --no-ray: see python jobs/pretrain.py --help.\n"
        "Below, {None} is typed as null; --data.storage-options takes a JSON object for fsspec.\n"
    )
    tyro.cli(
        Config,
        default=recipe(),
        args=["--help"],
        prog=f"python jobs/pretrain.py {name}",
        description="All settings, with this recipe's values as defaults.",
        config=(tyro.conf.FlagConversionOff,),
    )


if __name__ == "__main__":
    sys.exit(main())
