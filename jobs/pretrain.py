"""Train PIRL on the images of a data set, on Ray, and measure what it learned."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import inspect
import os
import signal
import time
from dataclasses import dataclass

from jobs.live_line import LiveLine
from jobs.run.checks import check_request
from jobs.settings import Parser, absolute, default_storage, pairs, recipe_for, recipe_name, settings_and_storage
from pirl.config import Config, override
from pirl.errors import ConfigError, StorageError, StoreRefusedError
from pirl.processes import torchrun
from pirl.recipes import RECIPES
from pirl.runs.run import Resume, open_run, storage_at
from pirl.storage.checks import check_can_write
from pirl.storage.folder import Folder
from pirl.storage.temporary import remove_temporary_folder

EXAMPLES = """
  python jobs/pretrain.py                                     the built-in digits, on a Ray of its own
  python jobs/pretrain.py cifar10 --help                      all settings of a recipe
  python jobs/pretrain.py cifar10 --data.uri /shared/cifar10 --loss.num-negatives 8192 --run more-negatives
  ray job submit --working-dir . -- python jobs/pretrain.py cifar10 --data.uri /shared/cifar10 --storage /shared/runs
  python jobs/pretrain.py cifar10 --data.uri s3://bucket/cifar10 --storage s3://bucket/runs
  python jobs/pretrain.py photos --data.uri data/photos       your own photographs; photos --help has the rules
  torchrun --nproc-per-node 2 -- jobs/pretrain.py digits --run by-torchrun     without Ray; torchrun needs that --
  python jobs/slurm.py --cluster clusters/slurm-cpu.toml -- jobs/pretrain.py photos --data.uri /shared/photos
"""

RANK_0_S = 30
"""Among torchrun's processes the first one says what is wrong, and its end ends the others."""


@dataclass(frozen=True)
class RunRequest:
    """What the command line asks for."""

    config: Config
    storage: Folder
    name: str
    resume: Resume
    use_ray: bool
    only_check: bool


def main() -> int:
    """Runs the job; returns 0 if it is done, 1 if it failed, 2 if the request is wrong and nothing was started."""
    live = live_line()
    try:
        request = parse(sys.argv[1:])
        with live.passing(f"checking {request.storage} and {request.config.data.uri}"):
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

    from jobs.run.outcome import end, show_result

    signal.signal(signal.SIGTERM, end)
    if run.result is not None:
        return show_result(run.folder, run.result, "was done before; --run NAME trains another one")
    try:
        if request.use_ray:  # which imports nothing of what workers need: Ray is started meanwhile
            from jobs.run.on_ray import run_on_ray

            return run_on_ray(run, live)
        with live.passing("importing PyTorch"):
            from jobs.run.here import run_here

        return run_here(run, live)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1


def live_line() -> LiveLine:
    """Of torchrun's processes the first one shows it."""
    return LiveLine(sys.stdout, allowed=not torchrun("RANK"))


def parse(argv: list[str]) -> RunRequest:
    """Reads the command line; raises ConfigError for a recipe, setting or value that is not allowed."""
    parser = Parser(
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
    name = recipe_name(recipe)
    if known.help:
        _print_settings(name)
        sys.exit(0)
    settings, storage = settings_and_storage(known)
    changes = {**settings, **changes}
    with live_line().passing("reading the settings"):  # those of `photos` follow from its data set
        config = override(recipe_for(name, changes), changes)
    return RunRequest(
        config=absolute(config),
        storage=storage_at(storage, config),
        name=name if known.run is None else known.run,
        resume=known.resume,
        use_ray=not (known.no_ray or torchrun("WORLD_SIZE")),
        only_check=known.check,
    )


def _recipe_list() -> str:
    lines = ((name, (inspect.getdoc(recipe) or "").splitlines()[0]) for name, recipe in RECIPES.items())
    width = max(map(len, RECIPES)) + 2
    return "\n".join(f"  {name:<{width}}{line}" for name, line in lines)


def _print_settings(name: str) -> None:
    """Prints a recipe's text and all settings with its values as defaults."""
    import tyro

    recipe = RECIPES[name]
    text = (inspect.getdoc(recipe) or "").partition("\n\nArgs:")[0]
    print(
        f"python jobs/pretrain.py {name} [--section.field VALUE ...] [--run NAME] [--storage URI] ...\n\n"
        f"{text}\n\n"
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
    try:
        code = main()
    finally:
        remove_temporary_folder()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: after SIGTERM, threads of Ray that still run were seen to abort the interpreter's shutdown.
    os._exit(code)
