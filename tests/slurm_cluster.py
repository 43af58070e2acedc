"""A real SLURM of three hosts, clusters/devcluster; a fixture for the tests that need one."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from clusters.dev.cluster import HOSTS, DevCluster
from clusters.dev.command import problem

ROOT = Path(__file__).parents[1]
LIMIT_S = 120
"""For anything that SLURM does: it looks at time limits every 30 s, and a dead host is down after 30 s."""


@dataclass(frozen=True)
class Slurm:
    """A cluster of three hosts that is up. Beside it see `cluster.machine`, `.kill`, `.processes` and `.files`."""

    cluster: DevCluster
    env: dict[str, str]
    """For SLURM's commands on this machine."""

    def ask(self, *command: str) -> str:
        """What a command of SLURM prints; it must succeed."""
        answer = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=LIMIT_S)
        assert answer.returncode == 0, f"{' '.join(command)}: {answer.stdout}{answer.stderr}"
        return answer.stdout.strip()

    def submit(self, script: str, folder: Path, *options: str) -> str:
        """Sends a bash script whose output goes to `folder`/JOB.out; returns the job's id."""
        (folder / "script").write_text(f"#!/bin/bash\n{script}\n")
        return self.ask("sbatch", "--parsable", f"--output={folder}/%j.out", *options, str(folder / "script"))

    def state(self, job: str) -> str:
        """As squeue has it, for example RUNNING; also for some minutes after its end."""
        return self.ask("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")

    def wait_for(self, job: str, *states: str) -> None:
        """Returns when the job is in one of these states."""
        self.wait(lambda: self.state(job) in states, lambda: f"job {job} is {self.state(job)}, not {states}")

    def start_now(self, job: str) -> None:
        """Spares a requeued job most of the 11 s that SLURM lets it wait.

        Not all: a host refuses a job whose credential is of the second in which it took the last one back
        ("Job credential revoked" in slurmctld.log, and the job has failed).
        """
        self.wait_for(job, "PENDING")
        self.ask("scontrol", "update", f"JobId={job}", "StartTime=now+2")

    def preempt(self) -> None:
        """Returns when a job on the higher partition has had all CPUs and has ended."""
        self.ask("srun", "--partition=high", "--nodes=3", "--cpus-per-task=4", "true")

    def boot(self, host: str) -> None:
        """Starts a host that was killed, and waits until SLURM has it back."""
        devcluster(self.cluster, "boot", host)
        self.ask("srun", f"--nodelist={host}", "--partition=high", "true")

    def left(self) -> dict[str, list[object]]:
        """Processes and files of jobs by host, only of hosts that have some."""
        left = {host: [*self.cluster.processes(host), *self.cluster.files(host)] for host in HOSTS}
        return {host: things for host, things in left.items() if things}

    def wait_until_nothing_is_left(self) -> None:
        """Returns when no host has a process or file of a job."""
        self.wait(lambda: not self.left(), lambda: f"left on the hosts: {self.left()}")

    @staticmethod
    def wait(condition: Callable[[], bool], failure: Callable[[], str]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, failure()
            time.sleep(0.3)  # a look at all processes or at the queue is work


def devcluster(cluster: DevCluster, *arguments: str) -> str:
    """Runs the command of contributors."""
    command = [str(ROOT / "clusters/devcluster"), f"--number={cluster.number}", *arguments]
    # Its python3 is to be this one.
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    answer = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=env)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@contextmanager
def own_cluster() -> Iterator[DevCluster]:
    """A cluster, down as yet, that no other session on this machine uses; it is taken down at the end."""
    if reason := problem():
        pytest.skip(reason)
    for number in range(78, 100):
        with socket.socket(socket.AF_UNIX) as lock:  # of an abstract name, which goes with this process
            try:
                lock.bind(f"\0pirl-devcluster-{number}")
            except OSError:
                continue
            cluster = DevCluster(number)
            cluster.down()  # of a session that was killed
            try:
                yield cluster
            finally:
                cluster.down()
            return


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Three hosts with 4 CPUs and 8,000 MB each, that all see the folders of tests at the same paths."""
    with own_cluster() as cluster:
        devcluster(cluster, "up", f"--share={tmp_path_factory.getbasetemp()}")
        yield Slurm(cluster, {**os.environ, "SLURM_CONF": str(cluster.conf)})
