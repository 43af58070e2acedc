"""Methods that say a class: what the pretext task did (covariant) or the label (supervised); no memory bank.

Shapes: B images of this rank, V parts of the view (9 patches or 1 image), C channels of the trunk's output, N classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pirl.config import Config
from pirl.dist import all_reduce_sum
from pirl.loading.device import sent
from pirl.loading.loader import Batch
from pirl.methods.models import new_trunk

PATCH_DIM = 1000
"""Length to which the features of a patch are projected before they are put side by side (official code)."""


class Classifier(nn.Module):
    """Trunk, and a head that says one of some classes of a view.

    A jigsaw's patches are projected one by one, with batch norm and ReLU, put side by side and mapped by one
    Linear(9·1000, N); an image needs Linear(C, N) alone.
    """

    def __init__(self, config: Config, classes: int) -> None:
        super().__init__()
        self.trunk = new_trunk(config.model)
        self.parts = max(config.second_view.parts, 1)
        self.project: nn.Module = nn.Identity()
        width = self.trunk.out_channels
        if self.parts > 1:
            norm = nn.BatchNorm1d(PATCH_DIM) if config.model.norm == "batch" else nn.Identity()
            self.project = nn.Sequential(nn.Linear(width, PATCH_DIM), norm, nn.ReLU())
            width = self.parts * PATCH_DIM
        self.classify = nn.Linear(width, classes)

    def forward(self, view: Tensor) -> Tensor:
        """Views (B·V, 3, h, w), normalised, the parts of a sample one after the other, to scores (B, N) in float32."""
        each: Tensor = self.project(self.trunk(view))
        scores: Tensor = self.classify(each.reshape(len(each) // self.parts, -1))
        return scores.float()


class ClassifyStep:
    """What a classifier does with a batch: scores, and cross-entropy with the targets.

    Args:
        model: The network as it is called: compiled, or in DDP.

    Attributes:
        names: Of the terms, in reports.
        weights: Of the terms in the loss: the second one only counts.
    """

    names = ("loss", "pretext_accuracy")

    def __init__(self, config: Config, model: nn.Module, device: torch.device) -> None:
        self.config, self.model, self.device = config, model, device
        self.weights = torch.tensor([1.0, 0.0], device=device)

    def begin(self, batch: Batch, ids: Tensor, pieces: int = 1) -> Tensor:
        """How many images of the global batch have a target; a collective."""
        return all_reduce_sum((sent(batch.targets, self.device) >= 0).sum().float())

    def losses(self, batch: Batch, ids: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores this rank's images, or a piece of them; `known` is what `begin` gave for all. A collective.

        Returns:
            Scores (B, N); and (2, B) the cross-entropy of each image, and 1 where its target has the highest score.
            Images without a target have 0, and the others as much more, so that means over the global batch are means
            over those.
        """
        targets = sent(batch.targets, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.optim.bf16):
            scores: Tensor = self.model(*batch.views(self.device))
        loss = F.cross_entropy(scores, targets, ignore_index=-1, reduction="none")
        right = (scores.argmax(dim=1) == targets).to(loss)
        known = self.begin(batch, ids) if known is None else known
        return scores, torch.stack([loss, right]) * (len(batch.ids) / known.clamp(min=1))

    def update(self, batch: Batch, ids: Tensor, scores: Tensor) -> None:
        """Does nothing: there is no bank."""

    def fill(self, batch: Batch, ids: Tensor) -> None:
        """Does nothing: there is no bank."""
