"""Ask the cluster before a run starts: can it hold the workers, and do all nodes see the data and the storage?

Ray waits for ever for resources that nobody has, and notices a folder that is not shared only when the first
checkpoint is written. So these are asked first.
"""

import math
import uuid
from contextlib import suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pirl.config import Config
from pirl.errors import ConfigError
from pirl.storage.checks import check_can_write, check_shared
from pirl.storage.folder import Folder


def nodes_alive() -> list[dict[str, Any]]:
    """The nodes of the connected cluster, as Ray lists them."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def check_resources(config: Config, nodes: list[dict[str, Any]]) -> None:
    """Refuses more workers than the nodes have room for, busy or not; raises ConfigError with what to type."""
    cluster, room = config.cluster, room_for(config, nodes)
    if room < cluster.workers:
        resources = [node["Resources"] for node in nodes]
        has = ", ".join(f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in resources)
        least = (
            f"--cluster.workers {room}" if room else "smaller --cluster.cpus-per-worker or --cluster.gpus-per-worker"
        )
        raise ConfigError(
            f"cluster.workers {cluster.workers} with {cluster.cpus_per_worker} CPUs and {cluster.gpus_per_worker:g} "
            f"GPUs each do not fit: the cluster's nodes have {has}, room for {room}. Use {least}"
        )


def room_for(config: Config, nodes: list[dict[str, Any]]) -> int:
    """How many workers of a run the nodes have room for, busy or not."""
    need = {"CPU": float(config.cluster.cpus_per_worker), "GPU": config.cluster.gpus_per_worker}
    return sum(min(math.floor(node["Resources"].get(kind, 0) / n) for kind, n in need.items() if n) for node in nodes)


def check_nodes(config: Config, storage: Folder, nodes: list[dict[str, Any]]) -> None:
    """Reads the data's manifest and touches the storage on every node.

    Raises ConfigError for the first that cannot, or that does not share the storage with this process.
    """
    marker = f".probe-{uuid.uuid4().hex}"
    data = Folder(config.data.uri, config.data.storage_options, config.data.deadline_s)
    try:
        storage.write(marker, "")
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        pending = [_probe.options(scheduling_strategy=place).remote(data, storage, marker) for place in places]
        for node, answer in zip(nodes, pending, strict=True):
            if problem := ray.get(answer):
                raise ConfigError(f"node {node['NodeManagerAddress']}: {problem}")
    except OSError as error:
        raise ConfigError(f"--storage {storage} cannot be written: {error}") from None
    finally:
        with suppress(OSError):  # it is not what the user must hear
            storage.remove(marker)


@ray.remote(num_cpus=0)
def _probe(data: Folder, storage: Folder, marker: str) -> str | None:
    """Runs on a node; returns what is wrong there."""
    try:
        from pirl.data.dataset import open_dataset

        open_dataset(data)
    except ImportError as error:
        return f"its Python lacks what requirements.lock lists: {error}"
    except Exception as error:  # whatever it is, the user must see it with the node's address
        return f"data.uri {data} cannot be read: {error}"
    try:
        check_shared(storage, marker)
        check_can_write("--storage", storage)
    except Exception as error:
        return str(error)
    return None
