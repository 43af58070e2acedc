"""What runs on each node of an allocation: a part of the job's own Ray cluster, and on the first one the job itself.

The first node (rank 0) starts Ray's head, waits for the others, runs the job file (`supervise.py`), and says in the job
report how it ended. The others start Ray and stay until the head lets them go. Whether the job goes back to the queue
is carried out by `clusters/slurm/requeue.py`, when all processes are gone.
"""

import os
import secrets
import sys
import time
from pathlib import Path

from clusters.job_folder import HeadAddress, Phase
from clusters.node import membership
from clusters.node.cleanup import NodeCleanup
from clusters.node.ray_node import OWN_RAY, start_ray
from clusters.node.supervise import LOOK_S, Signals, Supervisor
from clusters.node.this_node import ThisNode
from clusters.slurm import requeue
from pirl.errors import NotStarted


def run(node: ThisNode) -> None:
    """Runs this node's part of a job; on the first node it ends with the job's exit code."""
    signals = Signals()
    if node.rank:
        follow(node, signals)
        return
    try:
        phase, reason, code = lead(node, signals)
    except SystemExit as end:
        node.folder.enter("cancelled", "ended by a signal", exit_code=end.code)
        raise
    except Exception as error:
        node.folder.enter("failed", f"{type(error).__name__}: {error}", exit_code=1)
        raise
    node.folder.enter(phase, reason, exit_code=code)
    print(f"{phase}: {reason}" if reason else phase, flush=True)
    if code:
        sys.exit(code)


def lead(node: ThisNode, signals: Signals) -> tuple[Phase, str, int]:
    """The first node's part; returns how the job ended, why, and its exit code."""
    folder, before = node.folder, node.folder.report()
    history = before.get("history", [])
    if before and len(history) < node.restarts:  # SLURM was faster than the last line of the batch script
        history = [*history, before["reason"] or f"ended by SLURM while {before['phase']}"]
    folder.enter("starting", restarts=node.restarts, nodes=[], head=None, history=history, blamed=[])
    if node.restarts > node.profile.max_requeues:
        return "failed", f"requeued {node.restarts} times, and max_requeues is {node.profile.max_requeues}", 1
    token = secrets.token_hex(32)
    folder.write_token(token)
    with NodeCleanup(node.scratch, node.mark) as cleanup:
        environment = cleanup.environment | ray_environment(folder.token)
        folder.enter("starting", pid=os.getpid())
        try:
            try:
                ray = start_ray(node, environment, None, lambda: signals.preempted)
            except NotStarted:
                if not signals.preempted:
                    folder.blame([node.host], "Ray did not start there")
                raise
            with membership.Membership(node.ip, ray.ports["membership"], token) as members:
                at = {f"{service}_port": ray.ports[service] for service in ("membership", "gcs", "dashboard")}
                folder.enter("starting", head={"host": node.host, "ip": node.ip, **at})
                supervisor = Supervisor(node, ray, token, members, signals, environment)
                supervisor.wait_for_nodes()
                ended = supervisor.run()
                signals.ignore_the_end()
                return ended
        except NotStarted as error:
            return "requeue", f"{node.host}: {error}", 1


def follow(node: ThisNode, signals: Signals) -> None:
    """The part of all other nodes; raises SystemExit if the head or Ray did not come up, or ended before the job."""
    head = find_head(node, signals)
    token = node.folder.token.read_text()
    connection = membership.join(head["ip"], head["membership_port"], token, node.rank, node.host)
    with NodeCleanup(node.scratch, node.mark) as cleanup:
        environment = cleanup.environment | ray_environment(node.folder.token)

        def give_up() -> bool:  # without a head this node's Ray would wait for it
            return signals.preempted or membership.news(connection) != "none"

        try:
            ray = start_ray(node, environment, f"{head['ip']}:{head['gcs_port']}", give_up)
        except NotStarted as error:
            sys.exit(f"{node.host}: {error}")
        membership.is_ready(connection)
        while (news := membership.news(connection)) == "none":
            if problem := ray.problem:
                sys.exit(f"{node.host}: {problem}")
            time.sleep(LOOK_S)
    if news == "lost" and node.profile.nodes.min < node.profile.nodes.max:
        requeue.outlive(node.folder.path, node.profile.max_requeues, head["host"])


def find_head(node: ThisNode, signals: Signals) -> HeadAddress:
    """Waits until the first node of this attempt listens; leaves where it has given up or does not come."""
    deadline = time.monotonic() + node.profile.start_s
    while time.monotonic() < deadline and not signals.preempted:
        report = node.folder.report()
        if report.get("restarts") == node.restarts:
            if head := report.get("head"):
                return head
            if report["phase"] != "starting":
                sys.exit(f"{node.host}: the first node ended before it was up: {report['reason']}")
        time.sleep(LOOK_S)
    sys.exit(f"{node.host}: the first node did not come up within {node.profile.start_s} s")


def ray_environment(token_file: Path) -> dict[str, str]:
    """For Ray and all that runs on it: only who knows the token gets in."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_prestart_worker_first_driver": "0",  # a process for each CPU, which take the ports and are not used
        **OWN_RAY,
        "PYTHONUNBUFFERED": "1",
    }
