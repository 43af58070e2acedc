"""Numbers of protocols, with the interval in which they would lie for other test images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pirl import dist

RESAMPLES = 1000
"""Of the bootstrap: the ends of the interval are off by about a tenth of its width."""

LEVEL = 0.95
"""Share of the resamples that an interval holds."""


@dataclass(frozen=True)
class Measurement:
    """One number.

    Attributes:
        name: What was measured: `res5`, `res5, k 20`.
        value: Of the network; a share of 1 where `unit` is `%`.
        random: The same of a network with random weights, if that was measured.
        interval: Where 95 % of the resamples of the test images lie (Efron's percentiles), if there are such.
        deviation: Standard deviation over draws of the training images, if it is a mean over some.
        unit: `%` for shares of 1, else what stands behind the number.
    """

    name: str
    value: float
    random: float | None = None
    interval: tuple[float, float] | None = None
    deviation: float | None = None
    unit: str = "%"


@dataclass(frozen=True)
class Outcome:
    """What a protocol found.

    Attributes:
        measurements: For the table.
        details: More that its report holds, for JSON.
        files: That lie beside the report, such as pictures, by their names.
    """

    measurements: list[Measurement]
    details: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


def share(name: str, right: Tensor, random: Tensor | None = None, seed: int = 0) -> Measurement:
    """The share of test images (M,) that are `right`, 0 or 1 each; `random` is the same of the random network."""
    count, rows = int(right.sum()), len(right)
    # A resample of M zeros and ones has a binomial number of ones.
    counts = _source(seed).binomial(rows, count / rows, RESAMPLES)
    low, high = _ends(counts / rows)
    return Measurement(name, count / rows, None if random is None else float(random.double().mean()), (low, high))


def shares(names: Sequence[str], right: Tensor, seed: int = 0) -> list[Measurement]:
    """One `share` for each name, of `right` (names · trunks, M): for each name its trunks, the trained one first."""
    return [
        share(name, each[0] > 0, each[1] > 0 if len(each) > 1 else None, seed)
        for name, each in zip(names, right.reshape(len(names), -1, right.shape[1]), strict=True)
    ]


def bootstrap(statistic: Callable[[NDArray[np.int64]], float], rows: int, seed: int = 0) -> tuple[float, float]:
    """The interval of a statistic of `rows` test images, which is given the numbers of those that were drawn."""
    source = _source(seed)
    return _ends(np.array([statistic(source.integers(rows, size=rows)) for _ in range(RESAMPLES)]))


def dealt(
    pieces: Sequence[Callable[[], Tensor]],
    length: int,
    device: torch.device,
    tell: Callable[[str], None] = lambda text: None,
) -> Tensor:
    """Does pieces of work, each on one rank, and gives all ranks what came of them; a collective.

    Args:
        pieces: Each gives `length` numbers.
        tell: Takes what goes on.

    Returns:
        float64 (len(pieces), length).
    """
    found = torch.zeros(len(pieces), length, dtype=torch.float64, device=device)
    for number in range(dist.rank(), len(pieces), dist.world_size()):
        tell(f"{number + 1} of {len(pieces)}")
        found[number] = pieces[number]().to(found)
    return dist.all_reduce_sum(found)


def _ends(values: NDArray[Any]) -> tuple[float, float]:
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _source(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))
