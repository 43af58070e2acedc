"""Average precision against scikit-learn, and against plain loops of VOC's definitions."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from pirl.evaluate.voc.average_precision import Ranking


def _plain(scores: NDArray[np.float64], truth: NDArray[np.int64]) -> list[tuple[float, float]]:
    """(recall, precision) at each score that occurs, from the largest: whoever has it or more is found."""
    kept = truth != 0
    scores, truth = scores[kept], truth[kept]
    points = []
    for limit in sorted(set(scores.tolist()), reverse=True):
        found = truth[scores >= limit] == 1
        points.append((found.sum() / (truth == 1).sum(), found.mean()))
    return points


def _area(points: list[tuple[float, float]]) -> float:
    total, before = 0.0, 0.0
    for place, (recall, _) in enumerate(points):
        total += (recall - before) * max(precision for _, precision in points[place:])
        before = recall
    return total


def _eleven(points: list[tuple[float, float]]) -> float:
    at = [max((p for r, p in points if r >= tenth / 10 - 1e-12), default=0.0) for tenth in range(11)]
    return sum(at) / 11


@pytest.mark.parametrize("seed", range(20))
def test_all_three_definitions(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = int(random.integers(3, 60))
    scores = random.normal(size=rows)
    if seed % 2:  # equal scores
        scores = np.round(scores)
    truth = random.choice([1, -1, 0], rows, p=[0.3, 0.5, 0.2])
    truth[0], truth[1] = 1, -1
    ranking, points = Ranking.of(scores, truth), _plain(scores, truth)
    kept = truth != 0
    # float64 sums in another order
    assert ranking.steps() == pytest.approx(average_precision_score(truth[kept] == 1, scores[kept]), abs=1e-12)
    assert ranking.area() == pytest.approx(_area(points), abs=1e-12)
    assert ranking.eleven_points() == pytest.approx(_eleven(points), abs=1e-12)
    counts = np.bincount(random.integers(rows, size=rows), minlength=rows)
    counts[0] += 1
    repeated = np.repeat(np.arange(rows), counts)
    again = _area(_plain(scores[repeated], truth[repeated]))
    assert ranking.area(counts) == pytest.approx(again, abs=1e-12)


def test_known_rankings() -> None:
    # Found: yes, no, yes: precisions 1, 1/2, 2/3.
    ranking = Ranking.of(np.array([3.0, 2.0, 1.0]), np.array([1, -1, 1]))
    assert ranking.steps() == pytest.approx((1 + 2 / 3) / 2)
    assert ranking.area() == pytest.approx((1 + 2 / 3) / 2)
    assert ranking.eleven_points() == pytest.approx((6 + 5 * 2 / 3) / 11)  # recalls 0 to 0.5, and 0.6 to 1
    # All alike: one point, at which half is right.
    assert Ranking.of(np.zeros(4), np.array([1, -1, 1, -1])).area() == 0.5
    assert np.isnan(Ranking.of(np.zeros(2), np.array([-1, 0])).area())
    # 3 of 10 are a recall of 0.3, which 0.3 in floats is just below or above.
    scores, truth = np.arange(20.0)[::-1], np.array([1, 1, 1] + [-1] * 10 + [1] * 7)
    assert Ranking.of(scores, truth).eleven_points() == pytest.approx(_eleven(_plain(scores, truth)))
