"""The ids of the negatives against their definition, and random numbers that no two purposes share."""

from itertools import combinations, product

import numpy as np
import pytest

from pirl.loading.views import sample_rng
from pirl.methods.draws import _NEGATIVES, _ROWS, _words, negative_ids


def by_definition(seed: int, step: int, rows: int, num: int) -> list[int]:
    """One id after another, of a stream of fair ones, until there are enough different ones."""
    few = min(num, rows - num)
    key, counter = [seed, int.from_bytes(b"negative")], [0, step, 0, 0]
    stream = np.random.Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64))
    ids: list[int] = []
    while len(ids) < few:
        word = int(stream.random_raw())
        if word < 2**64 - 2**64 % rows and word % rows not in ids:
            ids.append(word % rows)
    return sorted(ids if num == few else set(range(rows)) - set(ids))


@pytest.mark.parametrize(
    ("rows", "num"), [(1, 0), (2, 1), (5, 2), (5, 3), (5, 4), (64, 32), (64, 63), (1000, 0), (1438, 512), (70_000, 300)]
)
def test_ids_are_the_first_different_ones_of_a_stream(rows: int, num: int) -> None:
    for seed, step in ((0, 0), (0, 1), (2**32 - 1, 0), (7, 10**7)):
        ids = negative_ids(2, seed, step, rows, num)
        assert ids.dtype == np.int64
        assert ids.tolist() == by_definition(seed, step, rows, num)


def test_many_ids_of_a_large_bank_are_different_sorted_and_spread() -> None:
    rows, num = 1_281_167, 65_536
    ids = negative_ids(2, 0, 3, rows, num)
    assert len(ids) == num
    assert (np.diff(ids) > 0).all()
    assert ids[0] >= 0
    assert ids[-1] < rows
    # 64 parts of the bank with 1,024 ± 31 each: the sum of squares is near its 63 free parts, 99.9 % within 30 to 107.
    counts = np.histogram(ids, 64, (0, rows))[0]
    assert 30 < (np.square(counts - num / 64) / (num / 64)).sum() / (1 - num / rows) < 107


def test_each_set_of_ids_is_as_likely_as_any_other() -> None:
    for rows, num in ((6, 2), (6, 4)):  # drawn, and left out
        sets = dict.fromkeys(combinations(range(rows), num), 0)
        for step in range(3000):
            sets[tuple(negative_ids(2, 9, step, rows, num).tolist())] += 1
        counts = np.array(list(sets.values()))
        assert 3 < (np.square(counts - 200) / 200).sum() < 37  # 14 free parts: the middle 99.8 %


def test_the_draw_of_runs_that_began_before_is_what_it_was() -> None:
    """Written down from the code before; numpy 2.4."""
    assert negative_ids(1, 0, 0, 32, 8).tolist() == [4, 10, 12, 17, 20, 24, 25, 31]
    assert negative_ids(1, 3, 17, 1_281_167, 32_000)[:5].tolist() == [12, 73, 120, 173, 192]


def test_first_rows_and_views_share_no_random_numbers() -> None:
    """As they did for image 0 at seed 0, whose views in an epoch had the numbers of a block of rows."""
    of_views = (sample_rng(*each) for each in product((0, 1), range(-1, 9), (0, 1, 2**32)))
    first = {tuple(generator.bit_generator.random_raw(2)) for generator in of_views}
    others = {tuple(_words(*each).random_raw(2)) for each in product((0, 1), (_ROWS, _NEGATIVES), range(10))}
    assert len(first) == 60
    assert len(others) == 40
    assert not first & others
