import time
from types import SimpleNamespace

import pytest
import torch

from pirl.runs.metrics import Meter


def add_step(meter, clock, step, seconds, loss):
    clock[0] += seconds
    batch = SimpleNamespace(step=step, ids=torch.arange(8), wait_s=seconds / 4)
    meter.expect(batch, 0.1, lambda: torch.tensor([8 * loss, 0.0]))
    meter.read()


def test_the_numbers_of_the_moment_are_this_step_and_the_means_of_the_last_report(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    meter = Meter(0, 20, 10, 0, [1.0])
    add_step(meter, clock, 0, 2.0, 3.0)
    add_step(meter, clock, 1, 4.0, 1.0)
    first = meter.now()  # two steps in 6 s
    assert (first["step"], first["epoch"], first["loss"]) == (2, 0.2, 2.0)
    assert (first["samples_per_s"], first["data_wait_share"]) == (pytest.approx(16 / 6), 0.25)
    assert first["time_left_s"] == pytest.approx(18 * 3)
    reported = meter.metrics(torch.device("cpu"))
    assert {name: reported[name] for name in first} == first
    add_step(meter, clock, 2, 9.0, 7.0)
    now = meter.now()  # one slow step says little: the means are those of the report
    assert (now["step"], now["epoch"], now["loss"]) == (3, 0.3, 2.0)
    assert now["samples_per_s"] == pytest.approx(16 / 6)
    assert now["time_left_s"] == pytest.approx(17 * 3)
