"""The paper's linear protocol (PIRL, section 4.2): a classifier of each layer, trained by SGD on random crops."""

from functools import partial
from math import isqrt

import torch
from torch import Tensor, nn

from pirl.data.dataset import Dataset
from pirl.evaluate.measurement import Outcome
from pirl.evaluate.sgd.counting import both, right
from pirl.evaluate.sgd.fitting import Schedule, check_classes, fit
from pirl.evaluate.sgd.norms import with_global_norms
from pirl.evaluate.sgd.unfinished import forget
from pirl.evaluate.subject import Subject
from pirl.methods.models import TAPS, Trunk
from pirl.sections import Count, Positive, Section

NAME = "linear_sgd"
VALUES = 9216
"""Of a layer, at most: what the paper pools the layers of ResNet-50 to, 8,192 or 9,216."""
MEAN = "res5 mean"
"""The layer that networks are used by: res5, averaged over space."""
DROPS = (2 / 7, 4 / 7, 6 / 7)
"""After epochs 8, 16 and 24 of 28."""
WEIGHT_DECAY = 5e-4


class LinearSGD(Section):
    """A linear classifier of each layer as in the paper, trained by SGD with random crops."""

    epochs: Count = 28
    """The learning rate falls to a tenth after 2/7, 4/7 and 6/7 of them."""
    lr: Positive = 0.01
    """For a batch of 256; scaled to the batch."""
    batch: Count = 256
    """Images in a step, over all workers."""
    ten_crops: bool = False
    """Whether the mean over corners, centre and their mirror images decides, or the centre alone."""


def refuse(settings: LinearSGD, train: Dataset, test: Dataset | None) -> None:
    """Raises ConfigError for images of one class."""
    check_classes(train)


def measure(subject: Subject, settings: LinearSGD) -> Outcome:
    """Top-1 and top-5 of each layer, trained and random in one pass over the images."""
    classes = len(subject.train.labels or [])
    trunks = [trunk for trunk in (subject.trunk, subject.untrained) if trunk is not None]
    modes = [trunk.training for trunk in trunks]
    for trunk in trunks:
        trunk.eval()
    heads = [heads_of(trunk, subject.image_size, classes, subject.seed, subject.device) for trunk in trunks]
    names = list(heads[0])
    grids = {name: list(norm_and_grid(head)) for name, head in heads[0].items()}
    nets = with_global_norms(nn.ModuleList(heads)).train()
    assert isinstance(nets, nn.ModuleList)
    schedule = Schedule(settings.epochs, settings.lr, settings.batch, WEIGHT_DECAY, DROPS)
    score = partial(scores, trunks, nets)
    done = fit(subject, NAME, nets, score, subject.train, schedule)
    nets.eval()
    found = right(subject, NAME, score, len(trunks) * len(names), ten_crops=settings.ten_crops)
    for trunk, mode in zip(trunks, modes, strict=True):
        trunk.train(mode)
    forget(subject, NAME)
    measured = both(names, found, classes, subject.seed)
    best = max(measured[: len(names)], key=lambda each: each.value).name
    return Outcome(measured, {"best": best, "channels_and_grid": grids, "fit": done})


def grid_of(channels: int, side: int) -> int:
    """Of g x g values a channel the finest with channels · g² <= 9,216; at least 1, at most the map's own."""
    return max(1, min(side, isqrt(VALUES // channels)))


def heads_of(trunk: Trunk, image_size: int, classes: int, seed: int, device: torch.device) -> nn.ModuleDict:
    """A classifier for each layer: pooled, normalised by channel, and one linear layer.

    A layer's first weights are a function of the seed, whatever other layers there are.
    """
    with torch.no_grad():
        maps = trunk.taps(torch.zeros(1, 3, image_size, image_size, device=device))
    heads = nn.ModuleDict()
    for name in (*TAPS, MEAN):
        channels, side = maps[tap_of(name)].shape[1:3]
        grid = 1 if name == MEAN else grid_of(channels, side)
        linear = first_linear(channels * grid**2, classes, seed)
        heads[name] = nn.Sequential(nn.AdaptiveAvgPool2d(grid), nn.BatchNorm2d(channels), nn.Flatten(), linear)
    return heads.to(device)


def first_linear(width: int, classes: int, seed: int) -> nn.Linear:
    """A linear layer with weights of a standard deviation of 0.01, and no biases, to begin with."""
    linear = nn.Linear(width, classes)
    nn.init.normal_(linear.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(linear.bias)
    return linear


def scores(trunks: list[Trunk], heads: nn.ModuleList, views: Tensor) -> Tensor:
    """Of views (B, 3, S, S), trunk by trunk the scores of its layers: (K, B, C)."""
    found = []
    for trunk, own in zip(trunks, heads, strict=True):
        with torch.no_grad():
            maps = trunk.taps(views)
        assert isinstance(own, nn.ModuleDict)
        found += [head(maps[tap_of(name)]) for name, head in own.items()]
    return torch.stack(found)


def tap_of(name: str) -> str:
    """The layer that a head looks at."""
    return "res5" if name == MEAN else name


def norm_and_grid(head: nn.Module) -> tuple[int, int]:
    """Channels, and g, of a head."""
    pool, norm, _, _ = head.children()
    return int(norm.num_features), int(pool.output_size)  # type: ignore[arg-type]
