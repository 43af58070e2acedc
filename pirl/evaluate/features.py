"""Features of a whole data set at every tap of a trunk, extracted by all ranks together."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pirl import dist
from pirl.data.dataset import Dataset, RowGroup
from pirl.errors import CorruptImage
from pirl.loading.color import normalize
from pirl.loading.crops import plain_view
from pirl.loading.decode import decoded
from pirl.methods.models import Trunk

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
    """Runs the images through the trunk, in evaluation mode and float32; every rank returns all rows.

    Each map is averaged over the finest g x g grid with which it has at most as many values as res5 has
    channels; res5 becomes its mean. Rows are in the order of the ids, and each is computed in the same batch
    of images, so they do not depend on the number of ranks.

    Args:
        trunk: On `device`. Its mode is as before afterwards.
        image_size: Side of `crops.plain_view`, in pixels.
        device: Where to compute, and where the features stay.
        limit: Stop after the row group that brings the number of images to this. The images of a data set
            lie in random order, so its first ones are a fair sample.
        skip: An image that cannot be used has no label then, so that nothing is fitted to it.
        tell: Takes how far this rank is.

    Raises:
        CorruptImage: An image cannot be used, and `skip` is off; says shard, row and id.
    """
    starts, groups = dataset.starts, len(dataset.starts) - 1
    if limit is not None:
        groups = min(groups, int(np.searchsorted(starts, limit)))
    blocks = [range(first, min(first + BLOCK, groups)) for first in range(0, groups, BLOCK)]
    shares = [blocks[rank :: dist.world_size()] for rank in range(dist.world_size())]
    ids = [np.concatenate([np.arange(0), *(np.arange(*starts[[b.start, b.stop]]) for b in share)]) for share in shares]
    sizes = [len(of_rank) for of_rank in ids]
    rows = sizes[dist.rank()]
    mode = trunk.training
    trunk.eval()
    with torch.inference_mode():
        widths = pool(trunk.taps(torch.zeros(1, 3, image_size, image_size, device=device)))
    # Allocated outside of inference mode, because the linear probe differentiates with them.
    taps = {name: torch.empty(rows, one.shape[1], device=device) for name, one in widths.items()}
    labels = torch.full((rows,), -1, device=device)
    start = 0
    for block in shares[dist.rank()]:
        read = [dataset.load_group(number) for number in block]
        places = [(group, row) for group in read for row in range(len(group.ids))]
        found = [_view(dataset, group, row, image_size, skip) for group, row in places]
        usable = torch.tensor([view is not None for view in found], device=device)
        blank = torch.zeros(3, image_size, image_size, dtype=torch.uint8)
        views = torch.stack([blank if view is None else view for view in found])
        here = slice(start, start + len(views))
        if dataset.labels is not None:
            given = np.concatenate([group.labels for group in read if group.labels is not None])
            labels[here] = torch.where(usable, torch.from_numpy(given).to(device), -1)
        with torch.inference_mode():
            for name, value in pool(trunk.taps(normalize(views.to(device)))).items():
                taps[name][here] = value
        start = here.stop
        tell(f"evaluating: features of {sum(sizes):,} images, {start / rows:.0%}")
    trunk.train(mode)
    order = torch.from_numpy(np.concatenate(ids)).argsort().to(device)
    whole = {name: dist.gather_parts(values, sizes)[order] for name, values in taps.items()}
    return Features(whole, dist.gather_parts(labels, sizes)[order])


def pool(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Averages the taps' maps (B, C_tap, H_tap, W_tap) over grids, as `extract` says, to (B, D_tap)."""
    channels = maps["res5"].shape[1]
    sides = {name: isqrt(channels // value.shape[1]) for name, value in maps.items()}
    return {name: F.adaptive_avg_pool2d(value, sides[name]).flatten(1) for name, value in maps.items()}


def _view(dataset: Dataset, group: RowGroup, row: int, image_size: int, skip: bool) -> Tensor | None:
    try:
        return plain_view(decoded(dataset, group, int(group.ids[row]), row), image_size)
    except CorruptImage:
        if skip:
            return None
        raise
