"""The last line of a job's batch script: its exit code, or back to the queue.

`python clusters/slurm/requeue.py FOLDER MAX_REQUEUES CODE`, where CODE is that of srun. Comes when all tasks have
ended, whichever way.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from clusters.job_folder import JobFolder

TRIES = 5
CARRIED_OUT_S = 60
"""How long the scheduler may take for an answer, and to end a script whose job it has requeued."""

DOWN_S = 900
"""After a host is lost, SLURM may take minutes to say that it is down."""

LOOK_S = 5
"""Between two looks at a host; the first is late enough for all of its processes to be gone."""


def main(path: Path, max_requeues: int, code: int) -> int:
    """Returns the exit code of the batch script; does not return when the job goes back to the queue."""
    folder = JobFolder(path, own_id())
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    try:
        folder.attempt_ended(restarts).touch(exist_ok=False)
    except FileExistsError:
        time.sleep(CARRIED_OUT_S)
        return 1

    report = folder.report()
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
    for _ in range(TRIES):
        # Incomplete: not one that was cancelled meanwhile.
        taken = _ask("scontrol", "requeue", "incomplete", folder.job_id) is not None
        time.sleep(CARRIED_OUT_S if taken else CARRIED_OUT_S / TRIES)
    return 1


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
    main(path, max_requeues, code=137)
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
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, errors="replace", timeout=CARRIED_OUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"{command[0]}: {error}", flush=True)
        return None
    return answer.stdout if answer.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
