"""Features of a whole data set at every tap of a trunk, extracted by all ranks together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pirl import dist
from pirl.data.dataset import Dataset, RowGroup
from pirl.device import exact_convolutions
from pirl.errors import CorruptImage
from pirl.evaluate.voc.voc_folder import VocSplit
from pirl.loading.color import normalize
from pirl.loading.crops import plain_view, resize
from pirl.loading.decode import decoded
from pirl.methods.models import Trunk, pool

BLACK = torch.zeros(3, 8, 8, dtype=torch.uint8)
"""In place of an image that cannot be used."""

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
    tell: Callable[[str], None] = lambda text: None,
) -> Features:
    """Runs the images through the trunk, in evaluation mode and float32; every rank returns all rows, in memory.

    Args and rows are those of `extract_rounds`; `tell` takes what goes on.

    Raises:
        CorruptImage: An image cannot be used, and `skip` is off; says shard, row and id.
    """
    rows = rows_of(dataset, limit)
    # Allocated outside of inference mode, because the linear probe differentiates with them.
    taps = {name: torch.empty(rows, width, device=device) for name, width in widths(trunk, image_size, device).items()}
    labels = torch.empty(rows, dtype=torch.int64, device=device)
    start = 0
    for part in extract_rounds(trunk, dataset, image_size, device, limit, skip=skip):
        here = slice(start, start + len(part.labels))
        for name, values in part.taps.items():
            taps[name][here] = values
        labels[here] = part.labels
        start = here.stop
        tell(f"evaluating: features of {rows:,} images, {start / rows:.0%}")
    return Features(taps, labels)


def extract_rounds(
    trunk: Trunk,
    dataset: Dataset,
    image_size: int,
    device: torch.device,
    limit: int | None = None,
    *,
    skip: bool = False,
) -> Iterator[Features]:
    """The features of all images, some after the others, so that they need not fit into memory; a collective.

    Maps are averaged as `models.pool` does. Rows come in the order of the ids, the same ones on every rank, and each is
    computed in the same batch of images, so they do not depend on the number of ranks.

    Args:
        trunk: On `device`. Its mode is as before afterwards.
        image_size: Side of `crops.plain_view`, or of the whole image of a `VocSplit`, in pixels.
        device: Where to compute, and where the features stay.
        limit: Stop after the row group that brings the number of images to this. The images of a data set
            lie in random order, so its first ones are a fair sample.
        skip: An image that cannot be used has no label then, so that nothing is fitted to it.

    Raises:
        CorruptImage: An image cannot be used, and `skip` is off; says shard, row and id.
    """
    starts, groups = dataset.starts, group_count(dataset, limit)
    blocks = [range(first, min(first + BLOCK, groups)) for first in range(0, groups, BLOCK)]
    sizes = [int(starts[block.stop] - starts[block.start]) for block in blocks]
    mode = trunk.training
    try:
        for first in range(0, len(blocks), dist.world_size()):
            number = first + dist.rank()
            block = blocks[number] if number < len(blocks) else range(0)
            trunk.eval()
            part = _features_of(trunk, dataset, block, image_size, device, skip=skip)
            in_round = sizes[first : first + dist.world_size()]
            in_round += [0] * (dist.world_size() - len(in_round))
            taps = {name: dist.gather_parts(values, in_round) for name, values in part.taps.items()}
            yield Features(taps, dist.gather_parts(part.labels, in_round))
    finally:
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
    trunk: Trunk, dataset: Dataset, block: range, image_size: int, device: torch.device, *, skip: bool
) -> Features:
    """The features of some row groups, computed together."""
    if not block:
        empty = {name: torch.empty(0, d, device=device) for name, d in widths(trunk, image_size, device).items()}
        return Features(empty, torch.empty(0, dtype=torch.int64, device=device))
    views, labels = read_views(
        dataset,
        block,
        partial(whole_view if isinstance(dataset, VocSplit) else plain_view, image_size=image_size),
        skip=skip,
    )
    with torch.inference_mode(), exact_convolutions():
        return Features(pool(trunk.taps(normalize(views.to(device)))), labels.to(device))


def read_views(
    dataset: Dataset, block: range, view: Callable[[Tensor], Tensor], *, skip: bool
) -> tuple[Tensor, Tensor]:
    """The views of all images of some row groups, and their labels.

    Args:
        view: From an image, uint8 (3, H, W), to a view, of one shape for all.
        skip: An image that cannot be used gets a black view, and no label; else it raises CorruptImage.

    Returns:
        uint8 (B, ...), and int64 (B,), -1 where there is none.
    """
    groups = [dataset.load_group(number) for number in block]
    views, usable = views_of(dataset, groups, view, skip=skip)
    none = (np.full(len(group.ids), -1) for group in groups)
    labels = [without if group.labels is None else group.labels for group, without in zip(groups, none, strict=True)]
    return views, torch.where(usable, torch.from_numpy(np.concatenate(labels)), -1)


def views_of(
    dataset: Dataset, groups: Sequence[RowGroup], view: Callable[[Tensor], Tensor], *, skip: bool
) -> tuple[Tensor, Tensor]:
    """The views of all images of row groups, uint8 (N, ...), and bool (N,), which images can be used.

    Raises:
        CorruptImage: One cannot be used, and `skip` is off; with it, its view is black.
    """
    images = [_image(dataset, group, row, skip) for group in groups for row in range(len(group.ids))]
    views = torch.stack([view(BLACK if image is None else image) for image in images])
    return views, torch.tensor([image is not None for image in images])


def whole_view(image: Tensor, image_size: int) -> Tensor:
    """An image squeezed to uint8 (3, S, S), as the source of the SVMs on VOC does: objects may lie at the edges."""
    return resize(image, image_size, image_size)


def _image(dataset: Dataset, group: RowGroup, row: int, skip: bool) -> Tensor | None:
    try:
        return decoded(dataset, group, int(group.ids[row]), row)
    except CorruptImage:
        if skip and not isinstance(dataset, VocSplit):  # whose classes are not in the features, to be taken away
            return None
        raise
