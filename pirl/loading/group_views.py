"""A view of each image of some row groups, in order: how evaluation reads, by the processes that training has too."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from pirl.data.dataset import Dataset, RowGroup
from pirl.errors import CorruptImage
from pirl.loading.collate import empty_pixels
from pirl.loading.decode import decoded
from pirl.loading.loader_processes import data_loader, next_part
from pirl.loading.prefetch import READERS

BLACK = torch.zeros(3, 8, 8, dtype=torch.uint8)
"""In place of an image that cannot be used."""

WORTH_IMAGES = 4096
"""For each loader process: with fewer, to start it takes longer than it saves."""

View = Callable[[Tensor], Tensor]
"""From an image, uint8 (3, H, W), to a view, uint8 (..., 3, h, w), of one shape for all; one that can be pickled."""


class GroupViews(NamedTuple):
    """Of the R images of a row group, in shared memory where a loader process made them.

    Attributes:
        pixels: uint8 (R, ..., h, w, 3).
        labels: int64 (R,), -1 where there is none, and where the image cannot be used.
    """

    pixels: Tensor
    labels: NDArray[np.int64]


def read_views(
    dataset: Dataset, numbers: Sequence[int], view: View, *, skip: bool, processes: int = 0, pin_memory: bool = False
) -> Generator[GroupViews, None, None]:
    """The views of row groups, one after the other; close it where it is not read to its end.

    Args:
        skip: An image that cannot be used gets a black view, and no label.
        processes: That read and decode at the most, each some groups ahead; 0 does it here. There are fewer where
            they are not worth their start.
        pin_memory: Whether the views go to a GPU.

    Raises:
        CorruptImage: An image cannot be used, and `skip` is off; says shard, row and id.
        StorageError: The store did not give a group.
    """
    read = _Reading(dataset, numbers, view, skip)
    images = int(np.diff(dataset.starts)[list(numbers)].sum())
    processes = min(processes, images // WORTH_IMAGES)
    if processes == 0:
        yield from read
        return
    parts: Any = iter(data_loader(read, processes, pin_memory=pin_memory))
    try:
        for _ in numbers:
            yield next_part(parts)
    finally:
        parts._shutdown_workers()  # now, and not when the last who holds an error has let it go


def views_of(dataset: Dataset, group: RowGroup, view: View, *, skip: bool) -> tuple[Tensor, NDArray[np.bool_]]:
    """The views of all images of a row group, uint8 (R, ..., h, w, 3), and bool (R,), which images can be used.

    Raises:
        CorruptImage: One cannot be used, and `skip` is off; with it, its view is black.
    """
    usable = np.ones(len(group.ids), bool)
    pixels = None
    for row, id in enumerate(group.ids.tolist()):
        try:
            image = decoded(dataset, group, id, row)
        except CorruptImage:
            if not skip:
                raise
            image, usable[row] = BLACK, False
        # As rows of pixels, as they lie in memory.
        of_image = view(image).movedim(-3, -1)
        if pixels is None:
            pixels = empty_pixels(len(group.ids) * of_image.numel()).view(-1, *of_image.shape)
        pixels[row] = of_image
    assert pixels is not None, "a row group has a row at least"
    return pixels, usable


@dataclass
class _Reading(IterableDataset[GroupViews]):
    """What one loader process yields: every n-th group, where there are n."""

    dataset: Dataset
    numbers: Sequence[int]
    view: View
    skip: bool

    def __iter__(self) -> Iterator[GroupViews]:
        info = get_worker_info()
        mine = self.numbers if info is None else self.numbers[info.id :: info.num_workers]
        with closing(_read_ahead(self.dataset, mine)) as groups:
            for group in groups:
                pixels, usable = views_of(self.dataset, group, self.view, skip=self.skip)
                labels = np.full(len(group.ids), -1) if group.labels is None else group.labels
                yield GroupViews(pixels, np.where(usable, labels, -1))


def _read_ahead(dataset: Dataset, numbers: Sequence[int]) -> Generator[RowGroup, None, None]:
    """Row groups, of which up to READERS are read before they are asked for: a store answers after 0.1 s or more."""
    with ThreadPoolExecutor(READERS, thread_name_prefix="pirl-read") as pool:
        coming = deque(pool.submit(dataset.load_group, number) for number in numbers[:READERS])
        try:
            for number in [*numbers[READERS:], *[None] * len(coming)]:
                group = coming.popleft().result()
                if number is not None:
                    coming.append(pool.submit(dataset.load_group, number))
                yield group
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
