import threading
import time

import numpy as np
import pytest

from pirl.data.dataset import Dataset, open_dataset
from pirl.data.order import Order, OrderReader
from pirl.data.writer import ShardWriter
from pirl.errors import StorageError
from pirl.loading.prefetch import READERS, Prefetcher, misses
from pirl.storage.folder import Folder

STREAMS = range(4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """40 row groups of some 15 KB."""
    folder = tmp_path_factory.mktemp("set")
    with ShardWriter(Folder(str(folder)), classes=None, seed=0, source="test", shard_bytes=100_000) as writer:
        for row in range(40 * 64):
            writer.add(bytes([row % 256]) * 200, None)
    return open_dataset(str(folder))


def order_of(dataset, window_groups=2):
    return Order(dataset.starts, 3, len(STREAMS), 80, window_groups)


def numbers(dataset, order, steps, streams=STREAMS):
    """The row group of each image that the steps ask for, in order."""
    return [
        number
        for step in steps
        for number in (
            np.searchsorted(dataset.starts, OrderReader(order).batch_ids(step, streams), side="right") - 1
        ).tolist()
    ]


class Watched(Dataset):
    """A data set that does something before it reads a group."""

    def __init__(self, dataset, before):
        super().__init__(**vars(dataset))
        object.__setattr__(self, "before", before)

    def load_group(self, number):
        self.before(number)
        return super().load_group(number)


def test_it_gives_each_group_and_reads_what_the_order_needs_and_no_more(dataset):
    order, reads = order_of(dataset), []
    steps = range(order.steps_per_epoch)
    with Prefetcher(Watched(dataset, reads.append), order, STREAMS, steps, 100_000) as groups:
        for number in numbers(dataset, order, steps):
            assert groups[number].ids[0] == dataset.starts[number]
        assert not groups.coming
    expected = list(misses(dataset, order, STREAMS, steps, groups.capacity))
    assert sorted(reads) == sorted(number for number in expected if number is not None)
    # Each once, and those once more that a border of two of the four streams goes through.
    assert 40 <= len(reads) <= 40 + 3


def test_what_is_read_ahead_is_bounded_in_bytes(dataset):
    order, limit = order_of(dataset), 60_000
    largest = int(dataset.spans[:, 1].max())
    steps = range(order.steps_per_epoch)
    seen = []
    with Prefetcher(dataset, order, STREAMS, steps, limit) as groups:
        for number in numbers(dataset, order, steps):
            groups[number]
            assert groups.coming_bytes == sum(groups._size(number) for number, _ in groups.coming)
            seen.append(groups.coming_bytes)
    assert limit <= max(seen) < limit + largest


def test_several_are_read_at_a_time_and_before_they_are_asked_for(dataset):
    order = order_of(dataset)
    # Lets nobody through until as many readers wait here as there are.
    all_at_once = threading.Barrier(READERS, timeout=60)  # a thread that is late fails the test; it takes milliseconds
    waited = []

    def before(number):
        if len(waited) < READERS:
            waited.append(number)
            all_at_once.wait()

    with Prefetcher(Watched(dataset, before), order, STREAMS, range(order.steps_per_epoch), 10**6) as groups:
        while len(waited) < READERS:
            time.sleep(0.001)
        assert groups[numbers(dataset, order, [0])[0]].images


def test_a_failure_comes_where_the_group_is_needed(dataset):
    order = order_of(dataset)
    asked = numbers(dataset, order, range(order.steps_per_epoch))
    bad = asked[len(asked) // 2]

    def before(number):
        if number == bad:
            raise StorageError("no answer")

    with Prefetcher(Watched(dataset, before), order, STREAMS, range(order.steps_per_epoch), 10**6) as groups:
        for number in asked[: asked.index(bad)]:
            groups[number]
        with pytest.raises(StorageError, match="no answer"):
            groups[bad]


def test_a_data_set_that_is_held_whole_starts_at_once_however_long_the_run(dataset):
    order, reads = order_of(dataset, window_groups=8), []  # four streams may hold 4 * 2 * 8 groups
    with Prefetcher(Watched(dataset, reads.append), order, STREAMS, range(10**9), 10**9) as groups:
        for number in numbers(dataset, order, range(order.steps_per_epoch)):
            groups[number]
    assert len(reads) == 40


def test_a_group_aside_of_the_order_changes_nothing(dataset):
    order = order_of(dataset)
    asked = numbers(dataset, order, range(order.steps_per_epoch))
    with Prefetcher(dataset, order, STREAMS, range(order.steps_per_epoch), 50_000) as groups:
        for place, number in enumerate(asked):
            groups[number]
            if place % 500 == 0:
                assert groups.aside(asked[-1]).ids[0] == dataset.starts[asked[-1]]
