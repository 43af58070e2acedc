"""The networks: a ResNet trunk with five taps, and the heads f (image) and g (transformed image).

Shapes: B images, P patches an image, C channels of the trunk's output, D = 128 (config.ROW_DIM).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from pirl.sections import ROW_DIM, Model

Arch = Literal["resnet18", "resnet34", "resnet50"]
Stem = Literal["imagenet", "small"]
HeadKind = Literal["linear", "mlp"]

TapName = Literal["conv1", "res2", "res3", "res4", "res5"]

TAPS: tuple[TapName, ...] = ("conv1", "res2", "res3", "res4", "res5")
"""The layers whose features are measured (paper, Fig. 5 and Table 7)."""

ResidualBlock = type[BasicBlock | Bottleneck]

_BLOCKS: dict[Arch, tuple[ResidualBlock, tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


class FrozenNorm(nn.BatchNorm2d):
    """Batch norm that uses its stored statistics in training too; scale and shift are learned.

    A sample's output does not depend on the other samples of its batch.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (B, C, H, W) with `running_mean` and `running_var`, which never change."""
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class Trunk(nn.Module):
    """A ResNet without its classifier; parameters are named as torchvision names them.

    Args:
        width: Channels of the first layer. 64 is torchvision's network; 128 doubles the channels of all
            layers (the paper's c2x), where torchvision's wide_resnet50_2 widens only the 3x3 layers.
        stem: `imagenet` is 7x7 stride 2 and max-pool; `small` is 3x3 stride 1 without pooling.
        norm: `batch`, or `frozen` for FrozenNorm, meant for loaded statistics. A fresh frozen network has no
            normalisation at all: it stays finite at a learning rate of 0.03 and learns at 0.003.
    """

    def __init__(
        self,
        arch: Arch,
        width: int = 64,
        stem: Stem = "imagenet",
        norm: Literal["batch", "frozen"] = "batch",
    ) -> None:
        super().__init__()
        block, counts = _BLOCKS[arch]
        self.out_channels: int = 8 * width * block.expansion
        norm_layer = FrozenNorm if norm == "frozen" else nn.BatchNorm2d
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(3, width, kernel_size=3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = norm_layer(width)
        last = block.expansion * width
        self.layer1 = _stage(block, counts[0], width, width, 1, norm_layer)
        self.layer2 = _stage(block, counts[1], last, 2 * width, 2, norm_layer)
        self.layer3 = _stage(block, counts[2], 2 * last, 4 * width, 2, norm_layer)
        self.layer4 = _stage(block, counts[3], 4 * last, 8 * width, 2, norm_layer)
        _init_weights(self, residual_scale=sum(counts) ** -0.5 if norm == "frozen" else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to features (B, C): the mean of res5 over space."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return F.adaptive_avg_pool2d(x, 1).flatten(1)

    def taps(self, x: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) to the feature maps (B, C_tap, H_tap, W_tap) named by `TAPS`.

        conv1 is the map after norm and ReLU, before the max-pool.
        """
        conv1 = F.relu(self.bn1(self.conv1(x)), inplace=True)
        res2 = self.layer1(self.maxpool(conv1))
        res3 = self.layer2(res2)
        res4 = self.layer3(res3)
        res5 = self.layer4(res4)
        return dict(zip(TAPS, (conv1, res2, res3, res4, res5), strict=True))


def pool(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Averages the taps' maps (B, C_tap, H_tap, W_tap) over grids, to (B, D_tap).

    Each over the finest g x g grid with which it has at most as many values as res5 channels; res5 becomes its mean.
    """
    channels = maps["res5"].shape[1]
    sides = {name: isqrt(channels // value.shape[1]) for name, value in maps.items()}
    return {name: F.adaptive_avg_pool2d(value, sides[name]).flatten(1) for name, value in maps.items()}


def new_trunk(model: Model) -> Trunk:
    """A trunk as a config has it, with random weights."""
    return Trunk(model.arch, model.width, model.stem, model.norm)


class HeadF(nn.Module):
    """f of the paper: features (B, C) of the images to embeddings (B, D), not normalised.

    `linear` is Linear(C, D); `mlp` is Linear(C, C), ReLU, Linear(C, D).
    """

    def __init__(self, in_channels: int, kind: HeadKind = "linear") -> None:
        super().__init__()
        self.embed = _projection(in_channels, kind)

    def forward(self, features: Tensor) -> Tensor:
        """Maps (B, C) to (B, D)."""
        out: Tensor = self.embed(features)
        return out


class HeadG(nn.Module):
    """g of the paper: features of the transformed images to embeddings (B, D), not normalised.

    With several patches (jigsaw) one projection is shared by the patches of an image; their outputs are
    concatenated in the shuffled order and mapped by Linear(P·D, D). The `mlp` projection then ends in one
    more ReLU, as in the official MLP recipe. One patch (rotation, paper A.2) needs the projection alone.
    """

    def __init__(self, in_channels: int, kind: HeadKind = "linear", patches: int = 9) -> None:
        super().__init__()
        self.patches = patches
        self.embed = _projection(in_channels, kind)
        self.activation = nn.ReLU() if kind == "mlp" and patches > 1 else nn.Identity()
        self.merge = nn.Linear(patches * ROW_DIM, ROW_DIM) if patches > 1 else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Maps (B·P, C), the patches of an image next to each other, to (B, D)."""
        each: Tensor = self.activation(self.embed(features))
        merged: Tensor = self.merge(each.reshape(-1, self.patches * ROW_DIM))
        return merged


@contextmanager
def statistics_kept(trunk: Trunk) -> Iterator[None]:
    """While this is open, batch norms in training leave their running statistics, and their count, as they are."""
    norms = [m for m in trunk.modules() if isinstance(m, nn.BatchNorm2d) and not isinstance(m, FrozenNorm)]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def export_state_dict(trunk: Trunk) -> dict[str, Tensor]:
    """The trunk's tensors, on the CPU, named as torchvision names those of its ResNet (without fc)."""
    # contiguous: a channels_last trunk has strided weights, which safetensors refuses to write.
    return {name: value.detach().cpu().contiguous() for name, value in trunk.state_dict().items()}


def _projection(in_channels: int, kind: HeadKind) -> nn.Module:
    if kind == "linear":
        return nn.Linear(in_channels, ROW_DIM)
    hidden = nn.Linear(in_channels, in_channels)
    return nn.Sequential(hidden, nn.ReLU(inplace=True), nn.Linear(in_channels, ROW_DIM))


def _stage(
    block: ResidualBlock, count: int, in_channels: int, planes: int, stride: int, norm_layer: type[nn.BatchNorm2d]
) -> nn.Sequential:
    """`count` blocks; the first one changes size and channels, where they change."""
    out_channels = planes * block.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        downsample = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False), norm_layer(out_channels)
        )
    first = block(in_channels, planes, stride, downsample, norm_layer=norm_layer)
    rest = (block(out_channels, planes, norm_layer=norm_layer) for _ in range(count - 1))
    return nn.Sequential(first, *rest)


def _init_weights(trunk: Trunk, residual_scale: float) -> None:
    """Kaiming initialisation as torchvision's; `residual_scale` multiplies the end of each residual branch.

    Fresh frozen norms change nothing, so each of the L residual sums would double the variance of the
    activations (2^16 in ResNet-50). A branch scaled by L^-1/2 lets it grow by (1 + 1/L)^L < e in all.
    """
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, BasicBlock):
            nn.init.constant_(module.bn2.weight, residual_scale)
        elif isinstance(module, Bottleneck):
            nn.init.constant_(module.bn3.weight, residual_scale)
