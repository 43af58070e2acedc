"""The area under the curve against scikit-learn's."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pirl.data.dataset import Dataset, open_dataset
from pirl.data.writer import ShardWriter
from pirl.errors import ConfigError
from pirl.evaluate.measurement import Outcome
from pirl.evaluate.protocols.auc import AUC, area, measure, number_of, refuse, scores
from pirl.evaluate.protocols.few import PENALTY, drawn
from pirl.storage.folder import Folder
from tests.conftest import GlooPool
from tests.evaluate.pictures import config_of, labels_of, subject_of


@pytest.mark.parametrize("step", [1e-9, 0.5, 100.0])
def test_area_is_that_of_scikit_learn(step: float) -> None:
    """Rounded to steps: no ties, many, and all the same."""
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    positive = random.random(200) < 0.3
    score = np.round((random.normal(size=200) + positive) / step) * step
    assert area(score, positive) == pytest.approx(roc_auc_score(positive, score), abs=1e-12)
    assert np.isnan(area(score, np.zeros(200, bool)))
    assert np.isnan(area(score, np.ones(200, bool)))


def test_scores_are_those_of_scikit_learns_classifier() -> None:
    from sklearn.linear_model import LogisticRegression

    random = torch.Generator().manual_seed(0)
    y = torch.randint(2, (120,), generator=random)
    x = torch.randn(120, 6, generator=random) * 3 + y[:, None] + 2
    test = torch.randn(50, 6, generator=random)
    found = scores(x, y, test, PENALTY)
    mean, std = x.mean(0), x.std(0)
    # Two rows of weights, w and -w, share the penalty: that of their difference is half of it.
    reference = LogisticRegression(C=2 / (PENALTY * len(x)), tol=1e-8, max_iter=10_000)
    reference.fit(((x - mean) / std).numpy(), y.numpy())
    expected = reference.decision_function(((test - mean) / std).numpy())
    # The search ends at a gradient of 1e-4, and the least curvature is that of the penalty, 1e-2.
    np.testing.assert_allclose(found.numpy(), expected, atol=0.05)
    assert np.corrcoef(found.numpy(), expected)[0, 1] > 0.9999


def test_measures_all_labels_and_few() -> None:
    from sklearn.metrics import roc_auc_score

    subject = subject_of(None, config_of(), limit=300)
    outcome = measure(subject, AUC(positive="3", per_class=(4, 8), draws=3))
    assert subject.test is not None
    known = torch.tensor(labels_of(subject.train, 320)) == 3
    asked = torch.tensor(labels_of(subject.test, 320)) == 3
    names = ["res5, all labels", "res5, 4 a class", "res5, 8 a class"]
    assert [each.name for each in outcome.measurements] == names
    for trained, value in ((True, "value"), (False, "random")):
        x, test = (subject.features(split, trained=trained).taps["res5"] for split in ("train", "test"))
        whole = roc_auc_score(asked.numpy(), scores(x, known.long(), test, None).numpy())
        assert getattr(outcome.measurements[0], value) == pytest.approx(whole, abs=1e-9)
        rows = [drawn(known.long(), 4, draw) for draw in range(3)]
        assert all(int(known[each].sum()) == 4 and len(each) == 8 for each in rows)
        few = [roc_auc_score(asked.numpy(), scores(x[r], known[r].long(), test, PENALTY).numpy()) for r in rows]
        assert getattr(outcome.measurements[1], value) == pytest.approx(np.mean(few), abs=1e-9)
        if trained:
            assert outcome.measurements[1].deviation == pytest.approx(np.std(few, ddof=1), abs=1e-9)
    low, high = outcome.measurements[0].interval or (1, 0)
    assert low < outcome.measurements[0].value < high
    assert outcome.details["positive"] == "3"
    assert outcome.details["of_test"]["positive_images"] == int(asked.sum())


def _outcome() -> Outcome:
    return measure(subject_of(None, config_of()), AUC(positive="3", draws=2))


def test_the_same_on_all_ranks(run_ranks: GlooPool) -> None:
    alone = _outcome()
    for found in run_ranks(2, _outcome):
        assert found == alone


def data(folder: Path, classes: list[str], labels: Sequence[int | None]) -> Dataset:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "PNG")
    with ShardWriter(Folder(str(folder)), classes=classes, seed=0, source="a test") as writer:
        for label in labels:
            writer.add(file.getvalue(), label)
    return open_dataset(str(folder))


def test_of_two_classes_the_second_is_looked_for(tmp_path: Path) -> None:
    two = data(tmp_path, ["benign", "malignant"], [0, 1])
    assert number_of(AUC(), two) == 1
    assert number_of(AUC(positive="benign"), two) == 0
    refuse(AUC(), two, two)


def test_a_class_that_is_not_named_or_not_there_is_refused(tmp_path: Path) -> None:
    three = data(tmp_path / "three", ["a", "b", "c"], [0, 1, 2])
    with pytest.raises(ConfigError, match=r"add --auc.positive NAME. Classes: a, b, c$"):
        refuse(AUC(), three, three)
    with pytest.raises(ConfigError, match=r"--auc.positive d is no class of .*three: Classes: a, b, c$"):
        refuse(AUC(positive="d"), three, three)
    many = data(tmp_path / "many", [f"n{number}" for number in range(30)], range(30))
    with pytest.raises(ConfigError, match="n19 and 10 more"):
        refuse(AUC(), many, many)


def test_other_classes_in_the_test_split_are_refused(tmp_path: Path) -> None:
    train = data(tmp_path / "train", ["a", "b"], [0, 1])
    test = data(tmp_path / "test", ["a", "c", "b"], [0, 1, 2])
    with pytest.raises(ConfigError, match=r"class 1 is b in .*train, and not in .*test: Classes: a, c, b$"):
        refuse(AUC(positive="b"), train, test)


@pytest.mark.parametrize("labels", [[0, 0, 2], [1, 1], [None, 1]])
def test_a_class_that_all_or_none_have_is_refused(tmp_path: Path, labels: list[int | None]) -> None:
    whole = data(tmp_path / "whole", ["a", "b", "c"], [0, 1, 2])
    part = data(tmp_path / "part", ["a", "b", "c"], labels)
    for pair in ((whole, part), (part, whole)):
        with pytest.raises(ConfigError, match=r"labelled images of .*part are b, and it takes some of both"):
            refuse(AUC(positive="b"), *pair)


def test_images_that_were_cut_off_are_not_counted(tmp_path: Path) -> None:
    """The class is in the data, and not among the images that are used."""
    subject = subject_of(None, config_of(), limit=64)
    subject.features("train").labels[:] = 2
    with pytest.raises(ConfigError, match=r"0 of the 64 labelled images of .* are 3"):
        measure(subject, AUC(positive="3"))
