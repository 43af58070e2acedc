"""Accuracy with few labels, against scikit-learn's classifier of the same rows."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pirl.data.dataset import open_dataset
from pirl.errors import ConfigError
from pirl.evaluate.protocols.few import PENALTY, Few, drawn, measure, refuse
from pirl.evaluate.reports import as_text
from tests.evaluate.pictures import config_of, subject_of


def test_each_draw_is_scikit_learns_classifier_of_so_many_rows_of_each_class() -> None:
    subject = subject_of(None, config_of(), limit=256, seed=4)
    (found,) = measure(subject, Few(per_class=(3,), draws=3)).measurements
    train, test = subject.labelled("train"), subject.labelled("test")
    hits = []
    for draw in range(3):
        rows = drawn(train.labels, 3, 4 + draw)
        assert np.bincount(train.labels[rows]).tolist() == [3] * 10
        x, y = train.taps["res5"][rows].double().numpy(), train.labels[rows].numpy()
        mean, std = x.mean(0), x.std(0, ddof=1).clip(1e-6)
        model = LogisticRegression(C=1 / (PENALTY * len(x)), tol=1e-8, max_iter=10_000).fit((x - mean) / std, y)
        hits.append(model.predict((test.taps["res5"].double().numpy() - mean) / std) == test.labels.numpy())
    shares = np.mean(hits, axis=1)
    # One of 256 images may lie on the border, where float32 and float64 differ.
    assert found.value == pytest.approx(shares.mean(), abs=1 / 256)
    assert found.deviation == pytest.approx(shares.std(ddof=1), abs=1 / 256)
    assert found.interval is not None
    # Resamples of the images, each as it is on average over the draws: two standard errors to each side.
    error = np.mean(hits, axis=0).std() / np.sqrt(len(test.labels))
    assert found.interval == pytest.approx((shares.mean() - 2 * error, shares.mean() + 2 * error), abs=0.01)
    line = as_text({"few": [found]}).splitlines()[1]
    assert (
        f" {100 * found.interval[0]:.1f} to {100 * found.interval[1]:.1f}  ± {100 * found.deviation:.1f} over" in line
    )


def test_more_than_any_class_has_is_refused_where_it_was_typed() -> None:
    train = open_dataset("digits")
    refuse(Few(), train, None)
    assert train.class_rows is not None
    most = max(train.class_rows)
    refuse(Few(per_class=(most,)), train, None)
    with pytest.raises(ConfigError, match=rf"--few\.per-class {most + 1} is more than the {most} images"):
        refuse(Few(per_class=(most + 1,)), train, None)
