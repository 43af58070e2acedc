"""From shards to batches of views: a few processes read, decode and cut, ahead of need.

Each process of a worker serves some of the worker's streams and yields its part of every step, so a row group
is read by exactly one process, and the batches of a whole run come from one iterator that never stops between
epochs.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pirl.data.dataset import Dataset, RowGroup
from pirl.data.order import Order, OrderReader, streams_of
from pirl.errors import CorruptImage
from pirl.loading.collate import PartialBatch, collate
from pirl.loading.color import color_and_normalize
from pirl.loading.decode import decoded
from pirl.loading.loader_processes import data_loader, next_part
from pirl.loading.prefetch import Prefetcher
from pirl.loading.targets import Labels
from pirl.loading.views import Views, sample_rng
from pirl.storage.retry import take_count


@dataclass(frozen=True)
class Batch:
    """One step's images of this rank, and whose they are.

    Attributes:
        step: The step over all epochs, from 0; below 0 in the pass that fills the bank.
        ids: int64 (B_global,), ids of the whole global batch, rank after rank; every rank has the same.
        shares: How many of them each rank serves.
        mine: This rank's part of `ids`.
        parts: The views, as each loader process made them.
        colors: Of all parts, float32 (B, P), and of a pretext view (B, V, P).
        served: Whose views they are: `ids[mine]`, but for images that others took the place of.
        labels: Their classes, int64 like `served`; -1 where there is none.
        retries: Reads for this batch that had to be tried again, with those ahead of it.
        wait_s: Seconds that the step waited for this batch.
        targets: int64 (B,), what the network is to say of each image, -1 where there is nothing to say.
    """

    step: int
    ids: Tensor
    shares: list[int]
    mine: slice
    parts: list[PartialBatch]
    colors: list[Tensor]
    served: Tensor
    labels: Tensor
    retries: int
    wait_s: float
    targets: Tensor

    def views(self, device: torch.device) -> list[Tensor]:
        """The views as the network takes them, on a device: colours are changed and normalised there.

        Returns:
            float32 (B, 3, S, S), and of a pretext view (B·V, 3, h, w), channels last.
        """
        # Joined there: what is joined here would be new memory, which is not pinned.
        kinds = zip(*([view.flatten(end_dim=-4) for view in part.views(device)] for part in self.parts), strict=True)
        views = []
        for parts, colors in zip(kinds, self.colors, strict=True):
            pixels = parts[0] if len(parts) == 1 else torch.cat(parts)
            changed = color_and_normalize(pixels, colors.flatten(end_dim=-2))
            views.append(changed.contiguous(memory_format=torch.channels_last))
        return views

    def piece(self, number: int, pieces: int) -> "Batch":
        """A part of this rank's images, as a batch with the same global ids; its own are `mine` of them."""
        if pieces == 1:
            return self
        images = len(self.served)
        begin, end = (images * edge // pieces for edge in (number, number + 1))
        parts, start = [], 0
        for part in self.parts:
            low, high = (min(max(edge - start, 0), len(part.served)) for edge in (begin, end))
            parts += [part._replace(rows=slice(low, high))] if low < high else []
            start += len(part.served)
        return replace(
            self,
            mine=slice(self.mine.start + begin, self.mine.start + end),
            parts=parts,
            colors=[color[begin:end] for color in self.colors],
            **{name: getattr(self, name)[begin:end] for name in ("served", "labels", "targets")},
        )


@dataclass(eq=False)
class Loader:
    """Iterates over the batches of steps `first_step` to `last_step` (exclusive) for one rank.

    Steps below 0 belong to epoch -1, the pass that fills the bank, and have the image view alone.

    Args:
        seed: A sample's views are a function of (seed, epoch, id), whoever makes them.
        first_step: Where to begin; resuming is just another number here.
        processes: Loader processes of this worker, one for each stream at the most; 0 reads in this process.
        pin_memory: Whether batches go to a GPU.
        skip: Whether another image takes the place of one that cannot be read; else it raises CorruptImage.
        ahead_bytes: What each process reads ahead of need.
        targets: Makes them of the labels; without it they are what the pretext task did.
    """

    dataset: Dataset
    order: Order
    views: Views
    _: KW_ONLY
    seed: int
    rank: int
    world_size: int
    first_step: int
    last_step: int
    processes: int
    pin_memory: bool = False
    skip: bool = False
    ahead_bytes: float = 128e6
    targets: Labels | None = None

    def __post_init__(self) -> None:
        self.steps = range(self.first_step, self.last_step)
        self.streams = streams_of(self.rank, self.world_size, self.order.streams)
        self.processes = min(self.processes, len(self.streams))

    def __iter__(self) -> Iterator[Batch]:
        parts, reader = iter(self._data_loader()), OrderReader(self.order)
        for step in self.steps:
            began = time.perf_counter()
            pieces = [next_part(parts) for _ in range(max(1, self.processes))]
            wait_s = time.perf_counter() - began
            colors = [_joined(some) for some in zip(*(piece.colors for piece in pieces), strict=True)]
            served = _joined([piece.served for piece in pieces])
            labels = _joined([piece.labels for piece in pieces])
            targets = _joined([piece.targets for piece in pieces])
            retries = sum(piece.retries for piece in pieces)
            shares = self.order.shares(step, self.world_size)
            start = sum(shares[: self.rank])
            ids = torch.from_numpy(reader.batch_ids(step))
            mine = slice(start, start + shares[self.rank])
            yield Batch(step, ids, shares, mine, pieces, colors, served, labels, retries, wait_s, targets)

    def _data_loader(self) -> "DataLoader[PartialBatch]":
        return data_loader(_PartialBatches(self), self.processes, pin_memory=self.pin_memory)


def _joined(arrays: Sequence[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays))


def _label(group: RowGroup, row: int) -> int:
    """Of a row; -1 where it has none."""
    return -1 if group.labels is None else int(group.labels[row])


class _PartialBatches(IterableDataset[PartialBatch]):
    """What one loader process yields: its streams' part of every step, with the ids of its images and its retries."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.dataset, self.order = loader, loader.dataset, loader.order

    def __iter__(self) -> Iterator[PartialBatch]:
        loader, streams, info = self.loader, self.loader.streams, get_worker_info()
        if info is not None:
            mine = streams_of(info.id, info.num_workers, len(streams))
            streams = streams[mine.start : mine.stop]
        reader = OrderReader(self.order)
        with Prefetcher(self.dataset, self.order, streams, loader.steps, loader.ahead_bytes) as groups:
            for step in loader.steps:
                epoch = step // self.order.steps_per_epoch
                samples, served, labels = [], [], []
                ids = reader.batch_ids(step, streams)
                for id, number, row in zip(ids.tolist(), *self.dataset.groups_of(ids), strict=True):
                    others = self._others(reader, step, streams, id)
                    image, actual, label = self._image(groups, id, number, row, others)
                    samples.append(loader.views(image, sample_rng(loader.seed, epoch, id), image_only=epoch < 0))
                    served.append(actual)
                    labels.append(label)
                targets = (
                    [loader.targets(*each) for each in zip(served, labels, strict=True)] if loader.targets else None
                )
                yield collate(samples, served, take_count(), labels, targets)

    def _image(
        self, groups: Prefetcher, id: int, number: int, row: int, others: Iterator[int]
    ) -> tuple[Tensor, int, int]:
        """An image as uint8 (3, H, W), or the first of others in its place that can be used; its id, and its class.

        Raises:
            CorruptImage: It cannot be read or decoded, and no other is to take its place; says shard, row and id.
        """
        try:
            group = groups[number]
            return decoded(self.dataset, group, id, row), id, _label(group, row)
        except CorruptImage:
            if not self.loader.skip:
                raise
        for other in others:
            number, row = self.dataset.group_of(other)
            with suppress(CorruptImage):
                group = groups.aside(number)
                return decoded(self.dataset, group, other, row), other, _label(group, row)
        raise CorruptImage(f"{self.dataset.uri}: no image can take the place of that with id {id}")

    def _others(self, reader: OrderReader, step: int, streams: range, id: int) -> Iterator[int]:
        """The images after one in its stream, up to the end of the epoch and from its beginning on.

        A function of the order alone, so it is the same wherever the stream is served.
        """
        a_batch = {stream: reader.batch_ids(step, range(stream, stream + 1)).tolist() for stream in streams}
        stream, ids = next(item for item in a_batch.items() if id in item[1])
        yield from ids[ids.index(id) + 1 :]
        steps = self.order.steps_per_epoch
        begin = step - step % steps
        for later in range(step + 1, step + steps + 1):
            others = reader.batch_ids(begin + later % steps, range(stream, stream + 1)).tolist()
            yield from (other for other in others if other != id)
