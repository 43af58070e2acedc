"""Features of a whole data set at every tap of a trunk, extracted by all ranks together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pirl import dist
from pirl.data.dataset import Dataset
from pirl.evaluate.voc.voc_folder import VocSplit
from pirl.loading.color import normalize
from pirl.loading.crops import plain_view, whole_view
from pirl.loading.device import exact_convolutions
from pirl.loading.group_views import GroupViews, read_views
from pirl.methods.models import Trunk, pool

BLOCK = 4
"""Row groups that go through the trunk together: 256 images where groups have 64."""


@dataclass(frozen=True)
class Features:
    """What a trunk makes of N images.

    Attributes:
        taps: (N, D_tap) float32 by the names of `models.TAPS`.
        labels: int64 (N,), the classes; -1 for an image without one.
    """

    taps: dict[str, Tensor]
    labels: Tensor


def extract(
    trunk: Trunk,
    dataset: Dataset,
    image_size: int,
    device: torch.device,
    limit: int | None = None,
    *,
    skip: bool = False,
) -> Features:
    """The features of one trunk, as `extract_all` gives those of several."""
    return extract_all([trunk], dataset, image_size, device, limit, skip=skip)[0]


def extract_all(
    trunks: Sequence[Trunk],
    dataset: Dataset,
    image_size: int,
    device: torch.device,
    limit: int | None = None,
    *,
    skip: bool = False,
    processes: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Features]:
    """Runs the images through trunks, in evaluation mode and float32; every rank returns all rows, in memory.

    Args and rows are those of `extract_rounds`; `tell` takes what goes on.

    Raises:
        CorruptImage: An image cannot be used, and `skip` is off; says shard, row and id.
    """
    rows = rows_of(dataset, limit)
    labels = torch.empty(rows, dtype=torch.int64, device=device)
    # Allocated outside of inference mode, because the linear probe differentiates with them.
    found = [
        Features({tap: torch.empty(rows, width, device=device) for tap, width in each.items()}, labels)
        for each in (widths(trunk, image_size, device) for trunk in trunks)
    ]
    start = 0
    for parts in extract_rounds(trunks, dataset, image_size, device, limit, skip=skip, processes=processes):
        here = slice(start, start + len(parts[0].labels))
        for features, part in zip(found, parts, strict=True):
            for name, values in part.taps.items():
                features.taps[name][here] = values
        labels[here] = parts[0].labels
        start = here.stop
        tell(f"evaluating: features of {rows:,} images, {start / rows:.0%}")
    return found


def extract_rounds(
    trunks: Sequence[Trunk],
    dataset: Dataset,
    image_size: int,
    device: torch.device,
    limit: int | None = None,
    *,
    skip: bool = False,
    processes: int = 0,
) -> Iterator[list[Features]]:
    """The features of all images, some after the others, so that they need not fit into memory; a collective.

    Each image is read and decoded once for all trunks. Maps are averaged as `models.pool` does. Rows come in the order
    of the ids, the same ones on every rank, and each is computed in the same batch of images, so they do not depend on
    the number of ranks.

    Args:
        trunks: On `device`. Their modes are as before afterwards.
        image_size: Side of `crops.plain_view`, or of the whole image of a `VocSplit`, in pixels.
        device: Where to compute, and where the features stay.
        limit: Stop after the row group that brings the number of images to this. The images of a data set
            lie in random order, so its first ones are a fair sample.
        skip: An image that cannot be used has no label then, so that nothing is fitted to it. Not for a `VocSplit`,
            whose classes are not in the features, to be taken away.
        processes: As of `group_views.read_views`, for each rank.

    Yields:
        Features of each trunk; their labels are one tensor.

    Raises:
        CorruptImage: An image cannot be used, and `skip` is off; says shard, row and id.
    """
    starts, groups, is_voc = dataset.starts, group_count(dataset, limit), isinstance(dataset, VocSplit)
    blocks = [range(first, min(first + BLOCK, groups)) for first in range(0, groups, BLOCK)]
    sizes = [int(starts[block.stop] - starts[block.start]) for block in blocks]
    mine = [number for block in blocks[dist.rank() :: dist.world_size()] for number in block]
    view = partial(whole_view if is_voc else plain_view, image_size=image_size)
    modes = [trunk.training for trunk in trunks]
    on_gpu = device.type == "cuda"
    read = read_views(dataset, mine, view, skip=skip and not is_voc, processes=processes, pin_memory=on_gpu)
    try:
        for first in range(0, len(blocks), dist.world_size()):
            number = first + dist.rank()
            block = blocks[number] if number < len(blocks) else range(0)
            parts = _features_of(trunks, [next(read) for _ in block], image_size, device)
            in_round = sizes[first : first + dist.world_size()]
            in_round += [0] * (dist.world_size() - len(in_round))
            labels = dist.gather_parts(parts[0].labels, in_round)
            yield [
                Features({name: dist.gather_parts(values, in_round) for name, values in part.taps.items()}, labels)
                for part in parts
            ]
    finally:
        read.close()
        for trunk, mode in zip(trunks, modes, strict=True):
            trunk.train(mode)


def rows_of(dataset: Dataset, limit: int | None = None) -> int:
    """How many images `extract` takes."""
    return int(dataset.starts[group_count(dataset, limit)])


def widths(trunk: Trunk, image_size: int, device: torch.device) -> dict[str, int]:
    """D_tap of each tap, for views of this size."""
    mode = trunk.training
    trunk.eval()
    with torch.inference_mode():
        one = pool(trunk.taps(torch.zeros(1, 3, image_size, image_size, device=device)))
    trunk.train(mode)
    return {name: values.shape[1] for name, values in one.items()}


def group_count(dataset: Dataset, limit: int | None) -> int:
    """How many row groups the first `limit` images are in; all of them without a limit."""
    groups = len(dataset.starts) - 1
    return groups if limit is None else min(groups, int(np.searchsorted(dataset.starts, limit)))


def _features_of(
    trunks: Sequence[Trunk], groups: Sequence[GroupViews], image_size: int, device: torch.device
) -> list[Features]:
    """The features of some row groups, computed together."""
    if not groups:
        labels = torch.empty(0, dtype=torch.int64, device=device)
        sizes = [widths(trunk, image_size, device) for trunk in trunks]
        return [Features({name: torch.empty(0, d, device=device) for name, d in of.items()}, labels) for of in sizes]
    labels = torch.from_numpy(np.concatenate([group.labels for group in groups])).to(device)
    # Joined there: what is joined here would be new memory, which is not pinned.
    pixels = torch.cat([group.pixels.to(device, non_blocking=True) for group in groups])
    found = []
    with torch.inference_mode(), exact_convolutions():
        views = normalize(pixels.movedim(-1, -3))
        for trunk in trunks:
            trunk.eval()  # what takes the features may have trained it
            found.append(Features(pool(trunk.taps(views)), labels))
    return found
