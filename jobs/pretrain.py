"""Train PIRL on the images of a data set, on Ray, and measure what it learned."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import contextlib
import inspect
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pirl.config import Config, ConfigError, override
from pirl.recipes import RECIPES
from pirl.runs import Resume, Run, newest_checkpoint, open_run

EXAMPLES = """
  python jobs/pretrain.py                                     the built-in digits, on a Ray of its own
  python jobs/pretrain.py cifar10 --help                      all settings of a recipe
  python jobs/pretrain.py cifar10 --data.uri /shared/cifar10 --loss.num-negatives 8192 --run more-negatives
  ray job submit --working-dir . -- python jobs/pretrain.py cifar10 --storage /shared/runs
  torchrun --nproc-per-node 2 jobs/pretrain.py digits         the same run without Ray
"""


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    config: Config
    storage: Path
    name: str
    resume: Resume
    use_ray: bool


def main() -> int:
    """Runs the job.

    Returns:
        The exit code: 0 done, 1 failed while running, 2 the request is wrong and nothing was started.
    """
    try:
        request = parse(sys.argv[1:])
        run = open_run(request.storage, request.name, request.config, request.resume)
        if run.result is not None:
            return show_done(run)
        check_request(request.config)
    except ConfigError as error:
        return complain(error)
    return run_on_ray(run) if request.use_ray else run_here(run)


def parse(argv: list[str]) -> Request:
    """Reads the command line.

    Raises:
        ConfigError: A recipe, setting or value that is not allowed.
    """
    parser = argparse.ArgumentParser(
        prog="python jobs/pretrain.py",
        usage="%(prog)s [RECIPE] [--section.field VALUE ...] [--run NAME] [--storage FOLDER] [--resume ...]",
        description=__doc__,
        epilog=f"recipes:\n{_recipe_list()}\nexamples:{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="one of the recipes below (default: digits)")
    parser.add_argument("--run", metavar="NAME", help="name of the run and of its folder (default: the recipe's)")
    parser.add_argument("--storage", metavar="FOLDER", type=Path, help=f"where runs lie (default: {default_storage()})")
    parser.add_argument(
        "--resume",
        choices=["auto", "never", "must"],
        default="auto",
        help="go on with a run of that name: if its settings are the same (auto, the default), never, or always",
    )
    parser.add_argument("--no-ray", action="store_true", help="train in this process; torchrun implies it")
    parser.add_argument("-h", "--help", action="store_true", help="this text; with a recipe, all of its settings")
    known, rest = parser.parse_known_args(argv)
    if known.help and not known.recipe:
        parser.print_help()
        sys.exit(0)
    name = (known.recipe or "digits").replace("-", "_")
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {known.recipe!r}: use one of {', '.join(RECIPES)}")
    if known.help:
        _print_settings(name)
        sys.exit(0)
    config = override(RECIPES[name](), pairs(rest))
    return Request(
        config=_absolute(config),
        storage=(known.storage or default_storage()).expanduser().resolve(),
        name=known.run or name,
        resume=known.resume,
        use_ray=not (known.no_ray or "TORCHELASTIC_RUN_ID" in os.environ),
    )


def pairs(rest: list[str]) -> dict[str, Any]:
    """Reads `--section.field VALUE` and `--section.field=VALUE`; `none` and JSON objects are understood.

    Raises:
        ConfigError: A word that is neither a setting nor its value.
    """
    changes: dict[str, Any] = {}
    words = iter(rest)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise ConfigError(f"unexpected {word!r}: settings are typed as --section.field VALUE")
        if not equals:
            value = next(words, "--")
            if value.startswith("--"):
                raise ConfigError(f"{word} needs a value: {word} VALUE")
        changes[name] = None if value.lower() == "none" and name.endswith("norm") and "clip" in name else value
        if value.startswith("{"):
            changes[name] = json.loads(value)
    return changes


def default_storage() -> Path:
    """`runs` in the current folder, or, in a Ray job, whose folder is temporary, in the home folder."""
    return Path.home() / "pirl-runs" if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else Path("runs")


def check_request(config: Config) -> None:
    """Refuses data that is missing or too small, before anything starts.

    Raises:
        ConfigError: What is wrong with it.
    """
    from pirl.shards import open_dataset
    from pirl.train import check_data

    check_data(config, open_dataset(config.data.uri, config.data.storage_options))


def complain(error: ConfigError) -> int:
    """Prints a user's mistake."""
    print(f"error: {error}", file=sys.stderr)
    return 2


def run_on_ray(run: Run) -> int:
    """Trains in the workers of Ray Train, on the cluster of RAY_ADDRESS or on one of its own."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from clusters.preflight import check_cluster

    cluster = run.config.cluster
    # "local" and not None: Ray must not pick up a cluster that somebody else left on this machine.
    address = os.environ.get("RAY_ADDRESS", "local")
    own = {"include_dashboard": False} if address == "local" else {}
    ray.init(address=address, log_to_driver=False, logging_level="WARNING", **own)
    try:
        check_cluster(run.config, run.folder.parent)
    except ConfigError as error:
        return complain(error)

    run.write_config()
    resources = {"CPU": cluster.cpus_per_worker} | ({"GPU": cluster.gpus_per_worker} if cluster.gpus_per_worker else {})
    trainer = TorchTrainer(
        train_on_worker,
        train_loop_config={"config": run.config.model_dump_json(), "folder": str(run.folder)},
        scaling_config=ScalingConfig(
            num_workers=cluster.workers, use_gpu=cluster.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=run.name,
            storage_path=str(run.folder.parent),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=run.config.checkpoint.keep),
        ),
    )
    with following(run.folder / "train.log"), explained(run) as outcome:
        trainer.fit()
    return finish(run) if outcome.done else 1


def train_on_worker(arguments: dict[str, str]) -> None:
    """What each worker of Ray Train runs."""
    import ray.train
    from ray.train import Checkpoint, CheckpointUploadMode
    from ray.train.torch import get_device

    from pirl.config import from_json

    config, folder = from_json(arguments["config"]), Path(arguments["folder"])
    scratch = Path(tempfile.mkdtemp(prefix="pirl-"))

    def publish(metrics: dict[str, float], checkpoint: Path) -> None:
        ray.train.report(
            metrics,
            checkpoint=Checkpoint.from_directory(str(checkpoint)),
            checkpoint_dir_name=checkpoint.name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        )

    try:
        train_and_evaluate(config, folder, scratch, publish, get_device())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
