"""Write the network of a run as a file that other programs read: plain torchvision, safetensors, ONNX."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import signal
from dataclasses import dataclass
from typing import Any

from jobs.settings import Parser, destination_at, exit_code, places_and_settings, storage_uri, target_at
from pirl.config import Config, override
from pirl.errors import ConfigError
from pirl.storage.checks import check_can_write
from pirl.storage.folder import Folder

PLACES = """

  TARGET       a run, a checkpoint, or a file with weights (.safetensors, .pth)
  DESTINATION  a new file or its URL
"""

EXAMPLES = """
formats:
  torchvision  .pth    a state dict that torchvision's ResNet takes with strict=True, its classifier aside
  safetensors  .safetensors    the same tensors
  onnx         .onnx   a graph from RGB images in 0..1, any number and size, to features; it normalises them itself

Beside the file comes FILE.json: mean, std, size and resizing of the images, and the lines of Python that load it.

examples:
  python jobs/export.py runs/pets --format torchvision pets.pth
  python jobs/export.py runs/pets --format onnx s3://bucket/models/pets.onnx
  python jobs/export.py resnet50.pth --format safetensors models/resnet50.safetensors --image-size 224
"""


@dataclass(frozen=True)
class ExportRequest:
    """What the command line asks for.

    Attributes:
        target: The run, checkpoint or file.
        out: The file to be, and `beside` its JSON.
        kind: A name of `export.FORMATS`.
        image_size: Side of the views, where it is not that of the run.
    """

    target: Folder
    out: Folder
    kind: str
    image_size: int | None
    overwrite: bool
    only_check: bool

    @property
    def beside(self) -> Folder:
        """What programs must know of the file."""
        return self.out.parent / f"{self.out.name}.json"


def main() -> int:
    """Runs the job; returns 0 if it is done, 1 if it failed, 2 if the request is wrong and nothing was written."""
    return exit_code(lambda: export(parse(sys.argv[1:])))


def export(request: ExportRequest) -> int:
    """Checks the request, and writes the file and its JSON; returns the exit code."""
    from pirl.runs.export import about, as_text, check_format, exported
    from pirl.runs.weights import read_weights

    weights = read_weights(request.target)
    check_format(weights, request.kind)
    source = weights.checkpoint or request.target
    if source.overlaps(request.out):
        raise ConfigError(f"DESTINATION {request.out} is or lies in {source}, where the weights are: name another file")
    refuse_taken(request)
    if request.only_check:
        print(request.out)
        return 0
    check_can_write("DESTINATION", request.out.parent)
    content = about(weights, request.kind, request.out.name, weights.image_size(request.image_size))
    data = exported(weights, request.kind)
    request.out.parent.write(request.beside.name, as_text(content))
    request.out.parent.write(request.out.name, data)
    print(f"{weights.in_words()}\n\n{request.out}\n{request.beside}\n\nto load it:\n")
    print("\n".join(f"    {line}" for line in content["code"]))
    return 0


def refuse_taken(request: ExportRequest) -> None:
    """Raises ConfigError where DESTINATION is no new file."""
    if request.out.is_folder():
        example = f"{request.out}/{request.target.name}{endings(request.kind)[0]}"
        raise ConfigError(f"DESTINATION {request.out} is a folder: name a file, such as {example}")
    for place in (request.out, request.beside):
        if not request.overwrite and place.exists():
            raise ConfigError(f"{place} exists: name another file, or add --overwrite to replace it")


def endings(kind: str) -> tuple[str, ...]:
    """How files of a format end; raises ConfigError if there is no such format."""
    from pirl.runs.export import FORMATS

    if kind not in FORMATS:
        raise ConfigError(f"--format {kind}: use one of {', '.join(FORMATS)}")
    return FORMATS[kind][0]


def parse(argv: list[str]) -> ExportRequest:
    """Reads the command line; raises ConfigError where it is wrong."""
    parser = Parser(
        prog="python jobs/export.py",
        usage="python jobs/export.py TARGET --format torchvision|safetensors|onnx DESTINATION ...",
        description=__doc__ + PLACES,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    add = parser.add_argument
    add("--format", metavar="NAME", help="see below")
    add("--image-size", metavar="PIXELS", type=int, help="side of the views (default: the run's; 224, or 32 by stem)")
    add("--overwrite", action="store_true", help="replace DESTINATION and its JSON")
    add("--storage", metavar="URI", help="where runs lie, if TARGET is the name of one")
    add("--check", action="store_true", help="check the request, print DESTINATION, write nothing")
    add("-h", "--help", action="store_true", help="this text")
    known, target, destination, changes = places_and_settings(parser, argv)
    if known.help:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends without a word
        parser.print_help()
        sys.exit(0)
    if not known.format:
        raise ConfigError("no format: add --format torchvision, --format safetensors or --format onnx")
    if known.image_size is not None and known.image_size < 16:
        raise ConfigError(f"--image-size {known.image_size}: use 16 or more")
    return _request(known, target, destination, changes)


def _request(known: argparse.Namespace, target: str, destination: str, names: dict[str, Any]) -> ExportRequest:
    if strange := [key for key in names if key not in ("data.storage_options", "data.deadline_s")]:
        raise ConfigError(f"unknown option --{strange[0].replace('_', '-')}: see --help")
    config = override(Config(), names)
    suffixes = endings(known.format)
    if not destination.endswith(suffixes):
        raise ConfigError(
            f"DESTINATION {destination}: a file of --format {known.format} ends in {' or '.join(suffixes)}"
        )
    out = destination_at(destination, config)
    if "/" not in out.uri.partition("://")[2] and "://" in out.uri:
        raise ConfigError(f"DESTINATION {out} names a bucket: add a file, such as {out}/network{suffixes[0]}")
    return ExportRequest(
        target=target_at(target, storage_uri(known.storage), config),
        out=out,
        kind=known.format,
        image_size=known.image_size,
        overwrite=known.overwrite,
        only_check=known.check,
    )


if __name__ == "__main__":
    sys.exit(main())
