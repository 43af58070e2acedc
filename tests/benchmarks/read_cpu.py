"""Processor time of reading images from an S3 store: row groups of our shards, and one object for each image.

    python tests/benchmarks/read_cpu.py --images images.tar

The store is a server on this machine. What is counted is user and system time of the process that reads (all of its
threads) and not that of the server, so other work on the machine matters little. Ours is `Dataset.load_group` in
eight threads, as the loader calls it, with checksums and Parquet; the objects are read by s3fs alone, 64 at a time
by one `cat`, which is its quickest way. Each reading has a process of its own, in turn, and its first requests,
which import and connect, are not counted.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import argparse
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

from s3fs import S3FileSystem

from pirl.data.dataset import open_dataset
from pirl.data.writer import ROWS_PER_GROUP
from pirl.loading.prefetch import READERS
from pirl.storage.folder import Folder
from tests.benchmarks.local_store import BUCKET, Options, store, write_shards
from tests.benchmarks.photographs import from_tar, repeat

Cost = tuple[int, float]
"""Bytes of images, and processor seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="TAR", help="photographs")
    parser.add_argument("--count", type=int, default=2048, help="images in the store")
    parser.add_argument("--shard-mb", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    photos = list(from_tar(args.images))
    with tempfile.TemporaryDirectory() as folder, store(Path(folder)) as options:
        write_shards(f"s3://{BUCKET}/shards", repeat(photos, args.count), args.shard_mb * 2**20, options)
        write_objects(photos, args.count, options)
        costs: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(args.rounds):
            for name, way in WAYS.items():
                size, cpu_s = alone(way, options)
                costs[name].append(cpu_s / size * 1e9)
    print(f"{args.count} images, {size / 1e9:.2f} GB\n\n| read as | processor s for a GB | from | to |")
    print("| --- | ---: | ---: | ---: |")
    for name, values in costs.items():
        print(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")
    ours, theirs = (statistics.median(values) for values in costs.values())
    print(f"\nthe objects take {theirs / ours:.1f} times as much")


def write_objects(photos: list[bytes], count: int, options: Options) -> None:
    fs = S3FileSystem(**options)
    for number, image in enumerate(repeat(photos, count)):
        fs.pipe_file(f"{BUCKET}/objects/{number:07d}.jpg", image)


def read_shards(options: Options) -> Cost:
    dataset = open_dataset(Folder(f"s3://{BUCKET}/shards", options))

    def size_of(number: int) -> int:
        return sum(map(len, dataset.load_group(number).images))

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(size_of, range(2 * READERS)))
        began = time.process_time()
        return sum(pool.map(size_of, range(len(dataset.spans)))), time.process_time() - began


def read_objects(options: Options) -> Cost:
    fs = S3FileSystem(**options)
    paths = fs.ls(f"{BUCKET}/objects", detail=False)
    fs.cat(paths[:ROWS_PER_GROUP])
    size, began = 0, time.process_time()
    for first in range(0, len(paths), ROWS_PER_GROUP):
        size += sum(map(len, fs.cat(paths[first : first + ROWS_PER_GROUP]).values()))
    return size, time.process_time() - began


WAYS = {"row groups of shards, ours": read_shards, "one object for each image, s3fs": read_objects}


def alone(way, options: Options) -> Cost:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(way, (options,))


if __name__ == "__main__":
    main()
