"""The views of a sample: geometry on uint8, image by image, with the colour parameters drawn along.

Shapes: H, W an image as it was stored; S the side of the image view; V parts of the pretext view (9 patches for the
jigsaw, 1 image for the rotation) of h x w; P colour parameters. From the decoder on pixels lie in memory as height,
width, channel (torch's channels_last): that is where resizing is fastest, and a patch is a few contiguous rows.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pirl.loading.color import draw_color
from pirl.loading.crops import random_resized_crop, to_pixels, to_tensor
from pirl.permutations import Permutations
from pirl.pretext import PretextTask
from pirl.sections import Augment


@dataclass(frozen=True)
class Sample:
    """The views of one image, before colour.

    Attributes:
        image: uint8 (3, S, S), or None where the pretext view is all.
        image_color: float32 (P,), as `pirl.loading.color.draw_color` says.
        pretext: uint8 (V, 3, h, w), or None without a pretext task.
        pretext_color: float32 (V, P): each patch has parameters of its own.
        target: What the pretext task did.
    """

    image: Tensor | None
    image_color: Tensor | None
    pretext: Tensor | None = None
    pretext_color: Tensor | None = None
    target: int = 0


def sample_rng(seed: int, epoch: int, id: int) -> np.random.Generator:
    """The random numbers of one sample in one epoch: a function of the three numbers and of nothing else.

    Epochs count from -1, which is the pass that fills the bank. Philox is counter-based: any key is as good as
    any other, so no hashing of seeds is needed.
    """
    return np.random.Generator(np.random.Philox(key=seed << 96 | (epoch + 1) << 64 | id))


@dataclass(frozen=True, eq=False)
class Views:
    """Draws the views of a sample (paper, section 3.2 and appendix A).

    Args:
        image_size: S; the sides of the pretext view follow it.
        pretext_crop_min: Smallest area of the pretext view's crop, as a share of the image.
        permutations: Orders that its patches may have; None for all.
        with_image: Whether there is an image view beside it.
    """

    image_size: int
    augment: Augment
    task: PretextTask
    pretext_crop_min: float
    permutations: Permutations | None = None
    with_image: bool = True

    def __call__(self, image: Tensor, rng: np.random.Generator, *, image_only: bool = False) -> Sample:
        """Makes the views of a uint8 (3, H, W) image, or the image view alone."""
        parts = 0 if image_only else self.task.parts
        view = self._image_view(image, rng) if self.with_image else None
        if view is not None and not parts:
            return Sample(view, draw_color(1, self.augment, rng)[0])
        crop = random_resized_crop(image, self.task.crop(self.image_size), self.pretext_crop_min, rng)
        drawn, target = self.task.draw(to_pixels(crop), self.image_size, self.augment.flip, self.permutations, rng)
        color = draw_color((view is not None) + parts, self.augment, rng)
        first = None if view is None else color[0]
        return Sample(view, first, to_tensor(drawn), color[-parts:], target)

    def _image_view(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        view = random_resized_crop(image, self.image_size, self.augment.crop_min, rng)
        return view.flip(-1) if rng.random() < self.augment.flip else view
