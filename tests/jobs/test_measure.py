"""What is measured during training: that it changes nothing, and is what the evaluation of the same network finds."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from jobs.run.worker import work
from pirl.config import Config, override
from pirl.data.dataset import open_dataset
from pirl.evaluate.evaluate import evaluate_res5
from pirl.evaluate.subject import Subject
from pirl.methods.models import Trunk
from pirl.storage.folder import Folder
from tests.digits import write_digits_to
from tests.test_train import small

CPU = torch.device("cpu")


def trained(config: Config, folder: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Lines of metrics.jsonl, and the trunk after training."""
    run, scratch = Folder(str(folder / "run")), folder / "scratch"
    scratch.mkdir(parents=True)
    work(config, run, scratch, lambda metrics, checkpoint, send: send(checkpoint), CPU, show=None)
    lines = [json.loads(line) for line in run.read("metrics.jsonl").splitlines()]
    return lines, load_file(folder / "run" / "checkpoint_000000024" / "trunk.safetensors")


def test_measuring_changes_nothing_and_finds_what_the_evaluation_finds(tmp_path: Path) -> None:
    config = small({"model.norm": "batch", "optim.bf16": True, "evaluation.enabled": False})
    blind, expected = trained(config, tmp_path / "blind")
    measured, weights = trained(override(config, {"evaluation.every_epochs": 1}), tmp_path / "measured")
    assert all(torch.equal(expected[name], weights[name]) for name in expected)
    assert [line["loss"] for line in measured] == [line["loss"] for line in blind]
    assert [line["step"] for line in measured if "linear_res5" in line] == [12, 24]

    from pirl.data.digits import ensure_digits

    held = ensure_digits()
    splits = open_dataset(held), open_dataset(f"{held}/test")
    trunk = Trunk("resnet18", 4, "small")
    trunk.load_state_dict({name: weights[name] for name in trunk.state_dict()})
    found = evaluate_res5(Subject(trunk, None, *splits, config.data.image_size, CPU), config)
    assert {name: measured[-1][name] for name in found} == found


def test_the_end_is_measured_once_and_data_without_labels_is_said_to_have_none(tmp_path: Path) -> None:
    lines, _ = trained(small({"evaluation.every_epochs": 2}), tmp_path / "evaluated")
    assert not any("linear_res5" in line for line in lines)
    found = json.loads((tmp_path / "evaluated" / "run" / "evaluation" / "pretrain.json").read_text())
    assert 0 < found["linear"]["res5"] <= 1

    alone = write_digits_to(str(tmp_path / "set"), {}, {})
    lines, _ = trained(small({"evaluation.every_epochs": 1, "data.uri": alone}), tmp_path / "alone")
    assert not any("linear_res5" in line for line in lines)
    assert "no evaluation" in (tmp_path / "alone" / "run" / "train.log").read_text()
