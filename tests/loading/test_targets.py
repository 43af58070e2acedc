"""Labels that are made wrong on purpose."""

import numpy as np
import pytest

from pirl.loading.targets import Labels


def test_labels_are_as_they_are_without_noise():
    same = Labels(10, 0.0, 3)
    assert [same(id, id % 10) for id in range(50)] == [id % 10 for id in range(50)]


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_the_share_that_is_asked_for_gets_one_of_the_other_labels(noise):
    wrong = Labels(10, noise, 3)
    given = np.array([wrong(id, 4) for id in range(5000)])
    assert abs((given != 4).mean() - noise) < 0.026  # four standard deviations of 5,000 throws
    counts = np.bincount(given[given != 4], minlength=10)
    assert counts[4] == 0
    others = np.delete(counts, 4)
    assert abs(others / others.sum() - 1 / 9).max() < 0.034  # the same, of the 1,500 throws of 0.3


def test_a_target_is_a_function_of_seed_and_id():
    one = [Labels(10, 0.5, 3)(id, 4) for id in range(100)]
    assert [Labels(10, 0.5, 3)(id, 4) for id in reversed(range(100))][::-1] == one
    assert [Labels(10, 0.5, 4)(id, 4) for id in range(100)] != one


def test_what_has_no_label_gets_none():
    assert {Labels(2, 1.0, 0)(id, -1) for id in range(20)} == {-1}
    assert [Labels(2, 1.0, 0)(id, id % 2) for id in range(4)] == [1, 0, 1, 0]
