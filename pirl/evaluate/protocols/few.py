"""Accuracy with few labels: a linear classifier of res5 that is fitted to some images of each class.

What people pre-train for; with all labels, random weights can look as good as trained ones.
"""

from functools import partial

import torch
from torch import Tensor

from pirl.data.dataset import Dataset
from pirl.errors import ConfigError
from pirl.evaluate.measurement import Measurement, Outcome, bootstrap
from pirl.evaluate.protocols.linear import fit
from pirl.evaluate.subject import Subject
from pirl.sections import Count, Section
from pirl.wording import counted

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


def refuse(settings: Few, train: Dataset, test: Dataset | None) -> None:
    """Raises ConfigError for more images than any class has, where their number was typed."""
    most = max(train.class_rows or [max(settings.per_class)])
    if "per_class" in settings.model_fields_set and max(settings.per_class) > most:
        raise ConfigError(
            f"--few.per-class {max(settings.per_class)} is more than the {counted(most, 'image')} of the largest class "
            f"of {train.uri}: use {most} or less"
        )


def measure(subject: Subject, settings: Few) -> Outcome:
    """Mean accuracy over draws, for each number of images."""
    known = {trained: subject.labelled("train", trained=trained) for trained in subject.trunks}
    asked = {trained: subject.labelled("test", trained=trained) for trained in subject.trunks}

    def piece(per_class: int, draw: int, trained: bool) -> Tensor:
        train, test = known[trained], asked[trained]
        chosen = drawn(train.labels, per_class, subject.seed + draw)
        rows = train.taps["res5"][chosen], train.labels[chosen], test.taps["res5"], test.labels
        return right(*(each.to(subject.device) for each in rows))

    pieces = [
        partial(piece, n, draw, trained)
        for n in settings.per_class
        for trained in subject.trunks
        for draw in range(settings.draws)
    ]
    found = subject.dealt("few", pieces, len(asked[True].labels)).cpu()
    by_image = found.reshape(len(settings.per_class), len(subject.trunks), settings.draws, -1)
    return Outcome([_measurement(n, each, subject.seed) for n, each in zip(settings.per_class, by_image, strict=True)])


def _measurement(per_class: int, hits: Tensor, seed: int) -> Measurement:
    """Of which test images each draw gets right, 0 or 1 (trunks, draws, M)."""
    shares, draws = hits.mean(2), hits.shape[1]
    means, deviations = shares.mean(1).tolist(), shares.std(1, correction=int(draws > 1)).tolist()
    of_image = hits[0].mean(0).numpy()
    interval = bootstrap(lambda rows: float(of_image[rows].mean()), len(of_image), seed)
    random = means[1] if len(means) > 1 else None
    return Measurement(f"res5, {per_class} a class", means[0], random, interval, deviations[0])


def drawn(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Rows of `per_class` images of each class in `labels` (N,), or all where there are fewer; in order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    shuffled = labels[order]
    chosen = [order[(shuffled == label).nonzero().flatten()[:per_class]] for label in sorted(set(labels.tolist()))]
    return torch.cat(chosen).sort().values


def right(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> Tensor:
    """Which test rows, bool (M,), a classifier of few rows gets right; shapes as of `linear.right`."""
    mean, std = train_x.mean(0), train_x.std(0).clamp_min(1e-6)
    weight, bias = fit((train_x - mean) / std, train_y, PENALTY)
    return torch.addmm(bias, (test_x - mean) / std, weight).argmax(1) == test_y
