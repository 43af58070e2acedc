"""The order of the data: a pure function of integers, from (seed, streams, step) to the ids of a batch.

No torch, no files, no processes. The number of workers appears only in who serves which stream, so the
global batches are the same for any number of them, and a run resumes from the number of its next step.

An epoch is made in three moves:

1. The row groups are permuted.
2. The rows in that order are cut into `streams` slices, one a stream, equal up to one row.
3. Each stream shuffles its rows within windows of `window_groups` whole row groups.

A reader of one stream therefore holds one window of row groups and reads each group once an epoch (twice
where a cut of move 2 goes through it). Arrays have one entry a row group; none has one entry a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

_KEY = 0x6F72646572
"""Second word of every random key here: "order" in ASCII. No other use of the seed shares its numbers."""


def streams_of(rank: int, world: int, streams: int) -> range:
    """The streams that a worker serves: contiguous, their numbers differ by at most one between workers."""
    return range(streams * rank // world, streams * (rank + 1) // world)


@dataclass(frozen=True, eq=False)
class Order:
    """The batches of a whole run.

    Args:
        starts: int64 (G+1,), the first row of each row group, then the number of rows.
        seed: Changes everything random here; below 2**64.
        streams: Parts that an epoch is dealt into.
        batch_size: Rows of the largest global batch, a multiple of `streams`.
        window_groups: Row groups that are shuffled together within a stream.
    """

    starts: Ids
    seed: int
    streams: int
    batch_size: int
    window_groups: int

    @property
    def rows(self) -> int:
        """Rows of the data set; their ids are 0 to rows - 1."""
        return int(self.starts[-1])

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, all of nearly the same size."""
        return -(-self.rows // self.batch_size)

    def shares(self, step: int, world: int) -> list[int]:
        """How many rows of a batch each of `world` workers serves; they sum to the size of the batch."""
        t, steps = step % self.steps_per_epoch, self.steps_per_epoch
        # As `span_of` for all streams at once: one by one, those of 4,096 workers take longer than a step has.
        lengths = np.diff(self.rows * np.arange(self.streams + 1) // self.streams)
        sizes = lengths * (t + 1) // steps - lengths * t // steps
        bounds = self.streams * np.arange(world + 1) // world
        served: list[int] = np.diff(np.concatenate([[0], np.cumsum(sizes)])[bounds]).tolist()
        return served

    def slice_of(self, stream: int) -> tuple[int, int]:
        """Where a stream begins and ends in the permuted rows of an epoch."""
        return self.rows * stream // self.streams, self.rows * (stream + 1) // self.streams

    def span_of(self, stream: int, t: int) -> tuple[int, int]:
        """Which rows of an epoch step `t` takes from a stream: positions in the permuted rows."""
        low, high = self.slice_of(stream)
        steps = self.steps_per_epoch
        return low + (high - low) * t // steps, low + (high - low) * (t + 1) // steps


class OrderReader:
    """Reads the batches of an order; one after the other is cheap, since it remembers the layout of the last epoch.

    Attributes:
        groups: int64 (G,), the row groups of that epoch in their order.
        bounds: int64 (G+1,), the positions where they begin, then the number of rows.
        windows: Of each stream the latest: the position where it begins, and its ids, shuffled.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self.epoch: int | None = None
        self.groups = self.bounds = np.empty(0, np.int64)
        self.windows: dict[int, tuple[int, Ids]] = {}

    def batch_ids(self, step: int, streams: range | None = None) -> Ids:
        """The ids of one batch, stream after stream.

        Args:
            step: Step of the run, from 0 over all epochs; those below 0 are epoch -1, which fills the bank.
            streams: Only the part of these streams; by default the global batch.
        """
        epoch, t = divmod(step, self.order.steps_per_epoch)
        parts = [
            part
            for stream in (range(self.order.streams) if streams is None else streams)
            for part in self._parts(epoch, stream, *self.order.span_of(stream, t))
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _parts(self, epoch: int, stream: int, begin: int, end: int) -> Iterator[Ids]:
        """The ids at positions `begin` to `end`, which lie in one stream, window by window."""
        if epoch != self.epoch:
            self.epoch, self.windows = epoch, {}
            self.groups = _permutation(len(self.order.starts) - 1, self.order.seed, [0, 0, epoch + 1])
            self.bounds = np.concatenate([[0], np.cumsum(np.diff(self.order.starts)[self.groups])])
        while begin < end:
            first, ids = self._window_at(epoch, stream, begin)
            part = ids[begin - first : end - first]
            yield part
            begin += len(part)

    def _window_at(self, epoch: int, stream: int, position: int) -> tuple[int, Ids]:
        """The window of a stream that holds a position: the position where it begins, and its ids."""
        begin, ids = self.windows.get(stream, (0, np.empty(0, np.int64)))
        if begin <= position < begin + len(ids):
            return begin, ids
        low, high = self.order.slice_of(stream)
        bounds = self.bounds
        first, at = np.searchsorted(bounds, [low, position], side="right") - 1
        number = int(at - first) // self.order.window_groups
        left = int(first) + number * self.order.window_groups
        right = min(left + self.order.window_groups, len(bounds) - 1)
        positions = np.arange(max(low, bounds[left]), min(high, bounds[right]))
        group = np.searchsorted(bounds, positions, side="right") - 1
        ids = self.order.starts[self.groups[group]] + positions - bounds[group]
        ids = ids[_permutation(len(ids), self.order.seed, [number + 1, stream, epoch + 1])]
        self.windows[stream] = int(positions[0]), ids
        return self.windows[stream]


def _permutation(n: int, seed: int, words: list[int]) -> Ids:
    """A random order of n things, a function of the seed and three words.

    Sorting raw Philox words, because their values are promised to stay the same in every version of numpy,
    and those of `Generator.permutation` are not. The words fill the upper part of the counter, so no two
    permutations share random numbers.
    """
    source = np.random.Philox(key=np.array([seed, _KEY], np.uint64), counter=np.array([0, *words], np.uint64))
    return np.argsort(source.random_raw(n), kind="stable")
