"""Weights of torchvision's own networks and of our runs, and files that are something else."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from pirl.config import Config, override
from pirl.errors import ConfigError
from pirl.methods.models import Trunk, export_state_dict
from pirl.runs.weights import read_weights, weights_of
from pirl.storage.folder import Folder
from tests.run_folder import write_run


def resnet(name: str = "resnet18", **options: Any) -> torch.nn.Module:
    torch.manual_seed(1)
    network = getattr(torchvision.models, name)(**options)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # fresh ones change nothing
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvisions_networks_give_the_same_features(tmp_path: Path, name: str, suffix: str) -> None:
    network = resnet(name)
    file = tmp_path / f"weights{suffix}"
    torch.save(network.state_dict(), file) if suffix == ".pth" else save_file(network.state_dict(), file)
    weights = read_weights(Folder(str(file)))
    assert (weights.arch, weights.width, weights.stem) == (name, 64, "imagenet")
    assert set(weights.unused) == {"fc.weight", "fc.bias"}
    network.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(weights.trunk().eval()(images), network(images), rtol=0, atol=0)


@pytest.mark.parametrize("wrap", ["state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.encoder_q.", "trunk."])
def test_what_other_trainers_write_is_found_in_it(tmp_path: Path, wrap: str | None, prefix: str) -> None:
    state = resnet().state_dict()
    content: dict[str, Any] = {prefix + name: value for name, value in state.items()}
    if "encoder_q" in prefix:
        content |= {"module.encoder_k." + name: torch.zeros_like(value) for name, value in state.items()}
    content |= {"queue": torch.zeros(3)}
    torch.save({"epoch": 3, wrap: content, "optimizer": {"state": {}}} if wrap else content, tmp_path / "x.pth.tar")
    weights = read_weights(Folder(str(tmp_path / "x.pth.tar")))
    assert torch.equal(weights.tensors["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
    assert "queue" in weights.unused


def test_a_run_gives_its_newest_checkpoint_and_its_config(tmp_path: Path) -> None:
    config = override(Config(), {"model.width": 4, "data.image_size": 16})
    trunk = write_run(tmp_path / "run", config)
    for place in (tmp_path / "run", tmp_path / "run" / "checkpoint_000000003"):
        weights = read_weights(Folder(str(place)))
        assert (weights.arch, weights.width, weights.stem) == ("resnet18", 4, "small")
        assert weights.config == config
        assert weights.checkpoint is not None
        assert weights.checkpoint.name == "checkpoint_000000003"
        assert all(torch.equal(value, trunk.state_dict()[name]) for name, value in weights.tensors.items())


def changed(name: str, value: torch.Tensor | None) -> dict[str, torch.Tensor]:
    state = dict(resnet().state_dict())
    if value is None:
        del state[name]
    else:
        state[name] = value
    return state


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: resnet("resnet101").state_dict(), r"Bottlenecks \(3, 4, 23, 3\); known are resnet18, resnet34"),
        (lambda: resnet("wide_resnet50_2").state_dict(), r"layer1\.0\.conv1\.weight is .* wide and grouped"),
        (lambda: resnet("resnext50_32x4d").state_dict(), r"wide and grouped ones are not known"),
        (lambda: {"patch_embed.weight": torch.zeros(3)}, "no tensor conv1.weight.* it has patch_embed.weight"),
        (dict, "it has nothing"),
        (lambda: changed("layer3.0.bn1.bias", None), r"no tensor layer3\.0\.bn1\.bias"),
        (lambda: changed("conv1.weight", torch.zeros(64, 1, 7, 7)), "a stem has 3 colours"),
        (lambda: changed("layer1.0.bn1.bias", torch.full((64,), torch.nan)), r"bn1\.bias holds values that are no"),
        (lambda: changed("layer1.0.se.weight", torch.zeros(1)), r"has not: layer1\.0\.se\.weight"),
        (lambda: changed("layer2.0.bn1.running_var", -torch.ones(128)), r"running_var holds variances below 0"),
        (lambda: changed("conv1.weight", torch.zeros(64, 3, 7, 7, dtype=torch.int8)), "holds torch.int8: use weights"),
    ],
)
def test_a_file_with_something_else_is_refused_with_what_it_is(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content(), tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=message):
        read_weights(Folder(str(tmp_path / "x.pth")))


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_file_that_is_no_weights_at_all_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"GIF89a")
    with pytest.raises(ConfigError, match=r"cannot be read as weights"):
        read_weights(Folder(str(tmp_path / name)))
    with pytest.raises(ConfigError, match=r"is not there: name a run, a checkpoint, or a file"):
        read_weights(Folder(str(tmp_path / "none.pth")))
    with pytest.raises(ConfigError, match=r"neither a run nor a checkpoint"):
        read_weights(Folder(str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"has no checkpoint yet"):
        read_weights(Folder(str(tmp_path)))


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Trunk("resnet18", 4)}, tmp_path / "x.pth")  # a whole module
    with pytest.raises(ConfigError, match="cannot be read as weights: it holds objects other than tensors") as refused:
        read_weights(Folder(str(tmp_path / "x.pth")))
    assert "weights_only" not in str(refused.value)  # what torch says is how to run them


def test_of_two_networks_the_first_is_taken_and_the_other_one_said(tmp_path: Path) -> None:
    first, second = (export_state_dict(Trunk("resnet18", 4)) for _ in range(2))
    # Under a name that says another format: what is in a file tells how it is read.
    torch.save({"student": {f"module.{n}": v for n, v in first.items()}, "teacher": second}, tmp_path / "x.safetensors")
    weights = read_weights(Folder(str(tmp_path / "x.safetensors")))
    assert torch.equal(weights.tensors["conv1.weight"], first["conv1.weight"])
    assert weights.in_words().endswith("; not used: all of teacher")


def test_a_run_of_another_network_is_told_what_to_type(tmp_path: Path) -> None:
    torch.save(resnet().state_dict(), tmp_path / "x.pth")
    config = override(Config(), {"model.weights": str(tmp_path / "x.pth"), "model.width": 16})
    with pytest.raises(ConfigError, match=r"--model\.arch resnet18 --model\.width 64 --model\.stem imagenet"):
        weights_of(config)
    right = override(config, {"model.width": 64, "model.stem": "imagenet", "data.image_size": 224})
    assert weights_of(right).width == 64
