"""PIRL: a trunk with two heads, and the loss that ties both views of an image to its row in the bank.

Shapes: B images of this rank, V parts of the pretext view (9 patches or 1 image), D = 128.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pirl.config import Config
from pirl.methods import nce
from pirl.methods.models import HeadF, HeadG, Trunk, statistics_kept
from pirl.methods.nce import Negatives


class PIRL(nn.Module):
    """Trunk, head f for the image view and head g for the pretext view (paper, section 3 and figure 3).

    With λ = 0 there is no g and no second view: that is NPID. The batch norms' running statistics are those of
    the image view, as images are what the trunk will be used on; small patches have others.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        model = config.model
        self.trunk = Trunk(model.arch, model.width, model.stem, model.norm)
        self.f = HeadF(self.trunk.out_channels, model.head)
        self.g: HeadG | None = None
        if config.has_pretext:
            patches = 1 if config.pretext.name == "rotation" else 9
            self.g = HeadG(self.trunk.out_channels, model.head, patches)

    def forward(self, image: Tensor, pretext: Tensor | None = None) -> Tensor:
        """Embeds both views.

        Args:
            image: (B, 3, S, S), normalised.
            pretext: (B·V, 3, h, w), normalised, the parts of a sample one after the other.

        Returns:
            (1 or 2, B, D) unit rows in float32: f(v_I), then g(v_I^t) if there is a pretext view.
        """
        embeddings = [self.f(self.trunk(image))]
        if self.g is not None and pretext is not None:
            with statistics_kept(self.trunk):
                embeddings.append(self.g(self.trunk(pretext)))
        return F.normalize(torch.stack(embeddings).float(), dim=-1)


def pirl_losses(
    config: Config,
    queries: Tensor,
    positives: Tensor,
    negatives: Negatives,
    own: Tensor,
    log_z: Tensor | None,
    rows: int,
) -> Tensor:
    """Per-sample terms of Eq. 5, before λ.

    Args:
        config: Names the loss and its temperature.
        queries: (1 or 2, B, D) from `PIRL.forward`.
        positives: (B, D) rows m_I of the bank.
        negatives: K rows of the bank, shared by the batch and both heads.
        own: (B, K), true where a negative is the sample itself.
        log_z: The normalising constant of `npid`, else None.
        rows: Rows of the bank.

    Returns:
        (1 or 2, B): L_NCE(m_I, f(v_I)) and L_NCE(m_I, g(v_I^t)).
    """
    return nce.losses(
        config.loss.kind,
        queries,
        positives,
        negatives.rows,
        own,
        config.loss.temperature,
        log_z=log_z,
        num_rows=rows,
    )


def head_weights(config: Config, device: torch.device) -> Tensor:
    """λ of Eq. 5 as weights of the heads: (1-λ) for f and λ for g; just 1 where there is no g."""
    weight = config.loss.pretext_weight
    return torch.tensor([1 - weight, weight] if config.has_pretext else [1.0], device=device)


def parameter_groups(network: nn.Module, weight_decay: float) -> Sequence[dict[str, object]]:
    """Weight decay on matrices and convolutions only, not on norms and biases (official code)."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
