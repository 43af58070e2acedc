"""The whole network, fine-tuned with all labels: how good a beginning its weights are."""

from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from pirl.data.dataset import Dataset
from pirl.evaluate.measurement import Measurement, Outcome
from pirl.evaluate.protocols.linear_sgd import DROPS, first_linear
from pirl.evaluate.sgd.counting import both, right
from pirl.evaluate.sgd.fitting import Schedule, check_classes, fit
from pirl.evaluate.sgd.norms import with_global_norms
from pirl.evaluate.sgd.unfinished import forget
from pirl.evaluate.subject import Subject
from pirl.sections import Count, Positive, Section

NAME = "finetune"
WEIGHT_DECAY = 1e-4


class Finetune(Section):
    """The whole network, fine-tuned with all labels."""

    epochs: Count = 28
    """The learning rate falls to a tenth after 2/7, 4/7 and 6/7 of them."""
    lr: Positive = 0.01
    """For a batch of 256; scaled to the batch."""
    batch: Count = 256
    """Images in a step, over all workers."""


def refuse(settings: Finetune, train: Dataset, test: Dataset | None) -> None:
    """Raises ConfigError for images of one class."""
    check_classes(train)


def measure(subject: Subject, settings: Finetune) -> Outcome:
    """Top-1 and top-5, from the trained weights and from random ones."""
    schedule = Schedule(settings.epochs, settings.lr, settings.batch, WEIGHT_DECAY, DROPS)
    measured, done = tuned(subject, NAME, "fine-tuned", subject.train, schedule)
    forget(subject, NAME)
    return Outcome(measured, {"fit": done})


def tuned(
    subject: Subject, name: str, title: str, dataset: Dataset, schedule: Schedule
) -> tuple[list[Measurement], dict[str, int | float]]:
    """Fine-tunes copies of the networks, each with a new classifier, in one pass over the images; a collective.

    Args:
        name: As of `fit`.
        title: Of the measurements.

    Returns:
        The measurements, and what `fit` says.
    """
    classes = len(subject.train.labels or [])
    trunks = [deepcopy(subject.trunk)]
    if subject.untrained is not None:
        trunks.append(deepcopy(subject.trunk))  # of the same kind: a run's may have frozen norms
        trunks[1].load_state_dict(subject.untrained.state_dict())
    each = [nn.Sequential(trunk, first_linear(trunk.out_channels, classes, subject.seed)) for trunk in trunks]
    nets = with_global_norms(nn.ModuleList(each).to(subject.device)).train()
    assert isinstance(nets, nn.ModuleList)
    score = partial(scores, nets)
    done = fit(subject, name, nets, score, dataset, schedule)
    nets.eval()
    found = right(subject, name, score, len(nets), ten_crops=False)
    return both([title], found, classes, subject.seed), done


def scores(nets: nn.ModuleList, views: Tensor) -> Tensor:
    """Of views (B, 3, S, S), the scores of each network: (K, B, C)."""
    return torch.stack([net(views) for net in nets])
