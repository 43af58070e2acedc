"""Measure what a network has learned: a run's, a checkpoint's, or that of a file with weights."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import ast
import inspect
import os
import signal
from itertools import pairwise
from typing import Any

from jobs.evaluation.evaluation_request import EvaluationRequest
from jobs.settings import (
    Parser,
    exit_code,
    local,
    pairs,
    place_at,
    refuse_training,
    settings_and_storage,
    spread,
    target_at,
)
from pirl.config import Config, override
from pirl.errors import ConfigError
from pirl.processes import torchrun
from pirl.sections import Section
from pirl.storage.checks import check_can_write, check_place
from pirl.storage.folder import Folder

EXAMPLES = """
examples:
  python jobs/evaluate.py runs/digits                                     kNN, linear probes, few labels
  python jobs/evaluate.py runs/digits --protocol knn linear --knn.k 20 200
  python jobs/evaluate.py runs/cifar10 --data data/photos --protocol few --few.per-class 1 10 100
  python jobs/evaluate.py runs/cifar10 --protocol linear_sgd semi --semi.shares 0.01 0.1
  python jobs/evaluate.py resnet18.pth --data data/photos --image-size 224 --out resnet18-on-photos
  python jobs/evaluate.py runs/imagenet --protocol svm --data VOCdevkit/VOC2007 --svm.low-shot 1 2 4 8 16 96
  python jobs/evaluate.py runs/imagenet --protocol detection --data VOCdevkit/VOC2007
  torchrun --nproc-per-node 2 -- jobs/evaluate.py runs/digits
  ray job submit --working-dir . -- python jobs/evaluate.py /shared/runs/cifar10 --cluster.workers 4
  python jobs/slurm.py --cluster clusters/slurm-cpu.toml --dry-run -- jobs/evaluate.py /shared/runs/cifar10
"""


def main() -> int:
    """Runs the job; returns 0 if it is done, 1 if it failed, 2 if the request is wrong and nothing was started."""
    return exit_code(evaluate, "; features and finished epochs stay, and the same command goes on")


def evaluate() -> int:
    """Checks the request, and carries it out."""
    request = parse(sys.argv[1:])
    from jobs.evaluation.evaluating import check, features_folder, run_evaluation

    check(request)
    if request.only_check:
        print(request.out)
        return 0
    check_can_write("--out", request.out)
    if not request.use_ray:
        check_can_write("--features", Folder(str(features_folder(request))))
    from jobs.run.outcome import end

    signal.signal(signal.SIGTERM, end)
    return run_evaluation(request)


def parse(argv: list[str]) -> EvaluationRequest:
    """Reads the command line; raises ConfigError where it is wrong."""
    parser = Parser(
        prog="python jobs/evaluate.py",
        usage="python jobs/evaluate.py TARGET [--data URI] [--protocol NAME ...] [--PROTOCOL.SETTING VALUE ...] ...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    add = parser.add_argument
    add("target", metavar="TARGET", nargs="?", help="a run, a checkpoint, or a file with weights (.safetensors, .pth)")
    add("--data", metavar="URI", help="images to fit with (default: those that the run was trained on)")
    add("--test", metavar="URI", help="images to count (default: the test split of --data)")
    add("--protocol", metavar="NAME", nargs="+", default=["knn", "linear", "few"], help="see below")
    add("--out", metavar="URI", help="where reports go (default: evaluation/ in the run)")
    add("--image-size", metavar="PIXELS", type=int, help="side of the views (default: the run's; 224, or 32 by stem)")
    add(
        "--max-images",
        metavar="N",
        type=int,
        default=100_000,
        help="of each split, in groups of 64 (default: 100,000)",
    )
    add("--seed", type=int, default=0, help="of all draws (default: 0)")
    add("--ensemble", metavar="OTHER", help="a second network: its features stand beside those of TARGET")
    add("--no-random", action="store_true", help="leave out the network with random weights beside it")
    add("--features", metavar="FOLDER", help="on each node, for features (default: pirl-features-… in TMPDIR)")
    add("--storage", metavar="URI", help="where runs lie, if TARGET is the name of one")
    add("--cluster", metavar="FILE", help="a profile (clusters/*.toml) that says how many workers and which storage")
    add("--check", action="store_true", help="check the request, print where reports go, start nothing")
    add("--no-ray", action="store_true", help="in this process; so it is without RAY_ADDRESS and several workers")
    add("-h", "--help", action="store_true", help="this text")
    known, rest = parser.parse_known_args(spread(argv))
    if known.help:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends without a word
        print(f"{parser.format_help()}\n{protocol_help()}\n{EXAMPLES}", end="")
        sys.exit(0)
    if known.target is None:
        raise ConfigError("no network: python jobs/evaluate.py TARGET, a run, a checkpoint or a file with weights")
    for name, least in (("image_size", 16), ("max_images", 1), ("seed", 0)):
        if (value := getattr(known, name)) is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} {value} is too small: use {least} or more")
    for name in ("data", "test", "features"):
        if (place := getattr(known, name)) is not None:
            check_place(f"--{name}", place, "data/photos")
    if "://" in (known.features or ""):
        raise ConfigError(f"--features {known.features} is a URL: name a folder, which each node has of its own")
    word, changes = pairs(rest)
    if word is not None:
        raise ConfigError(f"unexpected {word!r}: TARGET is one run, checkpoint or file")
    return _request(known, changes)


def protocol_help() -> str:
    """What each protocol is, and its settings with their defaults and what they are."""
    from pirl.evaluate.evaluate import PROTOCOLS

    lines = ["protocols, each with its settings:"]
    for name, protocol in PROTOCOLS.items():
        lines.append(f"  {name:<12}{(inspect.getdoc(protocol.settings) or '').splitlines()[0]}")
        about = docstrings(protocol.settings)
        for setting, field in protocol.settings.model_fields.items():
            default = field.get_default(call_default_factory=True)
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
            option = f"--{name}.{setting.replace('_', '-')} {shown}"
            what, *_ = [*about.get(setting, "").splitlines(), ""]
            lines.append(f"    {option:<40}  {what}".rstrip())
    return "\n".join(lines)


def docstrings(section: type[Section]) -> dict[str, str]:
    """What stands in the source below each setting."""
    found: dict[str, str] = {}
    (tree,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(tree, ast.ClassDef)
    for field, text in pairwise(tree.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = str(ast.literal_eval(text.value))
    return found


def _request(known: argparse.Namespace, changes: dict[str, Any]) -> EvaluationRequest:
    settings, storage = settings_and_storage(known)
    names = {key.replace("-", "_"): value for key, value in changes.items()}
    refuse_training(names)
    shared = {key: value for key, value in names.items() if key.startswith(("data.", "cluster."))}
    given = {"data.uri": local(known.data)} if known.data else {}
    config = override(Config(), {"cluster.workers": 1, "cluster.loader_processes": 0, **settings, **given, **shared})
    target = target_at(known.target, storage, config)
    protocols = {name: _settings(name, names) for name in (each.replace("-", "_") for each in known.protocol)}
    strange = [key for key in names if key not in shared and key.partition(".")[0] not in protocols]
    if strange:
        asked = ", ".join(protocols)
        raise ConfigError(f"--{strange[0].replace('_', '-')} is no setting of {asked}, data or cluster: see --help")
    if known.out is not None:
        out = place_at("--out", known.out, config)
    elif target.path and target.path.is_file():
        out = Folder(str(Path(f"evaluation-{Path(target.name).stem}").resolve()))
    else:
        run = target.parent if target.name.startswith("checkpoint_") else target
        out = run / "evaluation"
    return EvaluationRequest(
        target=target,
        out=out,
        data=local(known.data or ""),
        test=local(known.test or ""),
        protocols=protocols,
        config=config,
        image_size=known.image_size,
        max_images=known.max_images,
        seed=known.seed,
        random=not known.no_random,
        ensemble=place_at("--ensemble", known.ensemble, config) if known.ensemble is not None else None,
        features=known.features or "",
        use_ray=not known.no_ray
        and not torchrun("WORLD_SIZE")
        and ("RAY_ADDRESS" in os.environ or config.cluster.workers > 1),
        only_check=known.check,
    )


def _settings(name: str, changes: dict[str, Any]) -> Section:
    """Those of a protocol, as typed; raises ConfigError."""
    from pydantic import ValidationError

    from pirl.evaluate.evaluate import PROTOCOLS
    from pirl.wording import problem_with

    if name not in PROTOCOLS:
        raise ConfigError(f"unknown protocol {name!r}: use {', '.join(PROTOCOLS)}")
    cls = PROTOCOLS[name].settings
    own = {key.partition(".")[2]: value for key, value in changes.items() if key.startswith(f"{name}.")}
    for key, value in own.items():
        if key in cls.model_fields and isinstance(cls.model_fields[key].default, tuple):
            own[key] = tuple(str(value).split(","))
    try:
        return cls.model_validate(own)
    except ValidationError as error:
        lines = [problem_with(each, list(cls.model_fields)) for each in error.errors()]
        raise ConfigError("\n".join(f"--{name}.{line}" for line in lines)) from None


if __name__ == "__main__":
    sys.exit(main())
