"""Makes sure that training can read an image: a whole JPEG or PNG of 8-bit colour or gray, the right way up.

Such bytes stay untouched. Any other image that can be read is encoded anew, and so is one that is made smaller:
a JPEG as JPEG of quality 95, all others as PNG, which loses nothing.
"""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

QUALITY = 95
"""Of JPEG, from 1 to 100."""
ORIENTATION = 0x0112
"""The EXIF field that says how to turn an image; training does not look at it."""
GRAY = ("1", "L", "LA", "La")
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By the kind of colour in the header of a PNG: gray, RGB, palette, gray with alpha, RGB with alpha."""
UNPACKED_BYTES = 2**20
"""Of a PNG, at a time: a small file may hold very many."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What became of an image.

    Attributes:
        image: The bytes to write, as they came or encoded anew; None if it cannot be used.
        kind: What it was: format and mode, as `JPEG CMYK`.
        note: Why it cannot be used, or why it was encoded anew; empty if neither.
        size: Width and height in pixels, of what is written.
    """

    image: bytes | None
    kind: str = ""
    note: str = ""
    size: tuple[int, int] = (0, 0)


def check_image(data: bytes, short_side: int | None = None) -> Checked:
    """Decodes an image, and encodes it anew if it has to be.

    One whose short side is longer than `short_side` pixels is resized to it (Lanczos).
    """
    if not data:
        return Checked(None, note="no image")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.format == "PNG":
                _check_png(data)
            return _checked(image, data, short_side)
    except UnidentifiedImageError:
        return Checked(None, note="not an image")
    except Exception as error:  # A broken file can make a decoder raise anything.
        return Checked(None, note=str(error) or type(error).__name__)


def _checked(image: Image.Image, data: bytes, short_side: int | None) -> Checked:
    kind = f"{image.format} {image.mode}"
    # MPO is what some cameras write: a JPEG with a second picture behind it.
    is_jpeg = image.format in ("JPEG", "MPO")
    # Pillow shows a PNG of 16 bits as one of 8; byte 24 of the file is its depth.
    is_good = image.mode in ("RGB", "L") and (is_jpeg or (image.format == "PNG" and data[24] == 8))
    reasons = [] if is_good else ["of 16 bits"] if image.format == "PNG" and data[24] == 16 else [""]
    if getattr(image, "is_animated", False) and not is_jpeg:
        reasons.append("animated")
    if _orientation(image) in range(2, 9):  # others say nothing
        reasons.append("turned by EXIF")
    if short_side is not None and min(image.size) > short_side:
        reasons.append("resized")
    if not reasons:
        return Checked(data, kind, "", image.size)
    new = _eight_bits(ImageOps.exif_transpose(image) if "turned by EXIF" in reasons else image)
    if "resized" in reasons and short_side is not None:
        scale = short_side / min(new.size)
        new = new.resize((round(new.width * scale), round(new.height * scale)), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    new.save(file, "JPEG" if is_jpeg else "PNG", quality=QUALITY)
    return Checked(file.getvalue(), kind, ", ".join([kind, *filter(None, reasons)]), new.size)


def _orientation(image: Image.Image) -> int:
    """1 if the image is the right way up, or says nothing that can be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Broken EXIF says nothing of the pixels.
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """As 8-bit gray or colour, of an animation the first frame; raises ValueError for numbers without a known white."""
    if image.mode.startswith("F"):
        raise ValueError(f"pixels of floating point (mode {image.mode}): convert it to 8 bits first")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"more than 16 bits a pixel (mode {image.mode}): convert it to 8 bits first")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    return image.convert("L" if image.mode in GRAY else "RGB")


def _check_png(data: bytes) -> None:
    """Refuses what Pillow has read as a PNG and is not whole: at some, libpng, which training has, ends the process.

    It looks at checksums and lengths, as far as the pixels go: nothing reads on behind them. Raises ValueError.
    """
    width, height, depth, color, *methods = struct.unpack_from(">IIBBBBB", data, 16)
    if methods[:2] != [0, 0]:
        raise ValueError("the header of the PNG is damaged")
    # Each row has a byte before it. Interlaced ones have some more, which are not counted here.
    least = height * (1 + (width * depth * CHANNELS[color] + 7) // 8)
    if _unpacked_bytes(_pixels(data)) < least:
        raise ValueError("the pixels of the PNG are cut off or damaged")


def _pixels(data: bytes) -> bytes:
    """The compressed pixels: the content of the first IDAT chunks that follow one another."""
    view, at = memoryview(data), 8
    pixels: list[memoryview] = []
    while True:
        kind = data[at + 4 : at + 8]
        if pixels and kind != b"IDAT":
            return b"".join(pixels)
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if len(data) < end + 4:
            raise ValueError("the PNG is cut off")
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise ValueError("a chunk of the PNG does not have its checksum")
        # Those with a capital letter have to be understood.
        if kind[:1].isupper() and kind not in (b"PLTE", b"IDAT") and (kind, at) != (b"IHDR", 8):
            raise ValueError(f"chunk {kind.decode(errors='replace')} of the PNG has no place there")
        if kind == b"IDAT":
            pixels.append(view[at + 8 : end])
        at = end + 4


def _unpacked_bytes(pixels: bytes) -> int:
    """Length of the rows; -1 without the checksum behind them."""
    stream, size = zlib.decompressobj(), 0
    try:
        while piece := stream.decompress(pixels, UNPACKED_BYTES):
            size, pixels = size + len(piece), stream.unconsumed_tail
    except zlib.error:
        return -1
    return size if stream.eof else -1
