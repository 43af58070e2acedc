"""Reads and checks images on all cores, in the order that is asked for.

Processes, not threads: an image that is read from an object store costs 3 ms under Python's lock, more than its
decoding does without it. Each process reads what it checks.
"""

import os
import signal
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Self

from pirl.data.dataset import Ints
from pirl.errors import ObjectRefusedError
from pirl.prepare.images import Checked, check_image
from pirl.prepare.scratch import Scratch, Span, bounded_map
from pirl.prepare.sources.source import Source
from pirl.processes import end_with_parent
from pirl.storage.client import trust_stores
from pirl.storage.temporary import lend_to_multiprocessing, remove_temporary_folder

CHUNK_ROWS = 16
"""Images that a worker takes at a time: enough to hide what a message costs, few enough to keep memory small."""
READ_THREADS = 8
"""Reads of a worker that are under way: an object store answers after some 50 ms."""


class Workers:
    """Processes, by default one for each core; a context manager that ends them."""

    def __init__(self, scratch: Scratch, short_side: int | None = None, count: int | None = None) -> None:
        self.scratch = scratch
        # The cores that this process may use: in a job of a cluster fewer than the machine has.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.count = count or cores
        # Forked from a server without threads; it has imported the program once for all.
        context = get_context("forkserver")
        context.set_forkserver_preload(["__main__", "pirl.prepare.workers"])
        lend_to_multiprocessing()
        self._pool = ProcessPoolExecutor(
            self.count, mp_context=context, initializer=_start, initargs=(scratch, short_side)
        )

    def check(self, source: Source, order: Ints) -> Iterator[tuple[int, Checked]]:
        """Yields these rows of a source, in this order, with what `check_image` says of their images."""
        chunks = [order[at : at + CHUNK_ROWS] for at in range(0, len(order), CHUNK_ROWS)]
        calls = (partial(_check, self._within_reach(source.spans(rows))) for rows in chunks)
        # Two chunks for each worker: one that it works on, and one that waits for it.
        for rows, results in zip(chunks, bounded_map(self._pool, calls, 2 * self.count), strict=True):
            yield from zip(rows.tolist(), results, strict=True)

    def _within_reach(self, spans: list[Span]) -> list[Span]:
        """The same spans; fsspec's memory:// is this process's own, so what lies there goes to the scratch file."""
        copies = []
        for span in spans:
            if span.uri is not None and span.uri.startswith("memory://"):
                data = self.scratch.read(span)
                span = Span(None, self.scratch.append(data), len(data))
            copies.append(span)
        return copies

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


_scratch: Scratch
_short_side: int | None
_readers: ThreadPoolExecutor


def _start(scratch: Scratch, short_side: int | None) -> None:
    """What a worker does first."""
    global _scratch, _short_side, _readers
    _scratch, _short_side, _readers = scratch, short_side, ThreadPoolExecutor(READ_THREADS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the one that started them ends them
    end_with_parent(last=remove_temporary_folder)
    trust_stores()
    # Pillow warns of oddities in files that it reads all the same; what it cannot read is counted.
    warnings.simplefilter("ignore")


def _check(spans: list[Span]) -> list[Checked]:
    return [
        data if isinstance(data, Checked) else check_image(data, _short_side) for data in _readers.map(_read, spans)
    ]


def _read(span: Span) -> bytes | Checked:
    """The bytes of an image, or that the store does not give this one."""
    try:
        return _scratch.read(span)
    except ObjectRefusedError as error:
        return Checked(None, note=str(error))
