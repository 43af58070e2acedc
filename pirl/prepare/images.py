"""Makes sure that training can read an image: a whole JPEG or PNG of 8-bit colour or gray, the right way up.

Such bytes stay untouched. Any other image that can be read is encoded anew, and so is one that is made smaller:
a JPEG as JPEG of quality 95, all others as PNG, which loses nothing. A JPEG that lacks nothing but its end marker gets
one, and a PNG loses texts and the like where these are damaged or too long; the pixels of both stay untouched.

An image of more than MOST_PIXELS is made smaller by 2, a JPEG while it is decoded, and one of more than MOST_READ is
not read at all: so a process takes 4 GB at the most, for 16-bit colours of that size, and 3 GB for all else.
"""

import io
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from pirl.prepare import png
from pirl.prepare.eight_bits import eight_bits
from pirl.prepare.jpeg import START, layout_of, whole_jpeg

QUALITY = 95
"""Of JPEG, from 1 to 100."""
ORIENTATION = 0x0112
"""The EXIF field that says how to turn an image; training does not look at it."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What it says; all other values say nothing."""
MOST_PIXELS = 178_956_970
"""Of what is written: 0.5 GB as training decodes it, in each of its loader processes. Pillow's own limit too."""
MOST_READ = 2**28
"""Pixels of an image that is read: a small file may hold very many."""
MOST_SIDE = 1_000_000
"""Pixels of a side of a PNG, by libpng, which training has."""
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""What a TIFF begins with."""

Image.MAX_IMAGE_PIXELS = None  # MOST_READ is the limit here


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
        return _read(data, short_side)
    except UnidentifiedImageError:
        return Checked(None, note=_why_unknown(data))
    except Exception as error:  # A broken file can make a decoder raise anything.
        return Checked(None, note=str(error) or type(error).__name__)


def _read(data: bytes, short_side: int | None) -> Checked:
    if data.startswith(START):
        whole, layout = whole_jpeg(data)
        return _decoded(whole, short_side, layout.coding, "" if whole is data else "without an end marker")
    try:
        return _decoded(data, short_side)
    except Exception:
        bare = png.without_extras(data) if data.startswith(png.SIGNATURE) else None
        if bare is None:
            raise
        return _decoded(bare, short_side, mended="without its extra chunks, which are damaged or too long")


def _decoded(data: bytes, short_side: int | None, coding: str = "", mended: str = "") -> Checked:
    """Args: `coding` is how a JPEG is coded where that is unusual, `mended` what was done to the bytes before."""
    with Image.open(io.BytesIO(data)) as image:
        if (pixels := image.width * image.height) > MOST_READ:
            raise ValueError(f"{pixels / 1e6:,.0f} megapixels, and {MOST_READ / 1e6:,.0f} are read: make it smaller")
        if max(image.size) > MOST_SIDE:
            raise ValueError(f"{max(image.size):,} pixels long, and {MOST_SIDE:,} are the most")
        # MPO is what some cameras write: a JPEG with a second picture behind it.
        is_jpeg, is_large = image.format in ("JPEG", "MPO"), pixels > MOST_PIXELS
        if is_large:
            image.draft(image.mode, (max(1, image.width // 2), max(1, image.height // 2)))  # of a JPEG alone
        image.load()
        if image.format == "PNG":
            png.check_png(data)
        kind, turn = f"{image.format} {image.mode}", TURNS.get(_orientation(image))
        changes = {
            coding: True,
            "animated": getattr(image, "is_animated", False) and not is_jpeg,
            "turned by EXIF": turn is not None,
            "made smaller by 2": is_large,
            "resized": short_side is not None and min(image.size) > short_side,
        }
        reasons = [reason for reason, holds in changes.items() if reason and holds]
        # Pillow shows a PNG of 16 bits as one of 8.
        is_good = is_jpeg or (image.format == "PNG" and png.depth(data) == 8)
        if is_good and image.mode in ("RGB", "L") and not reasons:
            return Checked(data, kind, f"{kind}, {mended}" if mended else "", image.size)
        new, what = eight_bits(image, data)
    new = new if turn is None else new.transpose(turn)
    new = _smaller(new.reduce(2) if is_large and not is_jpeg else new, short_side)
    file = io.BytesIO()
    new.save(file, "JPEG" if is_jpeg else "PNG", quality=QUALITY)
    return Checked(file.getvalue(), kind, ", ".join(filter(None, [kind, what, *reasons, mended])), new.size)


def _smaller(image: Image.Image, short_side: int | None) -> Image.Image:
    if short_side is None or min(image.size) <= short_side:
        return image
    scale = short_side / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def _orientation(image: Image.Image) -> int:
    """1 if the image is the right way up, or says nothing that can be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Broken EXIF says nothing of the pixels.
        return 1


def _why_unknown(data: bytes) -> str:
    """What to say of an image that Pillow does not know."""
    if data.startswith(START):
        bits, components = (layout := layout_of(data)).bits, layout.components
        return f"a JPEG of {bits} bits and {components} channels, which cannot be read: convert it to 8 bits first"
    if data.startswith(TIFF):
        return "a TIFF of a kind that cannot be read: convert it to PNG first"
    return "not an image"
