"""The losses against a loop over samples and negatives in float64."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pirl.methods import nce

KINDS: list[nce.Kind] = ["paper", "npid", "infonce"]
NUM_ROWS = 5000
Case = tuple[Tensor, Tensor, Tensor, Tensor]


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def case(heads: int = 2, samples: int = 4, num: int = 30, dim: int = 16, seed: int = 0) -> Case:
    """Queries, positives, negatives, and an `own` with a negative for every second sample."""
    own = torch.zeros(samples, num, dtype=torch.bool)
    own[::2] = torch.arange(num) == torch.arange(samples)[::2, None] % num
    queries = unit(heads, samples, dim, seed=3 * seed)
    return queries, unit(samples, dim, seed=3 * seed + 1), unit(num, dim, seed=3 * seed + 2), own


def reference(
    kind: nce.Kind,
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    own: Tensor,
    temperature: float,
    log_z: float = 0.0,
    num_rows: int = NUM_ROWS,
) -> tuple[Tensor, Tensor]:
    """Values and the gradient of their sum, one sample and one negative at a time, as the equations stand."""
    q = queries.double().requires_grad_()
    m, n = positives.double(), negatives.double()
    values = []
    for head in range(len(queries)):
        for b in range(len(positives)):
            positive = torch.exp(q[head, b] @ m[b] / temperature)
            scores = [torch.exp(q[head, b] @ n[k] / temperature) for k in range(len(n)) if not own[b, k]]
            total = sum(scores, torch.tensor(0.0, dtype=torch.float64))
            if kind == "npid":
                z, noise = math.exp(log_z), len(n) / num_rows
                value = -torch.log(positive / z / (positive / z + noise))
                for score in scores:
                    value = value - torch.log(noise / (score / z + noise))
            else:
                value = -torch.log(positive / (positive + total))
                for score in scores if kind == "paper" else []:
                    value = value - torch.log1p(-score / (score + total))
            values.append(value)
    result = torch.stack(values).view(queries.shape[:2])
    (gradient,) = torch.autograd.grad(result.sum(), q)
    return result.detach(), gradient


def ours(kind: nce.Kind, inputs: Case, temperature: float, log_z: float = 0.0) -> tuple[Tensor, Tensor]:
    queries, positives, negatives, own = inputs
    queries = queries.clone().requires_grad_()
    result = nce.losses(kind, queries, positives, negatives, own, temperature, torch.tensor(log_z), NUM_ROWS)
    (gradient,) = torch.autograd.grad(result.sum(), queries)
    return result.detach(), gradient


def relative_error(value: Tensor, expected: Tensor) -> float:
    return float((value.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (2, 4, 30, 16), (1, 6, 129, 128), (3, 2, 1, 5), (2, 5, 64, 128)])
def test_value_and_gradient_equal_the_loop(
    kind: nce.Kind, temperature: float, shape: tuple[int, int, int, int]
) -> None:
    for seed in range(3):
        inputs = case(*shape, seed=seed)
        value, gradient = ours(kind, inputs, temperature, log_z=9.0)
        expected, expected_gradient = reference(kind, *inputs, temperature, log_z=9.0)
        assert value.shape == shape[:2]
        assert value.dtype == gradient.dtype == torch.float32
        # float32 scores of size 1/τ carry errors of about 1e-7/τ.
        assert relative_error(value, expected) < 1e-5
        assert relative_error(gradient, expected_gradient) < 1e-5


def test_many_negatives_keep_their_digits() -> None:
    """Each term of the paper's sum is about 1/K: log(1 + 1/K) must not be taken of a rounded 1 + 1/K."""
    queries, positives, negatives, _ = case(1, 2, 32_000, 128)
    own = torch.zeros(2, 32_000, dtype=torch.bool)
    q = queries.double().requires_grad_()
    s = q[0] @ negatives.double().T / 0.07
    s0 = (q[0] * positives.double()).sum(-1) / 0.07
    log_sum = s.logsumexp(1)
    expected = F.softplus(log_sum - s0) + torch.log1p((s - log_sum[:, None]).exp()).sum(1)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), q)
    value, gradient = ours("paper", (queries, positives, negatives, own), 0.07)
    assert relative_error(value[0], expected.detach()) < 1e-6
    assert relative_error(gradient, expected_gradient) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_stable_at_small_temperature(kind: nce.Kind) -> None:
    """At τ = 0.01 exp(s) spans e^±100, beyond float32; here with extreme and with ordinary rows."""
    queries, positives, negatives, own = case(2, 4, 30, 16)
    own[:, 5:9] = False
    positives[1] = queries[0, 1]
    positives[2] = -queries[0, 2]
    negatives[5:9] = torch.cat([queries[0, :1], -queries[0, :1], queries[1, 3:], -queries[1, 3:]])
    value, gradient = ours(kind, (queries, positives, negatives, own), 0.01, log_z=40.0)
    expected, expected_gradient = reference(kind, queries, positives, negatives, own, 0.01, log_z=40.0)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    # Scores of 100 have float32 errors of 1e-5, which is what a loss of them can be known to.
    assert torch.allclose(value.double(), expected, rtol=2e-5, atol=2e-5)
    assert relative_error(gradient, expected_gradient) < 2e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("temperature", [0.07, 0.01])
def test_bf16_inputs_are_computed_in_float32(kind: nce.Kind, temperature: float, autocast: bool) -> None:
    queries, positives, negatives, own = case(2, 4, 60, 128)
    rounded = queries.bfloat16(), positives.bfloat16(), negatives.bfloat16(), own
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value, gradient = ours(kind, rounded, temperature, log_z=9.0)
    expected, expected_gradient = reference(kind, *rounded, temperature, log_z=9.0)
    assert value.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    assert relative_error(value, expected) < 1e-5
    # The gradient itself is handed back as bf16: eight bits.
    assert relative_error(gradient, expected_gradient) < 2**-8


@pytest.mark.parametrize("kind", KINDS)
def test_own_negatives_do_not_count(kind: nce.Kind) -> None:
    """A masked negative can hold anything; where all are masked, only the positive's term is left."""
    queries, positives, negatives, _ = case(2, 3, 10, 16)
    own = torch.zeros(3, 10, dtype=torch.bool)
    own[1, 4] = True
    changed = negatives.clone()
    changed[4] = queries[0, 1]
    before, after = (ours(kind, (queries, positives, rows, own), 0.07) for rows in (negatives, changed))
    assert torch.equal(before[0][:, 1], after[0][:, 1])
    assert not torch.equal(before[0][:, 0], after[0][:, 0])
    assert torch.allclose(before[1][:, 1], after[1][:, 1], rtol=1e-5, atol=1e-6)

    own[2] = True
    value, gradient = ours(kind, (queries, positives, negatives, own), 0.07, log_z=9.0)
    expected, expected_gradient = reference(kind, queries, positives, negatives, own, 0.07, log_z=9.0)
    assert relative_error(value, expected) < 1e-5
    assert relative_error(gradient, expected_gradient) < 1e-5
    if kind != "npid":
        assert value[:, 2].tolist() == [0, 0]
        assert gradient[:, 2].abs().max() == 0


def test_a_mask_of_nothing_is_no_mask() -> None:
    queries, positives, negatives, own = case()
    for kind in KINDS:
        without = nce.losses(kind, queries, positives, negatives, None, 0.1, torch.tensor(1.0), 90)
        empty = nce.losses(kind, queries, positives, negatives, own & False, 0.1, torch.tensor(1.0), 90)
        assert torch.equal(without, empty)


def test_the_ideal_case() -> None:
    """Query and positive equal, negatives opposite: what goes to zero and what does not, as documented."""
    query = unit(1, 1, 16, seed=0)
    inputs = query, query[0], -query[0].expand(50, 16), torch.zeros(1, 50, dtype=torch.bool)
    infonce = ours("infonce", inputs, 0.07)[0].item()
    assert infonce < 1e-9
    assert ours("paper", inputs, 0.07)[0].item() == pytest.approx(50 * math.log1p(1 / 50), rel=1e-6)
    # noise = Z·K/N halfway between exp(-1/τ) and exp(1/τ), on a log scale
    assert ours("npid", inputs, 0.07, log_z=math.log(NUM_ROWS / 50))[0].item() < 1e-4
    # One negative with all the weight: the other end of the sum's range.
    negatives = inputs[2].clone()
    negatives[0] = unit(1, 16, seed=1)
    value = ours("paper", (query, query[0], negatives, inputs[3]), 0.01)[0].item()
    assert value == pytest.approx(math.log(2), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_pretext_weight_is_the_single_head(kind: nce.Kind) -> None:
    """λ = 0 with both heads is NPID: the same value, the same gradient for f, none for g."""
    queries, positives, negatives, own = case(2, 5, 40, 32)
    both = queries.clone().requires_grad_()
    single = queries[:1].clone().requires_grad_()
    log_z = torch.tensor(9.0)
    image, pretext = nce.losses(kind, both, positives, negatives, own, 0.07, log_z, NUM_ROWS)
    weighted = (0.0 * pretext + 1.0 * image).mean()
    npid = nce.losses(kind, single, positives, negatives, own, 0.07, log_z, NUM_ROWS).mean()
    weighted.backward()
    npid.backward()
    assert both.grad is not None
    assert single.grad is not None
    # Not bit-equal: a matrix product of other sizes may add in another order.
    assert torch.allclose(weighted, npid, rtol=1e-6)
    assert torch.allclose(both.grad[0], single.grad[0], rtol=1e-5, atol=1e-7)
    assert both.grad[1].abs().max() == 0


def test_gradient_follows_each_sample_s_weight() -> None:
    """Backward multiplies by what comes in, sample by sample and head by head."""
    queries, positives, negatives, own = case()
    q = queries.clone().requires_grad_()
    weights = torch.rand(2, 4)
    nce.losses("infonce", q, positives, negatives, own, 0.07).backward(weights)
    _, plain = ours("infonce", (queries, positives, negatives, own), 0.07)
    assert q.grad is not None
    assert torch.allclose(q.grad, plain * weights[..., None])


def test_inputs_stay_and_only_queries_get_a_gradient() -> None:
    tensors = case()[:3]
    copies = [t.clone() for t in tensors]
    leaves = [t.requires_grad_() for t in tensors]
    nce.losses("paper", leaves[0], leaves[1], leaves[2], None, 0.07).sum().backward()
    assert all(torch.equal(t.detach(), copy) for t, copy in zip(tensors, copies, strict=True))
    assert leaves[0].grad is not None
    assert leaves[1].grad is None
    assert leaves[2].grad is None
    with torch.no_grad():
        assert not nce.losses("paper", leaves[0], leaves[1], leaves[2], None, 0.07).requires_grad


def test_log_z_is_the_mean_over_what_counts() -> None:
    queries, positives, negatives, own = case(2, 4, 30, 16)
    for temperature in (0.01, 0.07, 0.5):  # exp(s) leaves float32 at the first
        q, m, n = queries.double(), positives.double(), negatives.double()
        parts = [
            torch.exp(q[h, b] @ row / temperature) for h in range(2) for b in range(4) for row in [m[b], *n[~own[b]]]
        ]
        expected = math.log(NUM_ROWS) + torch.stack(parts).mean().log().item()
        got = nce.estimate_log_z(queries, positives, negatives, own, temperature, NUM_ROWS)
        assert got.item() == pytest.approx(expected, rel=1e-5)
        assert got.shape == ()
        assert got.dtype == torch.float32
