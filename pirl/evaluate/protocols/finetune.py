"""The whole network, fine-tuned: with all labels, and with a share of them (PIRL, section 4.3)."""

from copy import deepcopy
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from pirl.data.dataset import Dataset
from pirl.evaluate.measurement import Measurement, Outcome
from pirl.evaluate.protocols.linear_sgd import DROPS, first_linear
from pirl.evaluate.sgd.counting import both, right
from pirl.evaluate.sgd.fitting import Schedule, check_classes, fit
from pirl.evaluate.sgd.norms import with_global_norms
from pirl.evaluate.sgd.subset import labels_of, stratified, written
from pirl.evaluate.sgd.unfinished import forget
from pirl.evaluate.subject import Subject
from pirl.sections import Count, Positive, Section

NAME = "finetune"
WEIGHT_DECAY = 1e-4
SEMI_DROPS = (3 / 7,)
"""After epoch 30 of 70."""


class Finetune(Section):
    """The whole network, fine-tuned with all labels."""

    epochs: Count = 28
    """The learning rate falls to a tenth after 2/7, 4/7 and 6/7 of them."""
    lr: Positive = 0.01
    """For a batch of 256; scaled to the batch."""
    batch: Count = 256
    """Images in a step, over all workers."""


class Semi(Section):
    """The whole network, fine-tuned with the labels of some images of each class."""

    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.01, 0.1)
    """Of the images of each class, one measurement for each; at least one image of a class."""
    epochs: Count = 70
    """The learning rate falls to a tenth after 3/7 of them."""
    lr: Positive = 0.01
    """For a batch of 256; scaled to the batch."""
    batch: Count = 256
    """Images in a step, over all workers; no more than there are."""


def refuse(settings: Finetune | Semi, train: Dataset, test: Dataset | None) -> None:
    """Raises ConfigError for images of one class."""
    check_classes(train)


def measure(subject: Subject, settings: Finetune) -> Outcome:
    """Top-1 and top-5, from the trained weights and from random ones."""
    schedule = Schedule(settings.epochs, settings.lr, settings.batch, WEIGHT_DECAY, DROPS)
    measured, done = tuned(subject, NAME, "fine-tuned", subject.train, schedule)
    forget(subject, NAME)
    return Outcome(measured, {"fit": done})


def measure_semi(subject: Subject, settings: Semi) -> Outcome:
    """Top-1 and top-5 for each share, from the trained weights and from random ones."""
    schedule = Schedule(settings.epochs, settings.lr, settings.batch, 0.0, SEMI_DROPS)
    labels = labels_of(subject)
    measured: list[Measurement] = []
    details, names = {}, []
    for share in settings.shares:
        names.append(f"semi-{share:g}")
        with written(subject, stratified(labels, share, subject.seed), names[-1]) as subset:
            found, done = tuned(subject, names[-1], f"{100 * share:g} % of the labels", subset, schedule)
        measured += found
        details[f"{share:g}"] = done
    forget(subject, *names)
    return Outcome(measured, {"fits": details})


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
