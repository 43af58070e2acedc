"""Geometry of the views: crops of an image, resized; image by image, on uint8."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pirl.pretext import Pixels

ASPECT = (3 / 4, 4 / 3)
"""Range of width / height of a random crop (Inception, as torchvision's RandomResizedCrop)."""


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
    return resize(image[:, top : top + h, left : left + w], size, size)


def plain_view(image: Tensor, image_size: int) -> Tensor:
    """The view for evaluation: uint8 (3, S, S), the centre of the image with its short side at 256/224 S."""
    scaled = _scaled(image, image_size)
    top, left = (round((side - image_size) / 2) for side in scaled.shape[1:])
    return scaled[:, top : top + image_size, left : left + image_size]


def whole_view(image: Tensor, image_size: int) -> Tensor:
    """An image squeezed to uint8 (3, S, S), as the source of the SVMs on VOC does: objects may lie at the edges."""
    return resize(image, image_size, image_size)


def ten_views(image: Tensor, image_size: int) -> Tensor:
    """Five views of `plain_view`'s scale, the corners and the centre, and their mirror images: uint8 (10, 3, S, S)."""
    scaled = _scaled(image, image_size)
    down, right = (side - image_size for side in scaled.shape[1:])
    places = [(0, 0), (0, right), (down, 0), (down, right), (round(down / 2), round(right / 2))]
    five = torch.stack([scaled[:, top : top + image_size, left : left + image_size] for top, left in places])
    return torch.cat([five, five.flip(-1)])


def _scaled(image: Tensor, image_size: int) -> Tensor:
    """The image with its short side at 256/224 S."""
    _, height, width = image.shape
    short = short_side(image_size)
    h, w = (short, short * width // height) if height <= width else (short * height // width, short)
    return resize(image, h, w)


def short_side(image_size: int) -> int:
    """Of the image before the centre of side `image_size` is cut out, in pixels."""
    return round(image_size * 256 / 224)


def view_rule(image_size: int) -> dict[str, Any]:
    """How `plain_view` makes a view, for who makes it without this project."""
    return {
        "resize_short_side": short_side(image_size),
        "interpolation": "bilinear, antialiased",
        "crop": "center",
        "size": image_size,
    }


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resizes uint8 (3, H, W) to (3, height, width), bilinear and antialiased."""
    # The batch dimension goes in front of height: in front of channels torch would not see channels_last and
    # would take a path that is three times as slow.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, (height, width), mode="bilinear", antialias=True)[0]


def to_pixels(image: Tensor) -> Pixels:
    """Views uint8 (3, h, w) as (h, w) elements of 3 bytes, which numpy mirrors, turns and cuts at once."""
    return image.permute(1, 2, 0).contiguous().numpy().view("V3")[..., 0]


def to_tensor(pixels: Pixels) -> Tensor:
    """The way back, for any number of images: (…, h, w) of 3 bytes to uint8 (…, 3, h, w)."""
    data = np.ascontiguousarray(pixels)[..., None].view(np.uint8)
    return torch.from_numpy(data).movedim(-1, -3)
