"""Where a task stands in its job, and what the job is."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from clusters.node import membership as meeting
from clusters.node.ray_node import Resources
from clusters.profile import Profile


@dataclass(frozen=True)
class JobFile:
    """What a job runs.

    Attributes:
        folder: Of the job.
        command: Path of the job file and its arguments.
        takes_settings: Whether the job file knows `--storage` and `--cluster.workers`.
    """

    folder: Path
    command: tuple[str, ...]
    takes_settings: bool


@dataclass(frozen=True)
class Place:
    """This node's place in the job, as the scheduler tells it.

    Attributes:
        job_id: With the number in the array, if it is one.
        rank: Of this node, from 0.
        nodes: That the job got.
        restarts: How often it was requeued.
        host: Name of this node.
        ip: Its address, as the other nodes see it.
        resources: What the job got of it.
        log: Where this task's output goes.
    """

    job_id: str
    rank: int
    nodes: int
    restarts: int
    host: str
    ip: str
    resources: Resources
    log: Path

    @classmethod
    def here(cls, profile: Profile, job_id: str, rank: int, nodes: int, log: Path) -> "Place":
        """Reads the rest from the environment of a task."""
        head_ip = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
        cpus = int(os.environ.get("SLURM_CPUS_ON_NODE", profile.cpus_per_node))
        gpus = int(os.environ.get("SLURM_GPUS_ON_NODE", profile.gpus_per_node))
        # For each node if the profile asks for some, else for each CPU or GPU, as many clusters have it by default.
        per_node, per_cpu, per_gpu = (
            int(os.environ.get(f"SLURM_MEM_PER_{what}", "0")) for what in ("NODE", "CPU", "GPU")
        )
        by_default = per_cpu * cpus or per_gpu * gpus
        megabytes = per_node or by_default or 1024 * (profile.memory_gb_per_node or 0)
        return cls(
            job_id=job_id,
            rank=rank,
            nodes=nodes,
            restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            host=os.environ.get("SLURMD_NODENAME", socket.gethostname()),
            ip=meeting.own_ip(head_ip),
            resources=Resources(cpus, gpus, int(megabytes * 2**20) or None),
            log=log,
        )
