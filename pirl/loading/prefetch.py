"""The row groups of a loader process: read ahead of need by a few threads, and held while they are in use.

The order of the data is a function of integers, so what comes next is known, and nothing is guessed.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from pirl.data.dataset import Dataset, RowGroup
from pirl.data.order import Order, OrderReader

READERS = 8
"""Requests of a loader process at a time: a store answers after 0.1 s or more, and its own best is many at once."""

LOOK_STEPS = 64
"""Steps that are looked through at a time for groups to read: all may be held already, up to the end of the run."""


class Prefetcher:
    """The row groups that the images of some streams are in; a context manager, since it has threads.

    Ask for groups in the order in which the images of the steps need them; `ahead_bytes` may be read before that.
    """

    def __init__(self, dataset: Dataset, order: Order, streams: range, steps: range, ahead_bytes: float) -> None:
        # Between two uses of a row group come only those of its window and of the window before, in each stream.
        self.capacity = len(streams) * 2 * order.window_groups
        self.dataset, self.ahead_bytes = dataset, ahead_bytes
        self.held: OrderedDict[int, RowGroup] = OrderedDict()
        self.coming: deque[tuple[int, Future[RowGroup]]] = deque()
        self.coming_bytes = 0
        self.missing = misses(dataset, order, streams, steps, self.capacity)
        self.pool = ThreadPoolExecutor(READERS, thread_name_prefix="pirl-read")
        self.disk = ThreadPoolExecutor(1, thread_name_prefix="pirl-disk")

    def __enter__(self) -> Self:
        self._read_ahead()
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self.pool, self.disk):
            pool.shutdown(wait=False, cancel_futures=True)

    def __getitem__(self, number: int) -> RowGroup:
        """A row group, as `Dataset.load_group` gives it; waits for it where it is not here yet."""
        if number in self.held:
            self.held.move_to_end(number)
            return self.held[number]
        while not self.coming:
            self._read_ahead()
        expected, future = self.coming.popleft()
        assert expected == number, f"row group {number} was asked for where the order has {expected}"
        self.coming_bytes -= self._size(number)
        self._read_ahead()
        group = self.held[number] = future.result()
        if len(self.held) > self.capacity:
            self.held.popitem(last=False)
        return group

    def aside(self, number: int) -> RowGroup:
        """A row group out of the order: it changes nothing here."""
        return self.held.get(number) or self.dataset.load_group(number)

    def _read_ahead(self) -> None:
        looked = 0
        while self.coming_bytes < self.ahead_bytes and looked < LOOK_STEPS:
            number = next(self.missing, None)
            if number is None:
                looked += 1
                continue
            # A disk gives no more to many threads than to one, and on one core they are in each other's way.
            pool = self.disk if self.dataset.is_cached(number) else self.pool
            self.coming.append((number, pool.submit(self.dataset.load_group, number)))
            self.coming_bytes += self._size(number)

    def _size(self, number: int) -> int:
        return int(self.dataset.spans[number, 1])


def misses(dataset: Dataset, order: Order, streams: range, steps: range, capacity: int) -> Iterator[int | None]:
    """The row groups that a cache of `capacity`, least recently used out first, has to read; None after each step."""
    reader = OrderReader(order)
    held: OrderedDict[int, None] = OrderedDict()
    for step in steps:
        ids = reader.batch_ids(step, streams)
        for number in dataset.groups_of(ids)[0]:
            if number in held:
                held.move_to_end(number)
                continue
            held[number] = None
            if len(held) > capacity:
                held.popitem(last=False)
            yield number
        yield None
