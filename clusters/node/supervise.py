"""The first node's work while the job runs: the job file as a process, on the nodes that are there.

A node that is lost, a warning of the end and a job that fails are all noticed here.
"""

import signal
import sys
import time
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from clusters.job_report import Phase, enter, reason_in
from clusters.node import membership as meeting
from clusters.node.ray_node import RayNode, alive_nodes, end, start_process
from clusters.node.this_node import JobFile, Place
from clusters.profile import Profile, job_settings

LOOK_S = 0.2
"""Between two looks at the job, the nodes and the signals."""

FORGET_S = 120
"""Ray looks for its nodes several times before it gives one up."""

STEP_BACK_S = 3
"""After the job fails: a node or Ray may be lost, which is noticed a moment later, as `ray start` looks once a second;
and what the job printed last takes its way through the scheduler into the log."""


class NotStarted(RuntimeError):  # noqa: N818 - what it is, not that it is an error
    """The nodes did not come up; the job goes back to the queue."""


class Signals:
    """Hears what the scheduler sends. SIGTERM ends this process, with all that stands in `finally`."""

    def __init__(self) -> None:
        self.warned = False
        signal.signal(signal.SIGUSR2, self._warn)
        signal.signal(signal.SIGTERM, self._end)

    def ignore_the_end(self) -> None:
        """SIGTERM does nothing from now on: how the job ended is known, and what is left is to clean up."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _warn(self, number: int, frame: FrameType | None) -> None:
        self.warned = True

    def _end(self, number: int, frame: FrameType | None) -> NoReturn:
        self.ignore_the_end()
        sys.exit(128 + number)


@dataclass
class Drive:
    """Runs the job file on the nodes that are there, again on fewer when one is lost."""

    job: JobFile
    profile: Profile
    place: Place
    ray: RayNode
    token: str
    head: meeting.Head
    signals: Signals
    environment: dict[str, str]

    @property
    def nodes(self) -> int:
        """Nodes that are up, with this one."""
        return 1 + len(self.head.ready)

    def wait_for_nodes(self) -> None:
        """Returns when all nodes are there, or, when no more can come, as many as the profile asks for.

        Raises:
            NotStarted: They are fewer; or the end came first.
        """
        deadline = time.monotonic() + self.profile.start_s
        while self.nodes < self.place.nodes or not self._ray_knows(self.nodes):
            missing = self.place.nodes - self.nodes
            if self.signals.warned:
                raise NotStarted("warned of the end before all nodes were up")
            if problem := self.ray.problem:
                raise NotStarted(f"before all nodes were up {problem}")
            if time.monotonic() > deadline or (missing and missing == len(self.head.lost)):
                lost = f"; lost {', '.join(self.head.lost.values())}, see its log" if self.head.lost else ""
                there = f"{self.nodes} of {self.place.nodes} nodes came up within {self.profile.start_s} s{lost}"
                if self.nodes < self.profile.nodes.min or not self._ray_knows(self.nodes):
                    raise NotStarted(there)
                print(f"{there}: going on with them", flush=True)
                return
            time.sleep(LOOK_S)
            self.head.look()

    def run(self) -> tuple[Phase, str, int]:
        """Returns how the job ended, why, and its exit code."""
        while True:
            self.head.lost.clear()
            nodes, read = self.nodes, self.place.log.stat().st_size
            code = self._job(nodes)
            if code == 0:
                return "done", "", 0
            if self.signals.warned:
                return "requeue", "warned of the end", 1
            self._step_back()
            if self.ray.process.poll() is not None:
                return "requeue", f"Ray on {self.place.host} ended with code {self.ray.process.returncode}", 1
            if not self.head.lost:
                return "failed", reason_in(self.place.log, read) or f"exit code {code}", code
            forgotten = self._ray_forgets()
            lost = ", ".join(self.head.lost.values())
            if self.nodes < self.profile.nodes.min:
                return "requeue", f"lost {lost}; {self.nodes} of {nodes} nodes are left", 1
            if not forgotten:
                return "requeue", f"lost {lost}, and Ray did not notice within {FORGET_S} s", 1
            print(f"lost {lost}: going on with {self.nodes} of {nodes} nodes", flush=True)

    def _ray_knows(self, nodes: int) -> bool:
        """Whether Ray's head has as many: one that listens may not be among them yet, and one that is lost may be."""
        return alive_nodes(self.ray.ports["dashboard"], self.token) == nodes

    def _ray_forgets(self) -> bool:
        """Waits until Ray has noticed that nodes are lost: it would place workers on them. More may be lost then."""
        deadline = time.monotonic() + FORGET_S
        while self.nodes >= self.profile.nodes.min and not self._ray_knows(self.nodes):
            if time.monotonic() > deadline or self.signals.warned:
                return False
            time.sleep(LOOK_S)
            self.head.look()
        return True

    def _job(self, nodes: int) -> int:
        """Runs the job file once; returns its exit code, or 1 when it was ended because a node is lost."""
        settings = job_settings(self.profile, nodes) if self.job.takes_settings else []
        command = [sys.executable, self.job.command[0], *settings, *self.job.command[1:]]
        names = [self.place.host, *self.head.ready.values()]
        enter(self.job.folder, self.place.job_id, "running", nodes=names)
        address = f"{self.ray.ip}:{self.ray.ports['gcs']}"
        process = start_process(command, self.environment | {"RAY_ADDRESS": address})
        saving_until = 0.0
        while process.poll() is None:
            time.sleep(LOOK_S)
            self.head.look()
            if self.head.lost or self.ray.process.poll() is not None:
                end(process)
                return 1
            if self.signals.warned:
                if not saving_until:
                    saving_until = time.monotonic() + 0.75 * self.profile.warning_s
                    enter(self.job.folder, self.place.job_id, "saving", "warned of the end")
                process.send_signal(signal.SIGUSR2)  # again and again: it may not listen yet
                if time.monotonic() > saving_until:
                    end(process, patience_s=1)
        return process.returncode if 0 <= process.returncode < 128 else 1

    def _step_back(self) -> None:
        """Waits for what may be the reason of a failure, the loss of a node or of Ray, and for the end of the log."""
        deadline = time.monotonic() + STEP_BACK_S
        while not self.head.lost and self.ray.process.poll() is None and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            self.head.look()
