"""Which test images are recognised, by all classifiers in one pass over the images."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pirl import dist
from pirl.data.dataset import Dataset
from pirl.evaluate.countdown import Countdown
from pirl.evaluate.features import group_count, rows_of
from pirl.evaluate.measurement import Measurement, shares
from pirl.evaluate.subject import Subject
from pirl.loading.color import normalize
from pirl.loading.crops import plain_view, ten_views
from pirl.loading.group_views import read_views

Scores = Callable[[Tensor], Tensor]
"""Views, float32 (B, 3, S, S), to the scores (K, B, C) of K classifiers."""

CHUNK = 256
"""Views that go through the network together."""
MANY = 5
"""Of top-5; told where there are more classes."""


def images_of(subject: Subject, what: str, dataset: Dataset) -> int:
    """How many images of a data set are used; says it where that is not all."""
    rows = rows_of(dataset, subject.limit)
    if rows < dataset.rows:
        subject.say(f"{what}: the first {rows:,} of the {dataset.rows:,} images of {dataset.uri} (--max-images)")
    return rows


def right(subject: Subject, what: str, scores: Scores, classifiers: int, *, ten_crops: bool) -> Tensor:
    """Which of the labelled test images are recognised; a collective.

    Args:
        what: For the lines of progress.
        scores: In evaluation mode.
        classifiers: K.
        ten_crops: Whether the mean of the probabilities over `crops.ten_views` decides, or the centre alone.

    Returns:
        (2, K, M) of 0 and 1: the class is that of the highest score; it is among the five highest ones.
    """
    assert subject.test is not None
    test, views = subject.test, 10 if ten_crops else 1
    view = partial(ten_views if ten_crops else plain_view, image_size=subject.image_size)
    groups, starts = group_count(test, subject.limit), test.starts
    rows = images_of(subject, what, test)
    found = torch.zeros(2, classifiers, rows, device=subject.device)
    labels = torch.zeros(rows, dtype=torch.int64, device=subject.device)
    progress = Countdown(subject.say, f"{what}: test", rows)
    # Ten views go through the network in ten times as long, so that reading one after the other hardly counts, and ten
    # groups of them would take ten times as much shared memory.
    processes = 0 if ten_crops else subject.loader_processes
    mine = range(dist.rank(), groups, dist.world_size())
    read = read_views(test, mine, view, skip=subject.skip, processes=processes)
    for first in range(0, groups, dist.world_size()):
        if (number := first + dist.rank()) < groups:
            pixels, given = next(read)
            here = slice(int(starts[number]), int(starts[number + 1]))
            labels[here] = torch.from_numpy(given).to(subject.device)
            with torch.no_grad():
                parts = [
                    scores(normalize(part.to(subject.device).movedim(-1, -3)))
                    for part in torch.split(pixels.flatten(0, -4), CHUNK)
                ]
            means = torch.cat(parts, 1).softmax(2).view(classifiers, len(given), views, -1).mean(2)
            found[:, :, here] = _hits(means, labels[here])
        progress.add(int(starts[min(first + dist.world_size(), groups)] - starts[first]))
    dist.all_reduce_sum(found), dist.all_reduce_sum(labels)
    return found[:, :, labels >= 0]


def _hits(probabilities: Tensor, labels: Tensor) -> Tensor:
    """(2, K, B) of (K, B, C) and (B,)."""
    best = probabilities.topk(min(MANY, probabilities.shape[2]), dim=2).indices == labels[:, None]
    return torch.stack([best[:, :, 0], best.any(2)])


def both(names: list[str], found: Tensor, classes: int, seed: int) -> list[Measurement]:
    """Top-1 for each name, then top-5 where there are more than five classes.

    Args:
        found: Of `right`; the classifiers are trunk by trunk, the trained one first.
    """
    by_name = found.view(2, -1, len(names), found.shape[2]).transpose(1, 2).flatten(1, 2)
    top = shares(names, by_name[0], seed)
    return top if classes <= MANY else top + shares([f"{name}, top-{MANY}" for name in names], by_name[1], seed)
