"""Batch norm over the global batch, so that what is fitted does not depend on the number of ranks."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from pirl.dist import all_reduce_sum, world_size


def with_global_norms(net: nn.Module) -> nn.Module:
    """The network with batch norms that take their statistics over all ranks, where there are several.

    On GPUs they are torch's SyncBatchNorm, which has no implementation for CPUs. Tensors and their names stay.
    """
    if world_size() == 1:
        return net
    if next(net.parameters()).is_cuda:
        return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(net))  # type: ignore[no-untyped-call]
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                own = GlobalNorm(child.num_features, child.eps, child.momentum).to(child.weight)
                own.load_state_dict(child.state_dict())
                setattr(module, name, own)
    return net


class GlobalNorm(nn.BatchNorm2d):
    """Batch norm whose statistics in training are those of the images of all ranks; their numbers may differ."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (B, C, H, W); in training a collective, also on the way back."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        channels = input.shape[1]
        here = input.new_full((1,), input.numel() / channels)
        total, count = _summed(torch.cat([input.sum((0, 2, 3)), here])).split_with_sizes([channels, 1])
        mean = total / count.detach()
        centred = input - mean[:, None, None]
        # In a second pass: the mean of squares minus the square of the mean would cancel.
        variance = _summed(centred.square().sum((0, 2, 3))) / count.detach()
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp_min(1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


def _summed(values: Tensor) -> Tensor:
    return cast(Tensor, _Sum.apply(values))


class _Sum(torch.autograd.Function):
    """The sum over the ranks; each rank's loss depends on each rank's values, so gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return all_reduce_sum(values.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_reduce_sum(gradient.clone())
