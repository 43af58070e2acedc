"""The views of a sample: geometry on uint8, image by image, with the colour parameters drawn along.

Shapes: H, W an image as it was stored; S the side of the image view; V patches (9 for the jigsaw, 1 for the
rotation) of h x w; P colour parameters. From the decoder on pixels lie in memory as height, width,
channel (torch's channels_last): that is where resizing is fastest, and a patch is a few contiguous rows.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pirl.config import Augment, PretextName
from pirl.loading.color import draw_color
from pirl.loading.crops import random_resized_crop, to_pixels, to_tensor
from pirl.pretext import draw_jigsaw


@dataclass(frozen=True)
class Sample:
    """Both views of one image, before colour.

    Attributes:
        image: uint8 (3, S, S).
        image_color: float32 (P,), as `pirl.loading.color.draw_color` says.
        pretext: uint8 (V, 3, h, w), or None without a pretext task.
        pretext_color: float32 (V, P): each patch has parameters of its own.
    """

    image: Tensor
    image_color: Tensor
    pretext: Tensor | None
    pretext_color: Tensor | None


def sample_rng(seed: int, epoch: int, id: int) -> np.random.Generator:
    """The random numbers of one sample in one epoch: a function of the three numbers and of nothing else.

    Epochs count from -1, which is the pass that fills the bank. Philox is counter-based: any key is as good as
    any other, so no hashing of seeds is needed.
    """
    return np.random.Generator(np.random.Philox(key=seed << 96 | (epoch + 1) << 64 | id))


class Views:
    """Draws the two views of a sample (paper, section 3.2 and appendix A).

    Args:
        image_size: S. The jigsaw's sizes follow it: 255, 85 and 64 pixels at 224.
        augment: Ranges and probabilities.
        pretext_name: `both` rotates, then cuts the jigsaw; `none` makes the image view alone.
        pretext_crop_min: Smallest area of the pretext view's crop, as a share of the image.
    """

    def __init__(self, image_size: int, augment: Augment, pretext_name: PretextName, pretext_crop_min: float) -> None:
        self.image_size = image_size
        self.augment = augment
        self.pretext_name = pretext_name
        self.pretext_crop_min = pretext_crop_min
        self.patches = {"jigsaw": 9, "both": 9, "rotation": 1, "none": 0}[pretext_name]
        self.cell = round(85 * image_size / 224)
        self.patch = round(64 * image_size / 224)

    def __call__(self, image: Tensor, rng: np.random.Generator, *, image_only: bool = False) -> Sample:
        """Makes both views of a uint8 (3, H, W) image, or the image view alone."""
        patches = 0 if image_only else self.patches
        view = random_resized_crop(image, self.image_size, self.augment.crop_min, rng)
        if rng.random() < self.augment.flip:
            view = view.flip(-1)
        pretext = self._pretext(image, rng) if patches else None
        color = draw_color(1 + patches, self.augment, rng)
        return Sample(view, color[0], pretext, color[1:] if patches else None)

    def _pretext(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        side = self.image_size if self.pretext_name == "rotation" else 3 * self.cell
        pixels = to_pixels(random_resized_crop(image, side, self.pretext_crop_min, rng))
        if self.pretext_name != "jigsaw":
            pixels = np.rot90(pixels, int(rng.integers(4)))
        if self.pretext_name == "rotation":
            return to_tensor(pixels[:, ::-1] if rng.random() < self.augment.flip else pixels)[None]
        patches = np.empty((9, self.patch, self.patch), pixels.dtype)
        cuts = draw_jigsaw(self.cell, self.patch, self.augment.flip, rng)
        for place, (top, left, flipped) in enumerate(cuts):
            patch = pixels[top : top + self.patch, left : left + self.patch]
            patches[place] = patch[:, ::-1] if flipped else patch
        return to_tensor(patches)
