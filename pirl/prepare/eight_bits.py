"""Pixels of more than 8 bits as 8 bits: which value is black and which is white, for each image by itself.

- Whole numbers, none below 0: 0 is black, and white is the largest number of as many bits as the largest value needs,
  at least 8. So 12 bits that lie in 16 are as bright as 12 bits. All channels have the same white. Where the image
  says what its white is, by a TIFF's MaxSampleValue or a PNG's sBIT, and no value is above it, that is white.
- Whole numbers, some below 0, as the Hounsfield units of computed tomography: the lowest is black, the highest white.
- Floating point: from 0 to 1 where all lie there; otherwise as whole numbers. What is no number is black.
- A TIFF that says that 0 is white is turned over.
"""

import io
import math
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pirl.prepare import png

Rows = Callable[[], Iterator[NDArray[Any]]]
"""Gives the pixels from top to bottom, some rows at a time: (h, W), or (h, W, 3) of colours."""

BLOCK_PIXELS = 2**20
GRAY = ("1", "L", "LA", "La")
BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE_VALUE, SAMPLE_FORMAT = 258, 262, 281, 339
"""Tags of a TIFF."""
SIGNED, WHITE_IS_ZERO = 2, 0
_RAW_16 = re.compile(r"(RGB|RGBA|RGBX|RGBa);16([BLN])")
"""What Pillow calls colours of 16 bits in a file, and the order of their bytes; it keeps the upper byte of each."""


def eight_bits(image: Image.Image, data: bytes) -> tuple[Image.Image, str]:
    """An image as 8-bit gray or colour, of an animation the first frame; and what more it had, else nothing.

    Raises:
        ValueError: Pillow shows only a part of each value, and that part is nearly black.
    """
    tags: Any = getattr(image, "tag_v2", {})  # of a TIFF
    bits = png.depth(data) if image.format == "PNG" else max(_numbers(tags.get(BITS_PER_SAMPLE)), default=8)
    rows: Rows | None = None
    if image.mode.startswith(("I", "F")) or (image.mode == "L" and SIGNED in _numbers(tags.get(SAMPLE_FORMAT))):
        rows = partial(_rows_of_gray, _gray(image, bits, tags))
    elif bits == 16 and (low := _low_bytes(image, data)) is not None:
        rows = partial(_rows_of_color, image, low)
    elif bits == 16 and max(np.ravel(image.getextrema())) < 128:
        raise ValueError("16 bits a channel, of which Pillow reads the upper 8 alone: convert it to 8 bits first")
    if rows is None:
        what = "of 16 bits" if bits == 16 else ""
        return image.convert("L" if image.mode in GRAY else "RGB"), what
    says = 2 ** png.significant_bits(data) - 1 if image.format == "PNG" else tags.get(MAX_SAMPLE_VALUE)
    declared = max(_numbers(says), default=0)
    black, white, what = _range(rows, declared if declared < 2**bits - 1 else 0)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO and image.mode != "L":  # which Pillow has turned over
        black, white = white, black
    return Image.fromarray(_scaled(rows, image.height, black, white)), what


def _numbers(tag: Any) -> tuple[Any, ...]:
    return tag if isinstance(tag, tuple) else () if tag is None else (tag,)


def _gray(image: Image.Image, bits: int, tags: Any) -> NDArray[Any]:
    """The values of an image of one channel; Pillow takes some for numbers with a sign, or without one."""
    values = np.asarray(image)
    if image.mode == "L":
        return values.view("i1")
    is_unsigned = bits == 32 and SIGNED not in _numbers(tags.get(SAMPLE_FORMAT))
    return values.view("u4") if image.mode == "I" and tags and is_unsigned else values


def _blocks(width: int, height: int) -> list[slice]:
    """Some rows of an image at a time."""
    step = max(1, BLOCK_PIXELS // width)
    return [slice(top, min(top + step, height)) for top in range(0, height, step)]


def _rows_of_gray(gray: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (gray[block] for block in _blocks(gray.shape[1], gray.shape[0]))


def _rows_of_color(high: Image.Image, low: Image.Image) -> Iterator[NDArray[Any]]:
    """Values of 16 bits, without alpha: (h, W, 3), or (h, W, 1) of gray."""
    for block in _blocks(*high.size):
        box = (0, block.start, high.width, block.stop)
        upper, lower = (np.atleast_3d(np.asarray(image.crop(box))).astype(np.uint16) for image in (high, low))
        channels = min(3, lower.shape[2])
        yield (upper[..., :channels] * 256 + lower[..., :channels]).squeeze(2 if channels == 1 else ())


def _low_bytes(image: Image.Image, data: bytes) -> Image.Image | None:
    """The lower byte of each value in the place of the upper one, which is in `image`; None where Pillow cannot.

    To have it read the other byte it is told the other order of bytes.
    """
    swapped = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    low = Image.open(io.BytesIO(data))
    tiles: list[Any] = []
    gray = False
    for tile in low.tile:
        first, *others = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if first == "LA;16B":
            gray, raw = True, "RGBA"  # both bytes of gray, then both of alpha
        elif found := _RAW_16.fullmatch(str(first)):
            raw = f"{found[1]};16{swapped[found[2]]}"
        else:
            return None
        tiles.append(tile._replace(args=(raw, *others) if isinstance(tile.args, tuple) else raw))
    low.tile = tiles
    low.load()
    return low.getchannel("G") if gray else low


def _range(rows: Rows, declared: float) -> tuple[float, float, str]:
    """The values of black and of white, and what they are, for people."""
    lows, highs, floating = [], [], False
    for values in rows():
        floating = values.dtype.kind == "f"
        known = values[np.isfinite(values)] if floating else values
        if known.size:
            lows.append(float(known.min()))
            highs.append(float(known.max()))
    low, high = min(lows, default=0.0), max(highs, default=0.0)
    kind = "of floating point" if floating else ""
    if low < 0:
        return low, high if high > low else low + 1, kind or "of numbers below 0"
    if floating and high <= 1:
        return 0.0, 1.0, kind
    bits = math.ceil(high).bit_length() if floating else max(8, int(high).bit_length())
    white = declared if declared and high <= declared else 2**bits - 1
    return 0.0, float(white), kind or f"of {int(white).bit_length()} bits"


def _scaled(rows: Rows, height: int, black: float, white: float) -> NDArray[np.uint8]:
    """Black as 0, white as 255, what lies between in proportion."""
    scaled, top = np.empty((0,), np.uint8), 0
    for values in rows():
        if top == 0:
            scaled = np.empty((height, *values.shape[1:]), np.uint8)
        parts = (values.astype(np.float64) - black) * (255 / (white - black))
        parts = np.nan_to_num(parts, nan=0.0, posinf=255.0, neginf=0.0)
        scaled[top : top + len(values)] = np.floor(parts + 0.5).clip(0, 255)
        top += len(values)
    return scaled
