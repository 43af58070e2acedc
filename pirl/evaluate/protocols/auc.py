"""Area under the ROC curve of a linear classifier of res5: one class against the rest, as doctors judge a test.

So github.com/akwasigroch/Pretext-Invariant-Representations compares random with pre-trained features of skin lesions.
"""

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pirl.data.dataset import Dataset
from pirl.errors import ConfigError
from pirl.evaluate.measurement import Measurement, Outcome, bootstrap
from pirl.evaluate.protocols.few import PENALTY, drawn
from pirl.evaluate.protocols.linear import choose_penalty, fit
from pirl.evaluate.subject import Subject
from pirl.sections import Count, Section


class AUC(Section):
    """Area under the ROC curve of a linear classifier of res5, of one class against the others."""

    positive: str | None = None
    """The class that is looked for; of two classes the second one, of more it must be named."""
    per_class: tuple[Count, ...] = (10,)
    """Beside all labels: so many images of the class and of the others, one measurement for each."""
    draws: Count = 5
    """How often those are drawn: the mean and the standard deviation are told."""


def refuse(settings: AUC, train: Dataset, test: Dataset | None) -> None:
    """Raises ConfigError for a class that is not there, or that all images or none have."""
    number = number_of(settings, train)
    for data in (train, test):
        if data is None or data.labels is None:
            continue  # said for all protocols that need labels
        name = (train.labels or [])[number]
        if data.labels[number : number + 1] != [name]:
            raise ConfigError(f"auc: class {number} is {name} in {train.uri}, and not in {data.uri}: {_list(data)}")
        if data.class_rows is not None:
            _check_both(data.class_rows[number], sum(data.class_rows), name, data)


def number_of(settings: AUC, train: Dataset) -> int:
    """The number of the positive class; raises ConfigError that lists the classes."""
    classes = train.labels or []
    if settings.positive in classes:
        return classes.index(settings.positive)
    if settings.positive is not None:
        raise ConfigError(f"--auc.positive {settings.positive} is no class of {train.uri}: {_list(train)}")
    if len(classes) != 2:
        raise ConfigError(f"auc needs to know which class is looked for: add --auc.positive NAME. {_list(train)}")
    return 1


def measure(subject: Subject, settings: AUC) -> Outcome:
    """With all labels, resampled over the test images; with few, over draws of the training images."""
    number = number_of(settings, subject.train)
    name = (subject.train.labels or [])[number]
    known = {trained: subject.labelled("train", trained=trained) for trained in subject.trunks}
    asked = {trained: subject.labelled("test", trained=trained) for trained in subject.trunks}
    for data, features in ((subject.train, known[True]), (subject.test, asked[True])):
        assert data is not None
        _check_both(int((features.labels == number).sum()), len(features.labels), name, data)
    positive = (asked[True].labels == number).cpu().numpy()

    def piece(per_class: int | None, draw: int, trained: bool) -> Tensor:
        train, test = known[trained], asked[trained]
        is_positive = (train.labels == number).long()
        if per_class is None:
            rows = torch.arange(len(is_positive), device=is_positive.device)
        else:
            rows = drawn(is_positive, per_class, subject.seed + draw)
        return scores(
            train.taps["res5"][rows].to(subject.device),
            is_positive[rows].to(subject.device),
            test.taps["res5"].to(subject.device),
            None if per_class is None else PENALTY,
        )

    cases = [(None, 0), *((n, draw) for n in settings.per_class for draw in range(settings.draws))]
    pieces = [partial(piece, *case, trained) for trained in subject.trunks for case in cases]
    found = subject.dealt("auc", pieces, len(positive)).cpu().numpy().reshape(len(subject.trunks), len(cases), -1)
    areas = np.array([[area(each, positive) for each in of_trunk] for of_trunk in found])
    first = found[0, 0]
    interval = bootstrap(lambda rows: area(first[rows], positive[rows]), len(positive), subject.seed)
    whole, few = areas[:, 0], areas[:, 1:].reshape(len(areas), len(settings.per_class), settings.draws)
    measurements = [_measurement("res5, all labels", whole, interval=interval)]
    for at, per_class in enumerate(settings.per_class):
        deviation = float(few[0, at].std(ddof=1 if settings.draws > 1 else 0))
        measurements.append(_measurement(f"res5, {per_class} a class", few[:, at].mean(1), deviation=deviation))
    counts = {"positive_images": int(positive.sum()), "other_images": int((~positive).sum())}
    return Outcome(measurements, {"positive": name, "of_test": counts})


def scores(train_x: Tensor, train_y: Tensor, test_x: Tensor, penalty: float | None) -> Tensor:
    """How much more likely than not each test row is of class 1, in logits (M,).

    Features (N, D) and (M, D), classes 0 and 1 int64 (N,); the penalty is chosen on held-out rows where it is None.
    """
    mean, std = train_x.mean(0), train_x.std(0).clamp_min(1e-6)
    train_x, test_x = (train_x - mean) / std, (test_x - mean) / std
    weight, bias = fit(train_x, train_y, choose_penalty(train_x, train_y) if penalty is None else penalty)
    logits = torch.addmm(bias, test_x, weight)
    return logits[:, 1] - logits[:, 0]


def area(score: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """The share of pairs of a positive and another row (M,) in which the positive one scores higher, ties as a half.

    NaN where there is no such pair, as a resample may have it.
    """
    _, group = np.unique(score, return_inverse=True)
    ours = np.bincount(group, positive)
    others = np.bincount(group, ~positive)
    pairs = ours.sum() * others.sum()
    return float((ours * (others.cumsum() - others / 2)).sum() / pairs) if pairs else float("nan")


def _measurement(
    name: str, values: NDArray[np.float64], interval: tuple[float, float] | None = None, deviation: float | None = None
) -> Measurement:
    random = float(values[1]) if len(values) > 1 else None
    return Measurement(name, float(values[0]), random, interval, deviation, unit="")


def _check_both(positives: int, images: int, name: str, data: Dataset) -> None:
    """Raises ConfigError where images are all of the class, or none."""
    if not 0 < positives < images:
        raise ConfigError(
            f"auc: {positives} of the {images} labelled images of {data.uri} are {name}, and it takes some of both "
            f"kinds: name another class with --auc.positive, or use more images. {_list(data)}"
        )


def _list(data: Dataset) -> str:
    classes = data.labels or []
    return f"Classes: {', '.join(classes[:20])}{f' and {len(classes) - 20} more' if len(classes) > 20 else ''}"
