"""What a loader process hands over for a step: one tensor with all views, and a few numbers.

Each tensor that goes from process to process takes a millisecond of processor time, in which several small images are
decoded, cut and coloured.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from pirl.loading.device import sent
from pirl.loading.views import Sample


class PartialBatch(NamedTuple):
    """The views of b images, in shared memory where a loader process made them.

    Attributes:
        pixels: uint8 (n,), all views one after another, the pixels of each as height, width, channel.
        shapes: Theirs: of the image view (b, S, S, 3), and of a pretext view (b, V, h, w, 3).
        colors: float32 (b, P), and of a pretext view (b, V, P): their colour parameters.
        served: int64 (b,), whose views they are.
        retries: Reads that had to be tried again since the last part.
        labels: int64 (b,), their classes, -1 where there is none.
        targets: int64 (b,), what the network is to say of each, -1 where there is nothing to say.
        rows: Which of the images `views` gives, where not all are asked for at once.
    """

    pixels: Tensor
    shapes: list[tuple[int, ...]]
    colors: list[NDArray[np.float32]]
    served: NDArray[np.int64]
    retries: int
    labels: NDArray[np.int64]
    targets: NDArray[np.int64]
    rows: slice | None = None

    def views(self, device: torch.device) -> list[Tensor]:
        """The views on a device: uint8 (b, 3, S, S), and a pretext view (b, V, 3, h, w), channels last."""
        if self.rows is None:
            return _pieces(sent(self.pixels, device), self.shapes)
        return [sent(piece[self.rows], device) for piece in _pieces(self.pixels, self.shapes)]


def collate(
    samples: list[Sample], served: list[int], retries: int, labels: list[int], targets: list[int] | None = None
) -> PartialBatch:
    """Puts the views of samples one after another; targets are what the pretext task did, where none are given."""
    kinds = [
        [(s.image, s.image_color) for s in samples if s.image is not None and s.image_color is not None],
        [(s.pretext, s.pretext_color) for s in samples if s.pretext is not None and s.pretext_color is not None],
    ]
    kinds = [kind for kind in kinds if kind]
    shapes = [(len(kind), *kind[0][0].movedim(-3, -1).shape) for kind in kinds]
    pixels = empty_pixels(sum(map(math.prod, shapes)))
    for kind, place in zip(kinds, _pieces(pixels, shapes), strict=True):
        # As rows of pixels, since that is how they lie in memory: about 8 times as fast at 224 px.
        torch.stack([view.movedim(-3, -1) for view, _ in kind], out=place.movedim(-3, -1))
    colors = [torch.stack([color for _, color in kind]).numpy() for kind in kinds]
    if targets is None:
        targets = [sample.target for sample in samples]
    of_labels, of_targets, ids = (np.array(some, np.int64) for some in (labels, targets, served))
    return PartialBatch(pixels, shapes, colors, ids, retries, of_labels, of_targets)


def empty_pixels(size: int) -> Tensor:
    """uint8 (size,), in a loader process where the one that trains finds it: a copy less, as in torch's own collate."""
    if get_worker_info() is None:
        return torch.empty(size, dtype=torch.uint8)
    shared = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(shared)


def _pieces(pixels: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """Views of these shapes, one after another, their channels moved in front of height and width."""
    pieces = pixels.split_with_sizes([math.prod(shape) for shape in shapes])
    return [piece.view(shape).movedim(-1, -3) for piece, shape in zip(pieces, shapes, strict=True)]
