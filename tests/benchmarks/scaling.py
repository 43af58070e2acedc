"""What each worker holds, sends and waits for with many images and many workers: the tables of docs/scaling.md.

    python tests/benchmarks/scaling.py > tables.md

Nothing of it needs a cluster. A manifest of as many images as are asked for is made up, and opened by a process of its
own. For the rest a process takes the place of one worker of many: its process group is torch's `fake`, which gives
back at once what it was given, so that what is measured is all that a worker does beside the network and the wire:
processor time, the bytes that it hands over, and the memory for what would come. Where a worker's rows of the bank
would take more than `--most-gb`, its cells hold what follows from the formula alone. Settings are those of
`imagenet_jigsaw`, with four images a worker where the batch of 1,024 is less. Seconds are those of the processor.
Linux only.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import argparse
import pickle
import statistics
import tempfile
import time
from dataclasses import replace

import numpy as np

from pirl.config import Config, override
from pirl.data.dataset import open_dataset
from pirl.data.order import Order, OrderReader, streams_of
from pirl.data.writer import MANIFEST, ROWS_PER_GROUP
from pirl.recipes import RECIPES
from pirl.sections import ROW_DIM
from tests.benchmarks.manifest_scale import alone, memory, write

IMAGES = [1_281_167, 100_000_000, 1_000_000_000]
WORKERS = [8, 256, 4096]
MADE_UP = 200_000_000
"""Images of the largest manifest that is made up: to make one takes ten times the memory of reading it."""
STEPS = 20
"""That are measured; in that time each stream comes to a new window at least once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--most-gb", type=float, default=3.0, help="of memory for a worker's rows")
    parser.add_argument("--only", nargs="+", default=["data", "order", "bank", "checkpoint"])
    args = parser.parse_args()
    if "data" in args.only:
        print("### The data set, in each process\n")
        title(
            "images", "row groups", "manifest MB", "open s", "peak MiB", "pickled MB", "objects", "epoch s", "epoch MiB"
        )
        for images in args.images:
            if images > MADE_UP:
                row(images, -(-images // ROWS_PER_GROUP), *[None] * 7)
                continue
            with tempfile.TemporaryDirectory() as folder:
                alone(write, folder, images)
                size = Path(folder, MANIFEST).stat().st_size
                row(images, -(-images // ROWS_PER_GROUP), size / 1e6, *alone(data, folder))
    if "order" in args.only:
        print("\n### The order of the data, in a step\n")
        title("images", "workers", "batch", "streams", "training ms", "loader ms", "first ms", "held MB")
        for images, workers in pairs(args):
            row(images, workers, *alone(order_of_a_step, images, workers))
    if "bank" in args.only:
        print("\n### Bank, negatives, look-up, for each worker\n")
        title(
            *("images", "workers", "bank MB", "start s", "start peak MB", "negatives MB", "padded MB", "sample ms"),
            *("look-up MB", "look-up ms", "update MB"),
        )
        for images, workers in pairs(args):
            row(images, workers, *alone(bank, images, workers, args.most_gb))
    if "checkpoint" in args.only:
        print("\n### A checkpoint\n")
        title("images", "workers", "all GB", "each worker's MB", "plan KB", "plans MB", "plans s", "metadata MB")
        for images, workers in pairs(args):
            row(images, workers, *alone(checkpoint, images, workers))


def pairs(args: argparse.Namespace) -> list[tuple[int, int]]:
    return [(images, workers) for images in args.images for workers in args.workers]


def title(*names: str) -> None:
    print(f"| {' | '.join(names)} |\n|{' ---: |' * len(names)}")


def row(*values: float | None) -> None:
    def shown(value: float | None) -> str:
        if value is None:
            return "–"
        return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value >= 10 else f"{value:,.2g}"

    print(f"| {' | '.join(map(shown, values))} |", flush=True)


def config_of(workers: int) -> Config:
    config = RECIPES["imagenet_jigsaw"]()
    return override(config, {"data.batch_size": max(config.data.batch_size, 4 * workers)})


def starts_of(images: int) -> np.ndarray:
    return np.append(np.arange(0, images, ROWS_PER_GROUP), images)


def data(folder: str) -> tuple[float, ...]:
    """Seconds to open, MiB at the peak, MB pickled, objects of Python; seconds and MiB of the order of an epoch."""
    config = config_of(1)
    base, blocks = memory("VmRSS"), sys.getallocatedblocks()
    began = time.process_time()
    dataset = open_dataset(folder)
    opened = time.process_time() - began
    peak, objects = memory("VmHWM") - base, sys.getallocatedblocks() - blocks
    order = Order(dataset.starts, 0, config.streams, config.data.batch_size, config.window_groups)
    pickled = len(pickle.dumps((dataset, order)))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    base, began = memory("VmRSS"), time.process_time()
    OrderReader(order).batch_ids(0)
    return opened, peak / 2**20, pickled / 1e6, objects, time.process_time() - began, (memory("VmHWM") - base) / 2**20


def order_of_a_step(images: int, workers: int) -> tuple[float, ...]:
    """Batch and streams; ms of a step in the process that trains and in a loader process; ms of the first; MB held."""
    config = config_of(workers)
    order = Order(starts_of(images), 0, config.streams, config.data.batch_size, config.window_groups)
    own = streams_of(0, workers, order.streams)
    times: list[list[float]] = []
    readers = OrderReader(order), OrderReader(order)
    for step in range(STEPS + 1):
        began = time.process_time()
        order.shares(step, workers)
        readers[0].batch_ids(step)
        trained = time.process_time()
        readers[1].batch_ids(step, own)
        times.append([1000 * (trained - began), 1000 * (time.process_time() - trained)])
    held = sum(ids.nbytes for _, ids in readers[0].windows.values())
    training, loader = (statistics.mean(some) for some in zip(*times[1:], strict=True))
    return order.batch_size, order.streams, training, loader, times[0][0], held / 1e6


def join(workers: int) -> None:
    """A process group in which this process is the second of `workers`, and nobody else is."""
    import torch.distributed as td
    from torch.testing._internal.distributed.fake_pg import FakeStore

    td.init_process_group("fake", rank=1, world_size=workers, store=FakeStore())


def bank(images: int, workers: int, most_gb: float) -> tuple[float | None, ...]:
    """MB of rows, s and MB at the peak to make them; MB that a step gathers, and padded; ms; the same of look-ups."""
    import torch

    from pirl.methods.memory import MemoryBank

    torch.set_num_threads(1)
    config = config_of(workers)
    batch, num, row_bytes = config.data.batch_size, config.loss.num_negatives, 4 * ROW_DIM
    rows = -(-images // workers)
    wire = num * row_bytes // 2
    ids = np.sort(np.random.default_rng(0).choice(images, num, replace=False))
    longest = np.diff(np.searchsorted(ids, np.minimum(rows * np.arange(workers + 1), images))).max()
    padded = longest * workers * row_bytes / 2
    sizes = [rows * row_bytes / 1e6, wire / 1e6, padded / 1e6, batch * row_bytes / 1e6]
    if 2 * rows * row_bytes > most_gb * 1e9:
        return sizes[0], None, None, *sizes[1:3], None, sizes[3], None, sizes[3]
    join(workers)
    base, began = memory("VmRSS"), time.process_time()
    held = MemoryBank(images, seed=0, keep=0.5, wire_dtype=torch.bfloat16)
    start, peak = time.process_time() - began, memory("VmHWM") - base
    sampled, looked = [], []
    for step in range(STEPS):
        wanted = torch.randperm(min(images, 10**6))[:batch]
        began = time.process_time()
        held.sample(step, num).wait()
        between = time.process_time()
        held.lookup(wanted)
        sampled.append(1000 * (between - began))
        looked.append(1000 * (time.process_time() - between))
    ms = statistics.median(sampled), statistics.median(looked)
    return sizes[0], start, peak / 1e6, *sizes[1:3], ms[0], sizes[3], ms[1], sizes[3]


def checkpoint(images: int, workers: int) -> tuple[float, ...]:
    """GB in all, MB of each worker, KB of a worker's plan; MB, s of them all on the first worker; MB of .metadata."""
    import torch
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

    from pirl.methods.memory import MemoryBank
    from pirl.methods.pirl import PIRL, parameter_groups
    from pirl.runs.checkpoint import TrainingState, _bytes_of, _tensors, dealt

    join(workers)
    network = PIRL(config_of(workers))
    optimizer = torch.optim.SGD(parameter_groups(network, 1e-4), lr=0.1, momentum=0.9)
    held = MemoryBank(workers, seed=0, keep=0.5)  # a row each: the plan has their number, not the rows
    planner = DefaultSavePlanner()
    planner.set_up_planner(_tensors(TrainingState(network, optimizer, held, torch.zeros(()))), is_coordinator=True)
    plan = planner.create_local_plan()
    of_bank = next(item for item in plan.items if item.index.fqn == "bank")
    others = [item for item in plan.items if item is not of_bank]
    ranks = dealt(list(map(_bytes_of, others)), workers)
    plans = []
    for rank in range(workers):
        at = torch.Size((rank, 0))
        chunk = ChunkStorageMetadata(at, torch.Size((1, ROW_DIM)))
        index = replace(of_bank.index, offset=at)
        own = replace(of_bank, index=index, tensor_data=replace(of_bank.tensor_data, chunk=chunk))
        mine = [item for item, to in zip(others, ranks, strict=True) if to == rank]
        names = plan.planner_data if rank == 0 else {}
        plans.append(replace(plan, items=[own, *mine], planner_data=names))
    began = time.process_time()
    received = [pickle.loads(pickle.dumps(each)) for each in plans]
    _, metadata = planner.create_global_plan(received)
    took, of_all = time.process_time() - began, len(pickle.dumps(metadata)) / 1e6
    weights = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    weights += sum(value.numel() * value.element_size() for value in network.parameters())  # momentum
    rows = images * ROW_DIM * 4
    each = (rows + weights) / workers / 1e6
    plan_bytes = len(pickle.dumps(plans[-1]))
    return (rows + weights) / 1e9, each, plan_bytes / 1e3, plan_bytes * workers / 1e6, took, of_all


if __name__ == "__main__":
    main()
