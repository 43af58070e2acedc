"""Some images of a data set, as a data set of its own on each node's disk: so they are read as all others are."""

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from pirl import dist
from pirl.data.dataset import Dataset, open_dataset
from pirl.data.writer import ShardWriter
from pirl.evaluate.countdown import Countdown
from pirl.evaluate.features import group_count
from pirl.evaluate.sgd.counting import images_of
from pirl.evaluate.subject import Subject
from pirl.storage.folder import Folder
from pirl.storage.temporary import temporary_folder


def labels_of(subject: Subject) -> Tensor:
    """int64 (N,) of the training images, -1 for those without a label or that cannot be used; a collective."""
    dataset, groups = subject.train, group_count(subject.train, subject.limit)
    found = torch.zeros(images_of(subject, "labels", dataset), dtype=torch.int64, device=subject.device)
    progress = Countdown(subject.say, f"labels of {dataset.uri}", groups, "row groups")
    for number in range(dist.rank(), groups, dist.world_size()):
        group = dataset.load_group(number) if subject.skip else dataset.read_group(number)
        assert group.labels is not None
        labels = torch.tensor(group.labels)
        labels[list(group.corrupt)] = -1
        found[int(group.ids[0]) : int(group.ids[-1]) + 1] = labels.to(subject.device)
        progress.add(dist.world_size())
    return dist.all_reduce_sum(found).cpu()


def stratified(labels: Tensor, share: float, seed: int) -> list[int]:
    """Ids of a share of each class in `labels` (N,), rounded, at least one; in order.

    A larger share has the images of a smaller one.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = []
    for label in sorted(set(labels.tolist()) - {-1}):
        of_class = order[labels[order] == label]
        chosen += of_class[: max(1, round(share * len(of_class)))].tolist()
    return sorted(chosen)


@contextmanager
def written(subject: Subject, ids: list[int], name: str) -> Iterator[Dataset]:
    """Those images of the training images, with all names of classes; removed at the end. A collective."""
    own = str(dist.rank()), (socket.gethostname(), str(temporary_folder() / name))
    places = dist.all_gather_dicts(dict([own]))
    writer, place = next((rank, place) for rank, (host, place) in places.items() if host == own[1][0])
    if writer == own[0]:
        _write(subject, ids, place, name)
    dist.barrier()
    yield open_dataset(place)
    dist.barrier()
    if writer == own[0]:
        shutil.rmtree(place)


def _write(subject: Subject, ids: list[int], place: str, name: str) -> None:
    """Copies the images as they are encoded, in the order of their ids."""
    dataset = subject.train
    progress = Countdown(subject.say, f"{name}: images", len(ids))
    wanted = groupby(zip(*dataset.groups_of(np.array(ids)), strict=True), key=itemgetter(0))
    with ShardWriter(Folder(place), classes=dataset.labels, seed=subject.seed, source=dataset.uri) as shards:
        for number, rows in wanted:
            group = dataset.load_group(number)
            assert group.labels is not None
            for _, row in rows:
                shards.add(bytes(group.images[row]), int(group.labels[row]))
                progress.add(1)
