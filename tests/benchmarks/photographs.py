"""What the benchmarks read: the photographs of a tar file, repeated."""

import tarfile
from collections.abc import Iterator
from pathlib import Path


def from_tar(path: Path) -> Iterator[bytes]:
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                yield file.read()


def repeat(photos: list[bytes], count: int) -> Iterator[bytes]:
    """Photographs with a JPEG comment (FF FE, length, text) behind the first two bytes, so that no two are the same."""
    for number in range(count):
        text = f"repetition {number}".encode()
        photo = photos[number % len(photos)]
        yield photo[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + photo[2:]
