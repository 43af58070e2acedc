"""What the nodes of a job printed, once or as it comes."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from jobs.batch.job import ENDS, Job, JobStatus, statuses
from jobs.settings import SUBMIT

FOLLOW_S = 0.5
ASK_S = 5.0
"""The scheduler is not asked as often as a file is read."""


def print_logs(job: Job) -> int:
    """Prints what all nodes wrote; returns the exit code."""
    for line in new_lines(job, {}, to_the_end=True):
        print(line)
    if not job.folder.logs():
        print(f"job {job.job_id} has written nothing yet: {job.status().word}", file=sys.stderr)
    return 0


def follow_logs(job: Job) -> int:
    """Prints what all nodes write, until the job ends; returns 0 if it ended well."""
    positions: dict[Path, int] = {}
    said, ask_at = "", 0.0
    while True:
        if time.monotonic() > ask_at:
            status, ask_at = job.status(), time.monotonic() + ASK_S
            if status.active and status.word != said and not status.word.startswith("RUNNING"):
                print(f"-- {status}", file=sys.stderr, flush=True)
            said = status.word
        for line in new_lines(job, positions, to_the_end=not status.active):
            print(line, flush=True)
        if not status.active:
            print(f"-- {status}", file=sys.stderr)
            return 0 if status.word == "COMPLETED" else 1
        time.sleep(FOLLOW_S)


def new_lines(job: Job, positions: dict[Path, int], *, to_the_end: bool = False) -> Iterator[str]:
    """Whole lines behind the positions, which move on, each with the number of its node before it.

    With `to_the_end` also what stands behind the last whole one: nobody may be there any more to end it.
    """
    for rank, path in job.folder.logs().items():
        with path.open("rb") as file:
            file.seek(positions.get(path, 0))
            new = file.read()
        shown = new if to_the_end else new[: new.rfind(b"\n") + 1]
        positions[path] = positions.get(path, 0) + len(shown)
        for line in shown.decode(errors="replace").splitlines():
            yield f"[{rank}] {line}"


def wait_for_end(jobs: list[Job]) -> int:
    """Returns when all have ended, with the exit code of the first that failed, or 0; changes are told on stderr."""
    said: dict[str, str] = {}
    try:
        while True:
            found = list(zip(jobs, statuses(jobs), strict=True))
            for job, status in found:
                if said.get(job.job_id) != status.word:
                    print(f"-- job {job.job_id} {status}", file=sys.stderr, flush=True)
                said[job.job_id] = status.word
            if not any(status.active for _, status in found):
                return next((code for job, status in found if (code := exit_code(job, status))), 0)
            time.sleep(ASK_S)
    except KeyboardInterrupt:
        print(f"the job goes on: {SUBMIT} logs {jobs[0].job_id} -f", file=sys.stderr)
        raise


def exit_code(job: Job, status: JobStatus) -> int:
    """Of the run of a job that has ended; never 0 where it did not end well."""
    own = job.report()
    if status.word == "COMPLETED":
        return 0
    told = own.get("exit_code") if own.get("phase") in ENDS else status.theirs and status.theirs.exit_code
    return told or 1
