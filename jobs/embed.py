"""Write the features of a data set as Parquet files: an id, name, label and feature vector for each image."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import os
import signal
from typing import Any

from jobs.evaluation.evaluation_request import EmbeddingRequest
from jobs.settings import (
    Parser,
    destination_at,
    exit_code,
    local,
    places_and_settings,
    refuse_training,
    settings_and_storage,
    target_at,
)
from pirl.config import Config, override
from pirl.errors import ConfigError
from pirl.processes import torchrun
from pirl.storage.checks import check_can_write, check_place

PLACES = """

  TARGET       a run, a checkpoint, or a file with weights (.safetensors, .pth)
  DESTINATION  a new folder or its URL; one that was cut off goes on
"""

EXAMPLES = """
examples:
  python jobs/embed.py runs/pets features/pets                            res5 of the images it was trained on
  python jobs/embed.py runs/pets features/test --split test --tap res4 --dtype float16
  python jobs/embed.py resnet50.pth s3://bucket/features --data data/photos --image-size 224
  torchrun --nproc-per-node 2 -- jobs/embed.py runs/pets features/pets
  ray job submit --working-dir . -- python jobs/embed.py /shared/runs/pets /shared/features --cluster.workers 4
  python jobs/slurm.py --cluster clusters/slurm-cpu.toml -- jobs/embed.py /shared/runs/pets /shared/features

Read them with pyarrow, pandas or duckdb: pandas.read_parquet("features/pets", columns=["id", "features"]).
"""


def main() -> int:
    """Runs the job; returns 0 if it is done, 1 if it failed, 2 if the request is wrong and nothing was started."""
    return exit_code(embed, "; shards that were made stay, and the same command goes on")


def embed() -> int:
    """Checks the request, and carries it out."""
    request = parse(sys.argv[1:])
    from jobs.evaluation.embedding import check, run_embedding

    check(request)
    if request.only_check:
        print(request.out)
        return 0
    check_can_write("DESTINATION", request.out)
    from jobs.run.outcome import end

    signal.signal(signal.SIGTERM, end)
    return run_embedding(request)


def parse(argv: list[str]) -> EmbeddingRequest:
    """Reads the command line; raises ConfigError where it is wrong."""
    parser = Parser(
        prog="python jobs/embed.py",
        usage="python jobs/embed.py TARGET DESTINATION [--data URI] [--split train|test] [--tap TAP] ...",
        description=__doc__ + PLACES,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    add = parser.add_argument
    add("--data", metavar="URI", help="the images (default: those that the run was trained on)")
    add("--split", choices=["train", "test"], default="train", help="test is what was held out (default: train)")
    add("--tap", metavar="LAYER", default="res5", help="conv1, res2, res3, res4 or res5 (the default)")
    add("--dtype", choices=["float32", "float16"], default="float32", help="of the features (default: float32)")
    add("--image-size", metavar="PIXELS", type=int, help="side of the views (default: the run's; 224, or 32 by stem)")
    add("--overwrite", action="store_true", help="replace another embedding in DESTINATION")
    add("--storage", metavar="URI", help="where runs lie, if TARGET is the name of one")
    add("--cluster", metavar="FILE", help="a profile (clusters/*.toml) that says how many workers and which storage")
    add("--check", action="store_true", help="check the request, print DESTINATION, start nothing")
    add("--no-ray", action="store_true", help="in this process; so it is without RAY_ADDRESS and several workers")
    add("-h", "--help", action="store_true", help="this text")
    known, target, destination, changes = places_and_settings(parser, argv)
    if known.help:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends without a word
        parser.print_help()
        sys.exit(0)
    if known.image_size is not None and known.image_size < 16:
        raise ConfigError(f"--image-size {known.image_size}: use 16 or more")
    if known.data is not None:
        check_place("--data", known.data, "data/photos")
    return _request(known, target, destination, changes)


def _request(known: argparse.Namespace, target: str, destination: str, names: dict[str, Any]) -> EmbeddingRequest:
    refuse_training(names)
    if strange := [key for key in names if not key.startswith(("data.", "cluster."))]:
        raise ConfigError(f"--{strange[0].replace('_', '-')} is no setting of data or cluster: see --help")
    settings, storage = settings_and_storage(known)
    given = {"data.uri": local(known.data)} if known.data else {}
    config = override(Config(), {"cluster.workers": 1, **settings, **given, **names})
    return EmbeddingRequest(
        target=target_at(target, storage, config),
        out=destination_at(destination, config),
        data=local(known.data or ""),
        split=known.split,
        tap=known.tap,
        dtype=known.dtype,
        config=config,
        image_size=known.image_size,
        overwrite=known.overwrite,
        use_ray=not known.no_ray
        and not torchrun("WORLD_SIZE")
        and ("RAY_ADDRESS" in os.environ or config.cluster.workers > 1),
        only_check=known.check,
    )


if __name__ == "__main__":
    sys.exit(main())
