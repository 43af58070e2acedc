"""Steps of `imagenet_jigsaw` on one device with random bytes for images, so that nothing is read or decoded."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from pirl.config import Config, override
from pirl.data.dataset import Dataset
from pirl.data.order import OrderReader
from pirl.data.plan import data_order
from pirl.loading.collate import PartialBatch
from pirl.loading.color import draw_color
from pirl.loading.loader import Batch
from pirl.recipes import imagenet_jigsaw

IMAGENET_ROWS = 1_281_167


@dataclass(frozen=True)
class Synthetic:
    """What a run of random bytes is made of.

    Attributes:
        dataset: Says how many images there are, and has none.
        pools: Two batches of pixels, uint8, in turn; pinned where a GPU reads them.
        colors: float32 (B, 10, P), of the image and of nine patches.
    """

    config: Config
    dataset: Dataset
    reader: OrderReader
    pools: list[torch.Tensor]
    colors: torch.Tensor

    def batch(self, step: int) -> Batch:
        """The batch of a step; the first one of an epoch is smaller."""
        ids = torch.from_numpy(self.reader.batch_ids(step))
        n, size = len(ids), self.config.data.image_size
        patch = self.config.second_view.part(size)
        shapes = [(n, size, size, 3), (n, 9, patch, patch, 3)]
        none = np.full(n, -1)
        pixels = self.pools[step % 2][: sum(int(np.prod(shape)) for shape in shapes)]
        part = PartialBatch(pixels, shapes, [], ids.numpy(), 0, none, none)
        colors = [self.colors[:n, 0], self.colors[:n, 1:]]
        labels = torch.from_numpy(none)
        return Batch(step, ids, [n], slice(0, n), [part], colors, ids, labels, 0, 0.0, labels)


def synthetic(batch: int, device: torch.device, changes: Mapping[str, Any], *, tiny: bool) -> Synthetic:
    """A run for one device with so many images a step; `tiny` has a network and images that a CPU can bear."""
    on_gpu = device.type == "cuda"
    settings = {
        "data.batch_size": batch,
        "data.streams": batch // 4,
        "optim.lr": 0.001,
        "cluster.workers": 1,
        "cluster.gpus_per_worker": int(on_gpu),
        "checkpoint.every_steps": 10**9,
    }
    if tiny:
        settings |= {"data.image_size": 64, "model.arch": "resnet18", "model.width": 4, "loss.num_negatives": 64}
    config = override(imagenet_jigsaw(), settings | dict(changes))
    rows = 3000 if tiny else IMAGENET_ROWS
    dataset: Any = SimpleNamespace(
        rows=rows, starts=np.r_[np.arange(0, rows, 64), rows], fingerprint=0, uri="random bytes", labels=None
    )
    size, patch = config.data.image_size, config.second_view.part(config.data.image_size)
    each = 3 * (size * size + 9 * patch * patch)
    pools = [torch.randint(256, (batch * each,), dtype=torch.uint8, pin_memory=on_gpu) for _ in range(2)]
    colors = draw_color(10 * batch, config.augment, np.random.default_rng(0)).view(batch, 10, -1)
    return Synthetic(config, dataset, OrderReader(data_order(config, dataset)), pools, colors)
