"""The views of a sample: geometry on uint8, image by image, with the colour parameters drawn along.

Shapes: H, W an image as it was stored; S the side of the image view; V patches (9 for the jigsaw, 1 for the
rotation) of h x w; P colour parameters. From the decoder on pixels lie in memory as height, width,
channel (torch's channels_last): that is where resizing is fastest, and a patch is a few contiguous rows.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import ImageReadMode

from pirl.color import draw_color
from pirl.config import Augment, PretextName

Pixels = npt.NDArray[np.void]

ASPECT = (3 / 4, 4 / 3)
"""Range of width / height of a random crop (Inception, as torchvision's RandomResizedCrop)."""


@dataclass(frozen=True)
class Sample:
    """Both views of one image, before colour.

    Attributes:
        image: uint8 (3, S, S).
        image_color: float32 (P,), as `pirl.color.draw_color` says.
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


def decode(data: bytes | memoryview) -> Tensor:
    """Decodes JPEG, PNG, WebP to uint8 RGB (3, H, W); gray, CMYK and palettes become RGB, alpha is dropped.

    Raises:
        ValueError: The bytes are not one whole image of 8 bits a channel.
    """
    try:
        # The operator itself: torchvision's function around it warns, at each call, that it will move.
        image: Tensor = torch.ops.image.decode_image(
            torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB.value, False
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"cannot decode an image of {len(data):,} bytes: {error}") from None
    if image.dtype != torch.uint8 or image.ndim != 3:
        raise ValueError(f"not one image of 8 bits a channel: {image.dtype}, shape {tuple(image.shape)}")
    return image


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
        pixels = _to_pixels(random_resized_crop(image, side, self.pretext_crop_min, rng))
        if self.pretext_name != "jigsaw":
            pixels = np.rot90(pixels, int(rng.integers(4)))
        if self.pretext_name == "rotation":
            return _to_tensor(pixels[:, ::-1] if rng.random() < self.augment.flip else pixels)[None]
        patches = np.empty((9, self.patch, self.patch), pixels.dtype)
        cuts = draw_jigsaw(self.cell, self.patch, self.augment.flip, rng)
        for place, (top, left, flipped) in enumerate(cuts):
            patch = pixels[top : top + self.patch, left : left + self.patch]
            patches[place] = patch[:, ::-1] if flipped else patch
        return _to_tensor(patches)


def draw_jigsaw(cell: int, patch: int, flip: float, rng: np.random.Generator) -> list[tuple[int, int, bool]]:
    """Draws the nine patches in their shuffled order, any of the 9! each time: (top, left, flipped).

    Each of the 3x3 cells gives one patch at a place of its own within the cell, so that neighbours leave a
    random gap and edges that continue do not give the order away.
    """
    order = rng.permutation(9).tolist()
    offsets = rng.integers(cell - patch + 1, size=(9, 2)).tolist()
    flips = (rng.random(9) < flip).tolist()
    return [
        (k // 3 * cell + y, k % 3 * cell + x, flipped) for k, (y, x), flipped in zip(order, offsets, flips, strict=True)
    ]


def draw_crop(height: int, width: int, area_min: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draws a crop (top, left, height, width): share of area uniform in [area_min, 1], aspect log-uniform.

    After 10 tries that do not fit, the centre with the nearest aspect that is allowed, as torchvision does.
    """
    low, high = ASPECT
    for _ in range(10):
        area = height * width * (area_min + (1 - area_min) * rng.random())
        aspect = low * (high / low) ** rng.random()
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w, h = min(width, round(height * high)), min(height, round(width / low))
    return (height - h) // 2, (width - w) // 2, h, w


def random_resized_crop(image: Tensor, size: int, area_min: float, rng: np.random.Generator) -> Tensor:
    """Crops uint8 (3, H, W) as `draw_crop` says and resizes to (3, size, size)."""
    top, left, h, w = draw_crop(image.shape[1], image.shape[2], area_min, rng)
    return _resize(image[:, top : top + h, left : left + w], size, size)


def plain_view(image: Tensor, image_size: int) -> Tensor:
    """The view for evaluation: uint8 (3, S, S), the centre of the image with its short side at 256/224 S."""
    _, height, width = image.shape
    short = round(image_size * 256 / 224)
    h, w = (short, short * width // height) if height <= width else (short * height // width, short)
    top, left = round((h - image_size) / 2), round((w - image_size) / 2)
    return _resize(image, h, w)[:, top : top + image_size, left : left + image_size]


def _resize(image: Tensor, height: int, width: int) -> Tensor:
    # The batch dimension goes in front of height: in front of channels torch would not see channels_last and
    # would take a path that is three times as slow.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, (height, width), mode="bilinear", antialias=True)[0]


def _to_pixels(image: Tensor) -> Pixels:
    """Views uint8 (3, h, w) as (h, w) elements of 3 bytes, which numpy mirrors, turns and cuts at once."""
    return image.permute(1, 2, 0).contiguous().numpy().view("V3")[..., 0]


def _to_tensor(pixels: Pixels) -> Tensor:
    """The way back, for any number of images: (…, h, w) of 3 bytes to uint8 (…, 3, h, w)."""
    data = np.ascontiguousarray(pixels)[..., None].view(np.uint8)
    return torch.from_numpy(data).movedim(-1, -3)
