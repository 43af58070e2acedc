"""A linear classifier on fixed features: softmax regression at its optimum, so there is no schedule to tune.

Shapes: N training rows, M test rows, D features, C classes.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pirl.evaluate.measurement import Outcome, shares
from pirl.evaluate.subject import Subject
from pirl.methods.models import TAPS, TapName
from pirl.sections import Section

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""L2 penalties to choose from, strongest first, for features of unit variance and the mean loss."""
HELD_OUT = 0.1
"""Share of the training rows that chooses among them."""

SHARE, COARSEST, FINEST = 2e-4, 1e-4, 1e-6
"""Largest component of the gradient at which a search ends: a share of the loss, between two values. Then the objective
is within 1e-4 of its least, and rounding of float32 is below it."""

LinearModel = tuple[Tensor, Tensor]
"""Weights (D, C) and biases (C,)."""


class Linear(Section):
    """A linear classifier of the features of each layer."""

    taps: tuple[TapName, ...] = TAPS
    """The layers."""


def measure(subject: Subject, settings: Linear) -> Outcome:
    """Accuracy of each tap."""
    known = {trained: subject.labelled("train", trained=trained) for trained in subject.trunks}
    asked = {trained: subject.labelled("test", trained=trained) for trained in subject.trunks}

    def piece(tap: str, trained: bool) -> Tensor:
        train, test = known[trained], asked[trained]
        rows = train.taps[tap], train.labels, test.taps[tap], test.labels
        return right(*(each.to(subject.device) for each in rows))

    pieces = [partial(piece, tap, trained) for tap in settings.taps for trained in subject.trunks]
    found = subject.dealt("linear", pieces, len(asked[True].labels))
    return Outcome(shares(settings.taps, found, subject.seed))


def accuracy(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> float:
    """Share of the test rows that `right` has."""
    return float(right(train_x, train_y, test_x, test_y).double().mean())


def right(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> Tensor:
    """Which of the test rows, bool (M,), a linear classifier of the training rows gets right.

    Features (N, D) and (M, D), float32, are standardised with the training rows' statistics; classes (N,) and (M,) are
    int64, 0 to C-1. The same rows give the same result.
    """
    mean, std = train_x.mean(0), train_x.std(0).clamp_min(1e-6)
    train_x, test_x = (train_x - mean) / std, (test_x - mean) / std
    weight, bias = fit(train_x, train_y, choose_penalty(train_x, train_y))
    return torch.addmm(bias, test_x, weight).argmax(1) == test_y


def choose_penalty(x: Tensor, y: Tensor) -> float:
    """The penalty with the best accuracy on rows held out with a fixed seed; of equals the strongest."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(x.device)
    held, rest = order.tensor_split([max(1, int(HELD_OUT * len(x)))])
    shares, model = [], None
    for penalty in PENALTIES:
        # Each optimum is near the one before, which is where the search for it begins.
        model = fit(x[rest], y[rest], penalty, model)
        shares.append(share_right(model, x[held], y[held]))
    return PENALTIES[shares.index(max(shares))]


def fit(x: Tensor, y: Tensor, penalty: float, start: LinearModel | None = None) -> LinearModel:
    """Minimises mean cross-entropy + penalty/2 · |weights|² over all rows with L-BFGS.

    The search runs in V with weights = A·V, where A·Aᵀ is the inverse of XᵀX/2N + penalty, a bound of the
    Hessian (Böhning 1992), so that no direction is steep. Features of a trunk are so correlated that without it
    100 evaluations are too few; with it 5 to 25 do (CIFAR-10, ResNet-18), and some more for weak penalties.

    Args:
        x: (N, D), standardised.
        y: (N,) int64 classes, all of 0 to C-1 or fewer.
        penalty: Above 0.
        start: Where to begin instead of zeros.
    """
    bound = (x.T @ x / (2 * len(x))).double()
    # Rounding of the float32 product, up to about 1e-7 of the trace, must not make the bound indefinite.
    bound.diagonal().add_(penalty + 1e-6 * bound.trace())
    factor = torch.linalg.cholesky(bound).mT
    a = torch.linalg.inv(factor).to(x.dtype)
    if start is None:
        classes = int(y.max()) + 1
        v, bias = x.new_zeros(x.shape[1], classes), x.new_zeros(classes)
    else:
        v, bias = factor.to(x.dtype) @ start[0], start[1].clone()
    v.requires_grad_()
    bias.requires_grad_()
    search = torch.optim.LBFGS(
        [v, bias], max_iter=200, tolerance_grad=COARSEST, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        search.zero_grad()
        weight = a @ v
        value: Tensor = F.cross_entropy(torch.addmm(bias, x, weight), y) + penalty / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    while True:
        search.step(loss)  # type: ignore[no-untyped-call]
        # Weak penalties leave a small loss, and next to that the first tolerance would be a coarse one.
        enough = max(FINEST, SHARE * float(loss().detach()))
        if search.param_groups[0]["tolerance_grad"] <= enough:
            break
        search.param_groups[0]["tolerance_grad"] = enough
    return (a @ v).detach(), bias.detach()


def share_right(model: LinearModel, x: Tensor, y: Tensor) -> float:
    """Share of the rows whose largest score is that of their class."""
    weight, bias = model
    return int((torch.addmm(bias, x, weight).argmax(1) == y).sum()) / len(y)
