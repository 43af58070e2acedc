"""Sets of permutations: what the greedy construction is, and that it stays what it is."""

import itertools

import numpy as np
import pytest

from pirl.permutations import ALL, permutation_set


def distances(one, others):
    return [sum(a != b for a, b in zip(one, other, strict=True)) for other in others]


@pytest.mark.parametrize("seed", [0, 7])
def test_each_next_one_is_as_far_from_those_before_as_one_can_be(seed):
    """Against the definition, with all 120 orders of five patches."""
    chosen = [tuple(order) for order in permutation_set(seed, 120, patches=5).tolist()]
    assert sorted(chosen) == list(itertools.permutations(range(5)))
    for count in range(1, 120):
        before, left = chosen[:count], chosen[count:]
        farthest = max(min(distances(other, before)) for other in left)
        assert min(distances(chosen[count], before)) == farthest


def test_nine_patches_differ_in_all_places_as_long_as_that_can_be():
    chosen = permutation_set(0, 100).tolist()
    assert all(sorted(order) == list(range(9)) for order in chosen)
    nearest = [min(distances(chosen[n], chosen[:n])) for n in range(1, 100)]
    assert nearest == sorted(nearest, reverse=True)  # the smallest distance only falls
    assert nearest[0] == 9
    assert nearest[-1] >= 6
    assert len({tuple(order) for order in chosen}) == 100


def test_the_orders_are_those_of_all_versions():
    """Networks have learned their numbers."""
    assert permutation_set(0, 3).tolist() == FIRST
    assert permutation_set(3, 1).tolist() != FIRST[:1]


FIRST = [[6, 4, 2, 0, 1, 5, 7, 8, 3], [1, 0, 5, 4, 7, 3, 6, 2, 8], [8, 6, 3, 7, 2, 1, 5, 4, 0]]


def test_a_smaller_set_begins_a_larger_one():
    assert np.array_equal(permutation_set(0, 20), permutation_set(0, 60)[:20])
    assert ALL == 362_880
