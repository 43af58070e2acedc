"""The SVM protocol against the loops of its source, written out with scikit-learn."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from pirl.data.dataset import Dataset, open_dataset
from pirl.data.writer import ShardWriter
from pirl.errors import ConfigError
from pirl.evaluate.evaluate import PROTOCOLS
from pirl.evaluate.measurement import Outcome
from pirl.evaluate.protocols import svm
from pirl.evaluate.store import FeatureStore
from pirl.evaluate.subject import Subject
from pirl.evaluate.voc.voc_folder import open_voc
from pirl.methods.models import Trunk
from pirl.storage.folder import Folder
from tests.conftest import GlooPool
from tests.evaluate.voc_folder import CLASSES, write_year

CPU = torch.device("cpu")
QUICK = svm.SVM(taps=("res4", "res5"), costs=(0.1, 1.0, 10.0))


def _trunk(seed: int) -> Trunk:
    torch.manual_seed(seed)
    return Trunk("resnet18", 4)


def _subject(place: Path, *, untrained: bool = True, limit: int | None = None) -> Subject:
    train = open_voc(Folder(str(place)))
    other = _trunk(1) if untrained else None
    return Subject(_trunk(0), other, train, train.held_out(), 32, CPU, limit=limit)


@pytest.fixture(scope="module")
def year(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voc") / "VOC2007"
    write_year(folder, {"trainval": 40, "test": 50}, seed=3)
    return folder


def _envelope(y: np.ndarray, scores: np.ndarray) -> float:
    """The area of VOC for different scores: the best precision from each positive on."""
    order = np.argsort(-scores)
    hits = y[order] == 1
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(np.mean([precision[place:].max() for place in np.flatnonzero(hits)]))


def test_mean_ap_is_that_of_the_source(year: Path) -> None:
    subject = _subject(year)
    outcome = svm.measure(subject, QUICK)
    train, test = subject.train, subject.test
    assert (test.presence == 0).any()  # or nothing is ignored
    for trained, value in ((True, lambda each: each.value), (False, lambda each: each.random)):
        for tap, measurement in zip(QUICK.taps, outcome.measurements, strict=True):
            x, x_test = (
                f / (np.linalg.norm(f, axis=1, keepdims=True) + 1e-5)
                for f in (subject.features(s, trained=trained).taps[tap].double().numpy() for s in ("train", "test"))
            )
            areas = []
            for number, name in enumerate(CLASSES):
                y = np.where(train.presence[:, number] == 1, 1, -1)

                def fitted(cost: float) -> LinearSVC:
                    # The dual, as in the source; more exact, so that both are at the optimum.
                    return LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=True, max_iter=10**6, tol=1e-8)

                folds = [
                    cross_val_score(fitted(cost), x, y, cv=3, scoring="average_precision").mean()
                    for cost in QUICK.costs
                ]
                cost = QUICK.costs[int(np.argmax(folds))]
                kept = test.presence[:, number] != 0
                scores = fitted(cost).fit(x, y).decision_function(x_test)[kept]
                areas.append(_envelope(test.presence[kept, number], scores))
                if trained:
                    found = outcome.details[tap]
                    assert found["cost"][name] == cost
                    assert found["area"][name] == pytest.approx(areas[-1], abs=1e-9)
            # The same ranking: not near it.
            assert value(measurement) == pytest.approx(np.mean(areas), abs=1e-9)
            low, high = measurement.interval
            assert low <= measurement.value <= high
            assert high - low > 0.01


def test_details_have_the_other_definitions(year: Path) -> None:
    subject = _subject(year, untrained=False)
    one = svm.measure(subject, svm.SVM(taps=("res5",), costs=(1.0,)))
    x, x_test = (svm.lengths_1(subject.features(split).taps["res5"]) for split in ("train", "test"))
    steps = []
    for y, y_test in zip(subject.train.presence.T, subject.test.presence.T, strict=True):
        scores = svm.fit(x, np.where(y == 1, 1, -1), 1.0).decision_function(x_test)
        steps.append(average_precision_score(y_test[y_test != 0] == 1, scores[y_test != 0]))
    assert one.details["res5"]["mean_steps"] == pytest.approx(np.mean(steps), abs=1e-12)
    assert one.details["res5"]["mean_eleven_points"] >= one.details["res5"]["mean_steps"] - 1 / 11


def test_low_shot_draws_so_many_of_each(year: Path) -> None:
    subject = _subject(year)
    settings = svm.SVM(taps=("res5",), costs=(1.0,), low_shot=(2, 500), draws=3)
    _, few, all_of_them = svm.measure(subject, settings).measurements
    assert few.name == "res5, mean AP of 2 a class"
    assert few.deviation > 0.001
    assert all_of_them.deviation == 0  # each draw has all images
    x, x_test = (svm.lengths_1(subject.features(split).taps["res5"]) for split in ("train", "test"))
    found = []
    for draw in range(3):
        areas = []
        for column in range(2):
            y, y_test = (np.where(split.presence[:, column] == 1, 1, -1) for split in (subject.train, subject.test))
            rows = svm.drawn(y, 2, 2, (0, draw, 2, column))
            assert sorted(y[rows].tolist()) == [-1, -1, 1, 1]
            kept = subject.test.presence[:, column] != 0
            model = LinearSVC(C=1, class_weight={1: 2, -1: 1}, dual=False).fit(x[rows], y[rows])
            areas.append(_envelope(y_test[kept], model.decision_function(x_test)[kept]))
        found.append(np.mean(areas))
    assert few.value == pytest.approx(np.mean(found), abs=1e-9)
    assert few.deviation == pytest.approx(np.std(found, ddof=1), abs=1e-9)


def _measured(year: Path) -> Outcome:
    return svm.measure(_subject(year), svm.SVM(taps=("res5",), costs=(0.1, 1.0), low_shot=(2,), draws=2))


def test_ranks_find_the_same(run_ranks: GlooPool, year: Path) -> None:
    alone = _measured(year)
    for outcome in run_ranks(2, _measured, year):
        assert outcome.measurements == alone.measurements
        assert outcome.details == alone.details


def test_features_are_kept(year: Path, tmp_path: Path) -> None:
    subject = _subject(year)
    plain = svm.measure(subject, QUICK).measurements
    for _ in range(2):
        subject = _subject(year)
        subject.store = FeatureStore(tmp_path)
        assert svm.measure(subject, QUICK).measurements == plain
    assert len(list(tmp_path.glob("*/"))) == 4


def test_fewer_images_are_the_first_ones(year: Path) -> None:
    subject = _subject(year, limit=1)
    assert len(svm.truth_of(subject).train) == 40  # one group
    write_year(year.parent / "large/VOC2007", {"trainval": 100, "test": 70}, seed=4)
    truth = svm.truth_of(_subject(year.parent / "large", limit=60))
    assert (truth.train.shape, truth.test.shape) == ((64, 2), (64, 2))


def _write(folder: Path, labels: list[int | None], names: list[str]) -> Dataset:
    """Images whose class is their brightness."""
    random = np.random.default_rng(len(labels))
    with ShardWriter(Folder(str(folder)), classes=names, seed=0, source="a test") as writer:
        for label in labels:
            file = io.BytesIO()
            pixels = random.integers(0, 60, (24, 24, 3)) + 60 * (label or 0)
            Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
            writer.add(file.getvalue(), label)
    return open_dataset(str(folder))


def test_a_data_set_with_classes_is_told_one_from_all(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    train = _write(tmp_path / "train", [0, 1, 2, None] * 8, names)
    test = _write(tmp_path / "test", [0, 1, 2] * 5, names)
    subject = Subject(_trunk(0), None, train, test, 32, CPU)
    svm.refuse(QUICK, train, test)
    truth = svm.truth_of(subject)
    assert truth.train.shape == (24, 3)  # those without a label are left out, as of other protocols
    assert (truth.train.sum(1) == -1).all()
    outcome = svm.measure(subject, svm.SVM(taps=("conv1",), costs=(1.0, 10.0)))
    assert outcome.measurements[0].value > 0.9  # brightness is easily seen
    assert list(outcome.details["conv1"]["area"]) == names


def test_too_few_images_are_refused(tmp_path: Path, year: Path) -> None:
    two = _write(tmp_path / "two", [0, 1, 1, 1, 0], ["a", "b"])
    one = _write(tmp_path / "one", [0, 0, 0], ["a"])
    none = _write(tmp_path / "none", [1, 1, 1], ["a", "b"])
    many = _write(tmp_path / "many", [0, 1] * 4, ["a", "b"])
    for train, test, message in (
        (two, many, r"2 images of .*two show the class 'a', and 3 are needed"),
        (one, one, r"one has 1 class"),
        (many, none, r"0 images of .*none show the class 'a', and 1 are needed"),
    ):
        with pytest.raises(ConfigError, match=message):
            PROTOCOLS["svm"].refuse(QUICK, train, test)
        with pytest.raises(ConfigError, match="svm: "):  # as of images that lost their labels on the way
            svm.truth_of(Subject(_trunk(0), None, train, test, 32, CPU))
    voc = open_voc(Folder(str(year)))
    voc.presence[2:] = -1
    with pytest.raises(ConfigError, match=r"show the class '(bar|square)', and 3 are needed"):
        svm.refuse(QUICK, voc, voc.held_out())


def test_features_that_are_no_numbers_are_refused(year: Path) -> None:
    subject = _subject(year, untrained=False)
    with torch.no_grad():
        subject.trunk.conv1.weight.fill_(1e38)
    with pytest.raises(ConfigError, match="features that are no numbers"):
        svm.measure(subject, QUICK)
