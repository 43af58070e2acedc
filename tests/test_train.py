"""Training as a whole: the same on any number of workers, and the same after an interruption."""

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from pirl.config import Config, override
from pirl.data.dataset import open_data, open_dataset
from pirl.data.plan import data_order
from pirl.dist import rank
from pirl.errors import ConfigError, CorruptImage, TrainingDiverged, TrainingStopped
from pirl.methods.memory import MemoryBank
from pirl.methods.spread import LOWEST_RANK
from pirl.recipes import digits
from pirl.runs import checkpoint
from pirl.runs.checkpoint import _plainly
from pirl.runs.checkpoint_folder import is_complete, newest_checkpoint
from pirl.storage.folder import Folder
from pirl.storage.sealed import sealed
from pirl.train import first_state, set_lr, train
from tests.digits import write_digits_to

STEPS = 24
"""Two epochs of 12 steps."""


def small(changes: Mapping[str, Any] | None = None) -> Config:
    """Two epochs of digits with a narrow trunk and batch norm frozen, so that the ranks cannot matter.

    The learning rate is one at which a fresh network without normalisation learns and does not collapse.
    """
    return override(
        digits(),
        {
            "data.streams": 4,
            "model.width": 4,
            "model.norm": "frozen",
            "memory.init": "random",
            "loss.num_negatives": 200,
            "optim.epochs": 2,
            "optim.lr": 0.001,
            "optim.bf16": False,
            "cluster.loader_processes": 0,
            "checkpoint.log_every_steps": 1,
            "checkpoint.every_steps": 6,
            **(changes or {}),
        },
    )


def run(config: Config, folder: Path, resume: Folder | None = None, stop_after: int | None = None) -> dict[str, Any]:
    """Trains on this rank; returns losses, weights and the checkpoint folder. May stop early, as if killed."""
    losses: list[float] = []
    ranks: list[float] = []

    def report(metrics: dict[str, float], checkpoint: Path | None) -> None:
        losses.append(metrics["loss"])
        if "bank_effective_rank" in metrics:
            ranks.append(metrics["bank_effective_rank"])
        if stop_after is not None and len(losses) == stop_after:
            raise InterruptedError

    folder.mkdir(parents=True, exist_ok=True)
    try:
        network = train(config, open_data(config.data), report=report, scratch=folder, resume=resume)
    except InterruptedError:
        return {"losses": losses}
    return {"losses": losses, "bank_ranks": ranks, "weights": {k: v.clone() for k, v in network.state_dict().items()}}


def assert_same_weights(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["weights"].keys() == b["weights"].keys()
    for name, weight in a["weights"].items():
        assert torch.equal(weight, b["weights"][name]), name


def bank_of(folder: Path, step: int) -> torch.Tensor:
    """The whole bank of a checkpoint, read without a process group."""
    import torch.distributed.checkpoint as dcp

    rows = json.loads((folder / f"checkpoint_{step:09d}" / "state.json").read_text())["rows"]
    state = {"bank": torch.empty(rows, 128)}
    with _plainly():
        dcp.load(state, checkpoint_id=folder / f"checkpoint_{step:09d}", no_dist=True)
    return state["bank"]


@pytest.mark.parametrize("name", ["jigsaw", "rotation"])
def test_number_of_workers_does_not_matter(run_ranks: Any, tmp_path: Path, name: str) -> None:
    """The same losses and bank on 1, 2, 3 and 4 workers; 3 do not divide the 4 streams."""
    config = small({"pretext.name": name})
    worlds = {w: run_ranks(w, run, config, tmp_path / str(w)) for w in (1, 2, 3, 4)}
    expected = torch.tensor(worlds[1][0]["losses"])
    assert len(expected) == STEPS
    # Networks that have collapsed onto one point would agree too: their mean row is as long as a row.
    assert bank_of(tmp_path / "1", STEPS).mean(dim=0).norm() < 0.95
    for world, ranks in worlds.items():
        for result in ranks:
            # Float32 sums in another order, carried through 24 steps.
            torch.testing.assert_close(torch.tensor(result["losses"]), expected, rtol=1e-5, atol=0)
            assert result["bank_ranks"] == pytest.approx(worlds[1][0]["bank_ranks"], rel=1e-3)  # of such rows
        torch.testing.assert_close(
            bank_of(tmp_path / str(world), STEPS), bank_of(tmp_path / "1", STEPS), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("kind", ["infonce", "npid"])
def test_interrupted_and_resumed_equals_uninterrupted(run_ranks: Any, tmp_path: Path, world: int, kind: str) -> None:
    """In the middle of an epoch, with batch norm and bf16 as users run it, down to the last bit."""
    config = small({"model.norm": "batch", "optim.bf16": True, "loss.kind": kind, "memory.init": "forward"})
    whole = run_ranks(world, run, config, tmp_path / "whole")
    run_ranks(world, run, config, tmp_path / "cut", None, 20)
    newest = newest_checkpoint(Folder(str(tmp_path / "cut")))
    assert newest is not None
    assert newest.name == "checkpoint_000000018"  # 6 steps into the second epoch
    resumed = run_ranks(world, run, config, tmp_path / "cut", newest)
    for a, b in zip(whole, resumed, strict=True):
        assert a["losses"][18:] == b["losses"]
        assert_same_weights(a, b)
    assert torch.equal(bank_of(tmp_path / "whole", STEPS), bank_of(tmp_path / "cut", STEPS))


@pytest.mark.parametrize("world", [1, 3, 4])
def test_goes_on_with_another_number_of_workers(run_ranks: Any, tmp_path: Path, world: int) -> None:
    """Saved by 2 workers: the same rows of the bank, and losses that go on as if nothing had happened."""
    config = small()
    whole = run_ranks(2, run, config, tmp_path / "whole")[0]["losses"]
    run_ranks(2, run, config, tmp_path / "cut", None, 7)
    resumed = run_ranks(world, run, config, tmp_path / "cut", Folder(f"{tmp_path}/cut/checkpoint_000000006"))
    for result in resumed:
        torch.testing.assert_close(torch.tensor(result["losses"]), torch.tensor(whole[6:]), rtol=1e-5, atol=0)


def watched(changes: Mapping[str, Any], folder: Path) -> tuple[list[str], list[dict[str, float]]]:
    """What a run of an epoch of the recipe, but for some settings, says and reports."""
    narrow = {"model.width": 4, "optim.epochs": 1, "optim.bf16": False, "checkpoint.log_every_steps": 1000}
    said: list[str] = []
    reports: list[dict[str, float]] = []
    config = override(digits(), {**narrow, **changes})
    data = open_data(config.data)
    train(config, data, report=lambda metrics, _: reports.append(metrics), scratch=folder, say=said.append)
    return [line for line in said if "collapsed" in line], reports


HEALTHY = {
    "jigsaw": {},
    "random bank": {"memory.init": "random"},
    "rotation": {"pretext.name": "rotation", "model.width": 1},
    "npid": {"loss.pretext_weight": 0, "model.width": 2},
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_run_that_learns_is_not_called_collapsed(tmp_path: Path, name: str) -> None:
    said, reports = watched(HEALTHY[name], tmp_path)
    assert said == []
    assert reports[-1]["batch_effective_rank"] > 1.2 * LOWEST_RANK


@pytest.mark.parametrize("init", ["forward", "random"])
def test_a_run_that_collapses_says_so_after_its_first_epoch(tmp_path: Path, init: str) -> None:
    said, reports = watched({"optim.lr": 30, "loss.pretext_weight": 0, "memory.init": init}, tmp_path)
    (line,) = said
    rank = reports[-1]["batch_effective_rank"]
    assert rank < 0.8 * LOWEST_RANK
    assert f"effective rank of {rank:.1f}" in line
    assert "--optim.lr" in line


def test_each_epoch_reports_how_the_bank_spreads(tmp_path: Path) -> None:
    """Also where no checkpoint and no line of numbers is due."""
    changes = {"optim.epochs": 2, "checkpoint.every_steps": 20, "loss.pretext_weight": 0, "model.width": 1}
    _, reports = watched(changes, tmp_path)
    assert [report["step"] for report in reports if "bank_uniformity" in report] == [12, 24]
    bank = bank_of(tmp_path, 24)
    singular = torch.linalg.svdvals(bank.double())
    shares = singular / singular.sum()
    assert reports[-1]["bank_effective_rank"] == pytest.approx(float((-(shares * shares.log()).sum()).exp()), rel=1e-5)
    assert reports[-1]["bank_mean_norm"] == pytest.approx(float(bank.mean(0).norm()), rel=1e-5)


def run_and_stop(config: Config, folder: Path) -> int:
    """Rank 1 wants to stop when 7 steps are done; returns after how many this rank did."""
    steps: list[float] = []
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.raises(TrainingStopped) as stopped:
        train(
            config,
            open_data(config.data),
            report=lambda metrics, _: steps.append(metrics["step"]),
            scratch=folder,
            stop=lambda: rank() == 1 and len(steps) == 7,
        )
    return stopped.value.step


def test_one_rank_that_is_to_stop_stops_all_with_a_checkpoint(run_ranks: Any, tmp_path: Path) -> None:
    config = small({"checkpoint.every_steps": STEPS})
    whole = run_ranks(2, run, config, tmp_path / "whole")
    assert run_ranks(2, run_and_stop, config, tmp_path / "cut") == [8, 8]
    resumed = run_ranks(2, run, config, tmp_path / "cut", newest_checkpoint(Folder(str(tmp_path / "cut"))))
    for a, b in zip(whole, resumed, strict=True):
        assert a["losses"][8:] == b["losses"]
        assert_same_weights(a, b)


def test_loading_moves_no_row(run_ranks: Any, tmp_path: Path) -> None:
    """Saved by 2, loaded by 1, 3 and 4: each rank holds exactly its rows."""
    config = small()
    run_ranks(2, run, config, tmp_path, None, 7)
    saved = bank_of(tmp_path, 6)
    for world in (1, 3, 4):
        parts = run_ranks(world, loaded_rows, config, Folder(f"{tmp_path}/checkpoint_000000006"))
        assert torch.equal(torch.cat(parts), saved)


def loaded_rows(config: Config, folder: Folder) -> torch.Tensor:
    """This rank's rows after loading a checkpoint."""
    state = first_state(config, open_dataset("digits"), torch.device("cpu"))
    assert checkpoint.load(folder, state) == 6
    return state.bank.local


def test_a_run_goes_on_with_the_draw_of_negatives_that_it_began_with(tmp_path: Path) -> None:
    """That of a checkpoint that does not say is the first one; and what is saved afterwards says it."""
    config = small({"optim.epochs": 1})
    run(config, tmp_path, None, 7)
    saved = tmp_path / "checkpoint_000000006" / "state.json"
    known = json.loads(saved.read_text())
    assert known.pop("draw") == 2
    now = run(config, tmp_path / "now", Folder(str(saved.parent)))["losses"]
    saved.write_bytes(sealed({name: value for name, value in known.items() if name != "crc32"}))
    before = run(config, tmp_path / "before", Folder(str(saved.parent)))["losses"]
    assert before != now
    on = run(config, tmp_path / "on", Folder(f"{tmp_path}/before/checkpoint_000000012"))
    assert json.loads((tmp_path / "before/checkpoint_000000012/state.json").read_text())["draw"] == 1
    assert on["losses"] == []


@pytest.mark.parametrize("kind", ["infonce", "npid"])
def test_goes_on_with_new_settings(tmp_path: Path, kind: str) -> None:
    """What `--resume must` allows is what is trained with, and not what the checkpoint was saved with."""
    run(small(), tmp_path, None, 7)
    saved = Folder(f"{tmp_path}/checkpoint_000000006")
    changed = small({"loss.kind": kind, "optim.momentum": 0.5, "optim.weight_decay": 0.1})
    state = first_state(changed, open_dataset("digits"), torch.device("cpu"))
    groups = [(group["momentum"], group["weight_decay"]) for group in state.optimizer.param_groups]
    checkpoint.load(saved, state)
    assert [(group["momentum"], group["weight_decay"]) for group in state.optimizer.param_groups] == groups
    assert groups == [(0.5, 0.1), (0.5, 0)]
    losses = run(changed, tmp_path, saved)["losses"]
    assert len(losses) == STEPS - 6


def test_the_optimiser_stays_that_of_the_device(tmp_path: Path) -> None:
    """A checkpoint of a GPU says that its steps are fused; a run that goes on elsewhere has its own."""
    data, config = open_dataset("digits"), small()
    fused, own = (first_state(config, data, torch.device("cpu")) for _ in range(2))
    for group in fused.optimizer.param_groups:
        group["fused"] = True
    checkpoint.save(tmp_path / "checkpoint_000000000", config, fused, 0, data.fingerprint)
    checkpoint.load(Folder(f"{tmp_path}/checkpoint_000000000"), own)
    assert [group["fused"] for group in own.optimizer.param_groups] == [None, None]


def test_training_draws_nothing_from_global_random_states(tmp_path: Path) -> None:
    """That is why a checkpoint needs no random state: only the first weights come from the seeded generator."""
    config = small({"optim.epochs": 1})
    states = []

    def report(metrics: dict[str, float], checkpoint: Path | None) -> None:
        states.append(torch.get_rng_state())

    train(config, open_data(config.data), report=report, scratch=tmp_path)
    assert len(states) == 12
    assert all(torch.equal(states[0], state) for state in states)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    config = small({"optim.lr": 1e30, "checkpoint.every_steps": 1})
    with pytest.raises(
        TrainingDiverged, match=r"step \d+ .*learning rate .*e\+29, ids of the first 32 of 120 images (\d+, ){31}\d+$"
    ):
        run(config, tmp_path)
    newest = newest_checkpoint(Folder(str(tmp_path)))
    assert newest is not None
    assert is_complete(newest)


def test_a_loss_that_is_no_number_is_told_a_step_later_and_nothing_after_it_is_kept(tmp_path: Path) -> None:
    """Where no report is due at that step; where one is, at once. Both name the step whose loss it was."""
    run(small(), tmp_path, None, 7)
    good = Folder(f"{tmp_path}/checkpoint_000000006")
    changes = {"optim.lr": 1e30, "checkpoint.every_steps": 1}
    with pytest.raises(TrainingDiverged) as at_once:
        run(small(changes), tmp_path / "at once", good)
    assert at_once.value.step == 7  # the loss of step 6 is that of good weights
    seldom = small(changes | {"checkpoint.every_steps": 7, "checkpoint.log_every_steps": 1000})
    asked: list[int] = []
    with pytest.raises(TrainingDiverged) as late:
        train(
            seldom,
            open_data(seldom.data),
            report=lambda *_: None,
            scratch=tmp_path / "late",
            resume=good,
            stop=lambda: bool(asked.append(1)),
        )
    assert str(late.value) == str(at_once.value)
    assert len(asked) == 3  # steps 6, 7, and the one during which the loss of 7 was read
    assert os.listdir(tmp_path / "late") == ["checkpoint_000000007"]


def test_a_compiled_network_learns_the_same_and_is_compiled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the front of the compiler alone: what writes code for a device takes a minute, and changes roundings.

    The first batch of an epoch is smaller than the others, and so are some later ones.
    """
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    config = small({"optim.epochs": 1})
    plain = run(config, tmp_path / "plain")
    losses, graphs = [], []

    def report(metrics: dict[str, float], _: Path | None) -> None:
        losses.append(metrics["loss"])
        graphs.append(counters["stats"]["unique_graphs"])

    (tmp_path / "compiled").mkdir()
    compiled = override(config, {"optim.compile": True})
    network = train(compiled, open_data(config.data), report=report, scratch=tmp_path / "compiled")
    order = data_order(config, open_data(config.data))
    assert len({sum(order.shares(step, 1)) for step in range(12)}) > 1
    assert graphs[0] > 0
    assert graphs[1:] == [graphs[1]] * 11
    # Some operations are put together otherwise, and twelve steps carry their roundings on.
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(plain["losses"]), rtol=1e-4, atol=0)
    assert network.state_dict().keys() == plain["weights"].keys()
    resumed = run(config, tmp_path / "resumed", Folder(f"{tmp_path}/compiled/checkpoint_000000006"))
    torch.testing.assert_close(torch.tensor(resumed["losses"]), torch.tensor(plain["losses"][6:]), rtol=1e-4, atol=0)


def test_data_smaller_than_the_request_is_refused(tmp_path: Path) -> None:
    for changes, allowed in (({"loss.num_negatives": 1438}, "1437"), ({"data.batch_size": 1440}, "1438")):
        config = small(changes)
        with pytest.raises(ConfigError, match=allowed):
            train(config, open_data(config.data), report=lambda *_: None, scratch=tmp_path)
    assert os.listdir(tmp_path) == []


def test_learning_rate_schedule() -> None:
    config = override(digits(), {"optim.epochs": 10, "optim.warmup_epochs": 2, "optim.lr": 1.0, "optim.final_lr": 0.1})
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=9.0)
    rates = {}
    for epoch in (0, 1, 2, 6, 10):
        set_lr(optimizer, config, epoch)
        rates[epoch] = optimizer.param_groups[0]["lr"]
    assert rates == pytest.approx({0: 0, 1: 0.5, 2: 1.0, 6: 0.55, 10: 0.1})


def run_and_report(config: Config, folder: Path) -> dict[str, Any]:
    """Trains on this rank; returns the reports too."""
    reports: list[dict[str, float]] = []
    folder.mkdir(parents=True, exist_ok=True)
    network = train(config, open_data(config.data), report=lambda metrics, _: reports.append(metrics), scratch=folder)
    return {"reports": reports, "weights": {k: v.clone() for k, v in network.state_dict().items()}}


def test_skipped_images_leave_their_rows_alone_on_any_number_of_workers(run_ranks: Any, tmp_path: Path) -> None:
    bad = [5, 700, 1400]
    uri = write_digits_to(str(tmp_path / "set"), {}, dict.fromkeys(bad, b"not an image"))
    config = small({"data.uri": uri, "data.on_error": "skip", "memory.init": "forward"})
    worlds = {w: run_ranks(w, run_and_report, config, tmp_path / str(w)) for w in (1, 3)}
    for world, ranks in worlds.items():
        for result in ranks:
            # Two epochs and the pass that fills the bank, and the sum is the same on all ranks.
            assert sum(report["skipped"] for report in result["reports"]) == 3 * len(bad)
        losses = [torch.tensor([report["loss"] for report in worlds[w][0]["reports"]]) for w in (1, world)]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=0)  # float32 sums in another order, over 24 steps
        rows = bank_of(tmp_path / str(world), STEPS)
        first = MemoryBank(1438, seed=config.seed, keep=0.5).local
        unchanged = (rows == first).all(dim=1).nonzero().flatten().tolist()
        assert unchanged == bad


def test_too_many_skipped_images_end_the_run(tmp_path: Path) -> None:
    uri = write_digits_to(str(tmp_path / "set"), {}, dict.fromkeys(range(0, 1400, 100), b"not an image"))
    config = small({"data.uri": uri, "data.on_error": "skip", "data.max_skipped": 0.005})
    with pytest.raises(CorruptImage, match=r"\d+ images of epoch 0 .* data\.max_skipped allows 7\.2; .* ids \d+, "):
        run(config, tmp_path)
