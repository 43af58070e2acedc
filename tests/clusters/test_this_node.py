"""What a task takes from its environment: its part of the node, as SLURM has told it."""

from pathlib import Path

import pytest

from clusters.job_folder import JobFolder
from clusters.node.this_node import JobFile, ThisNode
from clusters.profile import Profile


def here(profile: Profile) -> ThisNode:
    return ThisNode.here(JobFile(("x.py",), True), profile, JobFolder(Path("jobs"), "17"), rank=0, nodes=1)


@pytest.mark.parametrize(
    ("told", "asked_gb", "megabytes"),
    [
        ({"SLURM_MEM_PER_NODE": "2048"}, 2, 2048),
        ({"SLURM_MEM_PER_CPU": "500", "SLURM_CPUS_ON_NODE": "6"}, None, 3000),
        ({"SLURM_MEM_PER_CPU": "500"}, None, 2000),
        ({"SLURM_MEM_PER_GPU": "900"}, None, 1800),
        ({"SLURM_MEM_PER_GPU": "900", "SLURM_GPUS_ON_NODE": "1"}, None, 900),
        ({"SLURM_MEM_PER_NODE": "0"}, None, None),  # all of the node, as Ray counts it
        ({}, 1.5, 1536),  # no scheduler
        ({}, None, None),
    ],
)
def test_memory_is_that_of_the_allocation(monkeypatch, told: dict[str, str], asked_gb: float, megabytes: int | None):
    for name in ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU", "CPUS_ON_NODE", "GPUS_ON_NODE"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    size = {"nodes": 1, "cpus_per_node": 4, "gpus_per_node": 2, "memory_gb_per_node": asked_gb}
    profile = Profile.model_validate({"cluster": "slurm", "storage": "s3://b/runs", **size})
    resources = here(profile).resources
    assert resources.memory_bytes == (megabytes * 2**20 if megabytes else None)


def test_gpus_are_those_of_the_allocation(monkeypatch):
    keys = {"cluster": "slurm", "storage": "s3://b/runs", "nodes": 1, "cpus_per_node": 4, "gpus_per_node": 4}
    profile = Profile.model_validate(keys)
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    assert here(profile).resources.gpus == 4, "no scheduler"
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    assert here(profile).resources.gpus == 2
