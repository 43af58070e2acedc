"""The options of `tune/sweep.py`."""

import argparse
from collections.abc import Callable

from jobs.settings import Parser, default_storage
from pirl.recipes import RECIPES

EXAMPLES = """
  python tune/sweep.py digits --num-negatives 256 512 1024 --epochs 5 10 --seeds 3
  python tune/sweep.py cifar10 --set loss.pretext_weight 0 0.25 0.5 0.75 1 --optim.epochs 4 --name lambda
  python tune/sweep.py digits --set optim.lr 0.01 0.03 0.1 --set loss.temperature 0.05 0.07 0.1 \\
      --search random --num-samples 4 --scheduler asha
  python tune/sweep.py digits --set optim.lr 0.001..0.3 --set loss.temperature 0.05 0.07 0.1 \\
      --search optuna --num-samples 20
  ray job submit --working-dir . -- python tune/sweep.py digits --num-negatives 256 1024 --storage /shared/runs
"""


def _from(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")
        return int(text)

    return number


def options(about: str | None) -> argparse.ArgumentParser:
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
