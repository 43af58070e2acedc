"""Reads a manifest as a few arrays, whatever the number of shards."""

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from pirl.data.writer import shard_name


class ShardTable(NamedTuple):
    """The shards of a manifest, without an object of Python for each.

    Attributes:
        names: Of the S files.
        sizes: int64 (S,), in bytes.
        counts: int64 (S,), the row groups in each.
        groups: int64 (G, 4), of each row group its offset, length, rows and crc32.
    """

    names: Sequence[str]
    sizes: NDArray[np.int64]
    counts: NDArray[np.int64]
    groups: NDArray[np.int64]


@dataclass(frozen=True)
class NumberedNames(Sequence[str]):
    """The names that a writer gives, of which nobody needs to keep a list."""

    total: int

    def __len__(self) -> int:
        return self.total

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [shard_name(each) for each in range(self.total)[number]]
        return shard_name(range(self.total)[number])


def parsed(text: bytes) -> Any:
    """A manifest, whose `shards` are a ShardTable.

    They are taken out of it one by one while it is read: with 10^9 images there are three million, and as Python's
    objects they would take gigabytes.
    """
    others: list[str] = []  # names that a writer would not give, and all after the first of them
    sizes, counts, groups = array("q"), array("q"), array("q")

    def taken(entry: dict[str, Any]) -> dict[str, Any] | None:
        if not {"path", "bytes", "groups"} <= entry.keys():
            return entry
        if others or entry["path"] != shard_name(len(sizes)):
            others.append(entry["path"])
        sizes.append(entry["bytes"])
        counts.append(len(entry["groups"]))
        for group in entry["groups"]:
            groups.extend(group)
        return None

    manifest = json.loads(text, object_hook=taken)
    if isinstance(manifest, dict) and "shards" in manifest:
        usual = NumberedNames(len(sizes) - len(others))
        names = [*usual, *others] if others else usual
        numbers = (np.frombuffer(some, np.int64) if some else np.empty(0, np.int64) for some in (sizes, counts, groups))
        table = ShardTable(names, *numbers)
        manifest["shards"] = table._replace(groups=table.groups.reshape(-1, 4))
    return manifest
