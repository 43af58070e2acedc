"""What the measurements of a cluster's nodes mean: which node is the odd one, and why. Pure: nothing is asked here."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

SLOW = 4.0
"""So many times slower than the median of all nodes is odd; less than that other jobs on the node may do."""

RATES = {
    "gflops": ("calculates", "GFLOP/s"),
    "write_mb_s": ("writes to the storage", "MB/s"),
    "read_mb_s": ("reads the storage", "MB/s"),
    "data_mb_s": ("reads the data", "MB/s"),
}
"""What nodes do by themselves, and how fast: in words, and the unit."""

LATE_S = 10.0
"""A start that takes twice as long as usual is odd if it is later by this."""

CLOCK_S = 1.0
TEMP_GB = 1.0
"""For Ray's logs."""

COLUMNS = (
    "node",
    "Python",
    "start s",
    "GFLOP/s",
    "write",
    "read",
    "data",
    "send",
    "clock s",
    "temp GB",
    "shm GB",
    "GPUs",
)

NodeFindings = Mapping[str, Any]
"""What clusters/node/probe.py has found on a node."""


def odd(nodes: Sequence[NodeFindings], *, gpus: int, shm_gb: float) -> list[list[str]]:
    """What is odd about each node; an empty list for one that is as it should be.

    Args:
        nodes: In the order of their ranks.
        gpus: That each is to have.
        shm_gb: That Ray will want of /dev/shm.
    """
    return [list(_oddities(node, nodes, gpus, shm_gb)) for node in nodes]


def _oddities(node: NodeFindings, nodes: Sequence[NodeFindings], gpus: int, shm_gb: float) -> Iterator[str]:
    yield from node["problems"]
    for key, (does, unit) in RATES.items():
        usual = _median(key, nodes)
        if key in node and usual and node[key] * SLOW < usual:
            yield f"{does} with {node[key]:.3g} {unit}, and the median is {usual:.3g}"
    usual, own = _median("link_mb_s", _with_links(nodes)), _link(node, nodes)
    if own is not None and usual and own * SLOW < usual:
        yield f"its network carries {own:.3g} MB/s, and that of the median node {usual:.3g}"
    usual = _median("start_s", nodes)
    if usual and node.get("start_s", 0) > usual + max(usual, LATE_S):
        yield f"took {node['start_s']:.0f} s to begin and import torch, and the median is {usual:.0f}"
    if abs(node.get("clock_s", 0)) > CLOCK_S:
        yield f"its clock is {node['clock_s']:+.1f} s off that of the first node"
    if node.get("temp_gb", TEMP_GB) < TEMP_GB:
        yield f"temp_dir has {node['temp_gb']:.2f} GB free, and Ray's logs want {TEMP_GB:g}"
    if node.get("shm_gb", shm_gb) < shm_gb:
        yield f"/dev/shm has {node['shm_gb']:.2f} GB free, and Ray wants {shm_gb:.2f}"
    if node.get("unreached"):
        yield f"its connections to {', '.join(node['unreached'])} are refused: ports of the profile, firewall"
    if node.get("gpus", gpus) != gpus:
        yield f"has {node['gpus']} GPUs, and gpus_per_node is {gpus}"
    yield from _other_versions(node, nodes)


def _other_versions(node: NodeFindings, nodes: Sequence[NodeFindings]) -> Iterator[str]:
    """Where its versions are not those of most nodes."""
    own = _versions(node)
    for name, version in own.items():
        usual, count = Counter(_versions(each).get(name) for each in nodes).most_common(1)[0]
        if version != usual and count > 1:
            yield f"has {name} {version}, and others have {usual}"


def _versions(node: NodeFindings) -> dict[str, str]:
    python = {"Python": node["python"]} if "python" in node else {}
    return {**python, **node.get("versions", {})}


def _median(key: str, nodes: Sequence[NodeFindings]) -> float:
    values = [node[key] for node in nodes if key in node]
    return median(values) if len(values) > 1 else 0.0


def _link(node: NodeFindings, nodes: Sequence[NodeFindings]) -> float | None:
    """How much a node's network carries: the better of sending and of being sent to, which a slow neighbour spoils."""
    rates = [node["send_mb_s"]] if "send_mb_s" in node else []
    rates += [each["send_mb_s"] for each in nodes if each.get("to") == node["host"] and "send_mb_s" in each]
    return max(rates) if rates else None


def _with_links(nodes: Sequence[NodeFindings]) -> list[NodeFindings]:
    return [{"link_mb_s": link} for node in nodes if (link := _link(node, nodes)) is not None]


def row(node: NodeFindings) -> list[str]:
    """The cells of a node's row, as COLUMNS; empty where nothing was found."""
    keys = ("start_s", "gflops", "write_mb_s", "read_mb_s", "data_mb_s", "send_mb_s", "clock_s", "temp_gb", "shm_gb")
    digits = dict.fromkeys(keys, ".0f") | {"start_s": ".1f", "gflops": ".1f", "clock_s": "+.2f"}
    digits |= {"temp_gb": ".1f", "shm_gb": ".1f"}
    numbers = [f"{node[key]:{digits[key]}}" if key in node else "" for key in keys]
    return [node["host"], node.get("python", ""), *numbers, str(node.get("gpus", ""))]
