"""What the memory bank draws: its first rows, and the ids of the negatives; pure functions of integers.

Shapes: N rows of the bank, K negatives.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pirl.data.order import Ids

DRAW = 2
"""How the negatives of new runs are drawn; a run goes on with that of its checkpoint, which without a word is 1."""

_BLOCK = 1024
"""Initial rows are drawn in blocks of this many ids, whatever the ranks own."""

_ROWS, _NEGATIVES = (int.from_bytes(word) for word in (b"bankrows", b"negative"))
"""Second words of the random keys: no other use of the seed has them, so that none shares its numbers with another."""


def initial_rows(seed: int, ids: range, dim: int) -> Tensor:
    """Random unit rows (len(ids), dim) of a range of ids, each a function of (seed, id)."""
    rows = np.empty((len(ids), dim), np.float32)
    for block in range(ids.start // _BLOCK, -(-ids.stop // _BLOCK)):
        generator = np.random.Generator(_words(seed, _ROWS, block))
        drawn = generator.standard_normal((_BLOCK, dim), dtype=np.float32)
        first, stop = max(block * _BLOCK, ids.start), min((block + 1) * _BLOCK, ids.stop)
        rows[first - ids.start : stop - ids.start] = drawn[first - block * _BLOCK : stop - block * _BLOCK]
    return F.normalize(torch.from_numpy(rows))


def negative_ids(draw: int, seed: int, step: int, rows: int, num: int) -> Ids:
    """`num` different ids of `rows`, sorted: each set of so many is as likely as any other.

    Args:
        draw: 1 is numpy's `choice`, with which runs began before there was 2: the first `num` ids that a stream of
            random ids has. Its values are promised to stay the same in every version of numpy.
        seed: With `step`, all that the ids are a function of.
        step: From 0.
        rows: N.
        num: K, from 0 to N.
    """
    if draw == 1:
        generator = np.random.Generator(np.random.Philox(key=[seed | 1 << 32, step]))
        return np.sort(generator.choice(rows, num, replace=False, shuffle=False))
    if 2 * num > rows:  # those that are left out are sooner found
        chosen = np.ones(rows, bool)
        chosen[_first_of_stream(seed, step, rows, rows - num)] = False
        return np.flatnonzero(chosen)
    return _first_of_stream(seed, step, rows, num)


def _first_of_stream(seed: int, step: int, rows: int, num: int) -> Ids:
    """The first `num` different ids of the stream of (seed, step), sorted."""
    stream = _words(seed, _NEGATIVES, step)
    ids = _sorted(_below(rows, stream.random_raw(num)))
    ids = ids[np.diff(ids, prepend=-1) > 0]
    while len(ids) < num:  # as many again as came twice: never more than are missing, so that none is left over
        more = np.unique(_below(rows, stream.random_raw(num - len(ids))))
        places = np.searchsorted(ids, more)
        is_new = np.append(ids, -1)[places] != more
        ids = np.insert(ids, places[is_new], more[is_new])
    return ids


def _below(rows: int, words: NDArray[np.uint64]) -> Ids:
    """Ids of 64 random bits each; the few words past the last multiple of `rows` are left out, as they favour some."""
    fair = words[words <= np.uint64(2**64 - 2**64 % rows - 1)]
    return (fair % np.uint64(rows)).astype(np.int64)


def _sorted(ids: Ids) -> Ids:
    """By 16 bits at a time, of which numpy's stable sort is a radix sort: a fourth of the time of `np.sort`."""
    for shift in range(0, int(ids.max(initial=0)).bit_length(), 16):
        ids = ids[np.argsort((ids >> shift).astype(np.uint16), kind="stable")]
    return ids


def _words(seed: int, purpose: int, number: int) -> np.random.Philox:
    """A stream of its own for each (seed, purpose, number)."""
    return np.random.Philox(key=np.array([seed, purpose], np.uint64), counter=np.array([0, number, 0, 0], np.uint64))
