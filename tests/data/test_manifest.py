"""Manifests as a few arrays: what the shards say, however they are called, and no object for each of them."""

import json
import pickle
import sys

import numpy as np
import pytest

from pirl.data.manifest import NumberedNames, parsed
from pirl.data.writer import shard_name


def manifest(names: list[str], groups: list[int]) -> bytes:
    """With shards of some row groups each, whose numbers are all different and some too large for 32 bits."""
    number = iter(range(2**32 - 9, 2**33))
    shards = [
        {"path": name, "bytes": next(number), "rows": 0, "groups": [[next(number) for _ in range(4)] for _ in range(n)]}
        for name, n in zip(names, groups, strict=True)
    ]
    return json.dumps({"version": 2, "rows": 7, "classes": ["a"], "taken": {"path": "x"}, "shards": shards}).encode()


@pytest.mark.parametrize(
    "names",
    [
        [],
        [shard_name(number) for number in range(3)],
        ["shard-00000.parquet", "other.parquet", "shard-00002.parquet"],
        ["b/a.parquet", "shard-00001.parquet"],
        ["shard-00001.parquet", "shard-00000.parquet"],
    ],
)
def test_a_manifest_is_what_json_says(names: list[str]) -> None:
    text = manifest(names, [2, 0, 3][: len(names)])
    found, plain = parsed(text), json.loads(text)
    table, shards = found.pop("shards"), plain.pop("shards")
    assert found == plain
    assert list(table.names) == [shard["path"] for shard in shards]
    assert len(table.names) == len(shards)
    assert table.sizes.tolist() == [shard["bytes"] for shard in shards]
    assert table.counts.tolist() == [len(shard["groups"]) for shard in shards]
    assert table.groups.tolist() == [group for shard in shards for group in shard["groups"]]
    assert {array.dtype for array in table[1:]} == {np.dtype(np.int64)}
    assert table.groups.shape[1] == 4


@pytest.mark.parametrize("text", [b"[]", b"3", b"{}", b'{"version": 1, "shards": [{"path": "a"}]}'])
def test_what_is_none_is_left_to_who_knows_the_version(text: bytes) -> None:
    assert isinstance(parsed(text), type(json.loads(text)))


def test_names_are_those_of_a_list() -> None:
    names, plain = NumberedNames(100_001), [shard_name(number) for number in range(100_001)]
    assert (names[0], names[-1], names[100_000]) == (plain[0], plain[-1], "shard-100000.parquet")
    assert names[7:9] == plain[7:9]
    assert names.index("shard-00042.parquet") == 42
    assert list(names) == plain
    with pytest.raises(IndexError):
        names[100_001]


def test_shards_cost_no_objects_and_little_to_send() -> None:
    text = manifest([shard_name(number) for number in range(20_000)], [1] * 20_000)
    before = sys.getallocatedblocks()
    table = parsed(text)["shards"]
    # A name alone would be an object for each.
    assert sys.getallocatedblocks() - before < 1000
    assert len(pickle.dumps(table.names)) < 200
