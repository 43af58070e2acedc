"""Processes that read, decode and cut for the one that started them: how they begin, hand over, fail and end."""

import multiprocessing
from collections.abc import Iterator
from typing import Any, TypeVar

from torch.utils.data import DataLoader, IterableDataset

from pirl.errors import CorruptImage, StorageError
from pirl.processes import end_with_parent, keep_freed_memory
from pirl.storage.client import trust_stores
from pirl.storage.temporary import lend_to_multiprocessing, remove_temporary_folder

T = TypeVar("T")

PREFETCHED = 4
"""Parts that each process has ready before they are asked for."""
PRELOADED = ["pirl.loading.loader", "pirl.loading.group_views"]
"""What the fork server imports, once for all loader processes of a worker."""


def data_loader(dataset: IterableDataset[T], processes: int, *, pin_memory: bool = False) -> "DataLoader[T]":
    """What `dataset` yields in each of some processes, in turn, as it is; with 0 processes in this one."""
    if processes == 0:
        return DataLoader(dataset, batch_size=None, collate_fn=_as_it_is)
    # Forking a process that has threads (Ray, gloo, an event loop) can hang; a fork server has none.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    lend_to_multiprocessing()
    return DataLoader(
        dataset,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=processes,
        multiprocessing_context=context,
        prefetch_factor=PREFETCHED,
        worker_init_fn=start_process,
        pin_memory=pin_memory,
    )


def next_part(parts: Iterator[T]) -> T:
    """The next part; an error out of a loader process without the trace that torch puts in front of it."""
    try:
        return next(parts)
    except (CorruptImage, StorageError) as error:
        kind = type(error)
        raise kind(str(error).rpartition(f"{kind.__name__}: ")[2].strip()) from None


def start_process(_: int) -> None:
    """What a loader process does first."""
    end_with_parent(last=remove_temporary_folder)
    keep_freed_memory()
    trust_stores()


def _as_it_is(part: Any) -> Any:
    """Without this, arrays would become tensors, each of which takes its time to hand over."""
    return part
