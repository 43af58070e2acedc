"""Neighbours against plain loops and scikit-learn, and the picture of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pirl.data.dataset import open_dataset
from pirl.errors import ConfigError
from pirl.evaluate.evaluate import PROTOCOLS
from pirl.evaluate.features import Features
from pirl.evaluate.measurement import Outcome
from pirl.evaluate.protocols import retrieval
from pirl.evaluate.protocols.retrieval import BORDER, GAP, PICTURE, SIDE, Retrieval, measure, nearest, refuse
from tests.conftest import GlooPool
from tests.digits import write_digits_to
from tests.evaluate.pictures import config_of, labels_of, pixels_of, subject_of

GREEN, RED, WHITE = (44, 160, 44), (214, 39, 40), (255, 255, 255)
STEP = SIDE + 2 * BORDER


def loop(queries: Tensor, keys: Tensor, k: int, *, alone: bool) -> tuple[list[list[float]], list[list[int]]]:
    cosines, places = [], []
    for number, query in enumerate(queries.double()):
        scored = []
        for place, key in enumerate(keys.double()):
            if not (alone and place == number):
                scored.append((float(query @ key / (query.norm() * key.norm())), place))
        best = sorted(scored, reverse=True)[:k]
        cosines.append([cosine for cosine, _ in best])
        places.append([place for _, place in best])
    return cosines, places


@pytest.mark.parametrize("alone", [False, True])
def test_neighbours_equal_a_loop(alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "CHUNK", 7)  # several chunks, the last one short
    keys = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 61)[:, None]
    queries = keys if alone else torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    cosines, places = nearest(queries, keys, 4, alone=alone)
    expected = loop(queries, keys, 4, alone=alone)
    assert places.tolist() == expected[1]
    torch.testing.assert_close(cosines, torch.tensor(expected[0]), rtol=0, atol=1e-6)  # float32


@pytest.mark.parametrize("test", [True, False])
def test_precision_is_that_of_scikit_learns_neighbours(test: bool) -> None:
    from sklearn.neighbors import NearestNeighbors

    subject = subject_of(None, config_of(), test=test)
    outcome = measure(subject, Retrieval(k=5, queries=3))
    data = subject.test or subject.train
    labels = {"train": np.array(labels_of(subject.train, 128)), "test": np.array(labels_of(data, 128))}
    values = []
    for trained in (True, False):
        keys = subject.features("train", trained=trained).taps["res5"].double().numpy()
        asked = subject.features("test" if test else "train", trained=trained).taps["res5"].double().numpy()
        found = NearestNeighbors(metric="cosine", algorithm="brute").fit(keys)
        if test:
            places = found.kneighbors(asked, 5, return_distance=False)
        else:
            places = found.kneighbors(None, 5, return_distance=False)  # none is its own neighbour
        values.append((labels["train"][places] == labels["test"][:, None]).mean())
    precision = outcome.measurements[0]
    assert precision.name == "res5, precision@5"
    # float32 cosines of near neighbours may be equal, and then either comes first: two of the 640.
    assert precision.value == pytest.approx(values[0], abs=2 / 640)
    assert precision.random == pytest.approx(values[1], abs=2 / 640)
    assert precision.interval is not None
    assert precision.interval[0] < precision.value < precision.interval[1]
    assert outcome.details["queries"]["split"] == ("test" if test else "train")


def frame(sheet: Any, row: int, column: int) -> tuple[int, ...]:
    """Colour of a border of the sheet; column 0 is the query."""
    x = column * STEP + (GAP if column else 0)
    return tuple(sheet[row * STEP + 1, x + STEP // 2].tolist())


def inside(sheet: Any, row: int, column: int) -> Any:
    x = column * STEP + (GAP if column else 0) + BORDER
    return sheet[row * STEP + BORDER :, x:][:SIDE, :SIDE].astype(int)


def test_picture_frames_neighbours_by_their_class() -> None:
    subject = subject_of(None, config_of())
    outcome = measure(subject, Retrieval(k=5, queries=6))
    sheet = pixels_of(outcome.files[PICTURE])
    assert sheet.shape == (6 * STEP, 6 * STEP + GAP, 3)
    assert subject.test is not None
    known, asked = labels_of(subject.train, 128), labels_of(subject.test, 128)
    colors = set()
    for row, (query, others) in enumerate(
        zip(outcome.details["queries"]["ids"], outcome.details["neighbours"], strict=True)
    ):
        assert frame(sheet, row, 0) == WHITE
        for column, other in enumerate(others):
            expected = GREEN if asked[query] == known[other] else RED
            assert frame(sheet, row, column + 1) == expected
            colors.add(expected)
    assert colors == {GREEN, RED}


def test_picture_shows_the_images() -> None:
    """The features of the training images make the query itself its nearest neighbour: both places show one image."""
    subject = subject_of(None, config_of(), random=False)
    subject.test = subject.train
    outcome = measure(subject, Retrieval(k=2, queries=4))
    sheet = pixels_of(outcome.files[PICTURE])
    for row, query in enumerate(outcome.details["queries"]["ids"]):
        assert outcome.details["neighbours"][row][0] == query
        assert np.array_equal(inside(sheet, row, 0), inside(sheet, row, 1))
        assert abs(inside(sheet, row, 0) - inside(sheet, row, 2)).mean() > 5
        number, at = subject.train.group_of(query)
        from pirl.loading.decode import decode

        image = decode(subject.train.read_group(number).images[at]).float()
        big = torch.nn.functional.interpolate(image[None], (SIDE, SIDE), mode="bicubic")[0].permute(1, 2, 0)
        assert abs(inside(sheet, row, 0) - big.numpy()).mean() < 2  # PIL's bicubic is a little sharper


def test_without_labels_there_is_a_picture_and_no_precision(tmp_path: Path) -> None:
    bare = open_dataset(write_digits_to(str(tmp_path / "bare"), {}))
    subject = subject_of(None, config_of(), test=False)
    subject.train = bare
    outcome = measure(subject, Retrieval(k=3, queries=2))
    assert [each.name for each in outcome.measurements] == ["res5, cosine of 3 neighbours"]
    sheet = pixels_of(outcome.files[PICTURE])
    assert {frame(sheet, row, column) for row in range(2) for column in range(4)} == {WHITE}
    for query, others in zip(outcome.details["queries"]["ids"], outcome.details["neighbours"], strict=True):
        assert query not in others


def test_images_without_a_class_count_neither_way() -> None:
    subject = subject_of(None, config_of(), random=False)
    whole = subject.features("test")
    half = torch.where(torch.arange(len(whole.labels)) < 64, whole.labels, -1)
    subject._held["test", True] = Features(whole.taps, half)
    found = measure(subject, Retrieval(k=5, queries=1)).measurements[0]
    subject._held["test", True] = Features({"res5": whole.taps["res5"][:64]}, whole.labels[:64])
    assert found == measure(subject, Retrieval(k=5, queries=1)).measurements[0]


def _outcome() -> Outcome:
    return measure(subject_of(None, config_of()), Retrieval(k=5, queries=3))


def test_the_same_on_all_ranks_and_by_seed(run_ranks: GlooPool) -> None:
    alone = _outcome()
    for found in run_ranks(2, _outcome):
        assert found == alone
    other = measure(subject_of(None, config_of(), seed=1), Retrieval(k=5, queries=3))
    assert other.details["queries"] != alone.details["queries"]
    assert other.measurements[0].value == alone.measurements[0].value


def test_more_neighbours_than_images_are_refused() -> None:
    train = open_dataset("digits")
    refuse(Retrieval(k=train.rows), train, train)
    with pytest.raises(ConfigError, match=f"use {train.rows} or less"):
        refuse(Retrieval(k=train.rows + 1), train, train)
    with pytest.raises(ConfigError, match=f"use {train.rows - 1} or less"):
        refuse(Retrieval(k=train.rows), train, None)
    assert not PROTOCOLS["retrieval"].labels
