"""Nodes on which something of ours failed: remembered beside the jobs, and left out for a day.

`<job_folder>/bad_nodes/<host>.json` has when, why and in which job. `to_leave_out` alone decides what follows from it.
Imports what Python itself has only, as `clusters/slurm/requeue.py` needs it.
"""

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

FADES_S = 24 * 3600
"""After this a node is tried again: somebody has mended it, or it was not the node."""

SHARE = 0.25
"""Of a partition's nodes that are left out, at most; one in any case."""

UNUSABLE = (
    *("down", "drain", "fail", "maint", "error", "unk", "inval", "reboot", "power", "block", "future"),
    "*",
)
"""In states of nodes on which SLURM starts nothing; a star means that the node does not answer."""


@dataclass(frozen=True)
class BadNode:
    """A node that was the cause of a failure.

    Attributes:
        since: When that was, as Unix time.
        why: In words.
        job: In which job.
    """

    host: str
    since: float
    why: str
    job: str

    def __str__(self) -> str:
        minutes = max(0, int(time.time() - self.since)) // 60
        ago = f"{minutes // 60} h" if minutes >= 60 else f"{minutes} min"
        return f"{self.host}: {self.why}, {ago} ago in job {self.job}"


@dataclass(frozen=True)
class Candidate:
    """A node of a partition, on which a job might run.

    Attributes:
        usable: Whether SLURM starts jobs there.
        features: Which a job may ask for.
    """

    name: str
    usable: bool
    features: tuple[str, ...] = ()


def remember(job_folder: Path, host: str, why: str, job: str) -> None:
    """Notes that a node has failed; what was known of it before is replaced. Raises OSError."""
    folder = job_folder / "bad_nodes"
    folder.mkdir(mode=0o700, exist_ok=True)
    partial = folder / f".{host}.{os.getpid()}"
    partial.write_text(json.dumps(asdict(BadNode(host, time.time(), why, job))) + "\n")
    partial.replace(folder / f"{host}.json")


def remembered(job_folder: Path, now: float | None = None) -> list[BadNode]:
    """Those that have not faded, the latest first; what cannot be read is nobody."""
    found = []
    for file in (job_folder / "bad_nodes").glob("*.json"):
        with suppress(OSError, ValueError, TypeError):
            found.append(BadNode(**json.loads(file.read_text())))
    now = time.time() if now is None else now
    return sorted((node for node in found if now - node.since < FADES_S), key=lambda node: -node.since)


def forget(job_folder: Path) -> list[BadNode]:
    """Forgets all, and returns who they were."""
    known = remembered(job_folder)
    for file in (job_folder / "bad_nodes").glob("*.json"):
        file.unlink(missing_ok=True)
    return known


def to_leave_out(
    bad: Sequence[BadNode], nodes: Sequence[Candidate], needed: int, constraint: str | None = None
) -> list[str]:
    """The hosts that a job is not to get: never more than a share of its partition, nor so many that it must wait.

    Args:
        bad: The latest first.
        nodes: Of the partition.
        needed: Nodes without which the job does not begin.
        constraint: Features that the job asks for: nodes without them are none that it could have. Where it is more
            than one word, nobody here knows which are left, and no node is left out.
    """
    if constraint and not re.fullmatch(r"[\w.-]+", constraint):
        return []
    fit = [node for node in nodes if not constraint or constraint in node.features]
    most, chosen = max(1, int(len(fit) * SHARE)), list[str]()
    for host in (node.host for node in bad):
        left = sum(node.usable for node in fit if node.name not in {*chosen, host})
        if host in {node.name for node in fit} and len(chosen) < most and left >= needed:
            chosen.append(host)
    return sorted(chosen)


def is_usable(state: str) -> bool:
    """Whether SLURM starts jobs on a node in this state, as sinfo has it, now or when others have ended."""
    return not any(word in state.lower() for word in UNUSABLE)


def hosts_in(nodes: str) -> list[str]:
    """The hosts of SLURM's short form, in its order: `n[1-2,07-08],x` -> n1 n2 n07 n08 x."""
    return [host for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes) for host in _expanded(part)]


def _expanded(part: str) -> Iterator[str]:
    before, bracket, rest = part.partition("[")
    if not bracket:
        yield part
        return
    inside, _, behind = rest.partition("]")
    for span in inside.split(","):
        first, dash, last = span.partition("-")
        numbers = range(int(first), int(last) + 1) if dash else [int(first)]
        for number in numbers:
            yield from _expanded(f"{before}{number:0{len(first)}d}{behind}")
