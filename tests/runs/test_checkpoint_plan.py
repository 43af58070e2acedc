"""What each rank writes of a checkpoint: everything once, in equal parts, and whole when it is read."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from pirl import dist
from pirl.methods.memory import MemoryBank
from pirl.runs.checkpoint import Planner, dealt
from tests.conftest import GlooPool

SIZES = (700, 20, 300, 300, 1, 5)


def tensors() -> dict[str, Tensor]:
    return {f"layer{number}": torch.arange(size) + 0.5 for number, size in enumerate(SIZES)}


def written(folder: Path) -> tuple[list[tuple[str, int]], int]:
    """Saves as training does; what this rank planned, with where it begins, and how many names it sent."""
    bank = MemoryBank(10, dim=4, seed=0, keep=0.5)
    planner = Planner()
    state = {"network": tensors(), "optimizer": {"lr": 0.25}, "bank": bank.sharded()}
    planner.set_up_planner(state, is_coordinator=dist.rank() == 0)
    plan = planner.create_local_plan()
    dcp_save(state, checkpoint_id=folder, planner=Planner())
    places = [(item.index.fqn, int(item.index.offset[0]) if item.index.offset else 0) for item in plan.items]
    return places, len(plan.planner_data)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_each_rank_plans_its_own_part_and_together_they_write_all(run_ranks: GlooPool, tmp_path: Path) -> None:
    found = run_ranks(3, written, tmp_path)
    places = [place for rank_places, _ in found for place in rank_places]
    names = [f"network.layer{number}" for number in range(len(SIZES))]
    assert sorted(places) == sorted(
        [*((name, 0) for name in names), ("optimizer.lr", 0), *(("bank", n) for n in (0, 4, 8))]
    )
    assert [count > 0 for _, count in found] == [True, False, False]

    state = {"network": {k: torch.zeros_like(v) for k, v in tensors().items()}, "optimizer": {"lr": 0.0}}
    whole = state | {"bank": torch.zeros(10, 4)}
    dcp_load(whole, checkpoint_id=tmp_path, no_dist=True)
    assert all(torch.equal(whole["network"][name], value) for name, value in tensors().items())
    assert whole["optimizer"] == {"lr": 0.25}
    assert torch.equal(whole["bank"], MemoryBank(10, dim=4, seed=0, keep=0.5).local)


def test_parts_are_equal_up_to_the_largest_thing() -> None:
    sizes = [int(size) for size in torch.randint(1, 10_000, (480,), generator=torch.Generator().manual_seed(0))]
    for ranks in (1, 2, 7, 256, 4096):
        found = dealt(sizes, ranks)
        loads = [0] * ranks
        for size, rank in zip(sizes, found, strict=True):
            loads[rank] += size
        assert sum(loads) == sum(sizes)
        assert max(loads) - min(loads) <= max(sizes)
