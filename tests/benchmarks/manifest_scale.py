"""What a data set of 10^8 images costs before the first image is read: its manifest and its order.

    python tests/benchmarks/manifest_scale.py

The manifest is made up: row groups of 64 images of 110 KB, in files of 256 MB, in the format of pirl/data/writer.py.
A process of its own then opens it and draws batches as the recipe `imagenet_jigsaw` has them, at the beginning and
in the middle of the last epoch, as a run that resumes there does. Seconds are those of the processor, and nothing
waits here but for the disk. All that is kept is one entry a row group; the last column would show an object for each
image. Linux only.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import argparse
import multiprocessing
import pickle
import tempfile
import time

import numpy as np

from pirl.data.dataset import open_dataset
from pirl.data.order import Order, OrderReader
from pirl.data.writer import MANIFEST, ROWS_PER_GROUP, SHARD_BYTES, VERSION
from pirl.recipes import RECIPES
from pirl.storage.sealed import sealed

IMAGE_BYTES = 110_000
EPOCHS = 800


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1_281_167, 10_000_000, 100_000_000])
    parser.add_argument("--rounds", type=int, default=3, help="the figures are those of the fastest")
    args = parser.parse_args()
    names = "images", "manifest MB", "open s", "first batch s", "resumed batch s", "peak MiB", "held MiB", "pickled MB"
    print(f"| {' | '.join(names)} | Python objects |\n|{' ---: |' * (len(names) + 1)}")
    for images in args.images:
        with tempfile.TemporaryDirectory() as folder:
            alone(write, folder, images)
            rounds = [alone(measure, folder) for _ in range(args.rounds)]
            size = Path(folder, MANIFEST).stat().st_size
        open_s, first_s, resumed_s = (min(r[k] for r in rounds) for k in range(3))
        peak, held, pickled, objects = rounds[0][3:]
        print(
            f"| {images:,} | {size / 1e6:,.1f} | {open_s:.2f} | {first_s:.2f} | {resumed_s:.2f} "
            f"| {peak / 2**20:,.0f} | {held / 2**20:,.0f} | {pickled / 1e6:,.1f} | {objects:,} |",
            flush=True,
        )


def alone(function, *args):
    """Calls a function in a process of its own, so that the peak is what it took."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def write(folder: str, images: int) -> None:
    """A manifest without shards."""
    rng = np.random.default_rng(0)
    shards, left = [], images
    while left:
        offset, groups = 4, []
        while left and offset < SHARD_BYTES:
            rows = min(ROWS_PER_GROUP, left)
            length = rows * IMAGE_BYTES + int(rng.integers(100_000))
            groups.append([offset, length, rows, int(rng.integers(2**32))])
            offset, left = offset + length, left - rows
        rows = sum(group[2] for group in groups)
        shards.append({"path": f"shard-{len(shards):05d}.parquet", "bytes": offset, "rows": rows, "groups": groups})
    about = {"classes": None, "seed": 0, "source": "made up", "class_rows": []}
    manifest = {"version": VERSION, "rows": images, "rows_per_group": ROWS_PER_GROUP, **about, "shards": shards}
    Path(folder, MANIFEST).write_bytes(sealed(manifest))


def measure(folder: str) -> tuple[float, float, float, int, int, int, int]:
    """Seconds to open, of the first batch, of a resumed run's; bytes at the peak, held, pickled; Python objects."""
    config = RECIPES["imagenet_jigsaw"]()
    base, base_blocks = memory("VmRSS"), sys.getallocatedblocks()
    began = time.process_time()
    dataset = open_dataset(folder)
    opened = time.process_time()
    order = Order(dataset.starts, 0, config.streams, config.data.batch_size, config.window_groups)
    OrderReader(order).batch_ids(0)
    drawn = time.process_time()
    again = Order(dataset.starts, 0, config.streams, config.data.batch_size, config.window_groups)
    OrderReader(again).batch_ids((EPOCHS - 1) * again.steps_per_epoch + again.steps_per_epoch // 2)
    resumed = time.process_time()
    peak, held, blocks = memory("VmHWM") - base, memory("VmRSS") - base, sys.getallocatedblocks() - base_blocks
    return opened - began, drawn - opened, resumed - drawn, peak, held, len(pickle.dumps(dataset)), blocks


def memory(name: str) -> int:
    """Bytes of this process, as the kernel counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
