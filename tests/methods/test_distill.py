"""Distillation: the loss beside a plain reference, and a teacher that stays as it is."""

import math

import pytest
import torch
import torch.nn.functional as F

from pirl.methods.distill import DistillStep, LinearClassifier, Teacher
from pirl.methods.models import Trunk, pool
from tests.methods.test_classify import B, step_of

CPU = torch.device("cpu")


def teacher(tap="res5", *, unit=False):
    torch.manual_seed(1)
    trunk = Trunk("resnet18", 8, "small")
    width = pool(trunk.eval().taps(torch.zeros(1, 3, 32, 32)))[tap].shape[1]
    return Teacher(trunk, LinearClassifier(torch.randn(7, width), torch.randn(7), tap, unit))


@pytest.mark.parametrize(("tap", "unit"), [("res5", False), ("res3", True)])
def test_the_loss_is_the_cross_entropy_with_the_softmax_of_the_teacher(tap, unit):
    classify, batch = step_of(method__name="supervised")
    own = teacher(tap, unit=unit)
    step = DistillStep(classify.config, classify.model, own, CPU)
    scores, terms = step.losses(batch, batch.ids)
    (view,) = batch.views(CPU)
    features = pool(own.trunk.taps(view))[tap]
    if unit:
        features = features / features.norm(dim=1, keepdim=True)
    targets = F.linear(features, own.weight, own.bias).softmax(1)
    for row, target, loss, same in zip(scores.tolist(), targets.tolist(), *terms.tolist(), strict=True):
        total = math.log(sum(math.exp(score) for score in row))
        expected = sum(share * (total - score) for share, score in zip(target, row, strict=True))
        assert loss == pytest.approx(expected, rel=1e-5)  # float32 scores of some units
        assert same == (row.index(max(row)) == target.index(max(target)))
    assert terms.shape == (2, B)


def test_the_teacher_does_not_learn():
    classify, batch = step_of(method__name="supervised")
    own = teacher()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    step = DistillStep(classify.config, classify.model, own, CPU)
    _, terms = step.losses(batch, batch.ids)
    (step.weights @ terms).sum().backward()
    assert not own.training
    assert all(not parameter.requires_grad for parameter in own.parameters())
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in step.model.parameters() if p.ndim > 1)
