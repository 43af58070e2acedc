"""Distillation: a network learns the scores of another one, of the same views (Hinton et al., 1503.02531).

Shapes: B images of this rank, D features of the teacher's tap, N classes of its classifier.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pirl.config import Config
from pirl.loading.loader import Batch
from pirl.methods.models import Trunk, pool


@dataclass(frozen=True)
class LinearClassifier:
    """Linear scores of the features of a tap.

    Attributes:
        weight: float32 (N, D).
        bias: float32 (N,).
        tap: Whose features, averaged as `models.pool` does.
        unit: Whether features are scaled to length 1 first, as those are that k-means sees.
    """

    weight: Tensor
    bias: Tensor
    tap: str = "res5"
    unit: bool = False


class Teacher(nn.Module):
    """A trunk and a linear classifier of one of its taps, in evaluation mode for good."""

    weight: Tensor
    bias: Tensor

    def __init__(self, trunk: Trunk, classifier: LinearClassifier) -> None:
        super().__init__()
        self.trunk = trunk.requires_grad_(False)
        self.tap, self.unit = classifier.tap, classifier.unit
        self.register_buffer("weight", classifier.weight)
        self.register_buffer("bias", classifier.bias)
        self.eval()

    @property
    def classes(self) -> int:
        """N."""
        return len(self.bias)

    @torch.no_grad()
    def forward(self, view: Tensor) -> Tensor:
        """Views (B, 3, H, W), normalised, to probabilities (B, N) in float32: the softmax of the scores."""
        features = pool(self.trunk.taps(view))[self.tap].float()
        if self.unit:
            features = F.normalize(features)
        with torch.autocast(view.device.type, enabled=False):  # a sum of squares, of which differences count
            return F.linear(features, self.weight, self.bias).softmax(dim=1)


class DistillStep:
    """What a network that learns from a teacher does with a batch: cross-entropy with the teacher's softmax.

    Args:
        model: The network as it is called: compiled, or in DDP.
        teacher: On the device of the network.

    Attributes:
        names: Of the terms, in reports: `pretext_accuracy` is how often both have the same highest score.
        weights: Of the terms in the loss: the second one only counts.
    """

    names = ("loss", "pretext_accuracy")

    def __init__(self, config: Config, model: nn.Module, teacher: Teacher, device: torch.device) -> None:
        self.config, self.model, self.teacher, self.device = config, model, teacher, device
        self.weights = torch.tensor([1.0, 0.0], device=device)

    def begin(self, batch: Batch, ids: Tensor, pieces: int = 1) -> None:
        """Does nothing: each image has the teacher's scores to itself."""

    def losses(self, batch: Batch, ids: Tensor, begun: None = None) -> tuple[Tensor, Tensor]:
        """Scores this rank's images, or a piece of them.

        Returns:
            Scores (B, N); and (2, B) the cross-entropy of each image, and 1 where the teacher has the same class.
        """
        (view,) = batch.views(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.optim.bf16):
            targets: Tensor = self.teacher(view)
            scores: Tensor = self.model(view)
        loss = F.cross_entropy(scores, targets, reduction="none")
        same = (scores.argmax(dim=1) == targets.argmax(dim=1)).to(loss)
        return scores, torch.stack([loss, same])

    def update(self, batch: Batch, ids: Tensor, scores: Tensor) -> None:
        """Does nothing: there is no bank."""

    def fill(self, batch: Batch, ids: Tensor) -> None:
        """Does nothing: there is no bank."""
