"""Networks and heads that are fitted to labels by SGD: a loop that is resumed after a kill, over all ranks.

Order and views of the images are functions of (seed, epoch, id), gradients and batch norm those of the global batch:
what is fitted depends on the number of ranks by rounding alone.
"""

from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from pirl import dist
from pirl.config import Config
from pirl.data.dataset import Dataset
from pirl.data.order import Order
from pirl.errors import ConfigError, TrainingDiverged
from pirl.evaluate.countdown import Countdown
from pirl.evaluate.features import group_count
from pirl.evaluate.sgd.counting import Scores, images_of
from pirl.evaluate.sgd.unfinished import Unfinished
from pirl.evaluate.store import checksum
from pirl.evaluate.subject import Subject
from pirl.loading.loader import Loader
from pirl.loading.views import Views
from pirl.pretext import PRETEXTS
from pirl.sections import Augment, Cluster, Data
from pirl.wording import counted

BATCH = 256
"""Images for which learning rates are given; they are scaled to the batch that is used."""
MOMENTUM = 0.9
ROUND = 8
"""A batch that is cut to the number of images is a multiple of it, so that several ranks can share it."""
AUGMENT = Augment(brightness=0, contrast=0, saturation=0, hue=0, gray=0)
"""Random resized crops, mirrored half of the time; colours stay."""


@dataclass(frozen=True)
class Schedule:
    """How something is fitted.

    Attributes:
        epochs: Passes over the images.
        lr: Of a batch of 256.
        batch: Images in a step, over all ranks.
        weight_decay: Not applied to norms.
        drops: At which shares of the steps the learning rate falls to a tenth.
    """

    epochs: int
    lr: float
    batch: int
    weight_decay: float
    drops: tuple[float, ...]

    def lr_at(self, share: float) -> float:
        """After a share of the steps, scaled to the batch."""
        return self.lr * self.batch / BATCH * 0.1 ** sum(share >= drop for drop in self.drops)


def check_classes(train: Dataset) -> None:
    """Raises ConfigError where there is nothing to tell apart."""
    there = [name for number, name in enumerate(train.labels or []) if not train.class_rows or train.class_rows[number]]
    if len(there) < 2:
        raise ConfigError(
            f"{train.uri} has images of one class, {there[0] if there else '(none)'}, and a classifier needs two: "
            "name other images with --data URI"
        )


def for_images(schedule: Schedule, rows: int) -> Schedule:
    """The schedule with a batch of no more than `rows` images."""
    most = rows - rows % ROUND if rows >= ROUND else rows
    return schedule if schedule.batch <= rows else replace(schedule, batch=most)


def order_of(subject: Subject, dataset: Dataset, batch: int, option: str) -> Order:
    """How the images are dealt; raises ConfigError for more ranks than can share a batch."""
    config = Config(data=Data(batch_size=batch), cluster=Cluster(workers=1))
    if dist.world_size() > config.streams:
        raise ConfigError(
            f"{dist.world_size()} workers are more than the {config.streams} that can share a batch of {batch} images: "
            f"use fewer workers, or another {option}"
        )
    starts = dataset.starts[: group_count(dataset, subject.limit) + 1]
    return Order(starts, subject.seed, config.streams, batch, config.window_groups)


def fit(
    subject: Subject, name: str, nets: nn.ModuleList, scores: Scores, dataset: Dataset, schedule: Schedule
) -> dict[str, int | float]:
    """Fits K classifiers, each to its own cross-entropy, in one pass over the images for all; a collective.

    Images without a label do not count. After each epoch the state is saved in `subject.scratch`, where the same
    request finds it.

    Args:
        name: Of the protocol, with what tells its fits apart (`semi-0.1`).
        nets: What is fitted, in training mode; equal on all ranks.
        scores: What they, and whatever stays fixed, make of views.

    Returns:
        What was done, for the report: `images`, `epochs`, `steps`, `batch`, `lr`.

    Raises:
        ConfigError: There are more ranks than can share a batch.
        ConfigError: A step would have a single image.
        TrainingDiverged: A weight is no number.
    """
    rows, option = images_of(subject, name, dataset), f"--{name.partition('-')[0]}"
    schedule = for_images(schedule, rows)
    order = order_of(subject, dataset, schedule.batch, f"{option}.batch")
    steps = order.steps_per_epoch
    if rows // steps < 2:
        raise ConfigError(
            f"{option}.batch {schedule.batch} leaves a step a single one of {rows:,} images, and batch norm needs "
            "several: use a larger one"
        )
    dealt = f"{counted(schedule.epochs * steps, 'step')} of up to {schedule.batch}"
    subject.say(f"{name}: {counted(schedule.epochs, 'epoch')} of {counted(rows, 'image')}, {dealt}")
    optimizer = _optimizer(nets, schedule)
    unfinished = Unfinished(subject, name, _about(subject, nets, dataset, order, schedule), _tensors(nets, optimizer))
    done = unfinished.load()
    progress = Countdown(subject.say, name, (schedule.epochs - done) * rows)
    for batch in _batches(subject, dataset, order, done * steps, schedule.epochs * steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr_at(batch.step / (schedule.epochs * steps))
        _step(nets, scores(batch.views(subject.device)[0]), batch.labels.to(subject.device), optimizer)
        progress.add(len(batch.ids))
        if (batch.step + 1) % steps == 0:
            epoch = (batch.step + 1) // steps
            if not all(bool(parameter.isfinite().all()) for parameter in nets.parameters()):
                told = f"{name}: weights are no numbers after epoch {epoch}: use {option}.lr below {schedule.lr:g}"
                raise TrainingDiverged(told, batch.step + 1)
            unfinished.save(epoch)
    counts = {"images": rows, "epochs": schedule.epochs, "steps": schedule.epochs * steps, "batch": order.batch_size}
    return {**counts, "lr": schedule.lr_at(0)}


def _step(nets: nn.ModuleList, scores: Tensor, labels: Tensor, optimizer: SGD) -> None:
    """One step down the mean loss of the global batch, of each classifier."""
    # For torch classes stand in dimension 1, and the K classifiers are K places of an image.
    places = labels[:, None].expand(-1, len(scores))
    loss = F.cross_entropy(scores.permute(1, 2, 0), places, ignore_index=-1, reduction="sum")
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in nets.parameters() if p.grad is not None]
    count = (labels >= 0).sum().to(loss)[None]
    # One message, and no ranks' means: their shares differ.
    summed = dist.all_reduce_sum(torch.cat([*(g.flatten() for g in gradients), count]))
    summed /= summed[-1].clamp_min(1).clone()
    pieces = summed.split_with_sizes([*(g.numel() for g in gradients), 1])
    for gradient, piece in zip(gradients, pieces, strict=False):
        gradient.copy_(piece.view_as(gradient))
    optimizer.step()


def _optimizer(nets: nn.ModuleList, schedule: Schedule) -> SGD:
    norms = [p for m in nets.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) for p in m.parameters()]
    ids = {id(p) for p in norms}
    others = [p for p in nets.parameters() if id(p) not in ids]
    groups = [{"params": others, "weight_decay": schedule.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    optimizer = SGD(groups, lr=schedule.lr, momentum=MOMENTUM, nesterov=True)
    for parameter in nets.parameters():  # zeros give the same first step as none, and can be saved
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _tensors(nets: nn.ModuleList, optimizer: SGD) -> list[Tensor]:
    """All that changes."""
    return [*nets.state_dict().values(), *(optimizer.state[p]["momentum_buffer"] for p in nets.parameters())]


def _about(
    subject: Subject, nets: nn.ModuleList, dataset: Dataset, order: Order, schedule: Schedule
) -> dict[str, object]:
    """What a state must be of to be gone on from."""
    trunks = [checksum(trunk) for trunk in (subject.trunk, subject.untrained) if trunk is not None]
    names = [f"{name} {tuple(value.shape)}" for name, value in nets.state_dict().items()]
    sides = [subject.image_size, order.rows, subject.seed, subject.skip]
    how = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(schedule).items()}
    return {"trunks": trunks, "tensors": names, "data": dataset.fingerprint, "images": sides, "schedule": how}


def _batches(subject: Subject, dataset: Dataset, order: Order, first_step: int, last_step: int) -> Loader:
    return Loader(
        dataset,
        order,
        Views(subject.image_size, AUGMENT, PRETEXTS["none"], 1.0),
        seed=subject.seed,
        rank=dist.rank(),
        world_size=dist.world_size(),
        first_step=first_step,
        last_step=last_step,
        processes=subject.loader_processes,
        pin_memory=subject.device.type == "cuda",
        skip=subject.skip,
    )
