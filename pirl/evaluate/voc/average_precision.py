"""Average precision of a ranking, by the definitions that are in use.

VOC since 2010 (`area`): the area under the largest precision that is reached at each recall or beyond; it is what the
SVM protocol reports. VOC 2007 (`eleven_points`): the mean of that precision at the recalls 0, 0.1, ... 1. scikit-learn
(`steps`): the area under the precision itself.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """M images in the order of their scores, the largest first; those that are ignored are left out.

    Attributes:
        order: Their numbers.
        positive: Which of them are of the class.
        ends: For each the place of the last one with the same score: equal ones are found together.
    """

    order: NDArray[np.int64]
    positive: NDArray[np.bool_]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, scores: NDArray[Any], truth: NDArray[Any]) -> "Ranking":
        """From scores (M,) and truth (M,): 1 of the class, -1 not, 0 ignored."""
        kept = np.flatnonzero(truth != 0)
        order = kept[np.argsort(-scores[kept], kind="stable")]
        ranked = scores[order]
        ends = len(ranked) - 1 - np.searchsorted(ranked[::-1], ranked, side="left")
        return cls(order, truth[order] == 1, ends)

    def area(self, counts: NDArray[np.int64] | None = None) -> float:
        """VOC 2010; NaN without a positive.

        Args:
            counts: How often each of all images is there, for a resample; once each by default.
        """
        precision, found = self._curve(counts)
        return _mean(np.maximum.accumulate(precision[::-1])[::-1], found)

    def steps(self) -> float:
        """As scikit-learn's average_precision_score."""
        return _mean(*self._curve(None))

    def eleven_points(self) -> float:
        """VOC 2007."""
        precision, found = self._curve(None)
        # In images, not in shares: a recall of 3/10 must count as 0.3.
        recall = np.cumsum(found)[self.ends]
        best = np.maximum.accumulate(precision[::-1])[::-1]
        first = np.searchsorted(10 * recall, np.arange(11) * found.sum(), side="left")
        return float(np.append(best, 0.0)[first].mean())

    def _curve(self, counts: NDArray[np.int64] | None) -> tuple[Floats, Floats]:
        """The precision at each place, and how many positives are found there."""
        weights = np.ones(len(self.order)) if counts is None else counts[self.order].astype(np.float64)
        found = weights * self.positive
        seen = np.cumsum(weights)[self.ends]
        return np.cumsum(found)[self.ends] / np.maximum(seen, 1), found


def _mean(precision: Floats, found: Floats) -> float:
    total = found.sum()
    return float((precision * found).sum() / total) if total else float("nan")
