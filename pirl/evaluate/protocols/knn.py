"""Weighted k-nearest-neighbour classification of features (Wu et al., 1805.01978, section 3.4)."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pirl.data.dataset import Dataset
from pirl.errors import ConfigError
from pirl.evaluate.measurement import Outcome, shares
from pirl.evaluate.subject import SplitName, Subject
from pirl.sections import Count, Positive, Section
from pirl.wording import counted

CHUNK = 1024
"""Test rows that are compared at once: 1,024 x 50,000 similarities are 200 MB."""


class KNN(Section):
    """Nearest neighbours of res5 vote."""

    k: tuple[Count, ...] = (1, 20, 200)
    """How many of them, one measurement for each."""
    temperature: Positive = 0.1
    """Votes weigh exp(similarity / temperature)."""


def refuse(settings: KNN, train: Dataset, test: Dataset | None) -> None:
    """Raises ConfigError for more neighbours than there are labelled images, where k was typed."""
    rows = train.rows if train.class_rows is None else min(train.rows, sum(train.class_rows))
    _check(settings, rows, train.uri)


def measure(subject: Subject, settings: KNN) -> Outcome:
    """Accuracy for each k; without a typed one, for those of the usual ones that the training images allow."""
    rows = {trained: (*_tap(subject, "train", trained), *_tap(subject, "test", trained)) for trained in subject.trunks}
    images = len(rows[True][1])
    _check(settings, images, subject.train.uri)  # of images that can be used there may be fewer
    numbers = [k for k in settings.k if k <= images]
    if left_out := [k for k in settings.k if k > images]:
        subject.say(f"knn: k {' '.join(map(str, left_out))} is left out, as {counted(images, 'image')} can vote")
    pieces = [partial(right, *rows[trained], k, settings.temperature) for k in numbers for trained in subject.trunks]
    found = subject.dealt("knn", pieces, len(rows[True][3]))
    return Outcome(shares([f"res5, k {k}" for k in numbers], found, subject.seed))


def _check(settings: KNN, rows: int, uri: str) -> None:
    if "k" in settings.model_fields_set and max(settings.k) > rows:
        images = counted(rows, "labelled image")
        raise ConfigError(f"--knn.k {max(settings.k)} is more than the {images} of {uri}: use {rows} or less")


def _tap(subject: Subject, split: SplitName, trained: bool) -> tuple[Tensor, Tensor]:
    features = subject.labelled(split, trained=trained)
    return features.taps["res5"].to(subject.device), features.labels.to(subject.device)


def accuracy(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, k: int, temperature: float) -> float:
    """Share of the test rows that `right` has."""
    return float(right(train_x, train_y, test_x, test_y, k, temperature).double().mean())


def right(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, k: int, temperature: float) -> Tensor:
    """Which of the test rows, bool (M,), are of the class that gets the most votes from their neighbours.

    Each of the k training rows with the largest cosine similarity s votes for its class with exp(s / temperature).
    Features are (N, D) and (M, D), classes (N,) and (M,) int64, 0 to C-1; k is cut to N.
    """
    keys = F.normalize(train_x, dim=1)
    classes = int(train_y.max()) + 1
    hits = []
    for start in range(0, len(test_x), CHUNK):
        query, label = F.normalize(test_x[start : start + CHUNK], dim=1), test_y[start : start + CHUNK]
        similarity, nearest = (query @ keys.T).topk(min(k, len(keys)), dim=1)
        votes = query.new_zeros(len(query), classes)
        # Minus the largest similarity: the ratio of the votes is the same and exp cannot overflow.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        votes.scatter_add_(1, train_y[nearest], weight)
        hits.append(votes.argmax(1) == label)
    return torch.cat(hits)
