"""Distances of f and g against one image at a time."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pirl.config import Config
from pirl.data.dataset import Dataset
from pirl.errors import ConfigError
from pirl.evaluate import pairs
from pirl.evaluate.evaluate import PROTOCOLS
from pirl.evaluate.measurement import Outcome
from pirl.evaluate.pairs import FRESH, Pairs, by_trunk, views_of
from pirl.evaluate.protocols.invariance import PICTURE, Invariance, measure, refuse
from pirl.loading.color import color_and_normalize, normalize
from pirl.loading.crops import plain_view
from pirl.loading.decode import decode
from pirl.loading.views import Views, sample_rng
from pirl.pretext import PRETEXTS
from pirl.runs.checkpoint import load_network
from pirl.runs.stored_permutations import made_permutations
from pirl.storage.folder import Folder
from pirl.train import first_state
from tests.conftest import GlooPool
from tests.evaluate.pictures import CPU, config_of, pixels_of, subject_of

IMAGES, TRANSFORMS = 9, 2


def image(dataset: Dataset, id: int) -> Tensor:
    number, row = dataset.group_of(id)
    return decode(dataset.read_group(number).images[row])


def loop(dataset: Dataset, config: Config, network: Any, task: str, seed: int) -> list[list[float]]:
    """Distances of each image to its transforms and to those of the next image, computed one by one."""
    permutations = made_permutations(config) if PRETEXTS[task].shuffles else None
    views = Views(config.data.image_size, config.augment, PRETEXTS[task], config.pretext.crop_min, permutations)
    # Without heads a transform is the mean of its parts.
    f, g = (network.f, network.g) if hasattr(network, "g") else ((lambda x: x), (lambda x: x.mean(0, keepdim=True)))
    images, transforms = [], []
    for id in range(IMAGES):
        pixels = image(dataset, id)
        images.append(F.normalize(f(network.trunk(normalize(plain_view(pixels, 16)[None]))), dim=1)[0])
        for number in range(TRANSFORMS):
            sample = views(pixels, sample_rng(seed, FRESH + number, id))
            view = sample.image[None] if sample.pretext is None else sample.pretext
            color = sample.image_color[None] if sample.pretext_color is None else sample.pretext_color
            transforms.append(F.normalize(g(network.trunk(color_and_normalize(view, color))), dim=1)[0])
    found = []
    for step in (0, 1):
        found.append(
            [
                math.dist(images[id].tolist(), transforms[(id + step) % IMAGES * TRANSFORMS + number].tolist())
                for number in range(TRANSFORMS)
                for id in range(IMAGES)
            ]
        )
    return found


def check(outcome: Outcome, expected: list[list[float]], random: list[list[float]]) -> None:
    by_name = {each.name: each for each in outcome.measurements}
    for at, kind in enumerate(("own", "other")):
        for name, value in (
            ("mean", np.mean),
            ("median", np.median),
            ("10 %", lambda x: np.quantile(x, 0.1)),
            ("90 %", lambda x: np.quantile(x, 0.9)),
        ):
            found = by_name[f"distance of {kind} transform, {name}"]
            # float32: a convolution may add in another order for another batch size.
            assert found.value == pytest.approx(float(value(expected[at])), abs=1e-4)
            assert found.random == pytest.approx(float(value(random[at])), abs=1e-4)
        low, high = by_name[f"distance of {kind} transform, mean"].interval or (1, 0)
        assert low < np.mean(expected[at]) < high


@pytest.mark.parametrize("task", ["jigsaw", "rotation"])
@torch.no_grad()
def test_distances_of_the_heads_equal_a_loop(tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "BATCH", 4)  # three batches
    config = config_of({"pretext.name": task})
    subject = subject_of(tmp_path / "checkpoint_000000007", config, seed=3)
    outcome = measure(subject, Invariance(images=IMAGES, transforms=TRANSFORMS))
    assert subject.test is not None
    network = first_state(config, subject.test, CPU).network
    random = loop(subject.test, config, network, task, 3)
    load_network(Folder(str(tmp_path / "checkpoint_000000007")), network)
    expected = loop(subject.test, config, network, task, 3)
    check(outcome, expected, random)
    assert outcome.details["transform"] == task
    assert (outcome.details["split"], outcome.details["images"]) == ("test", IMAGES)
    assert "f(image) and g(transform)" in outcome.details["embeddings"]
    middles = (np.arange(80) + 0.5) / 40
    for at, kind in enumerate(("own", "other")):
        counts = outcome.details["histogram"][kind]
        assert sum(counts) == IMAGES * TRANSFORMS
        assert np.average(middles, weights=counts) == pytest.approx(np.mean(expected[at]), abs=0.0125)  # half a part
    assert pixels_of(outcome.files[PICTURE]).std() > 10  # something is drawn


@torch.no_grad()
@pytest.mark.parametrize("what", ["file", "npid", "jigsaw", "rotation"])
def test_distances_of_res5_where_there_is_no_head_g(tmp_path: Path, what: str) -> None:
    """Of a covariant network between the image and what its pretext task made of it."""
    config, task = config_of({"loss.pretext_weight": 0, "augment.hue": 0.2}), "none"
    if what in PRETEXTS:
        task, orders = what, 20 if what == "jigsaw" else None
        config = config_of({"method.name": "covariant", "pretext.name": what, "pretext.permutations": orders})
    subject = subject_of(tmp_path / "checkpoint_000000007" if what == "npid" else None, config, seed=3)
    subject.config = subject.config if task == "none" else config
    outcome = measure(subject, Invariance(images=IMAGES, transforms=TRANSFORMS))
    own = config if what != "file" else Config().model_copy(update={"data": config.data})
    assert subject.test is not None
    subject.trunk.eval()
    assert subject.untrained is not None

    class Network:
        trunk = subject.trunk

    class Random:
        trunk = subject.untrained.eval()

    check(
        outcome,
        loop(subject.test, own, Network, task, 3),
        loop(subject.test, own, Random, task, 3),
    )
    assert "res5" in outcome.details["embeddings"]
    assert outcome.details["transform"] == (what if task != "none" else "random crop, flip and colour")


def _measurements(folder: Path) -> list[Any]:
    """On all ranks; batch norm makes a row depend on its batch."""
    subject = subject_of(None, config_of({"model.norm": "batch"}), test=False)
    subject.config = config_of({"model.norm": "batch"})
    subject.checkpoint = Folder(str(folder))
    return measure(subject, Invariance(images=150, transforms=1)).measurements


def test_distances_do_not_depend_on_the_ranks(run_ranks: GlooPool, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint_000000007"
    subject_of(folder, config_of({"model.norm": "batch"}))
    alone = _measurements(folder)
    for found in run_ranks(2, _measurements, folder):
        assert found == alone  # the same batches: no tolerance


def test_an_image_that_is_damaged_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(None, config_of())
    assert subject.test is not None
    pair = Pairs(subject.test, views_of(config_of(), 16, pretext=False), CPU, 0, skip=True)
    whole = pair.rows(20, 1, by_trunk(subject.trunk))
    load = Dataset.load_group

    def damaged(self: Dataset, number: int) -> Any:
        group = load(self, number)
        group.corrupt[11] = "damaged"
        return group

    monkeypatch.setattr(Dataset, "load_group", damaged)
    rows = pair.rows(20, 1, by_trunk(subject.trunk))
    assert rows[:, 11].isnan().all()
    kept = [id for id in range(20) if id != 11]
    # float32: a convolution may add in another order for another batch size.
    torch.testing.assert_close(rows[:, kept], whole[:, kept], rtol=0, atol=1e-5)
    outcome = measure(subject_of(None, config_of(), skip=True), Invariance(images=20, transforms=1))
    assert outcome.details["images"] == 19


def test_weights_that_make_no_numbers_are_refused() -> None:
    subject = subject_of(None, config_of())
    with torch.no_grad():
        subject.trunk.conv1.weight.fill_(1e38)
    with pytest.raises(ConfigError, match="no numbers"):
        measure(subject, Invariance(images=10))


def test_one_image_is_refused() -> None:
    subject = subject_of(None, config_of())
    with pytest.raises(ConfigError, match=r"--invariance\.images 2 or more"):
        refuse(Invariance(images=1), subject.train, None)
    refuse(Invariance(images=2), subject.train, None)
    assert not PROTOCOLS["invariance"].labels
