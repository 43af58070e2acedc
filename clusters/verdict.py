"""The last line of a job's batch script: its exit code, or back to the queue.

`python clusters/verdict.py FOLDER MAX_REQUEUES`. Comes when all tasks have ended, whichever way.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clusters.job_state import enter, read_state

CARRIED_OUT_S = 60
"""How long the scheduler may take to end a script whose job it has requeued."""


def main(folder: Path, max_requeues: int) -> int:
    """Returns the exit code of the batch script; does not return when the job goes back to the queue."""
    raw_id = os.environ["SLURM_JOB_ID"]
    job_id = raw_id
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job_id = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))

    state = read_state(folder, job_id)
    if state.get("phase") in ("done", "failed", "cancelled"):
        return state.get("exit_code", 1)
    reason = state.get("reason", "")
    if state.get("phase") != "requeue":  # it could not say so
        reason = "the processes of the first node were lost"
    history = [*state.get("history", []), reason]
    if restarts >= max_requeues:
        told = f"{reason}; the job was requeued {restarts} times, which is all that max_requeues allows"
        enter(folder, job_id, "failed", told, exit_code=1, history=history)
        print(f"failed: {told}", flush=True)
        return 1
    print(f"back to the queue: {reason}", flush=True)
    enter(folder, job_id, "requeue", reason, history=history)
    subprocess.run(["scontrol", "requeue", raw_id], check=False, timeout=CARRIED_OUT_S)
    time.sleep(CARRIED_OUT_S)
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
