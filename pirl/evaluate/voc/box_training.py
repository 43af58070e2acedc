"""Trains a detector on the boxes of a split, on all ranks, and goes on where it was interrupted.

An image goes through the network at a time, on one of the ranks, with draws that are a function of (seed, step, place
in the step): so memory holds one image, and the number of ranks changes nothing but the order of sums.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from torch import Tensor, nn

from pirl import dist
from pirl.errors import CorruptImage, TrainingDiverged
from pirl.evaluate.countdown import Countdown
from pirl.evaluate.voc.annotation import VocObject
from pirl.evaluate.voc.voc_folder import VocSplit
from pirl.loading.decode import decode
from pirl.storage.folder import Folder

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
DROP = 0.1
"""What the learning rate is multiplied with."""
WARM_FROM = 1 / 3
"""Share of the learning rate that the warm-up begins with."""
POINTS = 100
"""Of the curve of losses."""


@dataclass(frozen=True)
class BoxSchedule:
    """How long and how fast.

    Attributes:
        steps: All of them.
        batch: Images in a step, over all ranks.
        lr: Learning rate after the warm-up.
        warmup: Steps in which it grows.
        drop: Step from which it is a tenth.
    """

    steps: int
    batch: int
    lr: float
    warmup: int
    drop: int

    def lr_at(self, step: int) -> float:
        """Of a step, counted from 0."""
        share = WARM_FROM + (1 - WARM_FROM) * step / self.warmup if step < self.warmup else 1.0
        return self.lr * share * (DROP if step >= self.drop else 1.0)


@dataclass(frozen=True)
class Kept:
    """Where the state of a training is kept, so that the same command goes on.

    Attributes:
        folder: None keeps nothing.
        name: Of the file.
        key: Of what is trained: a file with another key is not gone on with.
        every: Steps after which it is written.
    """

    folder: Folder | None
    name: str
    key: str
    every: int


def pixels(split: VocSplit, id: int) -> Tensor:
    """An image, float32 (3, H, W) from 0 to 1; raises CorruptImage."""
    try:
        return decode(split.image_bytes(id)).float() / 255
    except ValueError as error:
        raise CorruptImage(f"{split.place(id)}: {error}") from None


def train_boxes(
    network: nn.Module,
    split: VocSplit,
    objects: Sequence[Sequence[VocObject]],
    schedule: BoxSchedule,
    seed: int,
    device: torch.device,
    kept: Kept,
    say: Callable[[str], None],
) -> list[tuple[int, float]]:
    """Trains in place; a collective.

    Args:
        network: A detector of torchvision's, on `device`.
        split: The images, of which the first len(objects) are used.
        objects: Those of each image.

    Returns:
        The mean loss of some steps before each step that is named; about POINTS of them.

    Raises:
        TrainingDiverged: A loss is no number.
        CorruptImage: An image cannot be decoded.
    """
    weights = [each for each in network.parameters() if each.requires_grad]
    sgd = torch.optim.SGD(weights, schedule.lr, MOMENTUM, weight_decay=WEIGHT_DECAY)
    first, losses = _resumed(kept, network, sgd, device, say)
    network.train()
    countdown = Countdown(say, f"detector on {split.uri}", schedule.steps - first, "steps")
    since: list[float] = []
    window = max(1, schedule.steps // POINTS)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for step in range(first, schedule.steps):
            for group in sgd.param_groups:
                group["lr"] = schedule.lr_at(step)
            sgd.zero_grad(set_to_none=False)
            loss = torch.zeros((), device=device)
            for place in range(dist.rank(), schedule.batch, dist.world_size()):
                loss += _backward(network, split, objects, schedule, seed, (step, place), device)
            since.append(_add_up(weights, loss))
            if not isfinite(since[-1]):
                raise TrainingDiverged(
                    f"the loss of the detector is no number at step {step + 1}: use a smaller --detection.lr, or a "
                    "longer --detection.warmup",
                    step,
                )
            sgd.step()
            if (step + 1) % window == 0:
                losses.append((step + 1, float(np.mean(since))))
                since = []
            if (step + 1) % kept.every == 0 or step + 1 == schedule.steps:
                _keep(kept, network, sgd, step + 1, losses)
            countdown.add(1)
    return losses


def _backward(
    network: nn.Module,
    split: VocSplit,
    objects: Sequence[Sequence[VocObject]],
    schedule: BoxSchedule,
    seed: int,
    where: tuple[int, int],
    device: torch.device,
) -> Tensor:
    """Adds the gradients of an image, as its share of the step; returns its loss, likewise."""
    step, place = where
    epoch, row = divmod(step * schedule.batch + place, len(objects))
    id = int(np.random.default_rng((seed, epoch)).permutation(len(objects))[row])
    torch.manual_seed(int(np.random.default_rng((seed, step, place)).integers(2**62)))
    image = pixels(split, id).to(device)
    boxes = torch.tensor([each.box for each in objects[id]], dtype=torch.float32, device=device).reshape(-1, 4)
    if torch.rand(()) < 0.5:
        image, width = image.flip(2), image.shape[2]
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    # 0 is the background.
    labels = torch.tensor([1 + split.classes.index(each.name) for each in objects[id]], dtype=torch.int64)
    parts = network([image], [{"boxes": boxes, "labels": labels.to(device)}])
    loss: Tensor = torch.stack(list(parts.values())).sum() / schedule.batch
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _add_up(weights: Sequence[Tensor], loss: Tensor) -> float:
    """Adds the gradients over the ranks, in one message, and the loss."""
    for each in weights:
        if each.grad is None:  # of a rank that got no image in the first step
            each.grad = torch.zeros_like(each)
    gradients = [each.grad for each in weights if each.grad is not None]
    if dist.world_size() > 1:
        whole = dist.all_reduce_sum(torch.cat([loss[None], *(each.flatten() for each in gradients)]))
        loss, *parts = torch.split(whole, [1, *(each.numel() for each in gradients)])
        for each, part in zip(gradients, parts, strict=True):
            each.copy_(part.view_as(each))
    return float(loss)


def _keep(kept: Kept, network: nn.Module, sgd: torch.optim.SGD, step: int, losses: list[tuple[int, float]]) -> None:
    if kept.folder is None or dist.rank() > 0:
        return
    state = {"key": kept.key, "step": step, "losses": losses, "network": network.state_dict(), "sgd": sgd.state_dict()}
    file = io.BytesIO()
    torch.save(state, file)
    kept.folder.write(kept.name, file.getvalue())


def _resumed(
    kept: Kept, network: nn.Module, sgd: torch.optim.SGD, device: torch.device, say: Callable[[str], None]
) -> tuple[int, list[tuple[int, float]]]:
    """Steps that are done already, and their losses; fills network and optimizer."""
    try:
        found = kept.folder.read_bytes(kept.name) if kept.folder else b""
        state = torch.load(io.BytesIO(found), map_location=device, weights_only=True) if found else {}
    except FileNotFoundError:
        state = {}
    except Exception as error:  # whatever the bytes are
        say(f"{kept.folder}/{kept.name} cannot be read ({error}), so the detector begins anew")
        state = {}
    dist.barrier()  # nobody writes it before all have read it
    if state and state["key"] != kept.key:
        say(f"{kept.folder}/{kept.name} is of other settings, weights or images, so the detector begins anew")
    if not state or state["key"] != kept.key:
        return 0, []
    network.load_state_dict(state["network"])
    sgd.load_state_dict(state["sgd"])
    say(f"the detector goes on after step {state['step']:,}")
    return state["step"], [tuple(each) for each in state["losses"]]
