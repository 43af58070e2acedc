"""Faster R-CNN of the C4 kind on a trunk: conv1 to res4 see the image, res5 sees each region.

Batch norms keep their statistics, scale and shift; conv1 and res2 keep their weights, as Detectron2's default has it.
"""

import copy
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from pirl.methods.models import Trunk

ANCHORS = (32, 64, 128, 256, 512)
"""Sides of the boxes that are tried at each place, in pixels, where the short side of an image has 800."""
LONGEST = 1333
"""Pixels of the long side of an image at most, likewise."""
REGION = 14
"""Side of what is cut from res4 for a region."""


class C4(nn.Module):
    """conv1 to res4 of a trunk."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.stem = nn.Sequential(trunk.conv1, trunk.bn1, nn.ReLU(inplace=True), trunk.maxpool)
        self.layer1, self.layer2, self.layer3 = trunk.layer1, trunk.layer2, trunk.layer3
        self.out_channels = int(_first_channels(trunk.layer4))
        self.stem.requires_grad_(False)
        self.layer1.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the map (B, C, H / 16, W / 16), or a fourth of it with the small stem."""
        out: Tensor = self.layer3(self.layer2(self.layer1(self.stem(x))))
        return out


class Res5(nn.Module):
    """res5 of a trunk, on regions."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.layer4 = trunk.layer4

    def forward(self, x: Tensor) -> Tensor:
        """Regions (R, C, 14, 14) of res4 to (R, 2 C)."""
        return F.adaptive_avg_pool2d(self.layer4(x), 1).flatten(1)


def detector(trunk: Trunk, classes: int, short_sides: Sequence[int], regions: int = 512) -> FasterRCNN:
    """A detector that begins with the weights of a trunk, which stays as it is.

    Args:
        trunk: On any device; the detector is on the CPU.
        classes: How many there are, the background not counted.
        short_sides: Pixels of the short side of an image: in training one of them is drawn, else the last one is taken.
        regions: Of an image, that train res5.
    """
    frozen = copy.deepcopy(trunk).cpu()
    _freeze_norms(frozen)
    scale = max(short_sides) / 800
    body = C4(frozen)
    return FasterRCNN(
        body,
        min_size=tuple(short_sides),
        max_size=round(LONGEST * scale),
        rpn_anchor_generator=AnchorGenerator((tuple(round(side * scale) for side in ANCHORS),), ((0.5, 1.0, 2.0),)),
        rpn_pre_nms_top_n_train=12_000,
        rpn_pre_nms_top_n_test=6_000,
        box_roi_pool=MultiScaleRoIAlign(["0"], REGION, 2),
        box_batch_size_per_image=regions,
        box_head=Res5(frozen),
        box_predictor=FastRCNNPredictor(trunk.out_channels, classes + 1),
    )


def _freeze_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = FrozenBatchNorm2d(child.num_features, child.eps)
            norm.load_state_dict(child.state_dict())
            setattr(module, name, norm)
        else:
            _freeze_norms(child)


def _first_channels(stage: nn.Module) -> int:
    return next(module.in_channels for module in stage.modules() if isinstance(module, nn.Conv2d))
