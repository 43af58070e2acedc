"""What stores do wrong, and runs that end as an undisturbed one does; docs/how-it-works.md has the table."""

import json
import re
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load

from jobs.live_line import LiveLine
from jobs.run.here import run_here
from pirl.config import Config, override
from pirl.data.dataset import open_data
from pirl.recipes import digits
from pirl.runs.run import open_run
from pirl.storage.folder import Folder
from tests.digits import write_digits_to
from tests.s3 import SECRET, Store

FAULTS = ("slowdown", "unavailable", "error", "reset", "stall", "truncate", "flip", "latency")
PLACES = (("GET", "manifest"), ("GET", "shard"), ("PUT", "checkpoint_"))
Weights = dict[str, torch.Tensor]
Place = tuple[int, str, str]
"""How often in a row, and at which requests."""

IN_A_RUN: tuple[Place, ...] = (
    (8, "GET", "manifest"),
    (1, "GET", "shard-00000"),
    (3, "GET", "shard-00001"),
    (8, "GET", "shard-0000[2-7]"),
    (1, "PUT", "checkpoint_000000004/__0_0"),
    (3, "PUT", "checkpoint_000000004/[^_]"),
    (8, "PUT", "checkpoint_0000000(08|12)/"),
)


def small(changes: dict[str, Any]) -> Config:
    """One epoch of 12 steps with a narrow trunk, and a checkpoint in its middle."""
    fixed = {
        "model.width": 4,
        "memory.init": "random",
        "loss.num_negatives": 200,
        "optim.epochs": 1,
        "evaluation.enabled": False,
        "cluster.loader_processes": 0,
        "checkpoint.every_steps": 6,
        "data.cache_gb": 0,
    }
    return override(digits(), fixed | changes)


def train_in(storage: Folder, config: Config) -> int:
    """What `jobs/pretrain.py --no-ray` does; returns the exit code."""
    run = open_run(storage, "digits", config, "auto")
    assert run.result is None
    return run_here(run, LiveLine(sys.stdout))


def weights(storage: Folder) -> Weights:
    """What a finished run learned."""
    result = json.loads((storage / "digits").read("result.json"))
    return load((storage / "digits" / result["checkpoint"].rpartition("/")[2]).read_bytes("trunk.safetensors"))


def assert_same(a: Weights, b: Weights) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The weights of a run that knows no store."""
    storage = Folder(str(tmp_path_factory.mktemp("undisturbed")))
    assert train_in(storage, small({})) == 0
    return weights(storage)


@pytest.fixture
def config(store: Store) -> Config:
    """A run on images in the store; a try takes 1.3 s at most, and eight of them with their pauses fit into 20 s."""
    uri = write_digits_to(store.uri("digits"), store.direct)
    return small({"data.uri": uri, "data.storage_options": store.options, "data.deadline_s": 20})


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_change_no_weight_and_leave_no_secret(
    store: Store, config: Config, undisturbed: Weights, fault: str
) -> None:
    """Once, three and eight times in a row at the manifest, at a shard and at the upload of a checkpoint."""

    def fail(*places: Place) -> None:
        for times, method, pattern in places:
            store.fail(fault, times, method=method, pattern=pattern, seconds=0.05)

    def assert_failed(*places: Place) -> None:
        for times, method, pattern in places:
            there = [e for e in store.log() if e["method"] == method and re.search(pattern, e["path"])]
            # What comes late comes: it is asked for once.
            expected = min(times, len(there)) if fault == "latency" else times
            assert [e["fault"] for e in there].count(fault) == expected, (times, method, pattern)

    for times in (1, 3):  # the run has it eight times, and reads the manifest once
        fail((times, "GET", "manifest"))
        open_data(config.data)
        assert_failed((times, "GET", "manifest"))
        store.reset()
    fail(*IN_A_RUN)
    storage = Folder(store.uri("runs"), store.options, config.data.deadline_s)
    assert train_in(storage, override(config, {"checkpoint.every_steps": 4})) == 0
    assert_failed(*IN_A_RUN)
    assert_same(weights(storage), undisturbed)
    for name in storage.sizes():
        assert SECRET.encode() not in storage.read_bytes(name), name


@pytest.mark.parametrize(("method", "pattern"), PLACES)
def test_past_the_deadline_there_is_an_error_and_a_run_that_goes_on(
    store: Store,
    config: Config,
    undisturbed: Weights,
    capsys: pytest.CaptureFixture[str],
    method: str,
    pattern: str,
) -> None:
    hasty = override(config, {"data.deadline_s": 2})
    store.fail("slowdown", 10_000, method=method, pattern="checkpoint_000000012" if method == "PUT" else pattern)
    storage = Folder(store.uri("runs"), store.options, deadline_s=2)
    assert train_in(storage, hasty) == 1
    error = capsys.readouterr().err
    assert "gave up after" in error
    assert pattern in error
    assert "type the same command again" in error
    store.reset()
    assert train_in(storage, hasty) == 0
    assert ("going on from checkpoint_000000006" in capsys.readouterr().out) == (method == "PUT")
    assert_same(weights(storage), undisturbed)


def test_a_checkpoint_that_was_damaged_in_the_store_is_not_gone_on_with(
    store: Store, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """Torch's own reader would take it; a bit that flips on its way here is another thing."""
    storage = Folder(store.uri("runs"), store.options, config.data.deadline_s)
    assert train_in(storage, config) == 0
    store.fail("flip", 3, pattern="distcp")
    longer = override(config, {"optim.epochs": 2})
    assert run_here(open_run(storage, "digits", longer, "must"), LiveLine(sys.stdout)) == 0
    assert [entry["fault"] for entry in store.log()].count("flip") == 3

    checkpoint = storage / "digits" / "checkpoint_000000024"
    data = bytearray(checkpoint.read_bytes("__0_0.distcp"))
    data[len(data) // 2] ^= 1
    checkpoint.write("__0_0.distcp", bytes(data))
    longer = override(config, {"optim.epochs": 3})
    assert run_here(open_run(storage, "digits", longer, "must"), LiveLine(sys.stdout)) == 1
    assert f"is damaged: remove {checkpoint}" in capsys.readouterr().err
