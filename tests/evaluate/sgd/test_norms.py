"""Batch norm over all ranks against torch's own over the whole batch."""

import torch
from torch import Tensor, nn

from pirl import dist
from pirl.evaluate.sgd.norms import with_global_norms
from tests.conftest import GlooPool

PARTS = [slice(0, 5), slice(5, 7), slice(7, 13)]


def _batch() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    # A mean of ten deviations: one pass over the squares would lose three digits.
    return torch.randn(13, 3, 4, 4, generator=random) + 10, torch.randn(13, 3, 4, 4, generator=random)


def _normalised(part: slice) -> list[Tensor]:
    """Output, gradients of input, weight and bias, and the running statistics, of some images of the batch."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.BatchNorm2d(3))
    nn.init.normal_(net[0].weight)
    net = with_global_norms(net).train()
    images, towards = (values[part].clone() for values in _batch())
    output = net(images.requires_grad_())
    (output.square() * towards).sum().backward()
    norm = net[0]
    gradients = [dist.all_reduce_sum(p.grad.clone()) for p in (norm.weight, norm.bias)]
    evaluated = net.eval()(images)
    found = [output, images.grad, *gradients, norm.running_mean, norm.running_var, norm.num_batches_tracked, evaluated]
    return [value.detach() for value in found]


def _of_rank() -> list[Tensor]:
    return _normalised(PARTS[dist.rank()])


def test_norms_of_all_ranks_are_those_of_the_whole_batch(run_ranks: GlooPool) -> None:
    """Forward, backward and statistics, with parts of different sizes."""
    whole = _normalised(slice(None))
    ranks = run_ranks(3, _of_rank)
    for number, part in enumerate(PARTS):
        for at in (0, 1, 7):
            # float32: sums of 208 values around 10 in another order.
            torch.testing.assert_close(ranks[number][at], whole[at][part], rtol=1e-4, atol=2e-5)
        for at in (2, 3, 4, 5, 6):
            torch.testing.assert_close(ranks[number][at], whole[at], rtol=1e-4, atol=2e-4)
