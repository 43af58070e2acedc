"""The spread of embeddings against numpy's SVD and plain loops, and that of the bank on any number of ranks."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pirl.methods import spread as spreads
from pirl.methods.memory import MemoryBank
from pirl.methods.spread import Spread, has_collapsed, spread_of, spread_of_bank
from tests.conftest import GlooPool


def embeddings(rows: int = 90, dim: int = 12) -> Tensor:
    """Correlated rows of different lengths, with a mean."""
    random = torch.Generator().manual_seed(0)
    return torch.randn(rows, 5, generator=random) @ torch.randn(5, dim, generator=random) + 0.5


def test_spread_is_that_of_numpys_svd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreads, "CHUNK", 7)  # several chunks, the last one short
    rows = embeddings()
    spread, plain = spread_of(rows), rows.double().numpy()
    singular = np.linalg.svd(plain, compute_uv=False)
    shares = singular / singular.sum()
    # float64, but squares of singular values lose half the digits: of those that are zero 1e-8 of the largest is left.
    assert spread.effective_rank == pytest.approx(
        math.exp(-sum(share * math.log(share) for share in shares if share > 1e-12)), rel=1e-5
    )
    variances = np.linalg.svd(plain - plain.mean(0), compute_uv=False) ** 2
    assert spread.first == pytest.approx(variances[0] / variances.sum(), rel=1e-6)
    assert spread.first_10 == pytest.approx(variances[:10].sum() / variances.sum(), rel=1e-6)
    unit = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    # These are of float32 unit rows.
    assert spread.mean_norm == pytest.approx(np.linalg.norm(unit.mean(0)), rel=1e-6)
    assert spread.std == pytest.approx(unit.std(0).mean() * math.sqrt(12), rel=1e-5)
    assert spread.norm == pytest.approx(math.sqrt((plain**2).sum(1).mean()), rel=1e-6)


def test_uniformity_equals_a_loop_over_pairs() -> None:
    unit = F.normalize(embeddings(), dim=1)
    values = [math.exp(-2 * float((x - y).square().sum())) for i, x in enumerate(unit) for y in unit[:i]]
    # float32 in the loop.
    assert spreads.uniformity(unit) == pytest.approx(math.log(sum(values) / len(values)), abs=1e-5)
    assert spread_of(embeddings()).uniformity == pytest.approx(spreads.uniformity(unit), abs=1e-9)


def test_rows_to_pair_lie_everywhere() -> None:
    assert spreads.evenly(5).tolist() == [0, 1, 2, 3, 4]
    some = spreads.evenly(1_000_003)
    assert len(some.unique()) == spreads.PAIRED
    assert int(some.max()) > 999_000


def test_rows_that_are_the_same_have_rank_one() -> None:
    spread = spread_of(embeddings(1).expand(50, -1).clone())
    # Rounding of float32 rows is 1e-7 of them, and each of the eleven other directions adds its share.
    assert spread.effective_rank == pytest.approx(1, abs=1e-4)
    assert (spread.first, spread.first_10) == (1, 1)
    assert spread.mean_norm == pytest.approx(1, abs=1e-6)
    assert spread.uniformity == pytest.approx(0, abs=1e-6)
    assert has_collapsed(spread, 50)
    assert not has_collapsed(spread, spreads.FEWEST_ROWS - 1)


def test_rows_that_point_everywhere_are_as_uniform_as_can_be() -> None:
    spread = spread_of(torch.randn(2000, 128, generator=torch.Generator().manual_seed(0)))
    assert spread.effective_rank > 120
    assert spread.uniformity == pytest.approx(-4, abs=0.1)  # products of pairs are 0 ± 0.09: -4 + 8 · 0.09²
    assert spread.std == pytest.approx(1, abs=0.02)
    assert not has_collapsed(spread, 2000)


def bank_spread(rows: int) -> Spread:
    return spread_of_bank(MemoryBank(rows, dim=8, seed=3, keep=0.5))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_spread_of_the_bank_does_not_depend_on_the_ranks(run_ranks: GlooPool, world: int) -> None:
    """5 rows leave the fourth rank without any; 2,000 are more than are paired."""
    for rows in (5, 13, 2000):
        whole = spread_of(MemoryBank(rows, dim=8, seed=3, keep=0.5).local)
        found = run_ranks(world, bank_spread, rows)
        assert all(each == found[0] for each in found)
        for name, value in vars(whole).items():
            # Sums in float64; the plain one makes unit rows of unit rows first, in float32.
            assert getattr(found[0], name) == pytest.approx(value, rel=1e-6), name
