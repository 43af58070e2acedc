"""Nearest neighbours of test images among the training images, as a picture, and how many are of their class."""

import io
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from pirl.data.dataset import Dataset
from pirl.errors import ConfigError, CorruptImage
from pirl.evaluate.measurement import Measurement, Outcome, bootstrap
from pirl.evaluate.subject import Subject
from pirl.loading.decode import decoded
from pirl.sections import Count, Section
from pirl.wording import counted

PICTURE = "retrieval.png"
SIDE = 72
"""Of a picture on the sheet, in pixels."""
BORDER = 4
GAP = 12
"""Between a query and its neighbours."""
RIGHT, WRONG, UNKNOWN = "#2ca02c", "#d62728", "#ffffff"
"""Borders: the class of the query, another one, and no class."""
CHUNK = 1024
"""Queries that are compared at once."""


class Retrieval(Section):
    """Nearest neighbours (cosine of res5) as a picture, needs no labels; with labels precision@k."""

    k: Count = 8
    """Neighbours."""
    queries: Count = 12
    """Test images in the picture, drawn by --seed; images of the training where there is no test split."""


def refuse(settings: Retrieval, train: Dataset, test: Dataset | None) -> None:
    """Raises ConfigError for more neighbours than there are other images."""
    others = train.rows if test else train.rows - 1
    if settings.k > others:
        raise ConfigError(
            f"--retrieval.k {settings.k} is more than the {counted(others, 'image')} of {train.uri} that an image may "
            f"have as neighbours: use {others} or less"
        )


def measure(subject: Subject, settings: Retrieval) -> Outcome:
    """Mean precision@k where there are labels, the mean cosine, and a picture."""
    alone = subject.test is None
    rows = {
        trained: (
            subject.features("train", trained=trained),
            subject.features("train" if alone else "test", trained=trained),
        )
        for trained in subject.trunks
    }
    train, test = rows[True]
    count, k = len(test.labels), min(settings.k, len(train.labels) - alone)

    def piece(trained: bool) -> Tensor:
        keys, asked = (each.taps["res5"].to(subject.device) for each in rows[trained])
        return torch.stack([each.double() for each in nearest(asked, keys, k, alone=alone)]).flatten()

    found = subject.dealt("retrieval", [partial(piece, trained) for trained in subject.trunks], 2 * count * k).cpu()
    cosines, places = found.reshape(-1, 2, count, k).unbind(1)
    places = places.long()
    random = len(subject.trunks) > 1
    measurements = []
    labels, of = test.labels.cpu(), train.labels.cpu()
    known = labels >= 0
    if bool(known.any()) and bool((of >= 0).any()):
        right = (of[places] == labels[:, None])[:, known].double().mean(2).numpy()
        interval = bootstrap(lambda drawn: float(right[0][drawn].mean()), right.shape[1], subject.seed)
        means = right.mean(1).tolist()
        measurements.append(Measurement(f"res5, precision@{k}", means[0], means[1] if random else None, interval))
    near = cosines.mean((1, 2)).tolist()
    measurements.append(Measurement(f"res5, cosine of {k} neighbours", near[0], near[1] if random else None, unit=""))
    chosen = drawn_queries(count, settings.queries, subject.seed)
    asked = subject.train if alone else subject.test
    assert asked is not None
    neighbours = places[0][chosen]
    details = {
        "queries": {"split": "train" if alone else "test", "ids": chosen.tolist()},
        "neighbours": neighbours.tolist(),
    }
    sheet = picture(asked, subject.train, chosen, neighbours, labels, of)
    return Outcome(measurements, details, {PICTURE: sheet})


def nearest(queries: Tensor, keys: Tensor, k: int, *, alone: bool = False) -> tuple[Tensor, Tensor]:
    """Cosines and places (M, k) of the rows of keys (N, D) that are nearest to queries (M, D), nearest first.

    Args:
        alone: Queries are the keys, and none is its own neighbour.
    """
    unit = F.normalize(keys, dim=1)
    found = []
    for start in range(0, len(queries), CHUNK):
        cosine = F.normalize(queries[start : start + CHUNK], dim=1) @ unit.T
        if alone:
            each = torch.arange(len(cosine), device=cosine.device)
            cosine[each, start + each] = -torch.inf
        found.append(cosine.topk(k, dim=1))
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def drawn_queries(rows: int, count: int, seed: int) -> Tensor:
    """Some of the rows, by a seed, in order."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def picture(asked: Dataset, known: Dataset, queries: Tensor, neighbours: Tensor, labels: Tensor, of: Tensor) -> bytes:
    """A row for each query as PNG: the query on the left, then its neighbours, framed by whether their class is its."""
    step = SIDE + 2 * BORDER
    sheet = Image.new("RGB", (step * (1 + neighbours.shape[1]) + GAP, step * len(queries)), "white")
    for row, (query, others) in enumerate(zip(queries.tolist(), neighbours.tolist(), strict=True)):
        sheet.paste(framed(asked, query, UNKNOWN), (0, row * step))
        for column, other in enumerate(others):
            own, theirs = int(labels[query]), int(of[other])
            color = UNKNOWN if own < 0 or theirs < 0 else RIGHT if own == theirs else WRONG
            sheet.paste(framed(known, other, color), (GAP + (1 + column) * step, row * step))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def framed(dataset: Dataset, id: int, color: str) -> Image.Image:
    """A small picture of an image; gray for one that cannot be used."""
    tile = Image.new("RGB", (SIDE, SIDE), "#cccccc")
    number, row = dataset.group_of(id)
    try:
        pixels = decoded(dataset, dataset.load_group(number), id, row).permute(1, 2, 0)
    except CorruptImage:
        return ImageOps.expand(tile, BORDER, color)
    return ImageOps.expand(
        ImageOps.pad(Image.fromarray(np.ascontiguousarray(pixels)), (SIDE, SIDE), color="white"), BORDER, color
    )
