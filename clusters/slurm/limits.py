"""Which key of a profile is meant where SLURM refuses a job: it says what it cannot do, and not what was too much."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from clusters.profile import Profile
from clusters.slurm.bad_nodes import is_usable
from clusters.slurm.queue import run_command, seconds
from pirl.errors import SlurmSilent

SINFO_S = 20.0
SINFO_FORMAT = "%P|%N|%c|%m|%G|%l|%f|%T"
"""Partition, node, CPUs, megabytes, GPUs and the like, the longest time, features, and state."""

KEYS_OF = (
    ("partition", ("partition",)),
    ("account", ("account",)),
    ("qos", ("qos",)),
    ("feature", ("constraint",)),
    ("time limit", ("time",)),
    ("node name", ("sbatch",)),
    ("gres", ("gpus_per_node",)),
    ("memory", ("memory_gb_per_node",)),
    ("reservation", ("sbatch",)),
)
"""A word of SLURM's answer, and the keys that are behind it."""


@dataclass(frozen=True)
class NodeLimits:
    """What SLURM gives of one node in one partition.

    Attributes:
        partition: With `*` behind the default one.
        megabytes: Memory.
        longest_s: The partition's time limit; None without one.
        features: Of the node, which `constraint` asks for.
        state: As SLURM has it: idle, mixed, drained, down*.
    """

    partition: str
    name: str
    cpus: int
    megabytes: int
    gpus: int
    longest_s: int | None
    features: tuple[str, ...]
    state: str

    @property
    def usable(self) -> bool:
        """Whether jobs are started there, now or when others have ended."""
        return is_usable(self.state)


def parse_sinfo(text: str) -> list[NodeLimits]:
    """Lines in SINFO_FORMAT, of one node each (`sinfo -N`)."""
    found = []
    for row in (line.split("|") for line in text.splitlines()):
        if len(row) != 8:
            continue
        partition, name, cpus, megabytes, gres, longest, features, state = (field.strip() for field in row)
        gpus = sum(int(count or 1) for count in re.findall(r"\bgpu(?::[a-zA-Z][^:,(]*)?(?::(\d+))?", gres))
        listed = tuple(word for word in features.split(",") if word != "(null)")
        found.append(
            NodeLimits(partition, name, _number(cpus), _number(megabytes), gpus, seconds(longest), listed, state)
        )
    return found


def all_nodes() -> list[NodeLimits]:
    """Each node in each partition; [] where SLURM does not say."""
    try:
        return parse_sinfo(run_command("sinfo", "-h", "-N", "-o", SINFO_FORMAT, limit_s=SINFO_S).stdout)
    except (OSError, SlurmSilent):
        return []


def in_partition(nodes: list[NodeLimits], partition: str | None) -> list[NodeLimits]:
    """Those of a partition, or of several with commas between; by default of SLURM's default."""
    if partition is None:
        return [node for node in nodes if node.partition.endswith("*")]
    return [node for node in nodes if node.partition.rstrip("*") in partition.split(",")]


def too_much(profile: Profile, nodes: list[NodeLimits]) -> Iterator[str]:
    """The keys of a profile that ask for more than the nodes of its partition have, each with what there is."""
    if not nodes:
        return
    of = f"partition {nodes[0].partition.rstrip('*')}"
    cpus, megabytes, gpus = (max(getattr(node, what) for node in nodes) for what in ("cpus", "megabytes", "gpus"))
    if profile.cpus_per_node > cpus:
        yield f"cpus_per_node = {profile.cpus_per_node}, and the largest node of {of} has {cpus}"
    wanted = round((profile.memory_gb_per_node or 0) * 1024)
    if wanted > megabytes:
        has = f"{megabytes / 1024:.2f}".rstrip("0").rstrip(".")
        yield f"memory_gb_per_node = {profile.memory_gb_per_node:g}, and the largest node of {of} has {has}"
    if profile.gpus_per_node > gpus:
        yield f"gpus_per_node = {profile.gpus_per_node}, and the largest node of {of} has {gpus}"
    if profile.nodes.min > len(nodes):
        key = "nodes" if profile.nodes.min == profile.nodes.max else "nodes.min"
        yield f"{key} = {profile.nodes.min}, and {of} has {len(nodes)}"
    longest = nodes[0].longest_s
    if longest is not None and 60 * profile.time > longest:
        yield f"time = {profile.time} minutes, and {of} gives at most {longest // 60}"
    lacking = profile.constraint and re.fullmatch(r"\w+", profile.constraint)
    if lacking and not any(profile.constraint in node.features for node in nodes):
        yield f"constraint = {profile.constraint!r}, and no node of {of} has it"
    fit = [
        node
        for node in nodes
        if node.cpus >= profile.cpus_per_node and node.megabytes >= wanted and node.gpus >= profile.gpus_per_node
    ]
    if fit and len(fit) < profile.nodes.min <= len(nodes):
        yield f"nodes = {profile.nodes.min}, and only {len(fit)} of {of} have all of that"


def hints(profile: Profile, said: str, partition: str | None) -> str:
    """Lines that go behind what SLURM says of a job that it refuses; empty where there is nothing to add.

    Args:
        said: By SLURM.
        partition: That the job would have gone to: the profile's, or that of a variable.
    """
    there = all_nodes()
    nodes = in_partition(there, partition)
    lines = list(too_much(profile, nodes))
    if there and partition and not nodes:
        names = sorted({node.partition.rstrip("*") for node in there})
        lines.append(f"partition = {partition!r}, and there are {', '.join(names)}")
    if not lines:
        keys = dict.fromkeys(key for word, keys in KEYS_OF if word in said.lower() for key in keys)
        lines = [f"{key} = {value!r} in the profile" for key in keys if (value := getattr(profile, key))]
    return "".join(f"\n  {line}" for line in lines)


def _number(text: str) -> int:
    """`8000` and `8000+` -> 8000."""
    return int(re.sub(r"\D.*", "", text) or 0)
