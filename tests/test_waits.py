"""How often the CPU waits for a GPU in a step: each time, the GPU has nothing to do until the CPU has thought.

On a fake device, with all of the loop and of the methods as they are.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pirl.config import override
from pirl.data.dataset import open_data
from pirl.loading.device import fetched, sent
from pirl.recipes import digits
from pirl.train import train
from tests.fake_gpu import DEVICE, FakeGpu

STEPS = 5

RUNS: dict[str, dict[str, Any]] = {
    "jigsaw, paper": {"loss.kind": "paper"},
    "rotation, blur, clip": {"pretext.name": "rotation", "augment.blur": 0.5, "optim.clip_norm": 1.0},
    "both, bf16 wire": {"pretext.name": "both", "memory.wire_dtype": "bfloat16"},
    "npid, forward": {
        "pretext.name": "none",
        "loss.pretext_weight": 0.0,
        "loss.kind": "npid",
        "memory.init": "forward",
        "data.batch_size": 128,  # twelve steps fill the bank
    },
    "pieces": {"optim.accumulate": 2},
    "covariant": {"method.name": "covariant", "pretext.permutations": 20},
    "supervised": {"method.name": "supervised"},
    "skip": {"data.on_error": "skip", "data.max_skipped": 1.0},  # each seems to be, as there are no values
}

ALLOWED = {
    "skip": {
        "pirl/train.py:served_ids"
    },  # whose images came is known to each rank alone, and the bank's ids are the CPU's
}
"""Waits beside that for the losses of the step before, which train a step later whatever they are."""


class EnoughError(Exception):
    """Ends a run after some steps."""


def watched(changes: dict[str, Any], folder: Path) -> tuple[FakeGpu, int]:
    """What some steps of a run, and the pass that fills the bank before them, wait for; and how many they were."""
    first = {} if "method.name" in changes else {"memory.init": "random"}
    config = override(digits(), {"data.batch_size": 16, "data.streams": 4, "model.width": 1, **first, **changes})
    config = override(config, {"checkpoint.log_every_steps": 10**6, "checkpoint.every_steps": 10**6})
    gpu, steps = FakeGpu(), 0

    def tell(text: str) -> None:
        gpu.is_watched |= text == "reading the first images"  # what is before is done once

    def stop() -> bool:
        nonlocal steps
        steps += 1
        if steps > STEPS:
            raise EnoughError
        return False

    with gpu(), pytest.raises(EnoughError):
        train(
            config, open_data(config.data), report=lambda *_: None, scratch=folder, device=DEVICE, tell=tell, stop=stop
        )
    return gpu, STEPS


@pytest.mark.parametrize("name", RUNS)
def test_a_step_waits_for_the_losses_of_the_step_before_and_for_nothing_else(tmp_path: Path, name: str) -> None:
    gpu, steps = watched(RUNS[name], tmp_path)
    places = {wait.partition(": ")[0] for wait in gpu.waits}
    assert places == ALLOWED.get(name, set()), gpu.waits
    assert gpu.events == steps - 1


CASES: dict[str, tuple[Callable[[torch.Tensor], object], bool]] = {
    "item": (lambda x: x.sum().item(), True),
    "tolist": (lambda x: x.tolist(), True),
    "float": (lambda x: float(x.sum()), True),
    "if": (lambda x: bool((x > 0).all()), True),
    "cpu": (lambda x: x.cpu(), True),
    "numpy's": (lambda x: x.cpu().numpy(), True),
    "nonzero": (lambda x: x.nonzero(), True),
    "mask": (lambda x: x[x > 0], True),
    "masked select": (lambda x: x.masked_select(x > 0), True),
    "set by a mask": (lambda x: x.__setitem__(x > 0, x[0]), True),
    "unique": (lambda x: x.unique(), True),
    "equal": (lambda x: torch.equal(x, x), True),
    "numbers": (lambda x: torch.tensor([1.0], device=x.device), True),
    "new numbers": (lambda x: x.new_tensor([1.0]), True),
    "a list as index": (lambda x: x[[0, 1]], True),
    "an index of the cpu": (lambda x: x[torch.tensor([1])], True),
    "plain copy": (lambda x: torch.ones(3).to(x.device), True),
    "without waiting, not pinned": (lambda x: torch.ones(3).to(x.device, non_blocking=True), True),
    "pinned, waiting": (lambda x: torch.ones(3).pin_memory().to(x.device), True),
    "copy_ in": (lambda x: x.copy_(torch.ones(3, 4)), True),
    "copy_ out": (lambda x: torch.ones(3, 4).copy_(x), True),
    "sent": (lambda x: sent(torch.ones(3), x.device), False),
    "sent, there already": (lambda x: sent(x, x.device), False),
    "fetched, not read": (lambda x: fetched(x), False),
    "a number": (lambda x: x * 2 + torch.tensor(3.0), False),
    "filled": (lambda x: x.new_full((1,), 2.0), False),
    "arange": (lambda x: torch.arange(3, device=x.device), False),
    "where": (lambda x: torch.where(x > 0, x, 0), False),
    "an index that is there": (lambda x: x[torch.arange(2, device=x.device)], False),
}


@pytest.mark.parametrize("name", CASES)
def test_what_waits_is_seen(name: str) -> None:
    work, waits = CASES[name]
    gpu = FakeGpu()
    with gpu():
        x = torch.empty(3, 4, device=DEVICE)
        gpu.is_watched = True
        work(x)
        assert sum(gpu.waits.values()) == waits, gpu.waits
        assert gpu.events == 0


def test_what_is_fetched_is_waited_for_where_it_is_read() -> None:
    gpu = FakeGpu()
    with gpu():
        x = torch.empty(3, device=DEVICE)
        gpu.is_watched = True
        read = fetched(x)
        read()
        assert (gpu.waits.total(), gpu.events) == (0, 1)
    values = torch.arange(3.0)
    read = fetched(values)
    values += 1  # what is fetched is as it was
    assert read().tolist() == [0, 1, 2]
