"""How the network is called, and the gradients of a step: of a batch at once or in pieces, added over the ranks."""

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


def gradients(optim: Optim, method: Step, model: nn.Module, batch: Batch, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Adds the gradients of a batch to the parameters', and clips them; a collective.

    Args:
        model: As `as_called` made it.
        ids: Of the global batch, as they were served.

    Returns:
        Outputs and losses as the method gives them for this rank's images, without their graph.
    """
    pieces = optim.accumulate
    begun: Any = method.begin(batch, ids, pieces)
    outputs, losses = [], []
    for number in range(pieces):
        is_last = number == pieces - 1
        # The ranks add up their gradients once, in the last backward.
        with nullcontext() if is_last or not isinstance(model, DistributedDataParallel) else model.no_sync():
            output, loss = method.losses(batch.piece(number, pieces), ids, begun)
            # DDP averages over ranks: the factor makes that the mean over the global batch, however it is shared.
            mean = (method.weights @ loss).sum() * (world_size() / len(batch.ids))
            mean.backward()  # type: ignore[no-untyped-call]
        outputs.append(output.detach())
        losses.append(loss.detach())
    if optim.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
    if pieces == 1:
        return outputs[0], losses[0]
    return torch.cat(outputs, dim=-2), torch.cat(losses, dim=-1)
