"""The last line of a job's batch script: its exit code, or back to the queue.

`python clusters/slurm/requeue.py FOLDER MAX_REQUEUES CODE`, where CODE is that of srun. Comes when all tasks have
ended, whichever way.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from clusters.job_folder import JobFolder
from clusters.slurm import bad_nodes

TRIES = 5
CARRIED_OUT_S = 60
"""How long the scheduler may take for an answer, and to end a script whose job it has requeued."""

DOWN_S = 900
"""After a host is lost, SLURM may take minutes to say that it is down."""

LOOK_S = 5
"""Between two looks at a host; the first is late enough for all of its processes to be gone."""


def main(path: Path, max_requeues: int, code: int, lost: str = "") -> int:
    """Returns the exit code of the batch script; does not return when the job goes back to the queue.

    Args:
        lost: The host that is down, where that is known.
    """
    folder = JobFolder(path, own_id())
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    try:
        folder.attempt_ended(restarts).touch(exist_ok=False)
    except FileExistsError:
        time.sleep(CARRIED_OUT_S)
        return 1

    report = folder.report()
    if report.get("restarts") == restarts:
        remember_bad_nodes(folder, [*report.get("blamed", []), *([[lost, "it was lost"]] if lost else [])])
    phase = report.get("phase") if report.get("restarts") == restarts else None
    if phase in ("done", "failed"):
        return report["exit_code"]
    # Ended by a signal, as preemption may begin; a job that is cancelled loses this script too.
    if phase in ("requeue", "cancelled"):
        reason = report["reason"]
    elif phase is None and code < 128:
        told = f"the first node could not begin, exit code {code}: its log says why"
        folder.enter("failed", told, exit_code=code or 1, restarts=restarts)
        return code or 1
    else:
        reason = "the processes of the first node were lost"
    history = [*report.get("history", []), reason]
    if restarts >= max_requeues:
        told = f"{reason}; the job was requeued {restarts} times, which is all that max_requeues allows"
        folder.enter("failed", told, exit_code=1, history=history, restarts=restarts)
        print(f"failed: {told}", flush=True)
        return 1
    print(f"back to the queue: {reason}", flush=True)
    folder.enter("requeue", reason, history=history, restarts=restarts)
    # It comes as soon as the job is requeued, and until then the job takes no other nodes to leave out.
    patience = Patience()
    for _ in range(TRIES):
        # Incomplete: not one that was cancelled meanwhile.
        taken = _ask("scontrol", "requeue", "incomplete", folder.job_id) is not None
        if taken:
            leave_out_bad_nodes(folder)
        patience.over()
        time.sleep(CARRIED_OUT_S if taken else CARRIED_OUT_S / TRIES)
    return 1


class Patience:
    """Lets SIGTERM wait until `over`."""

    def __init__(self) -> None:
        self.came = False
        self.before = signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True

    def over(self) -> None:
        """Ends this process if the signal has come; from now on it does what it did before, if it was not ignored."""
        ignored = self.before in (signal.SIG_IGN, None)
        signal.signal(signal.SIGTERM, signal.SIG_DFL if ignored else self.before)
        if self.came:
            sys.exit(128 + signal.SIGTERM)


def remember_bad_nodes(folder: JobFolder, blamed: list[list[str]]) -> None:
    """Notes nodes that were the cause of a failure, for this job and later ones."""
    for host, why in blamed:
        try:
            bad_nodes.remember(folder.path.parent, host, why, folder.job_id)
        except OSError as error:
            print(f"{host} is not remembered as bad: {error}", flush=True)


def leave_out_bad_nodes(folder: JobFolder) -> None:
    """Has this job, which is in the queue again, not get nodes that failed; gives back those that have faded."""
    before = folder.report().get("left_out", [])
    bad = bad_nodes.remembered(folder.path.parent)
    told = _ask("scontrol", "-o", "show", "job", folder.job_id) if bad or before else None
    if not told or not (partition := _field(told, "Partition")) or _field(told, "ReqNodeList"):
        return
    listed = _ask("sinfo", "-h", "-N", "-p", partition, "-o", "%N|%T|%f") or ""
    rows = [line.strip().split("|") for line in listed.splitlines() if line.count("|") == 2]
    nodes = [bad_nodes.Candidate(host, bad_nodes.is_usable(state), (*have.split(","),)) for host, state, have in rows]
    needed = re.match(r"\d+", _field(told, "NumNodes"))
    hosts = bad_nodes.to_leave_out(bad, nodes, int(needed[0]) if needed else 1, _field(told, "Features") or None)
    theirs = set(bad_nodes.hosts_in(_field(told, "ExcNodeList"))) - set(before)
    if set(hosts) == set(before):
        return
    names = ",".join(sorted({*theirs, *hosts}))
    if _ask("scontrol", "update", f"JobId={folder.job_id}", f"ExcNodeList={names}") is None:
        return
    report = folder.report()
    folder.enter(report["phase"], report["reason"], left_out=hosts)
    print(f"left out from now on: {', '.join(hosts) or 'no node'}", flush=True)


def _field(told: str, name: str) -> str:
    """A field of `scontrol -o show job`; empty where there is nothing in it."""
    found = re.search(rf" {name}=(\S*)", told)
    return "" if not found or found[1] == "(null)" else found[1]


def outlive(path: Path, max_requeues: int, head: str) -> None:
    """Does what the batch script cannot do any more, on another node, where its host is down.

    SLURM leaves a job that may lose nodes (`--no-kill`) as it is then: running, with nothing in it. Does
    nothing where the host answers: the batch script is there, or it was only this node that was cut off.
    """
    if not shutil.which("scontrol"):  # in a container of srun_args, say
        print(f"{head} is lost, and there is no scontrol here to bring the job back with: scancel it", flush=True)
        return
    deadline = time.monotonic() + DOWN_S
    try:
        state = "unknown"
        while state != "down":
            time.sleep(LOOK_S)
            state = host_state(head)
            if state == "up" or time.monotonic() > deadline:
                return
    except SystemExit:  # SLURM ends the steps of the job when it notices
        if host_state(head) != "down":
            raise
    main(path, max_requeues, code=137, lost=head)
    _ask("scancel", own_id())


def own_id() -> str:
    """The id of this job; of a task of an array `12_3`, as the last one to start has SLURM's number of them all."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def host_state(host: str) -> Literal["up", "down", "unknown"]:
    """Whether a host's slurmd answers, or SLURM has given the host up."""
    told = _ask("scontrol", "-o", "show", "node", host) or ""
    if " State=DOWN" in told:
        return "down"
    address, port = (re.search(rf" {name}=(\S+)", told) for name in ("NodeAddr", "Port"))
    try:
        socket.create_connection((address[1] if address else host, int(port[1]) if port else 6818), 5).close()
    except OSError:
        return "unknown"
    return "up"


def _ask(*command: str) -> str | None:
    """What a command of SLURM prints; None where it fails or takes too long, which is said in the log."""
    try:
        answer = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=CARRIED_OUT_S,
            # What it asks for may end all of this job before there is an answer.
            preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"{command[0]}: {error}", flush=True)
        return None
    return answer.stdout if answer.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
