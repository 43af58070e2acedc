"""Whether a JPEG is whole, read from its markers: training's decoder, and every other, finds all of its pixels.

Decoders do not agree on damage. Where a marker stands in the midst of the pixels some stop with an error, while
others fill what is missing with gray and say nothing; so here such a JPEG is refused, whoever would read it.
It costs a twentieth of a decoding.
"""

import io
import re
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

START, END = b"\xff\xd8", b"\xff\xd9"
"""The markers around an image."""
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
"""With as many 0xff before it as somebody likes. Among the pixels 0xff with 0 behind it is a byte of them."""
_RESTARTS, _TABLES, _SCAN, _RESTART_INTERVAL = range(0xD0, 0xD8), 0xC4, 0xDA, 0xDD
_EXTRAS = (*range(0xE0, 0xF0), 0xFE, 0xDC)
"""What may follow the last scan: what applications write, comments, and the number of lines."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {_TABLES, 0xC8, 0xCC}
_PLAIN = (0xC0, 0xC1, 0xC2)
"""Frames that every decoder reads: baseline, extended, progressive; their code is Huffman's."""
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)


@dataclass(slots=True)
class JpegLayout:
    """What the markers of a JPEG say.

    Attributes:
        frame: The marker that says how it is coded; 0 before there is one.
        bits: Of a value.
        components: Values of a pixel.
        scanned: Components of all scans so far.
        end: Where it ends, behind its end marker; 0 where there is none.
        interval: Units between two restart markers; 0 where there are none.
    """

    frame: int = 0
    bits: int = 8
    components: int = 0
    scanned: int = 0
    end: int = 0
    interval: int = field(default=0, repr=False)

    @property
    def coding(self) -> str:
        """How it is coded, where a decoder may not know that; else empty."""
        if self.frame in _PLAIN:
            return ""
        return "arithmetic coding" if self.frame >= 0xC9 else "lossless" if self.frame == 0xC3 else "hierarchical"


def whole_jpeg(data: bytes) -> tuple[bytes, JpegLayout]:
    """A JPEG with its end marker, which is added where nothing but that is missing; and what its markers say.

    Raises:
        ValueError: Pixels are missing or damaged, or it is no JPEG.
    """
    layout = layout_of(data)
    if layout.end:
        return data, layout
    # In a progressive one every pixel is there after the first scan, and the later ones cannot be missed.
    if layout.frame in _PROGRESSIVE or layout.scanned < layout.components:
        raise ValueError("the JPEG is cut off")
    pixels = data[:-1] if data.endswith(b"\xff") else data
    # A decoder takes what comes behind the last pixel for nothing; before that it would be pixels.
    first, second = (_decoded(pixels + more + END) for more in (b"", b"\x55" * 64))
    if not np.array_equal(first, second):
        raise ValueError("the JPEG is cut off")
    return pixels + END, layout


def layout_of(data: bytes) -> JpegLayout:
    """Follows the markers to the end of the image; raises ValueError where one has no place."""
    layout, at = JpegLayout(), len(START)
    while at < len(data):
        marker, at = _marker(data, at)
        if marker == END[1]:
            layout.end = at
            break
        length = int.from_bytes(data[at : at + 2])
        if length < 2 or at + length > len(data):
            raise ValueError("the JPEG is cut off or damaged")
        whole = layout.frame not in _PROGRESSIVE and 0 < layout.components <= layout.scanned
        if whole and marker not in _EXTRAS:
            raise ValueError(f"the pixels of the JPEG are damaged: marker {marker:x} stands behind them")
        content = data[at + 2 : at + length]
        at += length
        if marker in _FRAMES and len(content) > 5:
            layout.frame, layout.bits, layout.components = marker, content[0], content[5]
        elif marker == _RESTART_INTERVAL:
            layout.interval = int.from_bytes(content)
        elif marker == _SCAN and content:
            layout.scanned += content[0]
            at = _end_of_scan(data, at, layout.interval)
    if not layout.scanned:
        raise ValueError("the JPEG is cut off before its pixels")
    rest = data[at:].rstrip(b"\0")
    # Behind the image may lie whatever an application put there, but not the rest of its own pixels.
    if rest.endswith(END) and rest.strip(END) and START not in rest:
        raise ValueError("the pixels of the JPEG are damaged: an end marker stands in their midst")
    return layout


def _marker(data: bytes, at: int) -> tuple[int, int]:
    """The marker at a place, and where it ends."""
    if not (found := _MARKER.match(data, at)):
        if not data[at:].strip(b"\xff"):  # cut off within an end marker
            return END[1], 0
        raise ValueError(f"the JPEG is damaged at byte {at:,}: there has to be a marker")
    if (marker := found[1][0]) in _RESTARTS or marker < 0xC0:
        raise ValueError(f"the pixels of the JPEG are damaged: marker {marker:x} stands in their midst")
    return marker, found.end()


def _end_of_scan(data: bytes, at: int, interval: int) -> int:
    """Where the pixels of a scan end: at the first marker that does not restart the decoder, in its turn."""
    pixels = np.frombuffer(data, np.uint8, offset=at)
    # Ten times as fast as a search for one after the other.
    begins = np.flatnonzero(pixels[:-1] == 0xFF)
    kinds = pixels[begins + 1]
    for turn, place in enumerate(np.flatnonzero((kinds != 0) & (kinds != 0xFF)).tolist()):
        if (marker := int(kinds[place])) not in _RESTARTS:
            return at + int(begins[place])
        if not interval or marker != _RESTARTS[turn % 8]:
            raise ValueError(f"the pixels of the JPEG are damaged: marker {marker:x} stands in their midst")
    return len(data)


def _decoded(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)
