"""Object detection: Faster R-CNN on the trunk, fine-tuned on PASCAL VOC (paper, Table 1).

The schedule is the paper's for VOC07 (12,500 steps, learning rate 0.003 for 16 images, a tenth of it from step 9,500)
with 4 images a step, so that one GPU does it in hours; `--detection.images-per-step 16` is the paper's own.
"""

import hashlib
from typing import Annotated

import torch
from pydantic import Field

from pirl import dist
from pirl.data.dataset import Dataset
from pirl.errors import ConfigError
from pirl.evaluate.countdown import Countdown
from pirl.evaluate.features import rows_of
from pirl.evaluate.measurement import Measurement, Outcome
from pirl.evaluate.store import checksum
from pirl.evaluate.subject import Subject
from pirl.evaluate.voc.annotation import VocObject
from pirl.evaluate.voc.box_precision import Boxes, BoxPrecision, box_precision
from pirl.evaluate.voc.box_training import BoxSchedule, Kept, pixels, train_boxes
from pirl.evaluate.voc.voc_folder import VocSplit
from pirl.sections import Count, Positive, Section, Share


class Detection(Section):
    """Faster R-CNN (C4) fine-tuned on the boxes of a PASCAL VOC folder: AP, AP50 and AP75."""

    iterations: Count = 12_500
    """Steps; the paper has 25,000 for VOC07+12."""
    images_per_step: Count = 4
    """Over all ranks; 16 in the paper."""
    lr: Positive = 0.003
    """Learning rate for 16 images a step, and in proportion to them for others."""
    warmup: Share = 0.04
    """Share of the steps in which it grows from a third."""
    drop: Share = 0.76
    """Share of the steps after which it is a tenth."""
    short_side: tuple[Annotated[int, Field(ge=32)], ...] = tuple(range(480, 801, 32))
    """Pixels of the short side of an image: one is drawn in training, the last is for testing."""
    regions: Count = 512
    """Of an image, that train res5."""
    checkpoint_every: Count = 500
    """Steps after which the detector is kept, so that the same command goes on."""
    random: bool = False
    """Whether the network with random weights is fine-tuned too, which takes as long again."""


def refuse(settings: Detection, train: Dataset, test: Dataset | None) -> None:
    """Raises ConfigError for an annotation that is missing or broken, by the name of its file."""
    for split in (train, test):
        if isinstance(split, VocSplit):
            split.objects()


def measure(subject: Subject, settings: Detection) -> Outcome:
    """AP, AP50 and AP75 on the test split, without an interval: to resample them would take hours."""
    train, test = subject.train, subject.test
    if not isinstance(train, VocSplit) or not isinstance(test, VocSplit):
        raise ConfigError("detection needs a folder of PASCAL VOC: --data VOCdevkit/VOC2007")
    trunks = subject.trunks if settings.random else (True,)
    known, counted = (split.objects()[: rows_of(split, subject.limit)] for split in (train, test))
    found = [_of_trunk(subject, settings, trained, (train, known), (test, counted)) for trained in trunks]
    if subject.scratch is not None and dist.rank() == 0:
        subject.scratch.remove(*(_file(trained) for trained in (True, False)))
    values = [(each.ap, each.ap50, each.ap75) for each, _ in found]
    return Outcome(
        [
            Measurement(name, value, values[1][column] if len(values) > 1 else None)
            for column, (name, value) in enumerate(zip(("AP", "AP50", "AP75"), values[0], strict=True))
        ],
        {"ap_of_classes": found[0][0].of_classes, "losses": found[0][1], "train_images": len(known)},
    )


Annotations = tuple[VocSplit, list[list[VocObject]]]


def _of_trunk(
    subject: Subject, settings: Detection, trained: bool, train: Annotations, test: Annotations
) -> tuple[BoxPrecision, list[tuple[int, float]]]:
    from pirl.evaluate.voc.detector import detector  # which takes a second to import

    trunk = subject.trunk if trained else subject.untrained
    assert trunk is not None
    (images, known), device = train, subject.device
    with torch.random.fork_rng([]):
        torch.manual_seed(subject.seed)  # of the new layers: the same on every rank
        network = detector(trunk, len(images.classes), settings.short_side, settings.regions).to(device)
    about = [
        checksum(trunk),
        images.fingerprint,
        known,
        settings.model_dump_json(exclude={"checkpoint_every", "random"}),
    ]
    key = hashlib.sha256(repr([*about, subject.seed]).encode()).hexdigest()
    kept = Kept(subject.scratch, _file(trained), key, settings.checkpoint_every)
    batch, steps = settings.images_per_step, settings.iterations
    schedule = BoxSchedule(steps, batch, settings.lr * batch / 16, *_at(settings))
    losses = train_boxes(network, images, known, schedule, subject.seed, device, kept, subject.say)
    found = _found(subject, network, test[0], len(test[1]))
    return box_precision(found, test[1], images.classes), losses


def _at(settings: Detection) -> tuple[int, int]:
    return round(settings.warmup * settings.iterations), round(settings.drop * settings.iterations)


def _found(subject: Subject, network: torch.nn.Module, split: VocSplit, rows: int) -> dict[int, Boxes]:
    """The boxes in each image, every rank looking at some; a collective."""
    network.eval()
    ids = range(dist.rank(), rows, dist.world_size())
    countdown = Countdown(subject.say, f"boxes in {split.uri}, on this rank", len(ids))
    own: dict[str, Boxes] = {}
    for id in ids:
        with torch.inference_mode():
            (seen,) = network([pixels(split, id).to(subject.device)])
        parts = [seen["boxes"], seen["scores"][:, None], seen["labels"][:, None] - 1]
        own[str(id)] = torch.cat([part.double().cpu() for part in parts], 1).numpy()
        countdown.add(1)
    boxes = dist.all_gather_dicts(own)
    return {id: boxes[str(id)] for id in range(rows)}


def _file(trained: bool) -> str:
    return f"detector-{'trained' if trained else 'random'}.pt"
