"""The first node's work when something is lost, with a real Ray of one node. As a whole: tests/on_slurm."""

import secrets
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from clusters.job_folder import JobFolder
from clusters.node import membership
from clusters.node.main import ray_environment
from clusters.node.membership import Membership
from clusters.node.ray_node import RayNode, end, start_ray
from clusters.node.supervise import Signals, Supervisor
from clusters.node.this_node import JobFile, Resources, ThisNode
from clusters.profile import Profile
from tests.ray_cluster import wait_for

RESOURCES = Resources(cpus=1, gpus=0, memory_bytes=10**9)


@dataclass(frozen=True)
class Alone:
    """A Ray head without any other node."""

    node: ThisNode
    ray: RayNode
    token: str
    environment: dict[str, str]

    def supervisor(self, members: Membership, nodes: dict[str, int], job_file: str) -> Supervisor:
        """Of a job of so many nodes."""
        (self.node.folder.path / "job.py").write_text(job_file)
        self.node.log.touch()
        node = replace(self.node, profile=profile(nodes=nodes), nodes=nodes["max"])
        return Supervisor(node, self.ray, self.token, members, Signals(), self.environment)


def profile(**keys: Any) -> Profile:
    return Profile.model_validate({"cluster": "slurm", "storage": "/nowhere", "nodes": 1, "cpus_per_node": 1} | keys)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Alone]:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    folder = JobFolder(tmp_path, secrets.token_hex(3))
    job = JobFile((str(tmp_path / "job.py"),), takes_settings=False)
    # Socket paths may not be longer than 107 bytes.
    settings = profile(temp_dir="/tmp", start_s=120)
    node = ThisNode(job, settings, folder, 0, 1, 0, "n1", "127.0.0.1", RESOURCES)
    node.scratch.mkdir()
    token = secrets.token_hex(32)
    folder.write_token(token)
    environment = ray_environment(folder.token)
    ray = start_ray(node, environment, None, lambda: False)
    try:
        # It listens before `ray start` looks after it.
        wait_for(lambda: "Ray runtime started" in (node.scratch / "start0.log").read_text(), "Ray does not come up")
        yield Alone(node, ray, token, environment)
    finally:
        end(ray.process)
        ray.lock.close()
        shutil.rmtree(node.scratch, ignore_errors=True)
        for number, handler in before.items():
            signal.signal(number, handler)


def raylet_of(ray: RayNode) -> int:
    children = Path(f"/proc/{ray.process.pid}/task/{ray.process.pid}/children").read_text().split()
    (raylet,) = [pid for pid in children if Path(f"/proc/{pid}/comm").read_text() == "raylet\n"]
    return int(raylet)


def test_a_job_that_fails_before_the_end_of_ray_is_noticed_did_not_fail_by_itself(alone: Alone):
    """`ray start` looks once a second whether its processes live; a driver that has lost Ray may be faster."""
    job_file = f"import os, sys; os.kill({raylet_of(alone.ray)}, 9); sys.exit(3)"
    with Membership("127.0.0.1", alone.ray.ports["membership"], alone.token) as members:
        phase, reason, _ = alone.supervisor(members, {"min": 1, "max": 1}, job_file).run()
    assert phase == "requeue"
    assert reason.startswith("Ray on n1 ended with code")


def test_nodes_that_are_lost_while_ray_forgets_others_are_lost_too(alone: Alone):
    """The nodes are connections only: Ray, which has one node, never comes to three."""
    port = alone.ray.ports["membership"]
    with Membership("127.0.0.1", port, alone.token) as members:
        nodes = [membership.join("127.0.0.1", port, alone.token, rank, f"n{rank + 1}") for rank in (1, 2, 3)]
        for node in nodes:
            membership.is_ready(node)
        wait_for(lambda: members.look() or len(members.ready) == 3, "they are not ready")
        supervisor = alone.supervisor(members, {"min": 2, "max": 4}, "import time; time.sleep(10)")

        def lose() -> None:
            wait_for(lambda: alone.node.folder.report().get("phase") == "running", "it does not run")
            nodes[0].close()
            time.sleep(3)  # the first is known to be lost, and Ray is waited for
            for node in nodes[1:]:
                node.close()

        thread = threading.Thread(target=lose)
        thread.start()
        assert supervisor.run() == ("requeue", "lost n2, n3, n4; 1 of 4 nodes are left", 1)
        thread.join()
