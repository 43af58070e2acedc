import io
import multiprocessing
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pirl.loading.decode import decode
from pirl.prepare import images
from pirl.prepare.images import ORIENTATION, check_image


def ramps(width=60, height=40):
    """A smooth image that is unlike itself when turned or flipped."""
    colors = np.broadcast_arrays(
        np.linspace(0, 255, width)[None, :], np.linspace(255, 0, height)[:, None], np.float64(90)
    )
    return np.stack(colors, 2).astype(np.uint8)


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def picture(mode="RGB", form="PNG", **options):
    return encoded(Image.fromarray(ramps()).convert(mode), form, **options)


def turned(form, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(Image.fromarray(ramps()), form, exif=exif)


def png(header, pixels, between=()):
    """A PNG of these chunks, whose checksums are right; `between` are (name, content)."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", *header)), *between, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def sixteen_bits(color):
    """A PNG of 16 bits a channel: each value of `ramps` times 257. Pillow writes gray ones only."""
    values = ramps().astype(np.uint16) * 257
    if not color:
        return encoded(Image.fromarray(values[..., 0]))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png((values.shape[1], values.shape[0], 16, 2, 0, 0, 0), zlib.compress(rows))


def of_twelve_bits(jpeg):
    """The same, but it says that its values have 12 bits."""
    at = jpeg.index(b"\xff\xc0") + 4
    return jpeg[:at] + b"\x0c" + jpeg[at + 1 :]


LONG_32, LONG_31 = (struct.pack("<HHII", 258, 3, 1, bits) for bits in (32, 31))
"""What a TIFF says of the bits of a value."""

COLOR = (60, 40, 8, 2, 0, 0, 0)
"""The header of `ramps` as a PNG."""
PIXELS = zlib.compress(b"".join(b"\0" + row.tobytes() for row in ramps()))


def interlaced():
    """The image as a PNG in seven passes (Adam7): pixels from (x, y) on, at each (dx, dy)."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = (row for x, y, dx, dy in passes for row in ramps()[y::dy, x::dx])
    return png((*COLOR[:-1], 1), zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))


def damaged_pngs():
    """Each PNG with one bit flipped, cut off, or of chunks that fit neither each other nor the format."""
    whole = png(COLOR, PIXELS, [(b"tEXt", b"a\0b")])
    places = [*range(len(whole) - 60, len(whole)), *range(8, 110), *range(110, len(whole) - 60, 37)]
    flipped = [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in places]
    # Bits of the header and of the pixels before their checksums.
    header = struct.pack(">IIBBBBB", *COLOR)
    bits = [header[:at] + bytes([header[at] ^ 1 << bit]) + header[at + 1 :] for at in range(13) for bit in range(3)]
    pixels = [PIXELS[:at] + bytes([PIXELS[at] ^ 1]) + PIXELS[at + 1 :] for at in range(0, len(PIXELS), 23)]
    return [
        *flipped,
        *(whole[:-cut] for cut in range(1, 30)),
        *(png(struct.unpack(">IIBBBBB", header), PIXELS) for header in bits),
        *(png(COLOR, data) for data in pixels),
        *(png(COLOR, PIXELS[:-cut]) for cut in range(1, 8)),
        png(COLOR, PIXELS + b"more"),
        png(COLOR, PIXELS, [(b"PLTE", b"")]),
        png(COLOR, PIXELS, [(b"a1Bc", b"")]),
        png(COLOR, PIXELS, [(b"tEXt", b"a\0" + bytes(9_000_000))]),
        png(COLOR, PIXELS, [(b"gAMA", b""), (b"pHYs", bytes(3)), (b"acTL", bytes(3)), (b"tRNS", bytes(99))]),
        png(COLOR, zlib.compress(b"".join(b"\x09" + row.tobytes() for row in ramps()))),
        png(COLOR, PIXELS, [(b"ABCD", b"")]),
        png(COLOR, PIXELS, [(b"IHDR", header)]),
        png(COLOR, PIXELS[500:], [(b"IDAT", PIXELS[:500]), (b"tEXt", b"a\0b")]),
        png(COLOR, PIXELS[-2:], [(b"IDAT", PIXELS[:-2]), (b"tEXt", b"a\0b")]),
        png(COLOR, zlib.compress(zlib.decompress(PIXELS)[:-181])),
    ]


def seen(data):
    """What training decodes: (H, W, 3)."""
    return decode(data).permute(1, 2, 0).numpy().astype(float)


def difference(data, expected):
    """Mean difference of what training decodes from (H, W, 3), in steps of 255."""
    return np.abs(seen(data) - np.broadcast_to(expected, (*expected.shape[:2], 3)).astype(float)).mean()


@pytest.mark.parametrize(
    "data",
    [
        picture(),
        picture("L"),
        picture(form="JPEG"),
        picture("L", "JPEG"),
        picture(form="JPEG", progressive=True),
        turned("JPEG", 1),
        turned("PNG", 1),
        turned("JPEG", 0),
        turned("JPEG", 9),
        picture()[:-12],
        png(COLOR, PIXELS[500:], [(b"IDAT", PIXELS[:500])]),
        encoded(Image.fromarray(ramps()), "JPEG", exif=b"Exif\0\0nonsense"),
        picture(form="JPEG") + b"written behind it",
        picture(form="JPEG", restart_marker_blocks=2),
        interlaced(),
    ],
    ids=["png", "gray png", "jpeg", "gray jpeg", "progressive", "upright jpeg", "upright png", "no turn", "no turn",
         "png without its last chunk", "png in parts", "broken exif", "jpeg and more", "restarts", "interlaced"],
)  # fmt: skip
def test_what_training_reads_stays_untouched(data):
    checked = check_image(data)
    assert checked.image is data
    assert (checked.note, checked.size) == ("", (60, 40))
    assert seen(data).shape == (40, 60, 3)


GRAY = np.asarray(Image.fromarray(ramps()).convert("L"))[..., None]


@pytest.mark.parametrize(
    ("data", "note", "expected", "most"),
    [
        # A JPEG of quality 95 is off by less than 2 of 255 in a smooth image, and so is Pillow's palette of 256.
        (picture("CMYK", "JPEG"), "JPEG CMYK", ramps(), 2.0),
        (picture("P", "PNG"), "PNG P", np.asarray(Image.fromarray(ramps()).convert("P").convert("RGB")), 0),
        (picture("RGBA"), "PNG RGBA", ramps(), 0),
        (picture("LA"), "PNG LA", GRAY, 0),
        (picture("1"), "PNG 1", np.asarray(Image.fromarray(ramps()).convert("1").convert("L"))[..., None], 0),
        (picture(form="BMP"), "BMP RGB", ramps(), 0),
        (picture(form="TIFF"), "TIFF RGB", ramps(), 0),
        (picture(form="WEBP", lossless=True), "WEBP RGB", ramps(), 0),
        (sixteen_bits(color=False), "PNG I;16, of 16 bits", ramps()[..., :1], 0),
        # Pillow keeps the upper byte, which is the value itself here.
        (sixteen_bits(color=True), "PNG RGB, of 16 bits", ramps(), 0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_does_not_read_as_it_is_comes_out_as_8_bits(data, note, expected, most):
    checked = check_image(data)
    assert (checked.note, checked.size) == (note, (60, 40))
    assert difference(checked.image, expected) <= most
    # Once is enough.
    assert check_image(checked.image).image is checked.image


def test_an_interlaced_png_is_read_as_it_was_made():
    assert difference(interlaced(), ramps()) == 0


LONG = b"a\0\0" + zlib.compress(bytes(2**22))
"""A compressed text of 4 MB; Pillow takes 1 MB of one, and 64 MB of all."""


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("name", ["long text", "damaged text"])
def test_a_png_loses_texts_that_stand_in_the_way_and_not_a_pixel(name, where):
    def with_text(kind, content):
        text = png(COLOR, PIXELS, [(kind, content)])
        if where == "before":
            return text
        # Behind the pixels: the chunks in another order.
        start = text.index(kind) - 4
        end = start + len(content) + 12
        return text[:start] + text[end:-12] + text[start:end] + text[-12:]

    if name == "long text":
        data = with_text(b"zTXt", LONG)
    else:
        data = with_text(b"tEXt", b"a\0b").replace(b"a\0b", b"a\0c")
    checked = check_image(data)
    assert difference(checked.image, ramps()) == 0
    if checked.image is not data:
        assert checked.note == "PNG RGB, without its extra chunks, which are damaged or too long"
        assert checked.image == png(COLOR, PIXELS)
    else:
        assert where == "behind"  # nothing reads on so far


def test_a_png_of_which_texts_were_taken_is_turned_all_the_same():
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    data = encoded(Image.fromarray(ramps()), exif=exif)
    header, pixels = data[:33], data[33:]
    text = struct.pack(">I", len(LONG)) + b"zTXt" + LONG + struct.pack(">I", zlib.crc32(b"zTXt" + LONG))
    checked = check_image(header + text + pixels)
    assert checked.note == "PNG RGB, turned by EXIF, without its extra chunks, which are damaged or too long"
    assert difference(checked.image, np.rot90(ramps(), 2)) == 0


def test_a_png_with_gray_and_alpha_and_a_palette_with_a_transparent_colour_keep_their_colours():
    palette = Image.fromarray(ramps()).convert("P")
    for data, expected in (
        (encoded(palette, transparency=0), np.asarray(palette.convert("RGB"))),
        (picture("LA"), GRAY),
    ):
        assert difference(check_image(data).image, expected) == 0


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_an_image_of_too_many_pixels_is_made_smaller_by_2(monkeypatch, form):
    monkeypatch.setattr(images, "MOST_PIXELS", 60 * 40 - 1)
    data = picture(form=form)
    checked = check_image(data)
    assert (checked.note, checked.size) == (f"{form} RGB, made smaller by 2", (30, 20))
    # A ramp stays a ramp; a JPEG of quality 75 and then 95 is off by less than 3.
    assert difference(checked.image, ramps().reshape(20, 2, 30, 2, 3).mean((1, 3))) < (3 if form == "JPEG" else 1)
    assert check_image(data, 10).size == (15, 10)
    monkeypatch.setattr(images, "MOST_READ", 60 * 40 - 1)
    checked = check_image(data)
    assert checked.image is None
    assert "megapixels" in checked.note


def test_a_photograph_of_200_megapixels_is_read():
    """One colour, so that it is made and read in a second; its size is beyond Pillow's own limit."""
    data = encoded(Image.new("L", (16_320, 12_240), 77), "JPEG")
    checked = check_image(data, 64)
    assert (checked.note, checked.size) == ("JPEG L, made smaller by 2, resized", (85, 64))
    assert np.abs(seen(checked.image) - 77).max() <= 1


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_comes_the_first_frame(form):
    frames = [Image.fromarray(ramps()), Image.fromarray(255 - ramps())]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    checked = check_image(data)
    assert checked.note.endswith("animated")
    # A GIF has a palette of 256 colours; the second frame would differ by some 100.
    assert difference(checked.image, ramps()) <= (12 if form == "GIF" else 0)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_turns_the_image_itself(form, orientation):
    turn = {
        2: np.fliplr,
        3: lambda image: np.rot90(image, 2),
        4: np.flipud,
        5: lambda image: image.transpose(1, 0, 2),
        6: lambda image: np.rot90(image, -1),
        7: lambda image: np.rot90(image, 2).transpose(1, 0, 2),
        8: np.rot90,
    }[orientation]
    checked = check_image(turned(form, orientation))
    assert checked.note == f"{form} RGB, turned by EXIF"
    # JPEG loses twice here, and colours at half the resolution; any other turn is off by more than 50.
    assert difference(checked.image, turn(ramps())) <= (4 if form == "JPEG" else 0)
    with Image.open(io.BytesIO(checked.image)) as image:
        assert image.getexif().get(ORIENTATION, 1) == 1


@pytest.mark.parametrize(("side", "size"), [(20, (30, 20)), (39, (58, 39)), (40, (60, 40)), (100, (60, 40))])
def test_resize_makes_the_short_side_shorter_and_never_longer(side, size):
    data = picture()
    checked = check_image(data, side)
    assert checked.size == size
    assert Image.open(io.BytesIO(checked.image)).size == size
    assert (checked.image is data) == (size == (60, 40))
    if size == (30, 20):
        # A ramp stays a ramp: half as many steps, each the mean of two.
        assert difference(checked.image, ramps().reshape(20, 2, 30, 2, 3).mean((1, 3))) < 1


def test_a_resized_jpeg_is_a_jpeg_of_quality_95():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8))
    checked = check_image(encoded(photo, "JPEG", quality=80), 45)
    assert checked.note == "JPEG RGB, resized"
    with (
        Image.open(io.BytesIO(checked.image)) as image,
        Image.open(io.BytesIO(encoded(photo, "JPEG", quality=95))) as q,
    ):
        assert image.format == "JPEG"
        assert image.quantization == q.quantization


def test_a_turned_image_is_resized_by_its_short_side():
    assert check_image(turned("JPEG", 6), 20).size == (20, 30)


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (b"", "no image"),
        (b"no image", "not an image"),
        (picture(form="JPEG")[:-100], "the JPEG is cut off"),
        (picture()[:-40], ""),
        (picture()[:-13], "the PNG is cut off"),
        (png(COLOR, PIXELS[:-2]), "the pixels of the PNG"),
        (png(COLOR, zlib.compress(zlib.decompress(PIXELS)[:-181])), "the pixels of the PNG"),
        (png(COLOR, PIXELS, [(b"ABCD", b"")]), "chunk ABCD"),
        (picture("P")[:-13], "the PNG is cut off"),
        (png((1_000_001, 1, 8, 0, 0, 0, 0), zlib.compress(bytes(1_000_002))), "1,000,001 pixels long"),
        (of_twelve_bits(picture(form="JPEG")), "a JPEG of 12 bits and 3 channels"),
        (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF").replace(LONG_32, LONG_31), "a TIFF of a kind"),
    ],
    ids=[
        "empty",
        "text",
        "cut jpeg",
        "cut png",
        "no checksum",
        "no sum of pixels",
        "no last row",
        "unknown chunk",
        "cut palette",
        "long side",
        "12 bits",
        "tiff of 31 bits",
    ],
)
def test_what_cannot_be_used_says_why(data, note):
    checked = check_image(data)
    assert checked.image is None
    assert note in checked.note
    assert checked.note


def test_of_damaged_pngs_training_decodes_all_that_are_kept():
    pngs = damaged_pngs()
    kept = [checked.image for data in pngs if (checked := check_image(data)).image]
    assert 10 < len(kept) < len(pngs) / 3
    # In a process of its own: at some PNGs that Pillow reads, libpng ends the process.
    process = multiprocessing.get_context("fork").Process(target=lambda: [decode(data) for data in kept])
    process.start()
    process.join(60)
    assert process.exitcode == 0
