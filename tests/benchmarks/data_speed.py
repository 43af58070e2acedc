"""Images per second of our loader: from a store beside WebDataset, from its cache beside an ImageFolder on a disk.

    python tests/benchmarks/data_speed.py --images images.tar

All read the same photographs, with as many loader processes, into batches of 128:

- ours, cold: row groups from the store, without a cache, and with a cache that has none of them and takes all.
- WebDataset, cold: tar files of the same size from the same store, which it reads through curl;
  shard shuffle, a shuffle buffer of 1,000 images, batches made in the loader processes.
- ours, warm: row groups out of the cache on the local disk.
- ImageFolder, warm: one file for each image on the local disk, random order.

`raw` reads the bytes of each image and hands on their number, as a list for each batch; `decoded` decodes and makes
the random crop of 224 px, by the same two functions of pirl/loading/views.py on all sides. A figure is that of the
middle of a run without pauses between epochs: what starting costs is left out, and reading ahead does not count
twice. The pairs are measured in turn; the table has medians, the ratio of the pairs of each round, and the processor
time for an image of all that reads (loader processes, what they start, and the process that takes the batches),
without the store's. The store is a server on this machine that sends files and ranges of files, so where the
processor is what limits, its work counts on each cold side. Linux only.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

from tests.benchmarks import readers
from tests.benchmarks.local_store import Options, ranges_of
from tests.benchmarks.photographs import from_tar
from tests.benchmarks.prepare_memory import family

Stream = Iterator[int]
"""Numbers of images of the batches of a loader, as they come."""
Speed = tuple[float, float]
"""Images per second, and processor seconds for an image."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="TAR", help="photographs")
    parser.add_argument("--count", type=int, default=6400, help="images to read, the photographs repeated")
    parser.add_argument("--shard-mb", type=int, default=32, help="of both kinds of shards")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--work", nargs="+", default=["raw", "decoded"])
    parser.add_argument("--caches", nargs="+", default=list(readers.WAYS), choices=readers.WAYS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement, after two to settle")
    parser.add_argument("--folder", type=Path, help="where to write, several times the size of the images")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        (folder / "store").mkdir()
        with ranges_of(folder / "store") as options:
            measure(folder, options, args)


def measure(folder: Path, options: Options, args: argparse.Namespace) -> None:
    """Prints the table."""
    places = readers.write(folder, list(from_tar(args.images)), args.count, args.shard_mb * 2**20, options)
    print(f"{args.count:,} images, {os.cpu_count()} cores\n")
    print("| | loader processes | images | images/s | ratio | processor ms |\n| --- | ---: | --- |" + " ---: |" * 3)
    for processes, work, cache in product(args.processes, args.work, args.caches):
        ways = {name: partial(way, places, processes, work) for name, way in readers.WAYS[cache].items()}
        report(processes, work, speeds(ways, args.rounds, args.seconds))


def speeds(ways: dict[str, Callable[[], Stream]], rounds: int, seconds: float) -> dict[str, list[Speed]]:
    found: dict[str, list[Speed]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(speed(way(), seconds))
    return found


def speed(stream: Stream, seconds: float, settle_s: float = 2.0) -> Speed:
    """Images per second after the first seconds, and processor seconds for an image."""
    next(stream)
    began = time.perf_counter()
    while time.perf_counter() < began + settle_s:
        next(stream)
    images, cpu_s, began = 0, readers_cpu_s(), time.perf_counter()
    while (now := time.perf_counter()) < began + seconds:
        images += next(stream)
    cpu_s = readers_cpu_s() - cpu_s
    stream.close()
    return images / (now - began), cpu_s / images


def readers_cpu_s() -> float:
    """Processor seconds so far of this process and all below it, but for the store."""
    return sum(used_s(pid) for pid in family(os.getpid()) if not is_store(pid))


def used_s(pid: int) -> float:
    """Of a process and of those below it that ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")


def is_store(pid: int) -> bool:
    try:
        return b"add_static" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def report(processes: int, work: str, found: dict[str, list[Speed]]) -> None:
    baseline = list(found)[-1]
    for name, values in found.items():
        ratios = [ours / theirs for (ours, _), (theirs, _) in zip(values, found[baseline], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        images_per_s, cpu_s = map(statistics.median, zip(*values, strict=True))
        print(
            f"| {name} | {processes} | {work} | {images_per_s:,.0f} | {'' if name == baseline else spread} "
            f"| {1000 * cpu_s:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
