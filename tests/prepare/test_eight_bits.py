import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pirl.prepare.images import ORIENTATION, check_image

from .test_images import encoded, png, seen

RAMP = np.linspace(0, 1, 60 * 40).reshape(40, 60)
"""From black to white."""
COLORS = np.stack([RAMP, RAMP[::-1] ** 2, np.full_like(RAMP, 0.3)], 2)
"""Of another white in each channel but for the first two."""
BITS, PHOTOMETRIC, SAMPLES, MAX_VALUE, FORMAT = 258, 262, 277, 281, 339
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


def tiff(values, photometric=None, deflated=False, **tags):
    """A TIFF in the order of bytes of the values; `tags` are SHORTs by their names above."""
    order = ">" if values.dtype.byteorder == ">" else "<"
    height, width, channels = np.atleast_3d(values).shape
    kind = {"u": UNSIGNED, "i": SIGNED, "f": FLOAT}[values.dtype.kind]
    photometric = photometric if photometric is not None else 2 if channels == 3 else 1
    bits = [8 * values.itemsize] * channels
    pixels = zlib.compress(values.tobytes()) if deflated else values.tobytes()
    pixels += bytes(len(pixels) % 2)
    entries = {256: [width], 257: [height], BITS: bits, 259: [8 if deflated else 1], PHOTOMETRIC: [photometric],
               273: [8], SAMPLES: [channels], 278: [height], 279: [len(pixels)], FORMAT: [kind] * channels,
               **{globals()[name]: [value] for name, value in tags.items()}}  # fmt: skip
    start = 8 + len(pixels)
    behind, directory, extra = start + 2 + 12 * len(entries) + 4, b"", b""
    for tag, numbers in sorted(entries.items()):
        wide = max(numbers) > 65535
        packed = struct.pack(f"{order}{len(numbers)}{'I' if wide else 'H'}", *numbers)
        content = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(f"{order}I", behind + len(extra))
        extra += packed if len(packed) > 4 else b""
        directory += struct.pack(f"{order}HHI", tag, 4 if wide else 3, len(numbers)) + content
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    return header + pixels + struct.pack(f"{order}H", len(entries)) + directory + bytes(4) + extra


def png_of(values, color, between=()):
    """A PNG of 16 bits a value."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png((values.shape[1], values.shape[0], 16, color, 0, 0, 0), zlib.compress(rows), between)


def reference(values, black, white):
    """(H, W, 3), each value by itself."""
    scaled = [
        min(max((float(value) - black) / (white - black), 0), 1) * 255 if np.isfinite(value) else 0
        for value in values.reshape(-1)
    ]
    rounded = np.floor(np.array(scaled) + 0.5).reshape(values.shape)
    return np.broadcast_to(np.atleast_3d(rounded), (*values.shape[:2], 3))


def assert_scaled(data, values, black, white, what):
    checked = check_image(data)
    assert checked.image is not None, checked.note
    # The reference divides first; a value that is half a step may round to either side.
    assert np.abs(seen(checked.image) - reference(values, black, white)).max() <= 1
    assert np.abs(seen(checked.image) - reference(values, black, white)).mean() < 0.01
    assert what in checked.note


def of_bits(share, bits, kind="<u2"):
    return np.round(share * (2**bits - 1)).astype(kind)


@pytest.mark.parametrize("bits", [8, 9, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["tiff", "big tiff", "deflated tiff", "color tiff", "big color tiff",
                                  "deflated color tiff", "gray png", "gray with alpha", "png", "rgba"])  # fmt: skip
def test_as_many_bits_as_the_largest_value_needs(bits, kind):
    gray, color = of_bits(RAMP, bits), of_bits(COLORS, bits)
    alpha = np.full((40, 60, 1), 65535, np.uint16)
    data, values = {
        "tiff": lambda: (tiff(gray), gray),
        "big tiff": lambda: (tiff(gray.astype(">u2")), gray),
        "deflated tiff": lambda: (tiff(gray, deflated=True), gray),
        "deflated color tiff": lambda: (tiff(color, deflated=True), color),
        "gray png": lambda: (png_of(gray, 0), gray),
        "gray with alpha": lambda: (png_of(np.concatenate([gray[..., None], alpha], 2), 4), gray),
        "png": lambda: (png_of(color, 2), color),
        "rgba": lambda: (png_of(np.concatenate([color, alpha], 2), 6), color),
        "color tiff": lambda: (tiff(color), color),
        "big color tiff": lambda: (tiff(color.astype(">u2")), color),
    }[kind]()
    assert_scaled(data, values, 0, 2**bits - 1, f"of {bits} bits")


def test_an_image_that_is_somewhat_darker_than_its_bits_allow_stays_so():
    values = of_bits(RAMP * 0.6, 12)
    assert_scaled(tiff(values), values, 0, 4095, "of 12 bits")


def test_8_bits_are_the_least():
    values = of_bits(RAMP, 3)
    assert_scaled(tiff(values), values, 0, 255, "of 8 bits")


@pytest.mark.parametrize("white", [1000, 4095])
def test_a_tiff_may_say_what_is_white(white):
    values = np.round(RAMP * 300).astype("<u2")
    assert_scaled(tiff(values, MAX_VALUE=white), values, 0, white, "bits")
    # Not where values are above it, nor where it only says what fits into 16 bits.
    assert_scaled(tiff(values, MAX_VALUE=299), values, 0, 511, "of 9 bits")
    assert_scaled(tiff(values, MAX_VALUE=65535), values, 0, 511, "of 9 bits")


def test_a_png_may_say_how_many_bits_its_camera_gave():
    values = of_bits(RAMP * 0.1, 12)
    assert_scaled(png_of(values, 0, [(b"sBIT", b"\x0c")]), values, 0, 4095, "of 12 bits")
    # As the format wants it, they are the upper ones of 16.
    values = of_bits(RAMP, 12) * 16
    assert_scaled(png_of(values, 0, [(b"sBIT", b"\x0c")]), values, 0, 65535, "of 16 bits")


@pytest.mark.parametrize(
    ("values", "black", "white", "what"),
    [
        (of_bits(RAMP, 20, "<u4"), 0, 2**20 - 1, "of 20 bits"),
        (of_bits(RAMP, 32, "<u4"), 0, 2**32 - 1, "of 32 bits"),
        (of_bits(RAMP, 20, "<i4"), 0, 2**20 - 1, "of 20 bits"),
        (of_bits(RAMP, 12, ">i2"), 0, 4095, "of 12 bits"),
        (np.round(RAMP * 4095 - 1024).astype("<i2"), -1024, 3071, "of numbers below 0"),
        (np.round(RAMP * 2e6 - 1e6).astype("<i4"), -1e6, 1e6, "of numbers below 0"),
        (np.round(RAMP * 255 - 128).astype("i1"), -128, 127, "of numbers below 0"),
        (np.full((40, 60), -5, "<i2"), -5, -4, "of numbers below 0"),
        (RAMP.astype("<f4"), 0, 1, "of floating point"),
        ((RAMP * 0.5).astype("<f4"), 0, 1, "of floating point"),
        ((RAMP * 4095).astype("<f4"), 0, 4095, "of floating point"),
        ((RAMP * 200).astype(">f4"), 0, 255, "of floating point"),
        ((RAMP * 2 - 1).astype("<f4"), -1, 1, "of floating point"),
        (np.where(RAMP > 0.9, np.nan, RAMP * 1000).astype("<f4"), 0, 1023, "of floating point"),
        (np.full((40, 60), np.nan, "<f4"), 0, 1, "of floating point"),
        (np.zeros((40, 60), "<u2"), 0, 255, "of 8 bits"),
    ],
)
def test_other_numbers(values, black, white, what):
    assert_scaled(tiff(values), values, black, white, what)


def test_infinite_values_are_as_black_and_white_as_can_be():
    values = (RAMP * 100).astype("<f4")
    values[0, 0], values[0, 1] = -np.inf, np.inf
    pixels = seen(check_image(tiff(values)).image)
    assert (pixels[0, 0, 0], pixels[0, 1, 0]) == (0, 255)
    assert pixels[-1, -1, 0] == round(100 / 127 * 255)


@pytest.mark.parametrize("kind", ["<u2", "<f4"])
def test_a_tiff_in_which_0_is_white_is_turned_over(kind):
    values = of_bits(RAMP, 12, kind)
    assert_scaled(tiff(values, photometric=0), values, 4095, 0, "of ")


def test_a_gray_netpbm_is_scaled_by_the_white_that_it_names():
    values = np.round(RAMP * 1000).astype(">u2")
    assert_scaled(b"P5 60 40 1000\n" + values.tobytes(), values, 0, 1000, "of 16 bits")


def test_what_has_16_bits_is_turned_and_made_smaller_too():
    values = of_bits(RAMP, 12)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encoded(Image.fromarray(values), exif=exif)
    checked = check_image(data, 20)
    assert (checked.note, checked.size) == ("PNG I;16, of 12 bits, turned by EXIF, resized", (20, 30))
    expected = np.rot90(reference(values, 0, 4095), -1).reshape(30, 2, 20, 2, 3).mean((1, 3))
    assert np.abs(seen(checked.image) - expected).mean() < 2


def test_the_same_image_gives_the_same_bytes():
    data = tiff(of_bits(COLORS, 12))
    assert check_image(data) == check_image(data)
