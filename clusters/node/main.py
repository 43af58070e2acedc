"""What runs on each node of an allocation: a part of the job's own Ray cluster, and on the first one the job itself.

The first node (rank 0) starts Ray's head, waits for the others, runs the job file (`supervise.py`), and says in the job
report how it ended. The others start Ray and stay until the head lets them go. Whether the job goes back to the queue
is carried out by `clusters/slurm/requeue.py`, when all processes are gone.
"""

import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clusters.job_report import Head, Phase, enter, read_state
from clusters.node import membership as meeting
from clusters.node.cleanup import Janitor
from clusters.node.ray_node import OWN_RAY, RayNode, StartError, candidates, start_ray
from clusters.node.supervise import LOOK_S, Drive, NotStarted, Signals
from clusters.node.this_node import JobFile, Place
from clusters.profile import Profile
from clusters.slurm import requeue as verdict


def run(job: JobFile, profile: Profile, place: Place) -> None:
    """Runs this node's part of a job; on the first node it ends with the job's exit code."""
    signals = Signals()
    if place.rank:
        follow(job, profile, place, signals)
        return
    try:
        phase, reason, code = lead(job, profile, place, signals)
    except SystemExit as end:
        enter(job.folder, place.job_id, "cancelled", "ended by a signal", exit_code=end.code)
        raise
    except Exception as error:
        enter(job.folder, place.job_id, "failed", f"{type(error).__name__}: {error}", exit_code=1)
        raise
    enter(job.folder, place.job_id, phase, reason, exit_code=code)
    print(f"{phase}: {reason}" if reason else phase, flush=True)
    if code:
        sys.exit(code)


@contextmanager
def looked_after(profile: Profile, place: Place) -> Iterator[Janitor]:
    """A folder for this node's part of the job; at the end of the block nothing is left of it."""
    folder = Path(profile.temp_dir) / f"pirl-j{place.job_id}-{place.rank}"
    janitor = Janitor(folder, f"{place.job_id}.{place.rank}")
    try:
        yield janitor
    finally:
        janitor.clean()


def lead(job: JobFile, profile: Profile, place: Place, signals: Signals) -> tuple[Phase, str, int]:
    """The first node's part; returns how the job ended, why, and its exit code."""
    before = read_state(job.folder, place.job_id)
    history = before.get("history", [])
    if before and len(history) < place.restarts:  # SLURM was faster than the last line of the batch script
        history = [*history, before["reason"] or f"ended by SLURM while {before['phase']}"]
    enter(job.folder, place.job_id, "starting", restarts=place.restarts, nodes=[], head=None, history=history)
    if place.restarts > profile.max_requeues:
        return "failed", f"requeued {place.restarts} times, and max_requeues is {profile.max_requeues}", 1
    token = secrets.token_hex(32)
    secret = ray_environment(write_token(job.folder, place.job_id, token))
    with looked_after(profile, place) as janitor:
        environment = janitor.environment | secret
        enter(job.folder, place.job_id, "starting", pid=os.getpid())
        try:
            ray = start(profile, place, janitor, environment, None, lambda: signals.warned)
            with meet(place.ip, ray.ports["meeting"], token) as head:
                at = {"host": place.host, "ip": place.ip, "meeting_port": ray.ports["meeting"]}
                at |= {"gcs_port": ray.ports["gcs"], "dashboard_port": ray.ports["dashboard"]}
                enter(job.folder, place.job_id, "starting", head=at)
                drive = Drive(job, profile, place, ray, token, head, signals, environment)
                drive.wait_for_nodes()
                ended = drive.run()
                signals.ignore_the_end()
                return ended
        except NotStarted as error:
            return "requeue", f"{place.host}: {error}", 1


def follow(job: JobFile, profile: Profile, place: Place, signals: Signals) -> None:
    """The part of all other nodes.

    Raises:
        SystemExit: The head did not come up, Ray did not, or it ended before the job.
    """
    head = find_head(job, profile, place, signals)
    token_file = job.folder / f"{place.job_id}_token"
    connection = meeting.join(head["ip"], head["meeting_port"], token_file.read_text(), place.rank, place.host)
    with looked_after(profile, place) as janitor:
        environment = janitor.environment | ray_environment(token_file)
        address = f"{head['ip']}:{head['gcs_port']}"
        try:
            ray = start(
                profile,
                place,
                janitor,
                environment,
                address,
                # Without a head this node's Ray would wait for it.
                lambda: signals.warned or meeting.news(connection) != "none",
            )
        except NotStarted as error:
            sys.exit(f"{place.host}: {error}")
        meeting.is_ready(connection)
        while (news := meeting.news(connection)) == "none":
            if problem := ray.problem:
                sys.exit(f"{place.host}: {problem}")
            time.sleep(LOOK_S)
    if news == "lost" and profile.nodes.min < profile.nodes.max:
        verdict.outlive(job.folder, profile.max_requeues, head["host"])


def find_head(job: JobFile, profile: Profile, place: Place, signals: Signals) -> Head:
    """Waits until the first node of this attempt listens; leaves where it has given up or does not come."""
    deadline = time.monotonic() + profile.start_s
    while time.monotonic() < deadline and not signals.warned:
        state = read_state(job.folder, place.job_id)
        if state.get("restarts") == place.restarts:
            if head := state.get("head"):
                return head
            if state["phase"] != "starting":
                sys.exit(f"{place.host}: the first node ended before it was up: {state['reason']}")
        time.sleep(LOOK_S)
    sys.exit(f"{place.host}: the first node did not come up within {profile.start_s} s")


def start(
    profile: Profile,
    place: Place,
    janitor: Janitor,
    environment: dict[str, str],
    head_address: str | None,
    give_up: Callable[[], bool],
) -> RayNode:
    """Starts this node's Ray; raises NotStarted."""
    try:
        return start_ray(
            place.ip,
            candidates(place.job_id, *profile.ports),
            place.resources,
            janitor.folder,
            environment,
            head_address=head_address,
            limit_s=profile.start_s,
            give_up=give_up,
        )
    except StartError as error:
        raise NotStarted(str(error)) from None


def meet(ip: str, port: int, token: str) -> meeting.Head:
    """Has the other nodes come; raises NotStarted where the port was taken while Ray started."""
    try:
        return meeting.Head(ip, port, token)
    except OSError as error:
        raise NotStarted(f"port {port}: {error.strerror}") from None


def ray_environment(token_file: Path) -> dict[str, str]:
    """For Ray and all that runs on it: only who knows the token gets in."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_prestart_worker_first_driver": "0",  # a process for each CPU, which take the ports and are not used
        **OWN_RAY,
        "PYTHONUNBUFFERED": "1",
    }


def write_token(folder: Path, job_id: str, token: str) -> Path:
    """Writes the token of this attempt where only this user can read it."""
    file = folder / f"{job_id}_token"
    file.unlink(missing_ok=True)
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
        output.write(token)
    return file
