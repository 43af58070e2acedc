"""ClusterFit: train a fresh network on clusters of another one's features; or distillation, on its scores."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import os
import signal
import time
from typing import Any

from jobs.evaluation.clusterfit_request import ClusterFitRequest
from jobs.evaluation.evaluation_request import EmbeddingRequest
from jobs.live_line import LiveLine
from jobs.settings import (
    Parser,
    absolute,
    local,
    pairs,
    recipe_for,
    recipe_name,
    settings_and_storage,
    target_at,
)
from pirl.config import Config, override
from pirl.errors import ConfigError, CorruptImage, RunFailed, StorageError, StoreRefusedError
from pirl.processes import torchrun
from pirl.recipes import RECIPES
from pirl.runs.run import storage_at
from pirl.runs.run_files import RunFile
from pirl.storage.checks import check_can_write
from pirl.storage.folder import Folder
from pirl.storage.temporary import remove_temporary_folder

ABOUT = """

  TARGET  the first network: a run, a checkpoint, or a file with weights (.safetensors, .pth)
  RECIPE  settings of the new network (default: those of the run that TARGET is)

Three steps: features of TARGET, k-means of them, and training as jobs/pretrain.py does it. What is made stays: after a
kill the same command goes on. With --distill the new network learns the softmax of TARGET's classifier, where it was
trained to say a class of images, or of the nearness to the clusters, where it was not.
"""

EXAMPLES = """
examples:
  python jobs/clusterfit.py runs/digits_jigsaw --clusters 50              trains runs/digits_jigsaw-clusterfit
  python jobs/clusterfit.py runs/digits_jigsaw --clusters 50 --distill    trains runs/digits_jigsaw-distillation
  python jobs/clusterfit.py runs/digits_supervised --distill              its own classifier is the teacher
  python jobs/clusterfit.py resnet50.pth imagenet_clusterfit --data data/imagenet --clusters 16000
  torchrun --nproc-per-node 2 -- jobs/clusterfit.py runs/digits_jigsaw --clusters 50
  ray job submit --working-dir . -- python jobs/clusterfit.py /shared/runs/cifar10 --clusters 100 --cluster.workers 4
  python jobs/slurm.py --cluster clusters/slurm-cpu.toml -- jobs/clusterfit.py /shared/runs/cifar10 --clusters 100
"""

OWN = ("method.name", "method.teacher", "data.pseudo_labels", "data.label_noise")
"""Settings that follow from the command."""


def main() -> int:
    """Runs the job; returns 0 if it is done, 1 if it failed, 2 if the request is wrong and nothing was started."""
    live = LiveLine(sys.stdout, allowed=not torchrun("RANK"))
    try:
        with live.passing("checking the first network, its images and the storage"):
            request = parse(sys.argv[1:])
            from jobs.evaluation.target_making import check

            run = check(request)
        if request.only_check:
            print(run.folder)
            return 0
        if run.result is None and not torchrun("WORLD_SIZE"):
            check_can_write("--storage", request.storage)
    except (ConfigError, StoreRefusedError, PermissionError, NotADirectoryError) as error:
        if torchrun("RANK"):
            from jobs.pretrain import RANK_0_S

            time.sleep(RANK_0_S)  # the first process says it
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StorageError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1

    from jobs.evaluation.target_making import carry_out
    from jobs.run.outcome import end, show_result

    signal.signal(signal.SIGTERM, end)
    if run.result is not None:
        return show_result(run.folder, run.result, "was done before; --run NAME trains another one")
    try:
        return carry_out(request, run, live)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (StorageError, CorruptImage, RunFailed, OSError) as error:
        print(f"failed: {error}\nto go on with what was made, type the same command again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; to go on with what was made, type the same command again", file=sys.stderr)
        return 1


def parse(argv: list[str]) -> ClusterFitRequest:
    """Reads the command line, and of TARGET what it is; raises ConfigError where it is wrong."""
    from pirl.clusterfit.from_features import has_classifier
    from pirl.clusterfit.kmeans import KMeans
    from pirl.runs.weights import read_weights

    known, words, changes = _words(argv)
    settings, storage_uri = settings_and_storage(known)
    reach = override(Config(), {**settings, **_of(changes, "data.", "cluster.")})
    target = target_at(words[0], storage_uri, reach)
    first = read_weights(target).config
    if len(words) < 2 and first is None:
        raise ConfigError(f"{target} is a file, which has no settings: name a recipe behind it, {', '.join(RECIPES)}")
    data = {"data.uri": local(known.data)} if known.data else {"data.uri": first.data.uri} if first else {}
    own_head = known.distill and has_classifier(first)
    _check_clusters(known, own_head, target)
    method = "distillation" if known.distill else "clusterfit"
    name = known.run or f"{_name_of(target, is_run=first is not None)}-{method}"
    storage = storage_at(storage_uri, override(reach, data))
    targets = (storage / name / RunFile.TARGETS).uri
    base = recipe_for(recipe_name(words[1]), {**settings, **changes, **data}) if len(words) > 1 else first
    config = _config(base or Config(), {**data, **settings, **changes}, method, targets)
    use_ray = not (known.no_ray or torchrun("WORLD_SIZE"))
    sought = {name: getattr(known, name) for name in KMeans.model_fields}
    return ClusterFitRequest(
        embedding=EmbeddingRequest(
            target=target,
            out=storage / ".features",
            data=config.data.uri,
            split="train",
            tap=known.tap,
            dtype="float32",
            config=config,
            image_size=known.image_size,
            overwrite=False,
            use_ray=use_ray,
            only_check=known.check,
        ),
        clusters=None if own_head else KMeans(**sought),
        config=config,
        storage=storage,
        name=name,
        resume=known.resume,
        use_ray=use_ray,
        only_check=known.check,
    )


def _config(base: Config, given: dict[str, Any], method: str, targets: str) -> Config:
    """That of the new run: with a fresh network, and streams that fit to what is given."""
    place = "method.teacher" if method == "distillation" else "data.pseudo_labels"
    none = ("method.teacher", "data.pseudo_labels", "model.weights", "data.streams", "data.window_groups")
    own = {**dict.fromkeys(none), "method.name": method, "data.label_noise": 0, place: targets}
    return absolute(override(override(base, own), given))


def _name_of(target: Folder, *, is_run: bool) -> str:
    """That of the run, or of the file without its ending."""
    run = target.parent if target.name.startswith("checkpoint_") else target
    return run.name if is_run else Path(run.name).stem


def _check_clusters(known: argparse.Namespace, own_head: bool, target: Folder) -> None:
    """Refuses a number that is missing or means nothing; raises ConfigError."""
    if own_head and known.clusters is not None:
        raise ConfigError(
            f"--clusters {known.clusters} means nothing to --distill here: {target} has a classifier of its own, which "
            "is the teacher. Leave it away"
        )
    if not own_head and known.clusters is None:
        raise ConfigError("--clusters is missing: how many, such as --clusters 50; 5 to 20 for each class are usual")


def _of(changes: dict[str, Any], *beginnings: str) -> dict[str, Any]:
    return {name: value for name, value in changes.items() if name.startswith(beginnings)}


def _from(least: int) -> Any:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")
        return int(text)

    return number


def _words(argv: list[str]) -> tuple[argparse.Namespace, list[str], dict[str, Any]]:
    """The options, TARGET and perhaps RECIPE, and the settings, with underscores in their names."""
    parser = _parser()
    known, rest = parser.parse_known_args(argv)
    if known.help:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends without a word
        parser.print_help()
        sys.exit(0)
    words, typed = list[str](), list[str]()
    at = iter(rest)
    for word in at:
        if word.startswith("--"):
            typed += [word] if "=" in word else [word, *([following] if (following := next(at, None)) else [])]
        else:
            words.append(word)
    if not 1 <= len(words) <= 2:
        given = f"{len(words)} are given: {' '.join(words)}" if words else "none is given"
        raise ConfigError(f"TARGET and perhaps RECIPE are needed, and {given}. See {parser.prog} --help")
    changes = {name.replace("-", "_"): value for name, value in pairs(typed)[1].items()}
    if "data.uri" in changes:
        raise ConfigError(f"--data.uri {changes['data.uri']}: type --data {changes['data.uri']}")
    if taken := [name for name in changes if name in OWN]:
        raise ConfigError(f"--{taken[0]} follows from the command: leave it away")
    return known, words, changes


def _parser() -> Parser:
    parser = Parser(
        prog="python jobs/clusterfit.py",
        usage="python jobs/clusterfit.py TARGET [RECIPE] --clusters N [--distill] [--section.field VALUE ...] ...",
        description=(__doc__ or "") + ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    add = parser.add_argument
    add("--data", metavar="URI", help="the images (default: those that TARGET was trained on)")
    add("--clusters", type=_from(2), metavar="N", help="how many")
    add("--distill", action="store_true", help="learn scores in place of clusters")
    add("--tap", metavar="LAYER", default="res5", help="features: conv1, res2, res3, res4 or res5 (the default)")
    add("--image-size", metavar="PIXELS", type=_from(16), help="of their views (default: TARGET's; 224, or 32 by stem)")
    add("--iterations", type=_from(1), default=50, metavar="N", help="of k-means (default: 50)")
    add("--redo", type=_from(1), default=3, metavar="N", help="starts of k-means; the best counts (default: 3)")
    add("--max-points-per-centroid", type=_from(1), default=256, metavar="N", help="images seen by it (default: 256)")
    add("--spherical", action="store_true", help="centroids of length 1, as all features are")
    add("--run", metavar="NAME", help="of the new run (default: TARGET's with -clusterfit or -distillation)")
    add("--storage", metavar="URI", help="where runs lie, and TARGET, if it is the name of one")
    add("--resume", choices=["auto", "never", "must"], default="auto", help="as for jobs/pretrain.py")
    add("--cluster", metavar="FILE", help="a profile (clusters/*.toml) that says how many workers and which storage")
    add("--check", action="store_true", help="check the request, print the run folder, start nothing")
    add("--no-ray", action="store_true", help="in this process; torchrun implies it")
    add("-h", "--help", action="store_true", help="this text")
    return parser


if __name__ == "__main__":
    try:
        code = main()
    finally:
        remove_temporary_folder()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # as jobs/pretrain.py: threads of Ray that still run were seen to abort the interpreter's shutdown
