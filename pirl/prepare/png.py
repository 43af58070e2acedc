"""Whether a PNG is whole: libpng, which training decodes with, ends the process at some that Pillow reads."""

import struct
import zlib

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By the header's kind of colour: gray, RGB, palette, gray with alpha, RGB with alpha."""
PIECE = 2**20


def check_png(data: bytes) -> None:
    """Looks at checksums and lengths, as far as the pixels go: nothing reads on behind them.

    Args:
        data: What Pillow has read as a PNG.

    Raises:
        ValueError: It is cut off or damaged.
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
    """Length of the rows; -1 without the checksum behind them. Piece by piece: a small file may hold very many."""
    stream, size = zlib.decompressobj(), 0
    try:
        while piece := stream.decompress(pixels, PIECE):
            size, pixels = size + len(piece), stream.unconsumed_tail
    except zlib.error:
        return -1
    return size if stream.eof else -1
