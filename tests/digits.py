"""The built-in digits as a data set elsewhere, for tests."""

from collections.abc import Mapping
from typing import Any

from pirl.data.dataset import open_dataset
from pirl.data.writer import ShardWriter
from pirl.storage.folder import Folder


def write_digits_to(uri: str, options: dict[str, Any], replaced: Mapping[int, bytes] | None = None) -> str:
    """The built-in digits as a data set of its own, with some images replaced."""
    dataset = open_dataset("digits")
    folder = Folder(uri, options)
    with ShardWriter(folder, classes=None, seed=0, source="test", shard_bytes=100_000) as writer:
        for number in range(len(dataset.starts) - 1):
            group = dataset.read_group(number)
            for id, image in zip(group.ids.tolist(), group.images, strict=True):
                writer.add((replaced or {}).get(id, bytes(image)), None)
    return uri
