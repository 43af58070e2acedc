"""Methods without a bank in the same loop: the same on any number of workers, and after an interruption."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pirl.config import Config, override
from pirl.data.dataset import open_data, open_dataset
from pirl.data.writer import ShardWriter
from pirl.errors import ConfigError
from pirl.runs import checkpoint
from pirl.runs.checkpoint_folder import newest_checkpoint
from pirl.runs.weights import read_weights
from pirl.storage.folder import Folder
from pirl.train import first_state, train
from tests.digits import write_digits_to
from tests.test_train import assert_same_weights, run, run_and_report, small

METHODS: dict[str, dict[str, Any]] = {
    "jigsaw": {"method.name": "covariant", "pretext.permutations": 20},
    "rotation": {"method.name": "covariant", "pretext.name": "rotation"},
    "supervised": {"method.name": "supervised", "data.label_noise": 0.1},
    "few permutations": {"pretext.permutations": 20},
}


def config_of(name: str, **changes: Any) -> Config:
    changes = {"optim.epochs": 1, **{key.replace("__", "."): value for key, value in changes.items()}}
    return override(small(), METHODS[name] | changes)


@pytest.mark.parametrize("name", METHODS)
def test_number_of_workers_does_not_matter(run_ranks: Any, tmp_path: Path, name: str) -> None:
    """Norm is frozen, also in the head; 3 workers do not divide the 4 streams."""
    worlds = {w: run_ranks(w, run_and_report, config_of(name), tmp_path / str(w)) for w in (1, 2, 3)}
    expected = [report["loss"] for report in worlds[1][0]["reports"]]
    assert len(expected) == 12
    for ranks in worlds.values():
        for result in ranks:
            # Float32 sums in another order, carried through 12 steps.
            assert [report["loss"] for report in result["reports"]] == pytest.approx(expected, rel=1e-5)
            for mine, first in zip(result["reports"], worlds[1][0]["reports"], strict=True):
                assert mine.keys() == first.keys()
                if name == "few permutations":
                    assert "loss_pretext" in mine
                else:  # one of 120 images may change sides where two scores are as good as equal
                    assert mine["pretext_accuracy"] == pytest.approx(first["pretext_accuracy"], abs=1.5 / 120)
                    assert "loss_image" not in mine


@pytest.mark.parametrize("name", METHODS)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, name: str) -> None:
    """In the middle of an epoch, with batch norm and bf16 as users run it, down to the last bit."""
    config = config_of(name, model__norm="batch", optim__bf16=True)
    whole = run(config, tmp_path / "whole")
    run(config, tmp_path / "cut", stop_after=8)
    newest = newest_checkpoint(Folder(str(tmp_path / "cut")))
    assert newest is not None
    assert newest.name == "checkpoint_000000006"
    known = json.loads(newest.read("state.json"))
    has_bank = name == "few permutations"
    assert (known["method"], known["rows"]) == (config.method.name, 1438 if has_bank else None)
    resumed = run(config, tmp_path / "cut", newest)
    assert whole["losses"][6:] == resumed["losses"]
    assert_same_weights(whole, resumed)


def test_the_trunk_of_a_classifier_is_where_another_run_begins(tmp_path: Path) -> None:
    run(config_of("rotation"), tmp_path / "first")
    weights = read_weights(Folder(f"{tmp_path}/first/checkpoint_000000012"))
    config = override(config_of("supervised"), {"optim.lr": 1e-9, "optim.final_lr": 0.0})
    network = train(
        config, open_data(config.data), report=lambda *_: None, scratch=tmp_path, weights=weights, stop=lambda: False
    )
    torch.testing.assert_close(network.trunk.conv1.weight.detach(), weights.tensors["conv1.weight"])


def test_a_checkpoint_of_another_method_is_refused(tmp_path: Path) -> None:
    run(config_of("rotation"), tmp_path)
    state = first_state(small(), open_dataset("digits"), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"is of method covariant and has no bank; this run has a bank of 1438 rows"):
        checkpoint.load(Folder(f"{tmp_path}/checkpoint_000000012"), state)


def test_what_is_learned_goes_down(tmp_path: Path) -> None:
    """Labels, in two epochs with batch norm: three times as often right as who guesses one of ten."""
    changes = {"model__norm": "batch", "model__width": 16, "data__label_noise": 0.0}
    config = config_of("supervised", **changes, optim__epochs=2, optim__lr=0.03)
    reports = run_and_report(config, tmp_path)["reports"]
    assert reports[-1]["pretext_accuracy"] > 0.3
    assert reports[-1]["loss"] < reports[0]["loss"] / 1.2


def one_class(folder: Path, labels: list[int | None], names: list[str] | None) -> str:
    """Some digits with these labels."""
    dataset = open_dataset("digits")
    images = dataset.read_group(0).images
    about = {"classes": names, "seed": 0, "source": "test", "shard_bytes": 100_000}
    with ShardWriter(Folder(str(folder)), **about) as writer:  # type: ignore[arg-type]
        for image, label in zip(images, labels, strict=False):
            writer.add(bytes(image), label)
    return str(folder)


def test_labels_that_cannot_be_learned_are_refused(tmp_path: Path) -> None:
    without = write_digits_to(str(tmp_path / "without"), {})
    one = one_class(tmp_path / "one", [0] * 40, ["a", "b"])
    cases = {without: "have none: python jobs/prepare.py", one: "are of one class, a: python jobs/prepare.py"}
    for uri, message in cases.items():
        config = config_of("supervised", data__uri=uri, data__batch_size=20, data__streams=2)
        with pytest.raises(ConfigError, match=message):
            train(config, open_data(config.data), report=lambda *_: None, scratch=tmp_path / "run")


def test_images_without_a_label_are_left_out(tmp_path: Path) -> None:
    """The loss is that of the labelled ones, whatever the others show."""
    labels = [row % 2 if row % 3 else None for row in range(60)]
    uri = one_class(tmp_path / "set", labels, ["a", "b"])
    config = config_of("supervised", data__uri=uri, data__batch_size=20, data__streams=2, optim__epochs=2)
    reports = run_and_report(config, tmp_path / "run")["reports"]
    # A fresh network says each of two classes about as loudly; unlabelled ones counted as 0 would make it two thirds.
    assert reports[0]["loss"] > 0.5
    assert all(0 <= report["pretext_accuracy"] <= 1 for report in reports)
