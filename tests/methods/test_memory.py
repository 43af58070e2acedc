"""The sharded bank against one plain tensor on one process."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.nn import functional as F

from pirl import dist
from pirl.errors import ConfigError
from pirl.methods import draws, nce
from pirl.methods.memory import MemoryBank
from tests.conftest import GlooPool

DIM, BATCH, NEGATIVES, STEPS, KEEP, SEED = 16, 7, 8, 4, 0.75, 3


def batch(step: int, rows: int) -> tuple[Tensor, Tensor]:
    """Ids of a step's global batch, in no order, and two heads' embeddings, not yet normalised."""
    generator = torch.Generator().manual_seed(step)
    return torch.randperm(rows, generator=generator)[:BATCH], torch.randn(2, BATCH, DIM, generator=generator)


def cuts(world: int) -> list[int]:
    """Uneven shares of the batch: where each rank's begins, and the end."""
    return [BATCH * rank // world for rank in range(world + 1)]


def plain_run(rows: int, wire_dtype: torch.dtype) -> dict[str, Any]:
    """The reference: the whole bank is one tensor, changed row by row."""
    bank = MemoryBank(rows, dim=DIM, seed=SEED, keep=KEEP).local.clone()
    out: dict[str, Any] = {"lookup": [], "rows": [], "loss": [], "gradient": []}
    for step in range(STEPS):
        ids, values = batch(step, rows)
        negatives = MemoryBank(rows, dim=DIM, seed=SEED, keep=KEEP).sample(step, NEGATIVES).ids
        queries = F.normalize(values, dim=-1).requires_grad_()
        wire = bank[negatives].to(wire_dtype)
        if step == 0:
            own = MemoryBank.own(ids, negatives)
            log_z = nce.estimate_log_z(queries, bank[ids], wire, own, 0.07, rows)
            out["log_z"] = log_z
        losses = [
            nce.losses(kind, queries, bank[ids], wire, MemoryBank.own(ids, negatives), 0.07, log_z, rows)
            for kind in ("paper", "npid", "infonce")
        ]
        out["lookup"].append(bank[ids])
        out["rows"].append(wire)
        out["loss"].append(torch.stack(losses).detach())
        out["gradient"].append(torch.autograd.grad(torch.stack(losses).sum(), queries)[0])
        for i, value in zip(ids, values[0], strict=True):
            bank[i] = F.normalize(KEEP * bank[i] + (1 - KEEP) * F.normalize(value, dim=0), dim=0)
    return out | {"bank": bank}


def sharded_run(rows: int, wire_dtype: torch.dtype) -> dict[str, Any]:
    """What one rank sees: the whole lookups and negatives, its own rows, losses of its share of the batch."""
    bank = MemoryBank(rows, dim=DIM, seed=SEED, keep=KEEP, wire_dtype=wire_dtype)
    out: dict[str, Any] = {"lookup": [], "rows": [], "loss": [], "gradient": []}
    for step in range(STEPS):
        ids, values = batch(step, rows)
        negatives = bank.sample(step, NEGATIVES)
        share = slice(*cuts(dist.world_size())[dist.rank() :][:2])
        queries = F.normalize(values[:, share], dim=-1).requires_grad_()
        positives = bank.lookup(ids)
        drawn = negatives.wait()
        own = MemoryBank.own(ids[share], negatives.ids)
        if step == 0:
            log_z = nce.estimate_log_z(queries, positives[share], drawn, own, 0.07, rows)
            out["log_z"] = log_z
        losses = [
            nce.losses(kind, queries, positives[share], drawn, own, 0.07, log_z, rows)
            for kind in ("paper", "npid", "infonce")
        ]
        out["lookup"].append(positives)
        out["rows"].append(drawn)
        out["loss"].append(torch.stack(losses).detach())
        out["gradient"].append(torch.autograd.grad(torch.stack(losses).sum(), queries)[0])
        bank.update(ids, values[0])
    return out | {"bank": bank.local, "owned": bank.owned}


@pytest.mark.parametrize("wire_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [9, 13, 64])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_rank_sees_one_plain_tensor(run_ranks: GlooPool, world: int, rows: int, wire_dtype: torch.dtype) -> None:
    expected = plain_run(rows, wire_dtype)
    results = run_ranks(world, sharded_run, rows, wire_dtype)
    for key, result in itertools.product(("lookup", "rows"), results):
        assert torch.equal(result[key][0], expected[key][0])  # nothing is computed before the first update
        assert all(map(torch.equal, result[key], results[0][key]))
    bank = torch.cat([result["bank"] for result in results])
    assert [i for result in results for i in result["owned"]] == list(range(rows))
    # Only float32 rounding from here on: a processor may sum other shapes in another order.
    assert torch.allclose(bank, expected["bank"], rtol=0, atol=1e-6)
    for result in results:
        assert torch.allclose(result["log_z"], expected["log_z"], rtol=1e-6)
    for step in range(STEPS):
        last_digit = 1e-6 if wire_dtype == torch.float32 else 2**-8
        assert torch.allclose(results[0]["lookup"][step], expected["lookup"][step], rtol=0, atol=1e-6)
        assert torch.allclose(results[0]["rows"][step], expected["rows"][step], rtol=0, atol=last_digit)
        loss = torch.cat([result["loss"][step] for result in results], dim=2)
        gradient = torch.cat([result["gradient"][step] for result in results], dim=1)
        assert torch.allclose(loss, expected["loss"][step], rtol=1e-5)
        assert torch.allclose(gradient, expected["gradient"][step], rtol=1e-5, atol=1e-5)


def _owned(rows: int) -> tuple[range, tuple[int, ...]]:
    bank = MemoryBank(rows, dim=2, seed=0, keep=KEEP)
    return bank.owned, tuple(bank.local.shape)


@pytest.mark.parametrize(("world", "rows"), [(1, 5), (2, 5), (3, 13), (4, 13), (4, 9), (4, 4), (4, 5)])
def test_ownership_is_that_of_torch_chunk(run_ranks: GlooPool, world: int, rows: int) -> None:
    chunks = torch.arange(rows).chunk(world)
    expected = [chunk.tolist() for chunk in chunks] + [[]] * (world - len(chunks))
    results = run_ranks(world, _owned, rows)
    assert [list(owned) for owned, _ in results] == expected
    assert [shape for _, shape in results] == [(len(part), 2) for part in expected]


def test_initial_rows_are_a_function_of_seed_and_id() -> None:
    """Of neither the number of rows nor the range that is asked for, also across blocks."""
    rows = MemoryBank(3000, dim=8, seed=1, keep=KEEP).local
    assert torch.equal(MemoryBank(2000, dim=8, seed=1, keep=KEEP).local, rows[:2000])
    for ids in (range(1), range(1000, 1030), range(1024, 2048), range(700, 2900), range(5, 5)):
        assert torch.equal(draws.initial_rows(1, ids, 8), rows[ids.start : ids.stop])
    assert torch.allclose(rows.norm(dim=1), torch.ones(3000))
    other = MemoryBank(3000, dim=8, seed=2, keep=KEEP).local
    # Independent directions: means of 24,000 products have a spread of 1/8/sqrt(3000) = 0.0023.
    assert (rows * other).sum(1).mean().abs() < 0.01
    assert (rows[:1024] * rows[1024:2048]).sum(1).mean().abs() < 0.02
    assert rows.mean(0).abs().max() < 0.03


def test_negative_ids_are_distinct_sorted_and_uniform() -> None:
    rows, num, steps = 40, 10, 4000
    bank = MemoryBank(rows, dim=2, seed=5, keep=KEEP)
    drawn = np.stack([bank.sample(step, num).ids.numpy() for step in range(steps)])
    assert (np.diff(drawn, axis=1) > 0).all()
    assert drawn.min() == 0
    assert drawn.max() == rows - 1
    # Each id is drawn with probability 1/4: 1,000 ± 27 times in 4,000 steps; five spreads for 40 ids.
    counts = np.bincount(drawn.ravel(), minlength=rows)
    assert np.abs(counts - steps * num / rows).max() < 5 * 27.4
    # And pairs too: 10·9/(40·39) of the steps hold both, 231 ± 15.
    neighbours = ((drawn[:, :, None] == 7).any((1, 2)) & (drawn[:, :, None] == 8).any((1, 2))).sum()
    assert abs(neighbours - 230.8) < 5 * 15

    # Likewise by a test of goodness of fit: of 40 counts 39 are free, and their variance is short by 1 - 10/40.
    fit = (np.square(counts - counts.mean()) / counts.mean()).sum() / (1 - num / rows)
    assert 16 < fit < 72  # the middle 99.9 %
    again = MemoryBank(rows, dim=2, seed=5, keep=0.0)
    assert torch.equal(again.sample(17, num).ids, torch.from_numpy(drawn[17]))
    other = MemoryBank(rows, dim=2, seed=6, keep=KEEP)
    assert not torch.equal(other.sample(17, num).ids, torch.from_numpy(drawn[17]))


def test_a_sample_holds_the_rows_as_they_were_when_it_started() -> None:
    bank = MemoryBank(20, dim=4, seed=0, keep=KEEP)
    before = bank.local.clone()
    negatives = bank.sample(0, 19)
    bank.update(torch.arange(20), torch.randn(20, 4))
    assert torch.equal(negatives.wait(), before[negatives.ids])
    assert not torch.equal(bank.local, before)


def test_rows_stay_unit_length() -> None:
    bank = MemoryBank(50, seed=0, keep=KEEP)
    generator = torch.Generator().manual_seed(0)
    for _ in range(1000):
        ids = torch.randperm(50, generator=generator)[:8]
        bank.update(ids, 10 * torch.randn(8, 128, generator=generator))
    # A few float32 roundings of the last normalisation; they do not add up over the updates.
    assert (bank.local.norm(dim=1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_values_without_a_direction_leave_the_row(keep: float) -> None:
    bank = MemoryBank(4, dim=8, seed=0, keep=keep)
    before = bank.local.clone()
    bank.update(torch.tensor([0, 1]), torch.stack([torch.zeros(8), -3 * before[1]]))
    bank.fill(torch.tensor([2]), torch.zeros(1, 8))
    expected = before.clone()
    if keep == 0.0:
        expected[1] = -before[1]
    assert torch.allclose(bank.local, expected, atol=1e-6)


def test_fill_sets_normalised_rows_and_takes_bf16() -> None:
    bank = MemoryBank(6, dim=8, seed=0, keep=KEEP)
    before = bank.local.clone()
    values = 5 * torch.randn(2, 8).bfloat16()
    bank.fill(torch.tensor([4, 1]), values)
    assert torch.allclose(bank.local[[4, 1]], F.normalize(values.float()))
    assert torch.equal(bank.local[[0, 2, 3, 5]], before[[0, 2, 3, 5]])


def test_the_bank_keeps_no_graph() -> None:
    bank = MemoryBank(6, dim=8, seed=0, keep=KEEP)
    values = torch.randn(2, 8, requires_grad=True)
    bank.update(torch.tensor([0, 1]), values)
    bank.fill(torch.tensor([2, 3]), values)
    assert not bank.local.requires_grad
    assert not bank.lookup(torch.tensor([0, 2])).requires_grad


def test_own_marks_the_sample_itself() -> None:
    mask = MemoryBank.own(torch.tensor([7, 0, 3]), torch.tensor([1, 3, 7, 9]))
    assert mask.tolist() == [[False, False, True, False], [False] * 4, [False, True, False, False]]


def _too_few_rows() -> str:
    with pytest.raises(ConfigError) as error:
        MemoryBank(dist.world_size() - 1, dim=2, seed=0, keep=KEEP)
    return str(error.value)


def test_fewer_rows_than_ranks_are_refused(run_ranks: GlooPool) -> None:
    for message in run_ranks(3, _too_few_rows):
        assert "2 rows" in message
        assert "3 workers" in message
        assert "--cluster.workers 2" in message


def test_more_negatives_than_other_images_are_refused() -> None:
    bank = MemoryBank(10, dim=2, seed=0, keep=KEEP)
    assert len(bank.sample(0, 9).ids) == 9
    with pytest.raises(ConfigError, match=r"loss.num_negatives 10 .* 9 other .* --loss.num_negatives 9 "):
        bank.sample(0, 10)


def _save(rows: int, path: str) -> None:
    bank = MemoryBank(rows, dim=DIM, seed=SEED, keep=KEEP)
    dcp.save({"bank": bank.sharded()}, checkpoint_id=path)


def _load(rows: int, path: str) -> Tensor:
    """Loads into a bank of another seed, in place, and gives this rank's rows."""
    bank = MemoryBank(rows, dim=DIM, seed=SEED + 1, keep=KEEP)
    dcp.load({"bank": bank.sharded()}, checkpoint_id=path)
    return bank.local


@pytest.mark.parametrize("rows", [9, 13])
def test_a_checkpoint_of_two_ranks_loads_on_any_number(run_ranks: GlooPool, tmp_path: Path, rows: int) -> None:
    """9 rows on 4 ranks leave the last one with none."""
    expected = MemoryBank(rows, dim=DIM, seed=SEED, keep=KEEP).local
    run_ranks(2, _save, rows, str(tmp_path))
    for world in (1, 2, 3, 4):
        parts = run_ranks(world, _load, rows, str(tmp_path))
        assert torch.equal(torch.cat(parts), expected)
    bank = MemoryBank(rows, dim=DIM, seed=SEED + 1, keep=KEEP)  # and with no process group
    with pytest.warns(UserWarning, match="load in a single process"):
        dcp.load({"bank": bank.sharded()}, checkpoint_id=str(tmp_path), no_dist=True)
    assert torch.equal(bank.local, expected)
