"""Linear SVMs on fixed features, one for each class: the VOC07 protocol (Goyal et al., 1905.01235; paper, Table 2).

Features have length 1; the cost of each class is the one with the best average precision in three folds; positives
weigh twice; test images with difficult objects alone are ignored. The primal problem is solved: it has the optimum of
the dual one of the source, and nothing in it is drawn.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pirl.data.dataset import Dataset
from pirl.errors import ConfigError
from pirl.evaluate.countdown import Countdown
from pirl.evaluate.features import rows_of
from pirl.evaluate.measurement import Measurement, Outcome, bootstrap, dealt
from pirl.evaluate.subject import SplitName, Subject
from pirl.evaluate.voc.average_precision import Ranking
from pirl.evaluate.voc.voc_folder import VocSplit
from pirl.methods.models import TAPS, TapName
from pirl.sections import Count, Positive, Section

FOLDS = 3
"""Of the cross-validation, in the order of the images and each with its share of the positives."""
WEIGHTS = {1: 2, -1: 1}
"""Of images that show a class, and of those that do not."""
MAX_ITERATIONS = 2000
SPLITS: tuple[SplitName, SplitName] = ("train", "test")


class SVM(Section):
    """Linear SVMs of each layer, one for each class: mean average precision, as on PASCAL VOC 2007."""

    taps: tuple[TapName, ...] = TAPS
    """The layers."""
    costs: tuple[Positive, ...] = (0.01, 0.1, 1, 2, 5, 10, 15, 20, 50, 100, 1000)
    """To choose from, for each class."""
    low_shot: tuple[Count, ...] = ()
    """Images of each class in further measurements, as 1 2 4 8 16 96: with (classes - 1) times as many others."""
    low_shot_cost: Positive = 1.0
    """The cost in those: so few images cannot choose it, and test images must not.

    On `digits`, 8 images a class have 75, 79 and 79 % with 0.1, 1 and 10.
    """
    draws: Count = 5
    """How often those images are drawn: the mean and the standard deviation are told."""


@dataclass(frozen=True)
class Truth:
    """Which classes the images show: int8 (images, classes), 1, -1, and 0 for difficult objects alone."""

    classes: Sequence[str]
    train: NDArray[np.int8]
    test: NDArray[np.int8]


FloatRows = NDArray[np.float64]


def refuse(settings: SVM, train: Dataset, test: Dataset | None) -> None:
    """Raises ConfigError for classes that have too few images."""
    for split, least in ((train, FOLDS), (test, 1)):
        if isinstance(split, VocSplit):
            _check(split.uri, split.classes, (split.presence == 1).sum(0).tolist(), least)
        elif split is not None and split.class_rows is not None:
            _check(split.uri, split.labels or [], split.class_rows, least)


def measure(subject: Subject, settings: SVM) -> Outcome:
    """Mean average precision of each tap, and that with few images."""
    truth = truth_of(subject)
    rows = {(split, trained): _features(subject, split, trained) for split in SPLITS for trained in subject.trunks}

    def normed(tap: str, trained: bool) -> tuple[FloatRows, FloatRows]:
        train, test = (lengths_1(rows[split, trained][tap]) for split in SPLITS)
        return train, test

    fits = Countdown(subject.say, "SVMs on this rank", len(settings.taps) * len(subject.trunks), "layers")

    def piece(tap: str, trained: bool) -> Tensor:
        train, test = normed(tap, trained)

        def one(number: int) -> FloatRows:
            y = np.where(truth.train[:, number] == 1, 1, -1)
            cost = choose_cost(train, y, settings.costs)
            return np.append(fit(train, y, cost).decision_function(test), cost)

        found = _in_threads(one, range(len(truth.classes)))
        fits.add(1)
        return torch.from_numpy(np.stack(found)).flatten()

    pieces = [partial(piece, tap, trained) for tap in settings.taps for trained in subject.trunks]
    shape = len(settings.taps), len(subject.trunks), len(truth.classes), len(truth.test) + 1
    scores = dealt(pieces, shape[2] * shape[3], subject.device)
    outcome = _outcome(settings, truth, scores.reshape(shape).cpu().numpy(), subject.seed)
    return Outcome([*outcome.measurements, *_low_shot(subject, settings, truth, normed)], outcome.details)


def truth_of(subject: Subject) -> Truth:
    """Of the images that are used; raises ConfigError for classes that have too few of them."""
    train, test = subject.train, subject.test
    assert test is not None
    if isinstance(train, VocSplit) and isinstance(test, VocSplit):
        classes: Sequence[str] = train.classes
        parts = [split.presence[: rows_of(split, subject.limit)] for split in (train, test)]
    else:
        classes = train.labels or []
        labels = [subject.labelled(split).labels.cpu().numpy() for split in SPLITS]
        parts = [np.where(each[:, None] == np.arange(len(classes)), 1, -1).astype(np.int8) for each in labels]
    for split, part, least in zip((train, test), parts, (FOLDS, 1), strict=True):
        _check(f"{split.uri}, {len(part)} of them", classes, (part == 1).sum(0).tolist(), least)
    return Truth(classes, *parts)


def lengths_1(rows: Tensor) -> FloatRows:
    """Features (N, D) as float64 of length 1, as the source has it."""
    values = rows.cpu().numpy().astype(np.float64)
    normed: FloatRows = values / (np.linalg.norm(values, axis=1, keepdims=True) + 1e-5)
    return normed


def fit(x: FloatRows, y: NDArray[np.int64], cost: float) -> Any:
    """A linear SVM of rows (N, D), and y of 1 and -1, by squared hinge loss."""
    from sklearn.svm import LinearSVC

    return LinearSVC(C=cost, class_weight=WEIGHTS, dual=False, max_iter=MAX_ITERATIONS).fit(x, y)


def choose_cost(x: FloatRows, y: NDArray[np.int64], costs: Sequence[float]) -> float:
    """The cost with the best average precision, averaged over the folds; of equals the smallest."""
    from sklearn.model_selection import StratifiedKFold

    if len(costs) == 1:
        return costs[0]
    folds = list(StratifiedKFold(FOLDS).split(x, y))

    def precision(cost: float) -> float:
        scored = [(fit(x[rest], y[rest], cost).decision_function(x[held]), y[held]) for rest, held in folds]
        return float(np.mean([Ranking.of(*each).steps() for each in scored]))

    return max(sorted(costs), key=precision)


def drawn(y: NDArray[np.int64], number: int, others: int, seed: Sequence[int]) -> NDArray[np.int64]:
    """FloatRows of `number` images with y 1 and of `others` with y -1, or all where there are fewer; in order."""
    source = np.random.default_rng(seed)
    chosen = [source.permutation(np.flatnonzero(y == of))[:count] for of, count in ((1, number), (-1, others))]
    return np.sort(np.concatenate(chosen))


def _outcome(settings: SVM, truth: Truth, scores: NDArray[np.float64], seed: int) -> Outcome:
    """Of scores (taps, trunks, classes, images + 1), where the last one is the cost."""
    measurements: list[Measurement] = []
    details: dict[str, Any] = {}
    for tap, of_trunks in zip(settings.taps, scores, strict=True):
        rankings = [[Ranking.of(s[:-1], t) for s, t in zip(one, truth.test.T, strict=True)] for one in of_trunks]
        means = [float(np.mean([each.area() for each in ranking])) for ranking in rankings]
        interval = bootstrap(partial(_resampled, rankings[0], len(truth.test)), len(truth.test), seed)
        random = means[1] if len(means) > 1 else None
        measurements.append(Measurement(f"{tap}, mean AP", means[0], random, interval))
        details[tap] = {
            "cost": dict(zip(truth.classes, of_trunks[0, :, -1].tolist(), strict=True)),
            "area": dict(zip(truth.classes, [each.area() for each in rankings[0]], strict=True)),
            "mean_eleven_points": float(np.mean([each.eleven_points() for each in rankings[0]])),
            "mean_steps": float(np.mean([each.steps() for each in rankings[0]])),
        }
    return Outcome(measurements, details)


def _resampled(rankings: Sequence[Ranking], rows: int, numbers: NDArray[np.int64]) -> float:
    counts = np.bincount(numbers, minlength=rows)
    return float(np.nanmean([each.area(counts) for each in rankings]))


def _low_shot(
    subject: Subject, settings: SVM, truth: Truth, normed: Callable[[str, bool], tuple[FloatRows, FloatRows]]
) -> Iterator[Measurement]:
    """The mean average precision of a few images of each class; a collective."""

    def piece(tap: str, trained: bool) -> Tensor:
        train, test = normed(tap, trained)

        def one(case: tuple[int, int]) -> float:
            number, draw = case
            found = []
            for column, (y, counted) in enumerate(zip(truth.train.T, truth.test.T, strict=True)):
                signs = np.where(y == 1, 1, -1)
                rows = drawn(signs, number, number * (len(truth.classes) - 1), (subject.seed, draw, number, column))
                model = fit(train[rows], signs[rows], settings.low_shot_cost)
                found.append(Ranking.of(model.decision_function(test), counted).area())
            return float(np.mean(found))

        cases = [(number, draw) for number in settings.low_shot for draw in range(settings.draws)]
        return torch.tensor(_in_threads(one, cases), dtype=torch.float64)

    if not settings.low_shot:
        return
    pieces = [partial(piece, tap, trained) for tap in settings.taps for trained in subject.trunks]
    shape = len(settings.taps), len(subject.trunks), len(settings.low_shot), settings.draws
    found = dealt(pieces, shape[2] * shape[3], subject.device).reshape(shape)
    for tap, means, deviations in zip(
        settings.taps, found.mean(3), found.std(3, correction=int(settings.draws > 1)), strict=True
    ):
        for column, number in enumerate(settings.low_shot):
            value, *random = means[:, column].tolist()
            name = f"{tap}, mean AP of {number} a class"
            yield Measurement(name, value, random[0] if random else None, deviation=float(deviations[0, column]))


def _check(where: str, classes: Sequence[str], counts: Sequence[int], least: int) -> None:
    if len(classes) < 2:
        raise ConfigError(f"svm: {where} has {len(classes)} class, and one is told from others: use two or more")
    for name, count in zip(classes, counts, strict=True):
        if count < least:
            raise ConfigError(
                f"svm: {count} images of {where} show the class {name!r}, and {least} are needed: use more images"
            )


def _features(subject: Subject, split: SplitName, trained: bool) -> dict[str, Tensor]:
    of_all = isinstance(subject.train, VocSplit)  # whose images are labelled, though not with one class each
    return (subject.features if of_all else subject.labelled)(split, trained=trained).taps


def _in_threads(work: Callable[[Any], Any], given: Sequence[Any]) -> list[Any]:
    """In as many threads as torch may use: liblinear runs without Python's lock."""
    with _unconverged_is_fine(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(work, given))


@contextmanager
def _unconverged_is_fine() -> Iterator[None]:
    """Costs that are far too large may not come to an end; another one wins then."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
