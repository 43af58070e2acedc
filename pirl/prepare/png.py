"""Whether a PNG is whole, read from its chunks: at some that are not, libpng, which training has, ends the process."""

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By the kind of colour in the header: gray, RGB, palette, gray with alpha, RGB with alpha."""
PALETTE = 3
NEEDED = (b"tRNS", b"eXIf", b"sBIT")
"""Chunks that say something of the pixels or how to turn them, beside those with a capital letter."""
UNPACKED_BYTES = 2**20
"""At a time: a small file may hold very many."""


def depth(data: bytes) -> int:
    """Bits of a value."""
    return data[24]


def significant_bits(data: bytes) -> int:
    """How many of them the image says that its camera gave; 0 where it does not say."""
    contents = (data[start:end] for kind, start, end in _chunks(data) if kind == b"sBIT")
    return max(next(contents, b""), default=0)


def without_extras(data: bytes) -> bytes | None:
    """The same image without texts, times and all else that does not change its pixels; None where there is no such."""
    parts, at = [SIGNATURE], len(SIGNATURE)
    for kind, start, end in _chunks(data):
        whole = zlib.crc32(kind + data[start:end]) == int.from_bytes(data[end : end + 4])
        # A capital letter says that a chunk has to be understood; a palette beside colours is only advice.
        if (kind[:1].isupper() and (kind != b"PLTE" or data[25] == PALETTE)) or (whole and kind in NEEDED):
            parts.append(data[start - 8 : end + 4])
        at = end + 4
    bare = b"".join(parts)
    return bare if len(bare) < at else None


def check_png(data: bytes) -> None:
    """Looks at checksums and lengths, as far as the pixels go: nothing reads on behind them. Raises ValueError."""
    width, height, bits, color, *methods = struct.unpack_from(">IIBBBBB", data, 16)
    if methods[:2] != [0, 0]:
        raise ValueError("the header of the PNG is damaged")
    # Each row has a byte before it. Interlaced ones have some more, which are not counted here.
    least = height * (1 + (width * bits * CHANNELS[color] + 7) // 8)
    if _unpacked_bytes(_pixels(data)) < least:
        raise ValueError("the pixels of the PNG are cut off or damaged")


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The name of each chunk, where its content begins, and where it ends; as far as they are whole."""
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if end + 4 > len(data):
            return
        yield data[at + 4 : at + 8], at + 8, end
        at = end + 4


def _pixels(data: bytes) -> bytes:
    """The compressed pixels: the content of the first IDAT chunks that follow one another."""
    view = memoryview(data)
    pixels: list[memoryview] = []
    for kind, start, end in _chunks(data):
        if pixels and kind != b"IDAT":
            return b"".join(pixels)
        if zlib.crc32(view[start - 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise ValueError("a chunk of the PNG does not have its checksum")
        if kind[:1].isupper() and kind not in (b"PLTE", b"IDAT") and (kind, start) != (b"IHDR", 16):
            raise ValueError(f"chunk {kind.decode(errors='replace')} of the PNG has no place there")
        if not kind.isalpha() or (kind == b"PLTE" and start == end):
            raise ValueError("a chunk of the PNG is damaged")
        if kind == b"IDAT":
            pixels.append(view[start:end])
    if not pixels:
        raise ValueError("the PNG is cut off")
    return b"".join(pixels)


def _unpacked_bytes(pixels: bytes) -> int:
    """Length of the rows; -1 without the checksum behind them."""
    stream, size = zlib.decompressobj(), 0
    try:
        while piece := stream.decompress(pixels, UNPACKED_BYTES):
            size, pixels = size + len(piece), stream.unconsumed_tail
    except zlib.error:
        return -1
    return size if stream.eof else -1
