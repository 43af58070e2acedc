"""Write images as a data set that training reads: shuffled once, in a few large files with a manifest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import io
import os
import re
import shlex
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from pirl import storage
from pirl.config import ConfigError
from pirl.digits import write_digits
from pirl.parquet_source import Ints, Row
from pirl.shard_writer import MANIFEST, ShardWriter
from pirl.shards import open_dataset, test_uri
from pirl.sources import Source, find_source, with_classes

EXAMPLES = """
sources:
  digits              scikit-learn's 1,797 handwritten digits, a fifth of them for testing
  a folder of images  best with one folder for each class; train/ and test/ or val/ may lie above those
  a Parquet file      with a column of JPEG or PNG bytes, or a folder or a quoted pattern of such files

examples:
  python jobs/prepare.py ~/photos /shared/photos
  python jobs/prepare.py cifar10/train.parquet /shared/cifar10 --test cifar10/test.parquet
  python jobs/prepare.py 'imagenet/train-*.parquet' /shared/imagenet --test 'imagenet/validation-*.parquet'
"""

OUR_FILES = re.compile(r"(test/)?(manifest\.json|shard-\d{5}\.parquet)(\.\d+\.tmp)?")
CHUNK_ROWS = 512
"""Images that are checked at a time, by a few threads."""

Checked = tuple[int, bytes | None, str]
"""The number of a row in its source, and what `check_image` says of its image."""


@dataclass
class Changes:
    """What did not go into the data set as it was: kinds of images encoded anew, and images left out."""

    encoded: Counter[str] = field(default_factory=Counter)
    left_out: list[str] = field(default_factory=list)


def main() -> int:
    """Runs the job.

    Returns:
        The exit code: 0 done, 1 failed while running, 2 the request is wrong and nothing was written.
    """
    # Pillow warns of oddities in files that it reads all the same; what it cannot read is counted.
    warnings.filterwarnings("ignore", module="PIL")
    request = parse(sys.argv[1:])
    again = f"{request.destination} is incomplete: type the same again with --overwrite"
    try:
        changes = prepare(request)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, pa.ArrowException) as error:
        print(f"failed: {error}\n{again}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped. {again}", file=sys.stderr)
        return 1
    summarize(request, changes)
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    """Reads the command line; leaves with exit code 2 where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python jobs/prepare.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SOURCE", help="where the images are: see below")
    parser.add_argument("destination", metavar="DESTINATION", help="a new folder for the data set, or a URL")
    held_out = parser.add_mutually_exclusive_group()
    held_out.add_argument("--test", metavar="SOURCE", help="images to hold out for evaluation")
    held_out.add_argument(
        "--test-fraction", metavar="F", type=float, help="share of SOURCE to hold out for evaluation, as 0.1"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set in DESTINATION")
    parser.add_argument("--image-column", metavar="NAME", default="image", help="of Parquet files (default: image)")
    parser.add_argument("--label-column", metavar="NAME", help="of Parquet files (default: label, if there is one)")
    return parser.parse_args(argv)


def prepare(request: argparse.Namespace) -> Changes:
    """Writes the data set; the manifest of the training split comes last and completes it.

    Raises:
        ConfigError: The request is wrong; nothing was written.
    """
    source, destination, changes = request.source, request.destination, Changes()
    old_files = check_destination(destination, request.overwrite)
    if source == "digits":
        if request.test or request.test_fraction:
            raise ConfigError("digits bring a test split of their own: leave out --test and --test-fraction")
        clear(destination, old_files)
        write_digits(destination, request.seed)
        return changes
    check_apart(destination, [source, request.test or source])
    train, test = find_source(source, request.image_column, request.label_column)
    if request.test:
        test, _ = find_source(request.test, request.image_column, request.label_column)
    if test is not None and train.classes is not None:
        test = with_classes(test, train.classes)
    rng = np.random.default_rng(request.seed)
    order = rng.permutation(len(train.labels))
    splits = [(destination, train, order)]
    if request.test_fraction is not None:
        held_out = count_held_out(request.test_fraction, len(order), test)
        splits = [(destination, train, order[held_out:]), (below(destination), train, order[:held_out])]
    elif test is not None:
        splits.append((below(destination), test, rng.permutation(len(test.labels))))
    clear(destination, old_files)
    try:
        for folder, images, rows in reversed(splits):
            write_split(folder, images, rows, request.seed, changes)
    except ConfigError:
        clear(destination, storage.files_below(destination))
        raise
    return changes


def below(destination: str) -> str:
    """The folder of the held-out split."""
    return storage.join(destination, "test")


def count_held_out(fraction: float, rows: int, test: Source | None) -> int:
    """How many of the rows `--test-fraction` holds out."""
    if test is not None:
        raise ConfigError("SOURCE has a test split (test/ or val/): leave out --test-fraction")
    held_out = round(fraction * rows)
    if not 0 < held_out < rows:
        raise ConfigError(f"--test-fraction {fraction} holds out {held_out} of {rows} images: use 0.1, say")
    return held_out


def check_apart(destination: str, sources: list[str]) -> None:
    """Refuses to write into a source, or over one."""
    for source in sources:
        a, b = Path(destination).resolve(), Path(source).resolve()
        if a.is_relative_to(b) or b.is_relative_to(a):
            raise ConfigError(f"DESTINATION {destination} and SOURCE {source} overlap: name a folder apart from it")


def check_destination(uri: str, overwrite: bool) -> list[str]:
    """Returns the files of the data set that is to be replaced, if there is one.

    Raises:
        ConfigError: The destination is in use.
    """
    if not storage.exists(uri):
        return []
    if not storage.is_folder(uri):
        raise ConfigError(f"DESTINATION {uri} is a file: name a new folder")
    files = storage.files_below(uri)
    foreign = [name for name in files if not OUR_FILES.fullmatch(name)]
    if foreign:
        raise ConfigError(f"DESTINATION {uri} holds other files ({foreign[0]}): name a new or empty folder")
    if files and not overwrite:
        raise ConfigError(f"DESTINATION {uri} exists: choose another, or add --overwrite to replace the data set in it")
    return files


def clear(uri: str, files: list[str]) -> None:
    """Removes the files of a data set, manifests first, so that a part of it never looks complete."""
    for name in sorted(files, key=lambda name: not name.endswith(MANIFEST)):
        storage.remove(storage.join(uri, name))


def write_split(uri: str, source: Source, order: Ints, seed: int, changes: Changes) -> None:
    """Writes these rows of a source, in this order."""
    with ShardWriter(uri, classes=source.classes, seed=seed, source=source.uri) as writer:
        for row, image, note in with_progress(checked(source.images(order)), len(order), uri):
            if image is None:
                changes.left_out.append(f"{source.name(row)}: {note}")
                continue
            changes.encoded.update([note] if note else [])
            label = int(source.labels[row])
            writer.add(image, None if label < 0 else label)
        if writer.rows == 0:
            raise ConfigError(f"none of the {len(order)} images can be used: {changes.left_out[0]}")


def checked(rows: Iterator[Row]) -> Iterator[Checked]:
    """Passes the rows through `check_image`, some at a time in threads."""
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(rows, CHUNK_ROWS)):
            for (row, _), result in zip(chunk, pool.map(check_image, [image for _, image in chunk]), strict=True):
                yield row, *result


def check_image(data: bytes | None) -> tuple[bytes | None, str]:
    """Makes sure that training can read an image: a JPEG or PNG of 8-bit colour or gray, and complete.

    Returns:
        The bytes to write, as they came or encoded anew, or None; and, unless they are as they came, why.
    """
    if data is None:
        return None, "no image in this row"
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return _encoded(image, data)
    except UnidentifiedImageError:
        return None, "not an image"
    except Exception as error:  # A broken file can make a decoder raise anything.
        return None, str(error)


def _encoded(image: Image.Image, data: bytes) -> tuple[bytes | None, str]:
    # MPO is what some cameras write: a JPEG with a second picture behind it.
    is_jpeg = image.format in ("JPEG", "MPO")
    # Pillow shows a PNG of 16 bits as one of 8; byte 24 of the file is its depth.
    if image.mode in ("RGB", "L") and (is_jpeg or (image.format == "PNG" and data[24] == 8)):
        return data, ""
    if image.mode.startswith(("I", "F")):
        return None, f"more than 8 bits a pixel (mode {image.mode}): convert it to 8 bits first"
    file = io.BytesIO()
    gray = image.mode in ("1", "L", "LA")
    image.convert("L" if gray else "RGB").save(file, "JPEG" if is_jpeg else "PNG", quality=95)
    return file.getvalue(), f"{image.format} {image.mode}"


def with_progress(rows: Iterator[Checked], total: int, what: str) -> Iterator[Checked]:
    """Passes the rows on, and says on stderr how many there were: in place on a terminal, rarely in a log."""
    terminal = sys.stderr.isatty()
    began = last = time.monotonic()
    for done, row in enumerate(rows, 1):
        yield row
        now = time.monotonic()
        if done == total or now - last > (0.2 if terminal else 10):
            last = now
            line = f"{what}: {done:,} of {total:,} images, {done / (now - began):,.0f}/s"
            print(
                f"\r{line}" if terminal else line,
                end="" if terminal and done < total else "\n",
                file=sys.stderr,
            )


def summarize(request: argparse.Namespace, changes: Changes) -> None:
    """Says what was written, what was changed, and what to type next."""
    dataset = open_dataset(request.destination)
    held_out = test_uri(request.destination)
    for split in [dataset, open_dataset(held_out)] if held_out else [dataset]:
        classes = f" of {len(split.labels)} classes" if split.labels else ", no labels"
        print(f"{split.uri}: {split.rows:,} images{classes}, {split.spans[:, 1].sum() / 1e6:,.1f} MB")
    for kind, count in changes.encoded.most_common():
        print(f"encoded anew as 8-bit colour or gray: {count:,} images ({kind})")
    if changes.left_out:
        print(f"left out: {len(changes.left_out):,} images that cannot be used")
        print("".join(f"  {line}\n" for line in changes.left_out[:10]), end="")
    if held_out is None:
        print("no test split, so nothing can be evaluated on it: --test SOURCE or --test-fraction 0.1 makes one")
    width, height = Image.open(io.BytesIO(dataset.read_group(0).images[0])).size
    small = "digits" if request.source == "digits" else "cifar10"
    recipe = small if min(width, height) <= 64 else "imagenet_jigsaw"
    print(f"next: python jobs/pretrain.py {recipe} --data.uri {shlex.quote(request.destination)}")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads of the libraries may still be ending, and on a busy machine the interpreter's
    # shutdown was seen to abort on one of them after all was written.
    os._exit(code)
