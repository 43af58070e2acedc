"""PIRL: a trunk with two heads, and the step that ties both views of an image to its row in the bank.

Shapes: B images of this rank, V parts of the pretext view (9 patches or 1 image), D = 128.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pirl.config import Config
from pirl.dist import gather_parts
from pirl.loading.device import sent
from pirl.loading.loader import Batch
from pirl.methods import nce
from pirl.methods.memory import MemoryBank, Negatives
from pirl.methods.models import HeadF, HeadG, new_trunk, statistics_kept


class PIRL(nn.Module):
    """Trunk, head f for the image view and head g for the pretext view (paper, section 3 and figure 3).

    With λ = 0 there is no g and no second view: that is NPID. The batch norms' running statistics are those of
    the image view, as images are what the trunk will be used on; small patches have others.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        model = config.model
        self.trunk = new_trunk(model)
        self.f = HeadF(self.trunk.out_channels, model.head)
        self.g: HeadG | None = None
        if config.has_pretext:
            self.g = HeadG(self.trunk.out_channels, model.head, config.second_view.parts)

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


@dataclass(frozen=True)
class Compared:
    """What the images of a step are compared with: (B_global, D) rows of their own, and those of others."""

    positives: Tensor
    negatives: Negatives

    @cached_property
    def rows(self) -> Tensor:
        """The negatives, when all are here."""
        return self.negatives.wait()


class PIRLStep:
    """What PIRL does with a batch: views, queries, losses, and the rows of the bank.

    Args:
        network: Trunk and heads, as they are saved.
        model: The same as it is called: compiled, or in DDP.
        bank: This rank's rows.
        log_z: Normalising constant of `npid`, which the first batch sets where it is NaN.

    Attributes:
        names: Of the terms, in reports.
        weights: Of the heads in the loss (Eq. 5): (1-λ) for f and λ for g; just 1 where there is no g.
    """

    names = ("loss_image", "loss_pretext")

    def __init__(self, config: Config, network: PIRL, model: nn.Module, bank: MemoryBank, log_z: Tensor) -> None:
        self.config, self.network, self.model, self.bank, self.log_z = config, network, model, bank, log_z
        self.device = bank.local.device
        self.weights = head_weights(config, self.device)
        self.estimates_log_z = config.loss.kind == "npid" and bool(log_z.isnan())

    def begin(self, batch: Batch, ids: Tensor, pieces: int = 1) -> Compared:
        """Looks up what the images of a step are compared with; a collective.

        Args:
            ids: Those of the global batch, as they were served.
            pieces: In how many the images go through the network; log Z is estimated from all of them.
        """
        positives = self.bank.lookup(ids)  # first: a sum over the ranks stands in line behind what was begun
        begun = Compared(positives, self.bank.sample(batch.step, self.config.loss.num_negatives))
        if self.estimates_log_z and pieces > 1:
            with torch.no_grad(), statistics_kept(self.network.trunk):
                queries = [self._embed(self.network, batch.piece(number, pieces)) for number in range(pieces)]
            self._estimate_log_z(self._compared(torch.cat(queries, dim=1), batch, ids, begun))
        return begun

    def losses(self, batch: Batch, ids: Tensor, begun: Compared | None = None) -> tuple[Tensor, Tensor]:
        """Embeds this rank's images, or a piece of them, and compares them with what `begin` gave; a collective.

        Returns:
            Queries (1 or 2, B, D) of both heads, and their losses (1 or 2, B).
        """
        begun = begun or self.begin(batch, ids)
        queries = self._embed(self.model, batch)  # the negatives are on their way meanwhile
        compared = self._compared(queries, batch, ids, begun)
        if self.estimates_log_z:
            self._estimate_log_z(compared)
        return queries, nce.losses(self.config.loss.kind, *compared, log_z=self.log_z, num_rows=self.bank.rows)

    def _compared(
        self, queries: Tensor, batch: Batch, ids: Tensor, begun: Compared
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        """The arguments of the losses for the images of a batch or a piece."""
        own = self.bank.own(ids[batch.mine], begun.negatives.ids)
        return queries, begun.positives[batch.mine], begun.rows, own, self.config.loss.temperature

    def _estimate_log_z(self, compared: tuple[Tensor, Tensor, Tensor, Tensor, float]) -> None:
        self.estimates_log_z = False
        self.log_z.copy_(nce.estimate_log_z(*compared, self.bank.rows))

    @torch.no_grad()
    def update(self, batch: Batch, ids: Tensor, queries: Tensor) -> Tensor:
        """Moves the batch's rows of the bank towards f(v_I), which it returns for the global batch; a collective."""
        embeddings = gather_parts(queries[0].detach(), batch.shares)
        self.bank.update(*_unless_skipped(batch, ids, embeddings))
        return embeddings

    @torch.no_grad()
    def fill(self, batch: Batch, ids: Tensor) -> None:
        """Sets the batch's rows of the bank to f(v_I) of the untrained network; a collective.

        The batch norms run on batch statistics, as they will in training, and get their first running statistics.
        """
        queries = self._embed(self.network, batch)
        self.bank.fill(*_unless_skipped(batch, ids, gather_parts(queries[0], batch.shares)))

    def _embed(self, model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.optim.bf16):
            views = batch.views(self.device)
            if self.config.optim.compile:
                for view in views:  # else the first step is compiled for its own number of images
                    torch._dynamo.maybe_mark_dynamic(view, 0)
            queries: Tensor = model(*views)
        return queries


def _unless_skipped(batch: Batch, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and rows of the global batch without the places of skipped images: each id is there once, as dealt."""
    if ids is batch.ids:
        return ids, rows
    kept = (ids == batch.ids).nonzero().squeeze(1)  # on the CPU: a mask on a GPU has to be waited for
    return batch.ids[kept], rows.index_select(0, sent(kept, rows.device))


def head_weights(config: Config, device: torch.device) -> Tensor:
    """λ of Eq. 5 as weights of the heads: (1-λ) for f and λ for g; just 1 where there is no g."""
    weight = config.loss.pretext_weight
    return torch.tensor([1 - weight, weight] if config.has_pretext else [1.0], device=device)


def parameter_groups(network: nn.Module, weight_decay: float) -> Sequence[dict[str, object]]:
    """Weight decay on matrices and convolutions only, not on norms and biases (official code)."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
