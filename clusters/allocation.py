"""What runs on each node of an allocation: a part of the job's own Ray cluster, and on the first one the job itself.

The first node (rank 0) starts Ray's head, meets the others, runs the job file as a process, and says in the job's
state how it ended. The others start Ray and stay until the head lets them go. A node that is lost, a warning of
the end and a job that fails are all noticed here; whether the job goes back to the queue is carried out by
`clusters/verdict.py`, when all processes are gone.
"""

import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

import submitit

from clusters import meeting, verdict
from clusters.janitor import Janitor
from clusters.job_state import Phase, enter, read_state
from clusters.profile import Profile
from clusters.ray_node import RayNode, Resources, StartError, alive_nodes, candidates, end, start_process, start_ray

LOOK_S = 0.2
"""Between two looks at the job, the nodes and the signals."""

STEP_BACK_S = 3
"""After the job fails: a node that was lost may be the reason, and is noticed a moment later."""


class NotStarted(RuntimeError):  # noqa: N818 - what it is, not that it is an error
    """The nodes did not come up; the job goes back to the queue."""


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
    """

    job_id: str
    rank: int
    nodes: int
    restarts: int
    host: str
    ip: str
    resources: Resources

    @classmethod
    def here(cls, profile: Profile) -> "Place":
        """Reads it from the environment of a task."""
        job = submitit.JobEnvironment()
        head_ip = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
        megabytes = os.environ.get("SLURM_MEM_PER_NODE")
        memory_bytes = int(megabytes) * 2**20 if megabytes else None
        if not memory_bytes and profile.memory_gb_per_node:
            memory_bytes = int(profile.memory_gb_per_node * 2**30)
        cpus = int(os.environ.get("SLURM_CPUS_ON_NODE", profile.cpus_per_node))
        return cls(
            job_id=job.job_id,
            rank=job.global_rank,
            nodes=job.num_nodes,
            restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            host=os.environ.get("SLURMD_NODENAME", socket.gethostname()),
            ip=meeting.own_ip(head_ip),
            resources=Resources(cpus, profile.gpus_per_node, memory_bytes),
        )


@dataclass(frozen=True)
class Allocation:
    """The task that submitit runs once on each node.

    Attributes:
        folder: Of the job.
        profile: Of the cluster, as JSON: the file may change while the job waits.
        job: Path of the job file and its arguments.
        takes_settings: Whether the job file knows `--storage` and `--cluster.workers`.
    """

    folder: Path
    profile: str
    job: tuple[str, ...]
    takes_settings: bool

    def __call__(self) -> None:
        """Runs this node's part; ends with the job's exit code on the first node."""
        profile = Profile.model_validate_json(self.profile)
        place = Place.here(profile)
        signals = Signals()
        name = f"pirl-job-{place.job_id}-{place.rank}"
        janitor = Janitor(Path(profile.temp_dir) / name, f"{place.job_id}.{place.rank}")
        try:
            if place.rank:
                follow(self, profile, place, janitor)
                return
            phase, reason, code = lead(self, profile, place, janitor, signals)
        except SystemExit as end:
            if not place.rank:
                enter(self.folder, place.job_id, "cancelled", "ended by a signal", exit_code=end.code)
            raise
        except Exception as error:
            if not place.rank:
                enter(self.folder, place.job_id, "failed", repr(error), exit_code=1)
            raise
        finally:
            janitor.clean()
        enter(self.folder, place.job_id, phase, reason, exit_code=code)
        print(f"{phase}: {reason}" if reason else phase, flush=True)
        if code:
            sys.exit(code)


class Signals:
    """Hears what the scheduler sends. SIGTERM ends this process, with all that stands in `finally`."""

    def __init__(self) -> None:
        self.warned = False
        signal.signal(signal.SIGUSR2, self._warn)
        signal.signal(signal.SIGTERM, self._end)

    def _warn(self, number: int, frame: FrameType | None) -> None:
        self.warned = True

    def _end(self, number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(128 + number)


def lead(
    task: Allocation, profile: Profile, place: Place, janitor: Janitor, signals: Signals
) -> tuple[Phase, str, int]:
    """The first node's part; returns how the job ended, why, and its exit code."""
    enter(task.folder, place.job_id, "starting", restarts=place.restarts, nodes=[], head=None, pid=os.getpid())
    token = secrets.token_hex(32)
    environment = {**janitor.environment, **ray_environment(write_token(task.folder, place.job_id, token))}
    try:
        ray = start(profile, place, janitor, environment, None)
    except StartError as error:
        return "requeue", f"{place.host}: {error}", 1
    with meeting.Head(place.ip, ray.ports["meeting"], token) as head:
        at = {"host": place.host, "ip": place.ip, "meeting_port": ray.ports["meeting"]}
        at |= {"gcs_port": ray.ports["gcs"], "dashboard_port": ray.ports["dashboard"]}
        enter(task.folder, place.job_id, "starting", head=at)
        try:
            wait_for_nodes(head, profile, place, signals, lambda: alive_nodes(ray.ports["dashboard"], token))
        except NotStarted as error:
            return "requeue", str(error), 1
        address = f"{ray.ip}:{ray.ports['gcs']}"
        return Drive(task, profile, place, ray, head, signals, {**environment, "RAY_ADDRESS": address}).run()


def follow(task: Allocation, profile: Profile, place: Place, janitor: Janitor) -> None:
    """The part of all other nodes.

    Raises:
        SystemExit: The head did not come up, Ray did not, or it ended before the job.
    """
    deadline = time.monotonic() + profile.start_s
    while True:
        state = read_state(task.folder, place.job_id)
        head = state.get("head")
        if head and state["restarts"] == place.restarts:
            break
        if time.monotonic() > deadline:
            sys.exit(f"{place.host}: the head did not come up within {profile.start_s} s")
        time.sleep(LOOK_S)
    token_file = task.folder / f"{place.job_id}_token"
    environment = {**janitor.environment, **ray_environment(token_file)}
    try:
        ray = start(profile, place, janitor, environment, f"{head['ip']}:{head['gcs_port']}")
    except StartError as error:
        sys.exit(f"{place.host}: {error}")
    connection = meeting.join(head["ip"], head["meeting_port"], token_file.read_text(), place.rank, place.host)
    while (news := meeting.news(connection)) == "none":
        if ray.process.poll() is not None:
            sys.exit(f"{place.host}: Ray ended with code {ray.process.returncode}")
        time.sleep(LOOK_S)
    if news == "lost" and profile.nodes.min < profile.nodes.max:
        # SLURM leaves a job with --no-kill as it is when the host of its batch script dies: somebody must end it.
        janitor.clean()
        verdict.main(task.folder, profile.max_requeues)


def start(
    profile: Profile, place: Place, janitor: Janitor, environment: dict[str, str], head_address: str | None
) -> RayNode:
    """Starts this node's Ray; raises StartError."""
    return start_ray(
        place.ip,
        candidates(place.job_id, *profile.ports),
        place.resources,
        Path(janitor.environment["TMPDIR"]).parent,
        environment,
        head_address=head_address,
        limit_s=profile.start_s / 2,
    )


def ray_environment(token_file: Path) -> dict[str, str]:
    """For Ray and all that runs on it: only who knows the token gets in; no wait for others at the end."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "PYTHONUNBUFFERED": "1",
    }


def write_token(folder: Path, job_id: str, token: str) -> Path:
    """Writes the token of this attempt where only this user can read it."""
    file = folder / f"{job_id}_token"
    file.unlink(missing_ok=True)
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        output.write(token)
    return file


def wait_for_nodes(
    head: meeting.Head, profile: Profile, place: Place, signals: Signals, known: Callable[[], int]
) -> None:
    """Returns when all nodes are there, or, after `start_s`, as many as the profile asks for; else NotStarted.

    `known` says how many Ray's head knows: a node that listens may not be among them yet.
    """
    deadline = time.monotonic() + profile.start_s
    while len(head.ready) < place.nodes - 1 or known() < place.nodes:
        if signals.warned:
            raise NotStarted("warned of the end before all nodes were up")
        if time.monotonic() > deadline:
            there = f"{1 + len(head.ready)} of {place.nodes} nodes came up within {profile.start_s} s"
            if 1 + len(head.ready) < profile.nodes.min:
                raise NotStarted(there)
            print(f"{there}: going on with them", flush=True)
            return
        time.sleep(LOOK_S)
        head.look()


@dataclass
class Drive:
    """Runs the job file on the nodes that are there, again on fewer when one is lost."""

    task: Allocation
    profile: Profile
    place: Place
    ray: RayNode
    head: meeting.Head
    signals: Signals
    environment: dict[str, str]

    def run(self) -> tuple[Phase, str, int]:
        """Returns how the job ended, why, and its exit code."""
        while True:
            self.head.lost.clear()
            nodes = 1 + len(self.head.ready)
            code = self._job(nodes)
            if code == 0:
                return "done", "", 0
            if self.signals.warned:
                return "requeue", "warned of the end", 1
            if self.ray.process.poll() is not None:
                return "requeue", f"Ray on {self.place.host} ended with code {self.ray.process.returncode}", 1
            lost = self._lost(nodes)
            if not lost:
                return "failed", reason_in(submitit.JobEnvironment().paths.stdout) or f"exit code {code}", code
            left = 1 + len(self.head.ready)
            if left < self.profile.nodes.min:
                return "requeue", f"lost {lost}; {left} of {nodes} nodes are left", 1
            print(f"lost {lost}: going on with {left} of {nodes} nodes", flush=True)

    def _job(self, nodes: int) -> int:
        """Runs the job file once; returns its exit code, or 1 when it was ended because a node is lost."""
        settings = job_settings(self.profile, nodes) if self.task.takes_settings else []
        command = [sys.executable, self.task.job[0], *settings, *self.task.job[1:]]
        names = [self.place.host, *self.head.ready.values()]
        enter(self.task.folder, self.place.job_id, "running", nodes=names)
        job = start_process(command, self.environment)
        saving_until = 0.0
        while job.poll() is None:
            time.sleep(LOOK_S)
            self.head.look()
            if self.head.lost or self.ray.process.poll() is not None:
                end(job)
                return 1
            if self.signals.warned:
                if not saving_until:
                    saving_until = time.monotonic() + 0.75 * self.profile.warning_s
                    enter(self.task.folder, self.place.job_id, "saving", "warned of the end")
                job.send_signal(signal.SIGUSR2)  # again and again: it may not listen yet
                if time.monotonic() > saving_until:
                    end(job, patience_s=1)
        return job.returncode if 0 <= job.returncode < 128 else 1

    def _lost(self, nodes: int) -> str:
        """Names of the nodes that were lost while the job ran."""
        deadline = time.monotonic() + STEP_BACK_S
        while not self.head.lost and time.monotonic() < deadline and nodes > 1:
            time.sleep(LOOK_S)
            self.head.look()
        return ", ".join(self.head.lost.values())


def job_settings(profile: Profile, nodes: int) -> list[str]:
    """Arguments for a job file that has it use `nodes` nodes; typed ones come after them and count more."""
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in profile.settings(nodes).items()]
    return [f"--storage={profile.storage}", *settings]


def reason_in(log: Path) -> str:
    """What a job said last of an error."""
    lines = [line for line in log.read_text(errors="replace").splitlines()[-50:] if line.strip()]
    errors = [line for line in lines if line.startswith(("error:", "failed:"))]
    return (errors or lines or [""])[-1]
