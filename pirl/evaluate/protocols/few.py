"""Accuracy with few labels: a linear classifier of res5 that is fitted to some images of each class.

What people pre-train for; with all labels, random weights can look as good as trained ones.
"""

from functools import partial

import torch
from torch import Tensor

from pirl.evaluate.measurement import Measurement, Outcome
from pirl.evaluate.protocols.linear import fit, share_right
from pirl.evaluate.subject import Subject
from pirl.sections import Count, Section

PENALTY = 1e-2
"""L2, as of `linear.PENALTIES`: there are no images to choose it with. On `digits` the accuracy is flat from 0.1 to
0.001, and choosing it by folds of ten a class took one of 0.00001 now and then, which cost ten points.
"""


class Few(Section):
    """A linear classifier of res5, fitted to few images of each class."""

    per_class: tuple[Count, ...] = (10,)
    """Labelled images of each class, one measurement for each; all of a class that has fewer."""
    draws: Count = 5
    """How often they are drawn: the mean and the standard deviation are told."""


def measure(subject: Subject, settings: Few) -> Outcome:
    """Mean accuracy over draws, for each number of images."""
    known = {trained: subject.labelled("train", trained=trained) for trained in subject.trunks}
    asked = {trained: subject.labelled("test", trained=trained) for trained in subject.trunks}

    def piece(per_class: int, draw: int, trained: bool) -> Tensor:
        train, test = known[trained], asked[trained]
        chosen = drawn(train.labels, per_class, subject.seed + draw)
        rows = train.taps["res5"][chosen], train.labels[chosen], test.taps["res5"], test.labels
        return torch.tensor([accuracy(*(each.to(subject.device) for each in rows))])

    pieces = [
        partial(piece, n, draw, trained)
        for n in settings.per_class
        for trained in subject.trunks
        for draw in range(settings.draws)
    ]
    shares = subject.dealt("few", pieces, 1).reshape(len(settings.per_class), len(subject.trunks), settings.draws)
    means, deviations = shares.mean(2).tolist(), shares.std(2, correction=1 if settings.draws > 1 else 0).tolist()
    return Outcome(
        [
            Measurement(f"res5, {n} a class", mean[0], mean[1] if len(mean) > 1 else None, deviation=deviation[0])
            for n, mean, deviation in zip(settings.per_class, means, deviations, strict=True)
        ]
    )


def drawn(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Rows of `per_class` images of each class in `labels` (N,), or all where there are fewer; in order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    shuffled = labels[order]
    chosen = [order[(shuffled == label).nonzero().flatten()[:per_class]] for label in sorted(set(labels.tolist()))]
    return torch.cat(chosen).sort().values


def accuracy(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> float:
    """Share of the test rows that a classifier of few rows gets right; shapes as of `linear.accuracy`."""
    mean, std = train_x.mean(0), train_x.std(0).clamp_min(1e-6)
    train_x, test_x = (train_x - mean) / std, (test_x - mean) / std
    return share_right(fit(train_x, train_y, PENALTY), test_x, test_y)
