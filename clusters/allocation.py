"""What runs on each node of an allocation: a part of the job's own Ray cluster, and on the first one the job itself.

The first node (rank 0) starts Ray's head, meets the others, runs the job file (`clusters/drive.py`), and says in the
job's state how it ended. The others start Ray and stay until the head lets them go. Whether the job goes back to the
queue is carried out by `clusters/verdict.py`, when all processes are gone.
"""

import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path

from clusters import meeting, verdict
from clusters.drive import LOOK_S, Drive, Signals
from clusters.janitor import Janitor
from clusters.job_state import Phase, enter, read_state
from clusters.place import JobFile, Place
from clusters.profile import Profile
from clusters.ray_node import RayNode, StartError, alive_nodes, candidates, start_ray


class NotStarted(RuntimeError):  # noqa: N818 - what it is, not that it is an error
    """The nodes did not come up; the job goes back to the queue."""


def run(job: JobFile, profile: Profile, place: Place) -> None:
    """Runs this node's part of a job; on the first node it ends with the job's exit code."""
    signals = Signals()
    name = f"pirl-job-{place.job_id}-{place.rank}"
    janitor = Janitor(Path(profile.temp_dir) / name, f"{place.job_id}.{place.rank}")
    try:
        if place.rank:
            follow(job, profile, place, janitor)
            return
        phase, reason, code = lead(job, profile, place, janitor, signals)
    except SystemExit as end:
        if not place.rank:
            enter(job.folder, place.job_id, "cancelled", "ended by a signal", exit_code=end.code)
        raise
    except Exception as error:
        if not place.rank:
            enter(job.folder, place.job_id, "failed", repr(error), exit_code=1)
        raise
    finally:
        janitor.clean()
    enter(job.folder, place.job_id, phase, reason, exit_code=code)
    print(f"{phase}: {reason}" if reason else phase, flush=True)
    if code:
        sys.exit(code)


def lead(job: JobFile, profile: Profile, place: Place, janitor: Janitor, signals: Signals) -> tuple[Phase, str, int]:
    """The first node's part; returns how the job ended, why, and its exit code."""
    enter(job.folder, place.job_id, "starting", restarts=place.restarts, nodes=[], head=None, pid=os.getpid())
    token = secrets.token_hex(32)
    environment = {**janitor.environment, **ray_environment(write_token(job.folder, place.job_id, token))}
    try:
        ray = start(profile, place, janitor, environment, None)
    except StartError as error:
        return "requeue", f"{place.host}: {error}", 1
    with meeting.Head(place.ip, ray.ports["meeting"], token) as head:
        at = {"host": place.host, "ip": place.ip, "meeting_port": ray.ports["meeting"]}
        at |= {"gcs_port": ray.ports["gcs"], "dashboard_port": ray.ports["dashboard"]}
        enter(job.folder, place.job_id, "starting", head=at)
        try:
            wait_for_nodes(head, profile, place, signals, lambda: alive_nodes(ray.ports["dashboard"], token))
        except NotStarted as error:
            return "requeue", str(error), 1
        address = f"{ray.ip}:{ray.ports['gcs']}"
        return Drive(job, profile, place, ray, head, signals, {**environment, "RAY_ADDRESS": address}).run()


def follow(job: JobFile, profile: Profile, place: Place, janitor: Janitor) -> None:
    """The part of all other nodes.

    Raises:
        SystemExit: The head did not come up, Ray did not, or it ended before the job.
    """
    deadline = time.monotonic() + profile.start_s
    while True:
        state = read_state(job.folder, place.job_id)
        head = state.get("head")
        if head and state["restarts"] == place.restarts:
            break
        if time.monotonic() > deadline:
            sys.exit(f"{place.host}: the head did not come up within {profile.start_s} s")
        time.sleep(LOOK_S)
    token_file = job.folder / f"{place.job_id}_token"
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
        verdict.main(job.folder, profile.max_requeues)


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
