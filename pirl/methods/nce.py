"""Noise-contrastive losses against rows of the memory bank (paper, section 3, Eq. 3-5).

Shapes: H heads, B samples, K negatives, D = 128. The negatives are shared by all samples and heads, so the
scores are one matrix product, and the gradient is computed in place of them: one H·B×K matrix and one
temporary.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pirl import dist

Kind = Literal["paper", "npid", "infonce"]


def losses(
    kind: Kind,
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    own: Tensor | None,
    temperature: float,
    log_z: Tensor | None = None,
    num_rows: int = 0,
) -> Tensor:
    """Loss of each sample and head, in float32 whatever the inputs and autocast are.

    With scores s = <query, row> / τ, s0 the positive's, s_k the negatives', and L = log Σ_k exp(s_k):

    - `paper`: -log h(s0) - Σ_k log(1 - h(s_k)), Eq. 4, with h(s) = exp(s) / (exp(s) + exp(L)), Eq. 3, so that
      a negative has itself and all negatives in its denominator. The first term goes to zero as s0 rises
      above L. The sum does not: it lies between log 2 (one negative has all the weight) and
      K·log(1 + 1/K) < 1 (all s_k equal).
    - `npid`: P = exp(s) / Z against K·Pn with Pn = 1/N (arXiv 1805.01978, Eq. 6 and 7), as in the code that
      the authors published. That code also adds 1.2e-7 to each denominator; this does not. Goes to zero as s0
      rises above log(Z·K/N) and every s_k falls below it.
    - `infonce`: the first term of `paper` alone, which is cross-entropy over the K + 1 scores. Goes to zero.

    Args:
        kind: Which loss.
        queries: `(H, B, D)` unit rows; the only input that gets a gradient.
        positives: `(B, D)`, the rows m_I of the bank, shared by the heads.
        negatives: `(K, D)`.
        own: `(B, K)` bool, True where a negative is the sample itself and does not count; or None.
        temperature: τ.
        log_z: Scalar, log Z of `npid`, from `estimate_log_z`.
        num_rows: N of `npid`, the rows of the bank.

    Returns:
        `(H, B)` float32.
    """
    # npid scores log P against log(K·Pn): one constant to take from s.
    noise = None if log_z is None else log_z + math.log(len(negatives) / num_rows)
    needs_gradient = torch.is_grad_enabled() and queries.requires_grad
    with torch.autocast(queries.device.type, enabled=False):
        result: Tensor = _Losses.apply(
            queries.float(), positives.float(), negatives.float(), own, temperature, kind, noise, needs_gradient
        )
    return result


@torch.no_grad()
def estimate_log_z(
    queries: Tensor, positives: Tensor, negatives: Tensor, own: Tensor | None, temperature: float, num_rows: int
) -> Tensor:
    """Log of npid's Z = N · mean of exp(s), over the positives and negatives of all heads and ranks.

    Collective. Taken once, on the first batch, and then kept (arXiv 1805.01978, section 3.2). Arguments as
    for `losses`; ranks may have batches of different sizes.

    Returns:
        Scalar float32, the same on every rank.
    """
    with torch.autocast(queries.device.type, enabled=False):
        s0, s = _scores(queries.float() / temperature, positives.float(), negatives.float(), own)
    log_sum = torch.logsumexp(torch.cat([s0, s.flatten()]).double(), 0)
    count = s0.numel() + s.isfinite().sum()
    part = torch.stack([log_sum, count.double()])[None]
    log_sums, counts = dist.gather_parts(part, [1] * dist.world_size()).unbind(1)
    return (math.log(num_rows) + torch.logsumexp(log_sums, 0) - counts.sum().log()).float()


class _Losses(torch.autograd.Function):
    """Computes the gradient with the loss, so that backward keeps `(H, B, D)` and not `(H, B, K)`."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        positives: Tensor,
        negatives: Tensor,
        own: Tensor | None,
        temperature: float,
        kind: Kind,
        noise: Tensor | None,
        needs_gradient: bool,
    ) -> Tensor:
        s0, s = _scores(queries / temperature, positives, negatives, own)
        if kind == "npid":
            assert noise is not None, "npid needs log_z"
            loss, d0, d = _npid(s0, s, noise)
        else:
            loss, d0, d = _softmax(s0, s, with_negatives=kind == "paper")
        if needs_gradient:
            gradient = (d @ negatives).view_as(queries)
            gradient.addcmul_(d0.view(*queries.shape[:2], 1), positives).div_(temperature)
            ctx.save_for_backward(gradient)
        return loss.view(queries.shape[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output[..., None], *[None] * 7


def _scores(scaled: Tensor, positives: Tensor, negatives: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores `(H·B,)` of positives and `(H·B, K)` of negatives, -inf where `own`; `scaled` is q / τ."""
    s0 = (scaled * positives).sum(-1).flatten()
    s = scaled.flatten(0, 1) @ negatives.T
    if own is not None:
        s.view(len(scaled), *own.shape).masked_fill_(own, -math.inf)
    return s0, s


def _softmax(s0: Tensor, s: Tensor, with_negatives: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, its derivative by s0, and by s (in place of s), for `paper` (with negatives) and `infonce`."""
    # The clamps only matter where all negatives are masked: then exp(L) is as good as zero, and so is p.
    top = s.amax(1, keepdim=True).clamp_(min=torch.finfo(s.dtype).min)
    exp = s.sub_(top).exp_()
    total = exp.sum(1, keepdim=True).clamp_(min=1)
    p = exp.div_(total)  # p_k = exp(s_k - L), the derivative of L by s_k
    log_sum = (top + total.log()).squeeze(1)  # L
    loss = F.softplus(log_sum - s0)  # -log h(s0) = log(1 + exp(L - s0)), first term of Eq. 4
    pull = torch.sigmoid(log_sum - s0)  # 1 - h(s0)
    if not with_negatives:
        return loss, -pull, p.mul_(pull[:, None])
    # -Σ log(1 - h(s_k)) = Σ log(1 + p_k), second term of Eq. 4. PyTorch's log1p is not vectorised on a CPU,
    # its atanh is: log(1 + p) = 2·atanh(p / (2 + p)).
    work = p + 2
    loss += 2 * torch.div(p, work, out=work).atanh_().sum(1)
    h = torch.div(p, torch.add(p, 1, out=work), out=work)  # h(s_k) = p_k / (1 + p_k)
    mean_h = torch.bmm(p[:, None], h[:, :, None]).view(-1, 1)  # Σ_j p_j h_j
    # d/ds_k Σ_j log(1 + p_j) = h_k - p_k Σ_j h_j = p_k (Σ_j p_j h_j - h_k), as h = p - p·h and Σ_j p_j = 1.
    return loss, -pull, p.mul_(h.neg_().add_(mean_h).add_(pull[:, None]))


def _npid(s0: Tensor, s: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, its derivative by s0, and by s (in place of s); noise = log(Z·K·Pn)."""
    x = s.sub_(noise)
    loss = F.softplus(noise - s0)  # -log P/(P + K·Pn)
    # -Σ log K·Pn/(P_k + K·Pn) = Σ log(1 + exp(x_k)), by max(x, 0) + 2·atanh(1 / (1 + 2·exp|x|)) as above.
    work = x.abs()
    loss += 2 * work.exp_().mul_(2).add_(1).reciprocal_().atanh_().sum(1)
    loss += torch.clamp(x, min=0, out=work).sum(1)
    return loss, -torch.sigmoid(noise - s0), x.sigmoid_()
