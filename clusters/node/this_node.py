"""A node of an allocation, and its part in a job."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from clusters.job_folder import JobFolder
from clusters.node import membership
from clusters.profile import Profile
from clusters.slurm.bad_nodes import hosts_in


@dataclass(frozen=True)
class JobFile:
    """What a job runs.

    Attributes:
        command: Path of the job file and its arguments.
        takes_settings: Whether the job file knows `--storage` and `--cluster.workers`.
    """

    command: tuple[str, ...]
    takes_settings: bool


@dataclass(frozen=True)
class Resources:
    """What Ray may use of a node: it would take all of it."""

    cpus: int
    gpus: int
    memory_bytes: int | None


@dataclass(frozen=True)
class ThisNode:
    """This node's place in the job, as the scheduler tells it.

    Attributes:
        rank: Of this node, from 0.
        nodes: That the job got.
        restarts: How often it was requeued.
        host: Name of this node.
        ip: Its address, as the other nodes see it.
        resources: What the job got of it.
        hosts: The nodes of the job by rank; empty where the scheduler does not say.
    """

    job: JobFile
    profile: Profile
    folder: JobFolder
    rank: int
    nodes: int
    restarts: int
    host: str
    ip: str
    resources: Resources
    hosts: tuple[str, ...] = ()

    @classmethod
    def here(cls, job: JobFile, profile: Profile, folder: JobFolder, rank: int, nodes: int) -> "ThisNode":
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
        resources = Resources(cpus, gpus, int(megabytes * 2**20) or None)
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        hosts = tuple(hosts_in(os.environ.get("SLURM_JOB_NODELIST", "")))
        host = os.environ.get("SLURMD_NODENAME", socket.gethostname())
        return cls(job, profile, folder, rank, nodes, restarts, host, membership.own_ip(head_ip), resources, hosts)

    @property
    def log(self) -> Path:
        """Where this node's output goes."""
        return self.folder.log(self.rank)

    @property
    def mark(self) -> str:
        """Tells the processes of the job on this node from all others."""
        return f"{self.folder.job_id}.{self.rank}"

    @property
    def scratch(self) -> Path:
        """The job's folder for temporary files on this node's own disk."""
        return Path(self.profile.temp_dir) / f"pirl-j{self.folder.job_id}-{self.rank}"
