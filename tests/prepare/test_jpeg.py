import base64
import io

import numpy as np
import pytest
from PIL import Image

from pirl.loading.decode import decode
from pirl.prepare.images import check_image
from pirl.prepare.jpeg import END, START, whole_jpeg

from .test_images import difference, encoded, ramps, seen


def photo(width=96, height=64):
    """Noise on a ramp: its pixels take many bytes, as those of a photograph do."""
    noise = np.random.default_rng(0).integers(-40, 40, (height, width, 3))
    return Image.fromarray((ramps(width, height) + noise).clip(0, 255).astype(np.uint8))


BASELINE = encoded(photo(), "JPEG", quality=90)
KINDS = {
    "baseline": BASELINE,
    "gray": encoded(photo().convert("L"), "JPEG", quality=90),
    "progressive": encoded(photo(), "JPEG", quality=90, progressive=True),
    "restarts": encoded(photo(), "JPEG", quality=90, restart_marker_blocks=3),
}


def with_marker(data, marker, share=3):
    """The same with a byte of its pixels changed into a marker: where 0xff and 0 stood behind a third of it."""
    at = data.index(b"\xff\x00", len(data) // share)
    return data[: at + 1] + bytes([marker]) + data[at + 2 :]


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_one_is_left_as_it_is(kind):
    data = KINDS[kind]
    assert whole_jpeg(data)[0] is data
    assert whole_jpeg(data)[1].end == len(data)
    assert check_image(data).image is data


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("marker", [0x01, 0xC0, 0xC4, 0xD3, 0xD8, 0xD9, 0xDA, 0xDB, 0xE1, 0xFE])
def test_a_marker_in_the_midst_of_the_pixels_is_damage(kind, marker):
    """Pillow reads most of them, with gray from there on; so does training's decoder, or it stops."""
    checked = check_image(with_marker(KINDS[kind], marker))
    assert checked.image is None
    assert "JPEG" in checked.note


@pytest.mark.parametrize("behind", [b"more", bytes(5000), BASELINE, b"\xff", b"\xff\xd9", b"\xff\x00\xff\xe1" * 9])
def test_what_stands_behind_the_image_is_nobodys_business(behind):
    data = BASELINE + behind
    assert check_image(data).image is data
    assert np.array_equal(seen(data), seen(BASELINE))


@pytest.mark.parametrize("kind", ["baseline", "gray", "restarts"])
@pytest.mark.parametrize("left", [0, 1])
def test_a_missing_end_marker_is_added(kind, left):
    data = KINDS[kind]
    checked = check_image(data[: len(data) - 2 + left])
    assert checked.image == data
    assert checked.note == f"JPEG {'L' if kind == 'gray' else 'RGB'}, without an end marker"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_one_that_is_cut_off_is_not_used(kind, share):
    data = KINDS[kind]
    checked = check_image(data[: int(len(data) * share)])
    assert checked.image is None
    assert "cut off" in checked.note or "truncated" in checked.note


def test_a_progressive_one_without_an_end_may_lack_more():
    checked = check_image(KINDS["progressive"][:-2])
    assert checked.image is None
    assert "cut off" in checked.note


def test_of_damaged_ones_training_decodes_all_that_are_kept():
    rng = np.random.default_rng(0)
    small = encoded(photo(40, 32), "JPEG", quality=90)
    kinds = [*KINDS.values(), small, encoded(photo(40, 32), "JPEG", quality=90, progressive=True)]
    kept = count = 0
    for data in kinds:
        for _ in range(150):
            damaged = bytearray(data)
            for at in rng.integers(2, len(data), rng.integers(1, 3)):
                damaged[at] = rng.choice([0xFF, damaged[at] ^ 1, rng.integers(256)])
            count += 1
            if (image := check_image(bytes(damaged)).image) is not None:
                kept += 1
                assert decode(image).shape[0] == 3
    # A changed bit of a pixel makes another pixel, and nobody can tell.
    assert count / 10 < kept < count


ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAIBAQEBAQIBAQECAgICAgQDAgICAgUEBAMEBgUGBgYFBgYGBwkIBgcJBwYGCAsICQoKCgoKBggLDAsK"
    "DAkKCgr/2wBDAQICAgICAgUDAwUKBwYHCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgr/yQARCAAQABgD"
    "ASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwDSVU5FBdLHKWg6oxqaSlKbRwtYrNYAs+q0E5PxayOkeLqtUyX6YGAzdwnl96UAfQGb"
    "UG7+rGlM+lutSu4XMprEbRVfXO3gkJ7fMG3XcEGXawBTetcbw//Z"
)
"""`ramps(24, 16)` in arithmetic coding, which Pillow does not write."""


def test_arithmetic_coding_is_written_as_every_decoder_reads_it():
    checked = check_image(ARITHMETIC)
    assert checked.note == "JPEG RGB, arithmetic coding"
    assert whole_jpeg(checked.image)[1].coding == ""
    # Twice a JPEG of quality 95 with colours at half the resolution, of a steep ramp.
    assert difference(checked.image, ramps(24, 16)) < 6


def with_adobe(data, transform):
    """The same with Adobe's marker, which says how the channels are meant, in place of what it had."""
    marker = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    at = data.find(b"\xff\xee")
    return data[:2] + marker + (data[2:at] + data[at + 16 :] if at > 0 else data[2:])


def test_cmyk_is_read_as_adobe_writes_it_inverted():
    cmyk = encoded(photo().convert("CMYK"), "JPEG", quality=95, subsampling=0)
    checked = check_image(with_adobe(cmyk, 0))
    assert checked.note == "JPEG CMYK"
    # Quality 95, twice and at last with colours at half the resolution, of noise; inverted it is off by some 100.
    assert difference(checked.image, np.asarray(photo())) < 20


def test_ycck_is_read_as_what_it_is():
    """YCbCr of the inverted colours beside black, here none, and all of it written inverted."""
    rgb = photo()
    channels = [*rgb.convert("YCbCr").split(), Image.new("L", rgb.size, 0)]
    data = with_adobe(encoded(Image.merge("CMYK", channels), "JPEG", quality=95, subsampling=0), 2)
    checked = check_image(data)
    assert checked.note == "JPEG CMYK"
    assert difference(checked.image, np.asarray(rgb)) < 20


def test_what_is_no_jpeg_behind_its_first_marker_says_so():
    for data in (START, START + END, START + b"text", START + bytes(100), BASELINE[:20]):
        assert check_image(data).image is None


def test_the_first_picture_of_a_camera_that_writes_two_is_read():
    file = io.BytesIO()
    photo().save(file, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    data = file.getvalue()
    checked = check_image(data)
    assert checked.image is data
    assert checked.kind == "MPO RGB"
    assert seen(data).shape == (64, 96, 3)
