"""Whether embeddings spread out or have collapsed, from a few sums over their rows.

Shapes: N rows of D values.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pirl import dist
from pirl.methods.memory import MemoryBank

CHUNK = 65_536
"""Rows that are taken to float64 at once: 64 MB of a bank."""

PAIRED = 1024
"""Rows whose pairs uniformity is the mean of, at most: half a million pairs."""

LOWEST_RANK = 4.0
"""Effective rank of embeddings f(v_I) that have not collapsed.

Seen on the digits after each of the first epochs, of a batch of 128: 28 to 58 at the recipe's width of 16 (infonce and
Eq. 3, jigsaw, rotation and NPID, banks that begin at random or with a forward pass), 18 to 20 at width 4, 8 to 11
without any normalisation, and 5.2 to 6.6 at width 1, which leaves 8 channels. Learning rates from 1 to 100, which
collapse: 1.4 to 2.8 from the first epoch on. 4 lies between them. Ten times the recipe's rate comes near a collapse,
4.2 to 4.8, and slowly out of it; that is not counted as one.

The length of the mean row tells them apart less well (0.78 to 0.97 beside 0.98 to 1), and the bank later: a row moves
once an epoch and keeps a part of what it was, so after two epochs of collapse the bank still has a rank of 28 to 86,
and that of a network of width 1 which learns has 4.1.
"""

FEWEST_ROWS = 32
"""From which on a rank is low because embeddings are alike: that of few rows is low by itself."""


@dataclass(frozen=True)
class Spread:
    """How rows spread.

    Attributes:
        effective_rank: exp of the entropy of the singular values, scaled to add up to 1: RankMe (Garrido et al.,
            2210.02885). From 1, all rows on one line, to D.
        first: Share of the variance about the mean that its first direction has; 1 where all rows are the same.
        first_10: The same of its first ten.
        mean_norm: Length of the mean of the unit rows: 0 where they point everywhere, 1 where all are the same.
        std: Of the unit rows, mean over the dimensions, times the root of D: 1 at the most.
        norm: Root of the mean square of the rows' lengths.
        uniformity: log of the mean of exp(-2 |x - y|²) over pairs of unit rows (Wang & Isola, 2005.10242): 0 where all
            are the same, near -4 where they point everywhere.
    """

    effective_rank: float
    first: float
    first_10: float
    mean_norm: float
    std: float
    norm: float
    uniformity: float


def spread_of(rows: Tensor) -> Spread:
    """Of rows (N, D), N at least 2, none of them zero."""
    unit = F.normalize(rows, dim=1)
    return _spread(_sums(rows), _sums(unit), len(rows), unit[evenly(len(rows)).to(rows.device)])


def spread_of_bank(bank: MemoryBank) -> Spread:
    """Of the rows on all ranks, the same on each and for any number of them but for rounding; a collective.

    It costs a product of D x N by N x D on each rank's rows, D² numbers to add, and a look-up of some rows.
    """
    sums = dist.all_reduce_sum(_sums(bank.local))
    return _spread(sums, sums, bank.rows, bank.lookup(evenly(bank.rows)))


def evenly(rows: int) -> Tensor:
    """Numbers of PAIRED rows, or of all where there are fewer."""
    few = min(PAIRED, rows)
    return torch.arange(few) * rows // few


def uniformity(unit: Tensor) -> float:
    """Of unit rows (N, D), as `Spread` has it."""
    distances = torch.pdist(unit.double()).square()
    return float((-2 * distances).exp().mean().log())


def _sums(rows: Tensor) -> Tensor:
    """float64 (D + 1, D): XᵀX and the sum of the rows X (N, D)."""
    dim = rows.shape[1]
    sums = rows.new_zeros(dim + 1, dim, dtype=torch.float64)
    for part in torch.split(rows, CHUNK):
        values = part.double()
        sums[:dim] += values.T @ values
        sums[dim] += values.sum(0)
    return sums


def _spread(sums: Tensor, unit_sums: Tensor, rows: int, paired: Tensor) -> Spread:
    """From `_sums` of N rows and of the same as unit rows, and some of the latter."""
    dim = sums.shape[1]
    squares, mean = sums[:dim] / rows, sums[dim] / rows
    unit_mean = unit_sums[dim] / rows
    singular = torch.linalg.eigvalsh(squares).clamp_min(0).sqrt()
    shares = singular / singular.sum()
    variances = torch.linalg.eigvalsh(squares - torch.outer(mean, mean)).clamp_min(0).flip(0)
    total = float(variances.sum())
    # Less than this is what rounding of float32 leaves of rows that are the same.
    same = total <= 1e-12 * float(squares.trace())
    return Spread(
        effective_rank=float(torch.special.entr(shares).sum().exp()),
        first=1.0 if same else float(variances[0]) / total,
        first_10=1.0 if same else float(variances[:10].sum()) / total,
        mean_norm=float(unit_mean.norm()),
        std=float((unit_sums[:dim].diagonal() / rows - unit_mean.square()).clamp_min(0).sqrt().mean()) * dim**0.5,
        norm=float(squares.trace()) ** 0.5,
        uniformity=uniformity(paired),
    )


def has_collapsed(embeddings: Spread, rows: int) -> bool:
    """Whether so many embeddings f(v_I) lie in hardly any dimensions; False where they are too few to tell."""
    return rows >= FEWEST_ROWS and embeddings.effective_rank < LOWEST_RANK
