"""Files that leave the project, loaded by the lines beside them: torchvision, safetensors and onnxruntime alone."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from torch import Tensor

from jobs.export import main
from pirl.config import Config, override
from pirl.loading.color import normalize
from pirl.loading.crops import plain_view
from pirl.methods.models import Trunk
from pirl.runs.export import about as beside
from pirl.runs.weights import read_weights
from pirl.storage.folder import Folder
from tests.runs.test_weights import write_run
from tests.s3 import Store

SUFFIX = {"torchvision": ".pth", "safetensors": ".safetensors", "onnx": ".onnx"}


@pytest.fixture
def export(typed: Callable[..., tuple[object, str]]) -> Callable[..., tuple[object, str]]:
    """Types `jobs/export.py` with words; gives its exit code and what it says."""
    return partial(typed, main)


def a_run(folder: Path, arch: str, width: int, stem: str, image_size: int) -> Trunk:
    """A run, and its trunk, with norms that change something."""
    changes = {"model.arch": arch, "model.width": width, "model.stem": stem, "data.image_size": image_size}
    config = override(Config(), changes)
    torch.manual_seed(3)
    original = torch.nn.BatchNorm2d.reset_running_stats

    def drawn(norm: torch.nn.BatchNorm2d) -> None:
        original(norm)
        norm.running_mean.normal_(0, 0.1)  # type: ignore[union-attr, operator]
        norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.BatchNorm2d, "reset_running_stats", drawn)
        return write_run(folder, config).eval()


def loaded(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The network and its view, by the code beside a file, in which nothing of this project is."""
    code = "\n".join(json.loads(Path(f"{file}.json").read_text())["code"])
    assert "pirl" not in code
    names: dict[str, Any] = {}
    monkeypatch.chdir(file.parent)
    exec(code, names)
    return names["network"], names["view"]


NETWORKS = [
    ("resnet18", 16, "small", 32),
    ("resnet18", 64, "small", 32),
    ("resnet18", 16, "imagenet", 64),
    ("resnet34", 8, "small", 16),
    ("resnet50", 64, "imagenet", 64),
    ("resnet50", 16, "small", 16),
]
ONNX = [("resnet18", 16, "small", 16), ("resnet50", 64, "imagenet", 64)]
"""Each takes seconds to export."""
CASES = [(kind, *network) for kind in ("torchvision", "safetensors") for network in NETWORKS]


@pytest.mark.parametrize(
    ("kind", "arch", "width", "stem", "image_size"), [*CASES, *(("onnx", *network) for network in ONNX)]
)
def test_what_is_exported_gives_the_same_features(export, tmp_path, monkeypatch, kind, arch, width, stem, image_size):
    trunk = a_run(tmp_path / "run", arch, width, stem, image_size)
    file = tmp_path / f"network{SUFFIX[kind]}"
    code, said = export(tmp_path / "run", "--format", kind, file)
    assert code == 0, said
    network, view = loaded(file, monkeypatch)
    random = np.random.default_rng(0)
    sides = [(90, 71), (image_size + 1, 40)]
    images = [torch.from_numpy(random.integers(0, 256, (3, *side), dtype=np.uint8)) for side in sides]
    plain = torch.stack([plain_view(image, image_size) for image in images])
    with torch.no_grad():
        expected = trunk(normalize(plain))
        got = network(torch.stack([view(image) for image in images]))
    assert got.shape == expected.shape == (2, trunk.out_channels)
    close(got, expected)


def close(got: Tensor, expected: Tensor) -> None:
    """Equal but for the order in which other programs add: float32 has 7 digits."""
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_torchvisions_resnet50_takes_it_but_for_its_classifier(export, tmp_path):
    trunk = a_run(tmp_path / "run", "resnet50", 64, "imagenet", 224)
    assert export(tmp_path / "run", "--format=torchvision", tmp_path / "x.pth")[0] == 0
    state = torch.load(tmp_path / "x.pth", weights_only=True)
    network = torchvision.models.resnet50()
    with pytest.raises(RuntimeError) as refused:
        network.load_state_dict(state, strict=True)
    assert str(refused.value).endswith('Missing key(s) in state_dict: "fc.weight", "fc.bias". ')
    network.fc = torch.nn.Identity()
    network.load_state_dict(state, strict=True)
    assert all(torch.equal(value, state[name]) for name, value in trunk.state_dict().items())


def test_a_graph_takes_any_number_and_size_of_images_and_says_nothing_of_this_machine(export, tmp_path):
    trunk = a_run(tmp_path / "run", "resnet18", 4, "small", 16)
    contents = []
    for name in ("a", "b"):
        assert export(tmp_path / "run", "--format", "onnx", tmp_path / name / "x.onnx")[0] == 0
        contents.append((tmp_path / name / "x.onnx").read_bytes())
    assert contents[0] == contents[1]
    assert b"site-packages" not in contents[0]
    assert str(Path(__file__).parents[2]).encode() not in contents[0]
    session = onnxruntime.InferenceSession(contents[0])
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_outputs()[0].shape == ["batch", trunk.out_channels]
    for shape in ((1, 3, 16, 16), (5, 3, 33, 20)):
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
        (got,) = session.run(None, {"images": (pixels.float() / 255).numpy()})
        with torch.no_grad():
            close(torch.from_numpy(got), trunk(normalize(pixels)))


def test_what_lies_beside_it_says_what_images_it_takes(tmp_path):
    a_run(tmp_path / "run", "resnet18", 4, "small", 20)
    weights = read_weights(Folder(str(tmp_path / "run")))
    for kind, range_ in (("torchvision", "RGB in 0..1, less mean, divided by std"), ("onnx", "RGB in 0..1")):
        about = beside(weights, kind, "x", weights.image_size())
        assert (about["format"], about["arch"], about["width"], about["stem"]) == (kind, "resnet18", 4, "small")
        assert about["dimensions"] == 32
        wanted = {"colors": range_, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "size": 20}
        wanted |= {"resize_short_side": 23}  # 20 · 256 / 224 is 22.9
        assert about["input"] | wanted == about["input"]
        assert about["weights"]["sha256"]


@pytest.mark.parametrize("kind", ["torchvision", "safetensors"])
def test_the_same_weights_give_the_same_bytes(export, tmp_path, kind):
    a_run(tmp_path / "run", "resnet18", 4, "small", 16)
    contents = []
    for name in ("a", "b"):
        file = tmp_path / name / f"x{SUFFIX[kind]}"
        assert export(tmp_path / "run", "--format", kind, file)[0] == 0
        contents.append((file.read_bytes(), Path(f"{file}.json").read_bytes()))
    assert contents[0] == contents[1]


def test_a_file_of_weights_goes_through_every_format_and_back(export, tmp_path):
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "other.pth.tar")
    assert export(tmp_path / "other.pth.tar", "--format", "safetensors", tmp_path / "a.safetensors")[0] == 0
    assert export(tmp_path / "a.safetensors", "--format", "torchvision", tmp_path / "a.pth", "--image-size", 96)[0] == 0
    assert json.loads((tmp_path / "a.safetensors.json").read_text())["input"]["size"] == 224
    assert json.loads((tmp_path / "a.pth.json").read_text())["input"]["size"] == 96
    back = torch.load(tmp_path / "a.pth", weights_only=True)
    assert {name: value for name, value in state.items() if not name.startswith("fc.")}.keys() == back.keys()
    assert all(torch.equal(value, state[name]) for name, value in back.items())


def test_what_cannot_be_is_refused_and_nothing_is_written(export, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a_run(tmp_path / "run", "resnet18", 4, "small", 16)
    checkpoint = tmp_path / "run/checkpoint_000000003"
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "old.pth").write_text("old")
    (tmp_path / "old.onnx.json").write_text("old")
    before = sorted(tmp_path.rglob("*"))
    for words, said in (
        ([], "two words are needed, TARGET and DESTINATION, and none is given"),
        (["run", "--format", "onnx"], "1 are given: run"),
        (["run", "x.pth"], "no format: add --format torchvision"),
        (["run", "--format", "pickle", "x.pth"], "use one of torchvision, safetensors, onnx"),
        (["run", "--format", "torchvision", "x.onnx"], "ends in .pth or .pt"),
        (["nothing", "--format", "torchvision", "x.pth"], "is not there: name a run, a checkpoint, or a file"),
        (["notes.txt", "--format", "torchvision", "x.pth"], "cannot be read as weights"),
        (["run", "--format", "torchvision", "folder.pth"], "is a folder: name a file, such as"),
        (["run", "--format", "torchvision", "old.pth"], "old.pth exists: name another file, or add --overwrite"),
        (["run", "--format", "onnx", "old.onnx"], "old.onnx.json exists"),
        (["run", "--format", "safetensors", checkpoint / "trunk.safetensors", "--overwrite"], "where the weights are"),
        (["run", "--format", "torchvision", "notes.txt/x.pth"], "cannot be written"),
        (["run", "--format", "torchvision", "https://a.org/x.pth"], "is on a web server"),
        (["run", "--format", "torchvision", "s3://x.pth"], "names a bucket: add a file"),
        (["run", "--format", "torchvision", "x.pth", "--image-size", "4"], "use 16 or more"),
        (["run", "--format", "torchvision", "x.pth", "--model.width", "8"], "unknown option --model.width"),
    ):
        code, answer = export(*words)
        assert (code, said in answer) == (2, True), (words, answer)
        assert sorted(tmp_path.rglob("*")) == before
    code, answer = export("run", "--format", "onnx", "x.onnx", "--check")
    assert (code, answer) == (0, f"{tmp_path}/x.onnx\n")
    assert sorted(tmp_path.rglob("*")) == before
    assert export("run", "--format", "torchvision", "old.pth", "--overwrite")[0] == 0
    assert torch.load("old.pth", weights_only=True)


def test_without_the_packages_of_onnx_it_says_what_to_install(export, tmp_path, monkeypatch):
    a_run(tmp_path / "run", "resnet18", 4, "small", 16)
    monkeypatch.setattr("pirl.runs.export.find_spec", lambda name: None if name == "onnxscript" else name)
    code, answer = export(tmp_path / "run", "--format", "onnx", tmp_path / "x.onnx", "--check")
    assert code == 2
    assert answer.strip().endswith("--format onnx needs the package onnxscript: pip install onnx onnxscript")


def test_a_store_takes_it_and_its_run_is_found_by_name(export, tmp_path, store: Store):
    a_run(tmp_path / "runs/mine", "resnet18", 4, "small", 16)
    options = ["--data.storage-options", json.dumps(store.direct), "--data.deadline-s", "20"]
    place = store.uri("models", "x.pth")
    code, said = export("mine", "--storage", tmp_path / "runs", "--format", "torchvision", place, *options)
    assert code == 0, said
    assert sorted(store.past("models").sizes()) == ["x.pth", "x.pth.json"]
    code, said = export(place, "--format", "safetensors", tmp_path / "x.safetensors", *options)
    assert code == 0, said
