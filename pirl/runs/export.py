"""A trunk as a file that programs without this project read, and beside it what they must know: `NAME.json`.

The JSON holds the lines of Python that load the file; tests execute them.
"""

import io
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from pirl.errors import ConfigError
from pirl.loading.color import MEAN, STD
from pirl.loading.crops import view_rule
from pirl.methods.models import Trunk, export_state_dict
from pirl.runs.weights import BLOCKS, Weights

ONNX_PACKAGES = ("onnx", "onnxscript")
ONNX_LIMIT = 2**31
"""Bytes of a file: no message of protobuf can be longer."""


def exported(weights: Weights, kind: str) -> bytes:
    """The file of a trunk, in evaluation mode; the same bytes for the same weights and versions.

    Args:
        kind: A name of `FORMATS`.

    Raises:
        ConfigError: A package is missing, or the format cannot hold so many weights; as `check_format`.
    """
    check_format(weights, kind)
    return FORMATS[kind][1](weights.trunk().eval())


def check_format(weights: Weights, kind: str) -> None:
    """Raises ConfigError, which says what to type, where a trunk cannot be written in a format."""
    if kind != "onnx":
        return
    if missing := [name for name in ONNX_PACKAGES if find_spec(name) is None]:
        raise ConfigError(f"--format onnx needs the package {missing[0]}: pip install {' '.join(ONNX_PACKAGES)}")
    size = sum(value.nbytes for value in weights.tensors.values())
    if size > 0.99 * ONNX_LIMIT:
        raise ConfigError(
            f"--format onnx: these weights have {size:,} bytes, and a file in this format at most {ONNX_LIMIT:,}: use "
            "--format safetensors"
        )


def about(weights: Weights, kind: str, name: str, image_size: int) -> dict[str, Any]:
    """What `NAME.json` holds.

    Args:
        name: Of the file.
        image_size: Side of the views, in pixels.
    """
    normalized = kind == "onnx"
    mean, std = ([round(float(value), 6) for value in each.flatten()] for each in (MEAN, STD))
    loading = load_onnx(name) if normalized else [*load_torchvision(weights), *load_state(kind, name)]
    return {
        "format": kind,
        "arch": weights.arch,
        "width": weights.width,
        "stem": weights.stem,
        "dimensions": weights.trunk().out_channels,
        "weights": weights.about(),
        "input": {
            "shape": ["batch", 3, "height", "width"],
            "type": "float32",
            "colors": "RGB in 0..1" if normalized else "RGB in 0..1, less mean, divided by std",
            "mean": mean,
            "std": std,
            "normalized_by": "the graph" if normalized else "whoever makes the input",
            **view_rule(image_size),
        },
        "output": "features: the mean of res5 over space",
        "code": [*loading, *load_views(image_size, None if normalized else (mean, std))],
        "versions": {name: version(name) for name in ("torch", "torchvision")},
    }


def as_text(content: Mapping[str, Any]) -> str:
    """Of `NAME.json`."""
    return json.dumps(content, indent=2) + "\n"


def load_torchvision(weights: Weights) -> list[str]:
    """Lines of Python that build the network, `network`, with torchvision alone."""
    lines = ["import torch, torchvision", "from torch import nn", f"network = torchvision.models.{weights.arch}()"]
    if weights.width != 64:
        (block, counts) = next(key for key, arch in BLOCKS.items() if arch == weights.arch)
        kernel = "7, stride=2, padding=3" if weights.stem == "imagenet" else "3, padding=1"
        lines += [
            f"width, block = {weights.width}, torchvision.models.resnet.{block}",
            f"network.conv1 = nn.Conv2d(3, width, {kernel}, bias=False)",
            "network.bn1 = nn.BatchNorm2d(width)",
            "network.inplanes = width",
            f"network.layer1 = network._make_layer(block, width, {counts[0]})",
            f"network.layer2 = network._make_layer(block, 2 * width, {counts[1]}, stride=2)",
            f"network.layer3 = network._make_layer(block, 4 * width, {counts[2]}, stride=2)",
            f"network.layer4 = network._make_layer(block, 8 * width, {counts[3]}, stride=2)",
        ]
    elif weights.stem == "small":
        lines += ["network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)"]
    if weights.stem == "small":
        lines += ["network.maxpool = nn.Identity()"]
    return [*lines, "network.fc = nn.Identity()"]


def load_state(kind: str, name: str) -> list[str]:
    """Lines that read the file, all of it, into `network`."""
    if kind == "safetensors":
        return [
            "from safetensors.torch import load_file",
            f"network.load_state_dict(load_file({name!r}))",
            "network.eval()",
        ]
    return [f"network.load_state_dict(torch.load({name!r}, weights_only=True))", "network.eval()"]


def load_onnx(name: str) -> list[str]:
    """Lines that make `network` of the file, which maps a tensor to a tensor."""
    return [
        "import onnxruntime, torch",
        f"session = onnxruntime.InferenceSession({name!r})",
        'network = lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])',
    ]


def load_views(image_size: int, normalization: tuple[list[float], list[float]] | None) -> list[str]:
    """Lines that make `view`, from an image as uint8 (3, H, W) to what `network` takes, and how both are used."""
    rule = view_rule(image_size)
    steps = [f"v2.Resize({rule['resize_short_side']})", f"v2.CenterCrop({rule['size']})"]
    steps += ["v2.ToDtype(torch.float32, scale=True)"]
    if normalization:
        steps += [f"v2.Normalize({normalization[0]}, {normalization[1]})"]
    return [
        "from torchvision.transforms import v2",
        f"view = v2.Compose([{', '.join(steps)}])",
        '# features = network(view(torchvision.io.decode_image("photo.jpg", "RGB"))[None])',
    ]


def _pth(trunk: Trunk) -> bytes:
    file = io.BytesIO()
    torch.save(export_state_dict(trunk), file)
    return file.getvalue()


def _safetensors(trunk: Trunk) -> bytes:
    return safetensors.torch.save(export_state_dict(trunk), {"format": "pt"})


class PixelsToFeatures(nn.Module):
    """A trunk that takes RGB in 0..1 as it is."""

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk
        self.register_buffer("mean", MEAN.clone())
        self.register_buffer("std", STD.clone())

    def forward(self, images: Tensor) -> Tensor:
        """Maps (B, 3, H, W) to (B, C)."""
        features: Tensor = self.trunk((images - self.mean) / self.std)
        return features


def _onnx(trunk: Trunk) -> bytes:
    from torch.export import Dim

    # Sides that differ, and more than one image: what is the same in the example would be taken for always so.
    example = torch.zeros(2, 3, 64, 96)
    program: Any = torch.onnx.export(
        PixelsToFeatures(trunk).eval(),
        (example,),
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes=({0: Dim("batch"), 2: Dim("height"), 3: Dim("width")},),
        dynamo=True,
        verbose=False,
    )
    proto = program.model_proto
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]  # says where the code of each step lies on this machine
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


FORMATS: dict[str, tuple[tuple[str, ...], Callable[[Trunk], bytes]]] = {
    "torchvision": ((".pth", ".pt"), _pth),
    "safetensors": ((".safetensors",), _safetensors),
    "onnx": ((".onnx",), _onnx),
}
"""How files of each format end, and who makes one."""
