"""Write images as a data set that training reads: shuffled once, in a few large files with a manifest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import os
import shlex
import signal
import time
from concurrent.futures import BrokenExecutor

import pyarrow as pa
from botocore.exceptions import BotoCoreError

from jobs.live_line import LiveLine
from pirl.data.dataset import open_dataset
from pirl.errors import BrokenImage, ConfigError, CorruptImage
from pirl.prepare.inspect import check_sheet, describe, look
from pirl.prepare.sources.folder_source import FOLDER
from pirl.prepare.sources.kinds import FILE_KINDS
from pirl.prepare.write import PrepareRequest, check, check_sources, prepare
from pirl.recipes import FEWEST, cifar10
from pirl.storage.checks import check_place
from pirl.storage.temporary import remove_temporary_folder

OWN = ("check", "inspect", "sheet")
"""Options that are not part of a request."""
KINDS = "\n".join(f"  {f'a {kind.name}':<20}{kind.help}" for kind in (FOLDER, *FILE_KINDS))
EXAMPLES = f"""
sources:
  digits              scikit-learn's 1,797 handwritten digits, a fifth of them for testing
{KINDS}
  many such files     their folder, or a quoted pattern

A folder in which all images lie is no class. Below it train/ is for training, and test/ (or val/, where
there is no test/ or its images have no classes) is held out; Train/, testing/, valid/ and the like are such
names too. Other folders beside these are not read, but with --also NAME: their images are for training,
without labels.

What is not read (HEIC, archives beside images, links to nothing, ...) is said at the end and in the
manifest, and --strict refuses it before anything is written. Hidden files and those of systems (.git,
__MACOSX, Thumbs.db) are never read. A file of unknown suffix is looked into, in an object store by a
request for each.

Both SOURCE and DESTINATION may be URLs (s3://bucket/key, gs://, ...). Credentials and endpoint come from the
environment or the usual files: AWS_PROFILE, AWS_ENDPOINT_URL, ...

JPEG and PNG of 8-bit colour or gray are kept byte for byte. Other images, those that EXIF turns and those
that --resize makes smaller are encoded anew: JPEG as JPEG of quality 95, others as PNG. More than 8 bits
are scaled by the bits that are used; images of up to 268 megapixels are read.

When the job was stopped or killed, the same command goes on behind the files that are complete.

examples:
  python jobs/prepare.py ~/photos /shared/photos
  python jobs/prepare.py photos.tar s3://bucket/photos --resize 256 --test-fraction 0.1
  python jobs/prepare.py cifar10/train.parquet /shared/cifar10 --test cifar10/test.parquet
  python jobs/prepare.py 'imagenet/train-*.parquet' /shared/imagenet --test 'imagenet/validation-*.parquet'
  python jobs/prepare.py --inspect s3://bucket/photos
"""

AGAIN = "the same command goes on from here"


def main() -> int:
    """Runs the job; returns 0: done, 1: failed while running, or 2: the request is wrong and nothing was written."""
    words = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is temporary is removed
    if words.inspect is not None:
        return show(words.inspect, words.sheet)
    request = PrepareRequest(**{name: value for name, value in vars(words).items() if name not in OWN})
    live = LiveLine(sys.stderr)
    try:
        return carry_out(request, live, only_check=words.check)
    except KeyboardInterrupt:  # wherever it comes, while another error is told, too
        print(f"{'' if live.shown else chr(10)}stopped: {AGAIN}", file=sys.stderr)  # there it has a line of its own
        return 1


def carry_out(request: PrepareRequest, live: LiveLine, *, only_check: bool) -> int:
    """Checks the request, or writes the data set; returns the exit code."""
    try:
        if only_check:
            check(request)
            check_sources(request)
            print(request.destination)
            return 0
        with live:
            live.now(f"looking through {request.source}")
            prepare(request, ProgressPrinter(live))
            live.now("")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenImage as error:
        print(f"failed: {error}\nwithout --strict {AGAIN} and leaves such images out", file=sys.stderr)
        return 1
    except (OSError, pa.ArrowException, BotoCoreError, BrokenExecutor) as error:
        print(f"failed: {error}\n{AGAIN}", file=sys.stderr)
        return 1
    summarize(request)
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
    add, either = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add("source", metavar="SOURCE", nargs="?", help="where the images are: see below")
    add("destination", metavar="DESTINATION", nargs="?", help="a new folder for the data set, or a URL")
    either("--test", metavar="SOURCE", help="images to hold out for evaluation")
    either("--test-fraction", metavar="F", type=float, help="share of SOURCE to hold out for evaluation, as 0.1")
    add("--seed", type=int, default=0, help="of the shuffle (default: 0)")
    add("--resize", metavar="N", type=int, help="make the short side of larger images N pixels long, as 256")
    add("--shard-mb", metavar="MB", type=int, default=32, help="size of the files that are written (default: 32)")
    add("--strict", action="store_true", help="refuse what is not read, and stop at an image that cannot be used")
    add("--overwrite", action="store_true", help="replace a data set in DESTINATION")
    add("--image-column", metavar="NAME", default="image", help="of Parquet files (default: image)")
    add("--label-column", metavar="NAME", help="of Parquet or of WebDataset's .json (default: label, if there is one)")
    add("--also", metavar="NAME", nargs="+", default=[], help="folders of SOURCE to train on too, without labels")
    add("--scratch", metavar="FOLDER", help="for images that cannot be read one by one where they are, meanwhile")
    add("--check", action="store_true", help="check the request, print DESTINATION, start nothing")
    add("--inspect", metavar="URI", help="say what the data set in URI holds, and draw some images")
    add("--sheet", metavar="PATH", default="contact_sheet.png", help="the drawing (default: contact_sheet.png)")
    words = parser.parse_args(argv)
    if words.inspect is None and words.destination is None:
        parser.error("SOURCE and DESTINATION are needed, or --inspect URI")
    if words.inspect is not None and words.source is not None:
        parser.error("--inspect URI stands alone: leave out SOURCE and DESTINATION")
    if words.shard_mb < 1:
        parser.error(f"--shard-mb {words.shard_mb} is too small: use 32, say")
    if words.resize is not None and words.resize < 1:
        parser.error(f"--resize {words.resize} is no number of pixels: use 256, say")
    return words


def show(uri: str, sheet: str) -> int:
    """Prints what a data set holds and draws some images; returns the exit code."""
    try:
        check_place("--inspect", uri, "photos")
        check_sheet(sheet)
        held_out = open_dataset(uri).held_out()
        lines = describe(uri)
        seen, drawing = look(uri)
        lines += [*seen, *(describe(held_out.uri) if held_out else [])]
        drawing.save(sheet, "PNG")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, CorruptImage, BotoCoreError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    print("\n".join([*lines, f"some images: {sheet}"]))
    return 0


class ProgressPrinter:
    """Says on stderr how far the job is: on a terminal in its live line, rarely in a log."""

    def __init__(self, live: LiveLine) -> None:
        self.live = live
        self.what, self.last, self.began, self.base = "", 0.0, 0.0, 0

    def __call__(self, what: str, done: int, total: int, unit: str) -> None:
        """Is called as often as you like."""
        now, begins = time.monotonic(), what != self.what
        if begins:
            self.what, self.last, self.began, self.base = what, now, now, done
            if done:
                self.live.print(f"{what}: going on after {done:,} of {total:,} {unit}")
        if done < total and now - self.last < (0.2 if self.live.shown else 10) and not (begins and self.live.shown):
            return
        self.last, rate = now, (done - self.base) / max(now - self.began, 1e-9)
        left = f", {duration((total - done) / rate)} left" if done < total and rate else ""
        numbers = f"{done:,} of {total:,} {unit}, {rate:,.0f}/s{left}"
        if self.live.shown and done < total:  # a narrow terminal cuts the end
            self.live.now(f"{done / total:.0%}, {numbers}: {what}")
        else:
            self.live.print(f"{what}: {numbers}")


def duration(seconds: float) -> str:
    """As 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def summarize(request: PrepareRequest) -> None:
    """Says what was written, what was changed, and what to type next."""
    dataset = open_dataset(request.destination)
    held_out = dataset.held_out()
    for split in [dataset, held_out] if held_out else [dataset]:
        print("\n".join(describe(split.uri)))
    if held_out is None:
        print("no test split, so nothing can be evaluated on it: --test SOURCE or --test-fraction 0.1 makes one")
    if dataset.rows < FEWEST:
        print(f"these are too few to train on: prepare {FEWEST} images or more")
        return
    small = dataset.largest is not None and max(dataset.largest) <= 64 and dataset.rows > cifar10().loss.num_negatives
    recipe = "digits" if request.source == "digits" else "cifar10" if small else "photos"
    print(f"next: python jobs/pretrain.py {recipe} --data.uri {shlex.quote(request.destination)}")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    remove_temporary_folder()
    # Not sys.exit: threads of the libraries may still be ending, and on a busy machine the interpreter's
    # shutdown was seen to abort on one of them after all was written.
    os._exit(code)
