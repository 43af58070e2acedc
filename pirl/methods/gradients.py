"""How the network is called, and how a batch goes through it: at once or in pieces, with gradients of all ranks."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pirl.dist import world_size
from pirl.loading.loader import Batch
from pirl.methods.choice import Step
from pirl.sections import Optim


def as_called(network: nn.Module, optim: Optim) -> nn.Module:
    """The network compiled, if that is asked for, and in DDP where there are other ranks.

    Buffers stay each rank's own: those of rank 0 are sent to the others where they are saved or measured.
    """
    if optim.compile:
        mode = "reduce-overhead" if optim.cuda_graphs else None
        network = torch.compile(network, mode=mode)  # type: ignore[assignment]
    if world_size() == 1:
        return network
    return DistributedDataParallel(network, gradient_as_bucket_view=True, broadcast_buffers=False)


class Pieces:
    """A batch on its way through the network, at once or in pieces: yields the loss of each, for its `backward`.

    Behind the last one the gradients are those of the global batch, and are clipped.

    Args:
        method: Whose model `as_called` made.
        ids: Of the global batch, as they were served.
    """

    def __init__(self, optim: Optim, method: Step, batch: Batch, ids: Tensor) -> None:
        self.number, self.clip_norm = optim.accumulate, optim.clip_norm
        self.method, self.model, self.batch, self.ids = method, method.model, batch, ids
        self._outputs: list[Tensor] = []
        self._losses: list[Tensor] = []

    def __iter__(self) -> Iterator[Tensor]:
        begun: Any = self.method.begin(self.batch, self.ids, self.number)
        for at in range(self.number):
            is_last = at == self.number - 1
            # The ranks add up their gradients once, in the last backward.
            with (
                nullcontext()
                if is_last or not isinstance(self.model, DistributedDataParallel)
                else self.model.no_sync()
            ):
                output, losses = self.method.losses(self.batch.piece(at, self.number), self.ids, begun)
                # DDP averages over ranks: the factor makes that the mean over the global batch, however it is shared.
                yield (self.method.weights @ losses).sum() * (world_size() / len(self.batch.ids))
            self._outputs.append(output.detach())
            self._losses.append(losses.detach())
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)

    def results(self) -> tuple[Tensor, Tensor]:
        """Outputs and losses of this rank's images, as the method gives them, without their graph."""
        if self.number == 1:
            return self._outputs[0], self._losses[0]
        return torch.cat(self._outputs, dim=-2), torch.cat(self._losses, dim=-1)
