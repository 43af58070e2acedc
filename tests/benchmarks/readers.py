"""The loaders that data_speed.py compares: each yields the sizes of its batches, epoch after epoch without a pause."""

import io
import multiprocessing
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, get_worker_info
from torchvision.datasets import ImageFolder

from pirl.data.dataset import Dataset, open_dataset
from pirl.data.order import Order, OrderReader, streams_of
from pirl.loading.crops import random_resized_crop
from pirl.loading.decode import decode
from pirl.loading.loader import Loader
from pirl.loading.loader_processes import PREFETCHED, start_process
from pirl.loading.prefetch import Prefetcher
from pirl.loading.views import Sample
from pirl.storage.cache import SpanCache
from pirl.storage.folder import Folder
from tests.benchmarks.local_store import BUCKET, Options, write_shards
from tests.benchmarks.photographs import repeat

BATCH = 128
SIZE, AREA_MIN = 224, 0.08
FOREVER = 10**6
"""Steps or epochs: more than any measurement takes."""
AHEAD_BYTES = 64e6
"""Read ahead by each process: the images here are few, and each is to be read once an epoch."""
WINDOW_GROUPS = 4
SHUFFLED_ROWS = 1000
"""What is shuffled together by a process: our row groups of 64 images, and WebDataset's buffer."""
CACHE_BYTES = 10**12
NO_COLOR = torch.empty(0)
RNG = np.random.default_rng(0)


@dataclass
class Places:
    """Where the same images lie.

    Attributes:
        options: To the store.
        tars: URLs of the tar files there.
        folder: On a local disk: `files`, one for each image, and `cache`.
    """

    options: Options
    tars: list[str]
    folder: Path


def write(folder: Path, photos: list[bytes], count: int, shard_bytes: int, options: Options) -> Places:
    """Writes the images as shards and as tar files into the folder of the store, and as files, 100 in a folder."""
    bucket = folder / "store" / BUCKET
    write_shards(str(bucket / "shards"), repeat(photos, count), shard_bytes)
    a_tar = max(1, shard_bytes * len(photos) // sum(map(len, photos)))
    tars = []
    images = repeat(photos, count)
    (bucket / "tars").mkdir()
    for number in range(-(-count // a_tar)):
        (bucket / "tars" / f"{number:05d}.tar").write_bytes(tar_of(list(islice(images, a_tar))))
        tars.append(f"{options['endpoint_url']}/{BUCKET}/tars/{number:05d}.tar")
    for number, image in enumerate(repeat(photos, count)):
        path = folder / "files" / f"{number // 100:04}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    fill(open_dataset(Folder(f"s3://{BUCKET}/shards", options), cache=SpanCache(folder / "cache", CACHE_BYTES)))
    return Places(options, tars, folder)


def tar_of(images: list[bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number, image in enumerate(images):
            member = tarfile.TarInfo(f"{number:07d}.jpg")
            member.size = len(image)
            tar.addfile(member, io.BytesIO(image))
    return file.getvalue()


def fill(dataset: Dataset) -> None:
    """Takes a data set into its cache."""
    for number in range(len(dataset.spans)):
        dataset.load_group(number)


def crop(image: Tensor, rng: np.random.Generator, *, image_only: bool = False) -> Sample:
    """The view that is compared, as our loader asks for it."""
    return Sample(random_resized_crop(image, SIZE, AREA_MIN, rng), NO_COLOR, None, None)


def crop_of(data: bytes) -> Tensor:
    """The view that is compared, of an encoded image."""
    return random_resized_crop(decode(data), SIZE, AREA_MIN, RNG)


def stack_crops(crops: list[Tensor]) -> Tensor:
    """As pixels lie in memory: torch.stack of what is channels last takes 8 times as long."""
    return torch.stack([crop.movedim(0, -1) for crop in crops]).movedim(-1, 1)


WORK: dict[str, tuple[Callable[[bytes], Any], Callable[[list[Any]], Any]]] = {
    "raw": (len, list),
    "decoded": (crop_of, stack_crops),
}
"""What WebDataset and ImageFolder do to an image and to those of a batch."""


class Raw(IterableDataset[list[int]]):
    """The sizes of each step's images, read as pirl.loader reads them."""

    def __init__(self, dataset: Dataset, order: Order) -> None:
        self.dataset, self.order = dataset, order

    def __iter__(self) -> Iterator[list[int]]:
        info = get_worker_info()
        streams, steps = streams_of(info.id, info.num_workers, self.order.streams), range(FOREVER)
        with Prefetcher(self.dataset, self.order, streams, steps, AHEAD_BYTES) as groups:
            for step in steps:
                places = self.dataset.groups_of(OrderReader(self.order).batch_ids(step, streams))
                yield [len(groups[number].images[row]) for number, row in zip(*places, strict=True)]


class NewCache(SpanCache):
    """A cache that never has anything and keeps everything: each epoch finds what the first one finds."""

    def get(self, name: str) -> bytes | None:
        return None


def ours(places: Places, processes: int, work: str, kind: type[SpanCache] | None) -> Iterator[int]:
    cache = None if kind is None else kind(places.folder / "cache", CACHE_BYTES)
    dataset = open_dataset(Folder(f"s3://{BUCKET}/shards", places.options), cache=cache)
    order = Order(dataset.starts, 0, processes, BATCH, WINDOW_GROUPS)
    if work == "raw":
        context = multiprocessing.get_context("forkserver")
        settings = {"num_workers": processes, "prefetch_factor": PREFETCHED, "multiprocessing_context": context}
        raw = Raw(dataset, order)
        yield from map(len, DataLoader(raw, batch_size=None, collate_fn=list, worker_init_fn=start_process, **settings))
    settings = {"seed": 0, "rank": 0, "world_size": 1, "first_step": 0, "last_step": FOREVER, "processes": processes}
    for batch in Loader(dataset, order, crop, ahead_bytes=AHEAD_BYTES, **settings):
        yield len(batch.served)


def webdataset(places: Places, processes: int, work: str) -> Iterator[int]:
    make, collate = WORK[work]
    stream = (
        wds.WebDataset(places.tars, shardshuffle=100).shuffle(SHUFFLED_ROWS).map(lambda sample: make(sample["jpg"]))
    )
    stream = stream.batched(BATCH, collation_fn=collate).repeat()
    yield from map(len, wds.WebLoader(stream, batch_size=None, num_workers=processes, prefetch_factor=PREFETCHED))


def image_folder(places: Places, processes: int, work: str) -> Iterator[int]:
    make, collate = WORK[work]
    folder = ImageFolder(str(places.folder / "files"), transform=make, loader=lambda path: Path(path).read_bytes())
    yield from map(
        len,
        DataLoader(
            folder,
            BATCH,
            sampler=RandomSampler(folder, num_samples=FOREVER * len(folder)),
            num_workers=processes,
            prefetch_factor=PREFETCHED,
            collate_fn=lambda items: collate([image for image, _ in items]),
        ),
    )


WAYS: dict[str, dict[str, Callable[[Places, int, str], Iterator[int]]]] = {
    "cold": {
        "ours, cold, without a cache": partial(ours, kind=None),
        "ours, cold, filling the cache": partial(ours, kind=NewCache),
        "WebDataset, cold": webdataset,
    },
    "warm": {
        "ours, warm": partial(ours, kind=SpanCache),
        "ImageFolder, warm": image_folder,
    },
}
"""What is compared: the last of each beside those before it."""
