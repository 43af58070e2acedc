"""Accuracy with a share of the labels (PIRL, section 4.3): the whole network, fine-tuned to that share."""

from typing import Annotated

from pydantic import Field

from pirl.data.dataset import Dataset
from pirl.evaluate.measurement import Measurement, Outcome
from pirl.evaluate.protocols.finetune import tuned
from pirl.evaluate.sgd.fitting import Schedule, check_classes
from pirl.evaluate.sgd.subset import labels_of, stratified, written
from pirl.evaluate.sgd.unfinished import forget
from pirl.evaluate.subject import Subject
from pirl.sections import Count, Positive, Section

DROPS = (3 / 7,)
"""After epoch 30 of 70."""


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


def refuse(settings: Semi, train: Dataset, test: Dataset | None) -> None:
    """Raises ConfigError for images of one class."""
    check_classes(train)


def measure(subject: Subject, settings: Semi) -> Outcome:
    """Top-1 and top-5 for each share, from the trained weights and from random ones."""
    schedule = Schedule(settings.epochs, settings.lr, settings.batch, 0.0, DROPS)
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
