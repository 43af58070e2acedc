"""Classifiers: their heads, their losses beside a plain reference, and images without a target."""

import math

import pytest
import torch

from pirl.config import Config, override
from pirl.loading.collate import collate
from pirl.loading.loader import Batch
from pirl.loading.views import Views, sample_rng
from pirl.methods.classify import Classifier, ClassifyStep
from pirl.permutations import permutation_set

B = 4
SMALL = {"optim.bf16": False, "model.width": 16, "data.image_size": 32}


def step_of(targets=None, **changes):
    """The step of a small network, and a batch of four images."""
    config = override(Config(), SMALL | {name.replace("__", "."): value for name, value in changes.items()})
    torch.manual_seed(0)
    network = Classifier(config, 7).to(memory_format=torch.channels_last)
    orders = permutation_set(0, config.permutations) if config.permutations else None
    views = Views(32, config.augment, config.second_view, 0.6, orders, with_image=config.has_image_view)
    images = torch.randint(256, (B, 3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    samples = [views(image, sample_rng(0, 0, id)) for id, image in enumerate(images)]
    part = collate(samples, list(range(B)), 0, [-1] * B, targets)
    ids, colors = torch.arange(B), [torch.from_numpy(color) for color in part.colors]
    batch = Batch(0, ids, [B], slice(0, B), [part], colors, ids, ids, 0, 0.0, torch.from_numpy(part.targets))
    return ClassifyStep(config, network, torch.device("cpu")), batch


METHODS = [
    {"method__name": "covariant", "pretext__permutations": 7},
    {"method__name": "covariant", "pretext__name": "rotation"},
    {"method__name": "supervised"},
]


@pytest.mark.parametrize("changes", METHODS)
def test_the_loss_is_the_cross_entropy_with_the_target(changes):
    step, batch = step_of([3, 0, 6, 1] if changes["method__name"] == "supervised" else None, **changes)
    scores, terms = step.losses(batch, batch.ids)
    assert scores.shape == (B, 7)
    assert terms.shape == (2, B)
    for row, target, loss, right in zip(scores.tolist(), batch.targets.tolist(), *terms.tolist(), strict=True):
        expected = math.log(sum(math.exp(score) for score in row)) - row[target]
        assert loss == pytest.approx(expected, rel=1e-5)  # float32 scores of some units
        assert right == (max(row) == row[target])
    (step.weights @ terms).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in step.model.parameters() if p.ndim > 1)


def test_a_jigsaw_is_nine_patches_and_no_image():
    step, batch = step_of(**METHODS[0])
    assert [tuple(view.shape) for view in batch.views(torch.device("cpu"))] == [(9 * B, 3, 9, 9)]
    assert step.model.classify.in_features == 9000
    assert step_of(**METHODS[1])[0].model.classify.in_features == step.model.trunk.out_channels


def test_scores_depend_on_the_places_of_patches():
    step, batch = step_of(**METHODS[0])
    step.model.eval()
    (view,) = batch.views(torch.device("cpu"))
    swapped = view.unflatten(0, (B, 9)).flip(1).flatten(0, 1)
    assert not torch.allclose(step.model(view), step.model(swapped))


def test_images_without_a_label_count_nothing():
    """And the others as much more, so that the mean over the batch is that over them."""
    whole, batch = step_of([3, 0, 6, 1], method__name="supervised")
    _, all_terms = whole.losses(batch, batch.ids)
    part, batch = step_of([3, -1, 6, -1], method__name="supervised")
    _, terms = part.losses(batch, batch.ids)
    torch.testing.assert_close(terms[:, [0, 2]], 2 * all_terms[:, [0, 2]])
    assert terms[:, [1, 3]].abs().max() == 0
    none, batch = step_of([-1] * B, method__name="supervised")
    assert none.losses(batch, batch.ids)[1].abs().max() == 0
