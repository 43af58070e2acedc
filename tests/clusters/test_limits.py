"""Which key of a profile is meant by SLURM's refusal; lines of sinfo as SLURM 22.05 prints them."""

from typing import Any

import pytest

from clusters.profile import Profile
from clusters.slurm.limits import hints, in_partition, parse_sinfo, too_much
from tests.slurm_words import words_of

SINFO = """\
low*|n1|4|8000|(null)|1:00:00|(null)|idle
low*|n2|4|8000+|(null)|1:00:00|(null)|drained
gpu|g1|96|1000000|gpu:a100:8(S:0-1)|infinite|a100,ib|mixed
gpu|g2|96|1000000|gpu:a100:4,gpu:v100:2|infinite|v100|down*
gpu|g3|128|500000|craynetwork:4,gpu:4|infinite|(null)|idle
"""
EIGHT = {"cpus_per_node": 8, "gpus_per_node": 8}
NODES = parse_sinfo(SINFO)


def profile(**keys: Any) -> Profile:
    return Profile.model_validate({"cluster": "slurm", "nodes": 1, "cpus_per_node": 1, "storage": "x"} | keys)


def test_nodes_are_read_with_what_they_have():
    assert [(node.name, node.cpus, node.megabytes, node.gpus, node.longest_s) for node in NODES] == [
        *(("n1", 4, 8000, 0, 3600), ("n2", 4, 8000, 0, 3600)),
        *(("g1", 96, 1000000, 8, None), ("g2", 96, 1000000, 6, None), ("g3", 128, 500000, 4, None)),
    ]
    assert [node.usable for node in NODES] == [True, False, True, False, True]
    assert [node.name for node in in_partition(NODES, None)] == ["n1", "n2"]
    assert [node.name for node in in_partition(NODES, "gpu,low")] == ["n1", "n2", "g1", "g2", "g3"]


@pytest.mark.parametrize(
    ("partition", "keys", "said"),
    [
        (None, {}, []),
        (None, {"cpus_per_node": 64}, ["cpus_per_node = 64, and the largest node of partition low has 4"]),
        (None, {"memory_gb_per_node": 16}, ["memory_gb_per_node = 16, and the largest node of partition low has 7.81"]),
        (None, {"gpus_per_node": 1}, ["gpus_per_node = 1, and the largest node of partition low has 0"]),
        (None, {"nodes": 3}, ["nodes = 3, and partition low has 2"]),
        (None, {"nodes": {"min": 3, "max": 9}}, ["nodes.min = 3, and partition low has 2"]),
        (None, {"time": "2:00:00"}, ["time = 120 minutes, and partition low gives at most 60"]),
        (None, {"constraint": "a100"}, ["constraint = 'a100', and no node of partition low has it"]),
        ("gpu", {"constraint": "a100", "time": "9-0", **EIGHT}, []),
        ("gpu", {"cpus_per_node": 120, "memory_gb_per_node": 900}, []),  # each is there, on other nodes: SLURM says no
        (
            "gpu",
            {"nodes": 2, "cpus_per_node": 8, "gpus_per_node": 8},
            ["nodes = 2, and only 1 of partition gpu have all of that"],
        ),
    ],
)
def test_the_key_that_asks_for_too_much_is_named(partition: str | None, keys: dict[str, Any], said: list[str]):
    assert list(too_much(profile(**keys), in_partition(NODES, partition))) == said


def test_hints_name_what_there_is_or_the_key_behind_slurms_words(tmp_path, monkeypatch):
    words_of(tmp_path / "bin", monkeypatch, sinfo=f"echo '{SINFO}'")
    sent = profile(partition="hihg", account="vision", constraint="a100&ib")
    assert hints(sent, "invalid partition specified: hihg", "hihg") == "\n  partition = 'hihg', and there are gpu, low"
    assert hints(sent, "Invalid account or account/partition combination", "low").splitlines()[1:] == [
        "  partition = 'hihg' in the profile",
        "  account = 'vision' in the profile",
    ]
    assert hints(sent, "Invalid feature specification", "gpu") == "\n  constraint = 'a100&ib' in the profile"
    assert hints(sent, "no idea", "gpu") == ""
    words_of(tmp_path / "bin", monkeypatch)
    assert hints(profile(cpus_per_node=64), "Requested node configuration is not available", None) == ""
