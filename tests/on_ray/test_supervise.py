"""The first node's work when something is lost, with a real Ray of one node. As a whole: tests/on_slurm."""

import secrets
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from clusters.job_report import read_state
from clusters.node import membership as meeting
from clusters.node.main import ray_environment, write_token
from clusters.node.ray_node import RayNode, Resources, candidates, end, start_ray
from clusters.node.supervise import Drive, Signals
from clusters.node.this_node import JobFile, Place
from clusters.profile import Profile
from tests.ray_cluster import wait_for

RESOURCES = Resources(cpus=1, gpus=0, memory_bytes=10**9)


@dataclass(frozen=True)
class Alone:
    """A Ray head without any other node, and the job's folder."""

    ray: RayNode
    token: str
    environment: dict[str, str]
    folder: Path

    def drive(self, head: meeting.Head, nodes: dict[str, int], job_file: str) -> Drive:
        (self.folder / "job.py").write_text(job_file)
        (self.folder / "log").touch()
        keys = {"cluster": "slurm", "storage": "/nowhere", "nodes": nodes, "cpus_per_node": 1}
        job = JobFile(self.folder, (str(self.folder / "job.py"),), takes_settings=False)
        place = Place("7", 0, nodes["max"], 0, "n1", "127.0.0.1", RESOURCES, self.folder / "log")
        profile = Profile.model_validate(keys)
        return Drive(job, profile, place, self.ray, self.token, head, Signals(), self.environment)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Alone]:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    scratch = Path(f"/tmp/pirl-{secrets.token_hex(3)}")  # socket paths may not be longer than 107 bytes
    scratch.mkdir()
    token = secrets.token_hex(32)
    environment = ray_environment(write_token(tmp_path, "7", token))
    ports = candidates(scratch.name, 20_000, 32_000)
    limits = {"limit_s": 120, "give_up": lambda: False}
    ray = start_ray("127.0.0.1", ports, RESOURCES, scratch, environment, head_address=None, **limits)
    try:
        # It listens before `ray start` looks after it.
        wait_for(lambda: "Ray runtime started" in (scratch / "start0.log").read_text(), "Ray does not come up")
        yield Alone(ray, token, environment, tmp_path)
    finally:
        end(ray.process)
        ray.lock.close()
        shutil.rmtree(scratch, ignore_errors=True)
        for number, handler in before.items():
            signal.signal(number, handler)


def raylet_of(ray: RayNode) -> int:
    children = Path(f"/proc/{ray.process.pid}/task/{ray.process.pid}/children").read_text().split()
    (raylet,) = [pid for pid in children if Path(f"/proc/{pid}/comm").read_text() == "raylet\n"]
    return int(raylet)


def test_a_job_that_fails_before_the_end_of_ray_is_noticed_did_not_fail_by_itself(alone: Alone):
    """`ray start` looks once a second whether its processes live; a driver that has lost Ray may be faster."""
    job_file = f"import os, sys; os.kill({raylet_of(alone.ray)}, 9); sys.exit(3)"
    with meeting.Head("127.0.0.1", alone.ray.ports["meeting"], alone.token) as head:
        phase, reason, _ = alone.drive(head, {"min": 1, "max": 1}, job_file).run()
    assert phase == "requeue"
    assert reason.startswith("Ray on n1 ended with code")


def test_nodes_that_are_lost_while_ray_forgets_others_are_lost_too(alone: Alone):
    """The nodes are connections only: Ray, which has one node, never comes to three."""
    port = alone.ray.ports["meeting"]
    with meeting.Head("127.0.0.1", port, alone.token) as head:
        nodes = [meeting.join("127.0.0.1", port, alone.token, rank, f"n{rank + 1}") for rank in (1, 2, 3)]
        for node in nodes:
            meeting.is_ready(node)
        wait_for(lambda: head.look() or len(head.ready) == 3, "they are not ready")
        drive = alone.drive(head, {"min": 2, "max": 4}, "import time; time.sleep(10)")

        def lose() -> None:
            wait_for(lambda: read_state(alone.folder, "7").get("phase") == "running", "it does not run")
            nodes[0].close()
            time.sleep(3)  # the first is known to be lost, and Ray is waited for
            for node in nodes[1:]:
                node.close()

        thread = threading.Thread(target=lose)
        thread.start()
        assert drive.run() == ("requeue", "lost n2, n3, n4; 1 of 4 nodes are left", 1)
        thread.join()
