"""The first node's work while the job runs: the job file as a process, on the nodes that are there.

A node that is lost, preemption and a job that fails are all noticed here.
"""

import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from clusters.job_folder import Phase, reason_in
from clusters.node.membership import Membership
from clusters.node.ray_node import RayNode, alive_nodes, end, start_process
from clusters.node.this_node import ThisNode
from clusters.profile import job_settings
from pirl.errors import NotStarted

LOOK_S = 0.2
"""Between two looks at the job, the nodes and the signals."""

FORGET_S = 120
"""Ray looks for its nodes several times before it gives one up."""

STEP_BACK_S = 3
"""After the job fails: a node or Ray may be lost, which is noticed a moment later, as `ray start` looks once a second;
and what the job printed last takes its way through the scheduler into the log."""


TOGETHER_S = 1.5
"""A scheduler that takes a job back ends its tasks at nearly one moment: then this one ends now, and no node is bad."""


class Signals:
    """Hears what the scheduler sends. SIGTERM ends this process, with all that stands in `finally`."""

    def __init__(self) -> None:
        self.preempted = False
        signal.signal(signal.SIGUSR2, self._preempt)
        signal.signal(signal.SIGTERM, self._end)

    def ignore_the_end(self) -> None:
        """SIGTERM does nothing from now on: how the job ended is known, and what is left is to clean up."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _preempt(self, number: int, frame: FrameType | None) -> None:
        self.preempted = True

    def _end(self, number: int, frame: FrameType | None) -> NoReturn:
        self.ignore_the_end()
        sys.exit(128 + number)


@dataclass
class Supervisor:
    """Runs the job file on the nodes that are there, again on fewer when one is lost."""

    node: ThisNode
    ray: RayNode
    token: str
    members: Membership
    signals: Signals
    environment: dict[str, str]

    @property
    def up(self) -> int:
        """Nodes that are up, with this one."""
        return 1 + len(self.members.ready)

    def wait_for_nodes(self) -> None:
        """Returns when all nodes are there, or, when no more can come, as many as the profile asks for.

        Raises:
            NotStarted: They are fewer; or the end came first.
        """
        deadline = time.monotonic() + self.node.profile.start_s
        while self.up < self.node.nodes or not self._ray_knows(self.up):
            missing = self.node.nodes - self.up
            if self.signals.preempted:
                raise NotStarted("warned of the end before all nodes were up")
            if problem := self.ray.problem:
                self._blame([self.node.host], "Ray ended there")
                raise NotStarted(f"before all nodes were up {problem}")
            if time.monotonic() > deadline or (missing and missing == len(self.members.lost)):
                lost = f"; lost {', '.join(self.members.lost.values())}, see its log" if self.members.lost else ""
                self._blame(self._missing(), "Ray did not start there")
                there = f"{self.up} of {self.node.nodes} nodes came up within {self.node.profile.start_s} s{lost}"
                if self.up < self.node.profile.nodes.min or not self._ray_knows(self.up):
                    raise NotStarted(there)
                print(f"{there}: going on with them", flush=True)
                return
            time.sleep(LOOK_S)
            self.members.look()

    def run(self) -> tuple[Phase, str, int]:
        """Returns how the job ended, why, and its exit code."""
        while True:
            self.members.lost.clear()
            nodes, read = self.up, self.node.log.stat().st_size
            code = self._run_job(nodes)
            if code == 0:
                return "done", "", 0
            if self.signals.preempted:
                return "requeue", "warned of the end", 1
            self._step_back()
            if self.ray.process.poll() is not None:
                self._blame([self.node.host], "Ray ended there")
                return "requeue", f"Ray on {self.node.host} ended with code {self.ray.process.returncode}", 1
            if not self.members.lost:
                return "failed", reason_in(self.node.log, read) or f"exit code {code}", code
            forgotten = self._ray_forgets()
            lost = ", ".join(self.members.lost.values())
            time.sleep(TOGETHER_S)
            self._blame(self.members.lost.values(), "it was lost while others were not")
            if self.up < self.node.profile.nodes.min:
                return "requeue", f"lost {lost}; {self.up} of {nodes} nodes are left", 1
            if not forgotten:
                return "requeue", f"lost {lost}, and Ray did not notice within {FORGET_S} s", 1
            print(f"lost {lost}: going on with {self.up} of {nodes} nodes", flush=True)

    def _missing(self) -> list[str]:
        """Hosts of the job that are not up."""
        return [host for rank, host in enumerate(self.node.hosts) if rank and rank not in self.members.ready]

    def _blame(self, hosts: Iterable[str], why: str) -> None:
        """Notes that nodes are the cause of a failure, unless they are most of the job's: then it is something else."""
        accused = list(hosts)
        if 2 * len(accused) <= self.node.nodes and self.node.nodes > 1:
            self.node.folder.blame(accused, why)

    def _ray_knows(self, nodes: int) -> bool:
        """Whether Ray's head has as many: one that listens may not be among them yet, and one that is lost may be."""
        return alive_nodes(self.ray.ports["dashboard"], self.token) == nodes

    def _ray_forgets(self) -> bool:
        """Waits until Ray has noticed that nodes are lost: it would place workers on them. More may be lost then."""
        deadline = time.monotonic() + FORGET_S
        while self.up >= self.node.profile.nodes.min and not self._ray_knows(self.up):
            if time.monotonic() > deadline or self.signals.preempted:
                return False
            time.sleep(LOOK_S)
            self.members.look()
        return True

    def _run_job(self, nodes: int) -> int:
        """Runs the job file once; returns its exit code, or 1 when it was ended because a node is lost."""
        job = self.node.job
        settings = job_settings(self.node.profile, nodes) if job.takes_settings else []
        command = [sys.executable, job.command[0], *settings, *job.command[1:]]
        names = [self.node.host, *self.members.ready.values()]
        self.node.folder.enter("running", nodes=names)
        address = f"{self.ray.ip}:{self.ray.ports['gcs']}"
        process = start_process(command, self.environment | {"RAY_ADDRESS": address})
        saving_until = 0.0
        while process.poll() is None:
            time.sleep(LOOK_S)
            self.members.look()
            if self.members.lost or self.ray.process.poll() is not None:
                end(process)
                return 1
            if self.signals.preempted:
                if not saving_until:
                    saving_until = time.monotonic() + 0.75 * self.node.profile.warning_s
                    self.node.folder.enter("saving", "warned of the end")
                process.send_signal(signal.SIGUSR2)  # again and again: it may not listen yet
                if time.monotonic() > saving_until:
                    end(process, patience_s=1)
        return process.returncode if 0 <= process.returncode < 128 else 1

    def _step_back(self) -> None:
        """Waits for what may be the reason of a failure, the loss of a node or of Ray, and for the end of the log."""
        deadline = time.monotonic() + STEP_BACK_S
        while not self.members.lost and self.ray.process.poll() is None and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            self.members.look()
