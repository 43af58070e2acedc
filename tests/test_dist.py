"""Collectives against what they say, with and without a process group."""

import os
import time

import pytest
import torch

from pirl import dist
from tests.conftest import GlooPool, RankError


def test_without_a_group_there_is_one_rank() -> None:
    part = torch.arange(6).view(3, 2)
    assert (dist.rank(), dist.world_size()) == (0, 1)
    dist.barrier()
    assert torch.equal(dist.all_reduce_sum(part.clone()), part)
    assert torch.equal(dist.gather_parts(part, [3]), part)


def _rank_and_sum(value: float) -> tuple[int, int, torch.Tensor, bool]:
    dist.barrier()
    t = torch.tensor([value, float(dist.rank())])
    summed = dist.all_reduce_sum(t)
    return dist.rank(), dist.world_size(), summed, summed is t


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_rank_world_and_sum(run_ranks: GlooPool, world: int) -> None:
    for rank, result in enumerate(run_ranks(world, _rank_and_sum, 2.0)):
        assert result[:2] == (rank, world)
        assert result[2].tolist() == [2.0 * world, world * (world - 1) / 2]
        assert result[3]  # in place


def _gather(whole: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    return dist.gather_parts(whole.split(sizes)[dist.rank()], sizes)


def _gather_two_at_once(whole: torch.Tensor, sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The second is waited for first, and a collective runs in between."""
    part = whole.split(sizes)[dist.rank()]
    first = dist.start_gather_parts(part, sizes)
    second = dist.start_gather_parts(-part, sizes)
    dist.all_reduce_sum(torch.ones(3))
    got = second()
    return first(), got


@pytest.mark.parametrize("sizes", [[5], [3, 3], [4, 1], [0, 7], [1, 0, 4], [0, 0, 0], [2, 5, 0, 1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8])
def test_uneven_parts_come_in_rank_order(run_ranks: GlooPool, sizes: list[int], dtype: torch.dtype) -> None:
    whole = (100 * torch.randn(sum(sizes), 3, 2)).to(dtype)
    for gathered in run_ranks(len(sizes), _gather, whole, sizes):
        assert gathered.dtype == dtype
        assert torch.equal(gathered, whole)


def test_parts_may_be_one_dimensional_and_not_contiguous(run_ranks: GlooPool) -> None:
    labels = torch.arange(7)
    assert all(torch.equal(r, labels) for r in run_ranks(2, _gather, labels, [2, 5]))
    turned = torch.randn(4, 6).T
    assert all(torch.equal(r, turned) for r in run_ranks(2, _gather, turned, [3, 3]))


def test_gathers_may_overlap(run_ranks: GlooPool) -> None:
    whole = torch.randn(9, 4)
    for first, second in run_ranks(3, _gather_two_at_once, whole, [4, 2, 3]):
        assert torch.equal(first, whole)
        assert torch.equal(second, -whole)


def _fail_on(rank: int) -> None:
    if dist.rank() == rank:
        raise ZeroDivisionError("on purpose")
    dist.barrier()


def _sleep_on(rank: int) -> None:
    if dist.rank() == rank:
        time.sleep(30)


def _die_on(rank: int) -> None:
    if dist.rank() == rank:
        os._exit(3)


def test_the_pool_shows_the_traceback_of_the_rank_that_failed(run_ranks: GlooPool) -> None:
    with pytest.raises(RankError, match=r"(?s)rank 1 of 2.*_fail_on.*ZeroDivisionError: on purpose"):
        run_ranks(2, _fail_on, 1)
    assert len(run_ranks(2, _rank_and_sum, 1.0)) == 2  # and goes on afterwards


def test_the_pool_fails_a_rank_that_hangs_or_dies(run_ranks: GlooPool) -> None:
    run_ranks(2, _rank_and_sum, 1.0)  # fresh processes import torch for seconds, which would count as silence
    with pytest.raises(RankError, match=r"ranks \[1\] of 2 died or gave no answer within 5 s"):
        run_ranks(2, _sleep_on, 1, limit_s=5)
    with pytest.raises(RankError, match=r"ranks \[0\] of 1 died"):
        run_ranks(1, _die_on, 0)
    assert len(run_ranks(4, _rank_and_sum, 1.0)) == 4
