"""What a person sees of submitted jobs: their state, the last numbers of their runs, their logs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from clusters.job_state import JobState as OwnState
from clusters.job_state import read_state
from clusters.queue import ENDED, JobState, job_state
from jobs.submission import description
from pirl.config import ConfigError
from pirl.folder import Folder
from pirl.retry import StorageError

FOLLOW_S = 0.5
STORE_S = 20.0
"""What the numbers of a run may take to come from a store."""


@dataclass(frozen=True)
class Job:
    """A submitted job.

    Attributes:
        folder: With its script, code and logs.
        job_id: As the scheduler names it; `123_4` in an array.
        name: Of the job.
        cluster: Kind of its cluster.
        command: What it runs.
        run_folders: Of its run; empty if it makes none.
        submitted: Unix time.
    """

    folder: Path
    job_id: str
    name: str
    cluster: str
    command: str
    run_folders: tuple[str, ...]
    submitted: float

    def state(self) -> OwnState:
        """What the job says of itself."""
        return read_state(self.folder, self.job_id)

    def scheduler(self) -> JobState | None:
        """What SLURM says of it; None if it does not know the job, or not any more."""
        return job_state(self.job_id) if self.cluster == "slurm" else None

    def verdict(self) -> tuple[str, str]:
        """The job's state in one word, as SLURM would say it, and the reason: also where SLURM has forgotten it."""
        own, theirs = self.state(), self.scheduler()
        phase, reason = own.get("phase"), own.get("reason", "")
        if theirs and not theirs.ended:
            busy = theirs.state == "RUNNING" and phase in ("starting", "saving")
            return f"{theirs.state} ({phase})" if busy else theirs.state, theirs.reason or reason
        if phase == "done":
            return "COMPLETED", ""
        if phase in ("failed", "cancelled"):
            return phase.upper(), reason
        if theirs:
            return theirs.state, reason or theirs.reason
        if self.cluster != "slurm" and phase in ("starting", "running", "saving"):
            return ("RUNNING", "") if _is_alive(own["pid"]) else ("FAILED", "its process was killed")
        if phase == "requeue" and self.cluster != "slurm":
            return "FAILED", reason
        # Not in the queue any more, and it could not say how it ended.
        return ("GONE" if phase else "UNKNOWN"), reason or "SLURM does not know it, and it has not written a result"

    def is_active(self) -> bool:
        """Whether it waits, runs, or will run again."""
        return self.verdict()[0].split()[0] not in {*ENDED, "GONE", "UNKNOWN"}

    def logs(self) -> dict[int, Path]:
        """The log of each node, by rank; the batch script writes into that of the first."""
        found = self.folder.glob(f"{self.job_id}_*_log.out")
        return {int(path.name.removeprefix(f"{self.job_id}_").split("_")[0]): path for path in sorted(found)}

    def cancel(self) -> str:
        """Ends the job; returns what went wrong."""
        if self.cluster == "slurm":
            answer = subprocess.run(["scancel", self.job_id], capture_output=True, text=True, timeout=60)
            return answer.stderr.strip() if answer.returncode else ""
        pid = self.state().get("pid")
        if not pid or not _is_alive(pid):
            return f"job {self.job_id} does not run"
        os.kill(pid, signal.SIGTERM)
        return ""


def all_jobs(parent: Path) -> list[Job]:
    """The jobs of a job folder, the newest first."""
    jobs = []
    for folder in parent.glob("*/"):
        if told := description(folder):
            for job_id, arguments in told["arguments"].items():
                runs = (told["run_folders"][job_id],) if told["run_folders"][job_id] else ()
                command = " ".join([told["job"], *arguments])
                jobs.append(Job(folder, job_id, told["name"], told["cluster"], command, runs, told["submitted"]))
    return sorted(jobs, key=lambda job: (-job.submitted, job.job_id))


def find_job(parent: Path, name: str | None) -> Job:
    """The newest job, or that of an id or folder name.

    Raises:
        ConfigError: There is none.
    """
    jobs = all_jobs(parent)
    if not jobs:
        raise ConfigError(f"there are no jobs in {parent}; --cluster FILE or --job-folder says where else to look")
    for job in jobs:
        if name in (None, job.job_id, job.folder.name):
            return job
    known = ", ".join(job.job_id for job in jobs[:10])
    raise ConfigError(f"no job {name!r} in {parent}; the newest are {known}")


def print_status(job: Job) -> int:
    """Prints all that is known of a job; returns the exit code."""
    word, reason = job.verdict()
    own, theirs = job.state(), job.scheduler()
    rows = [("state", f"{word}: {reason}" if reason else word)]
    nodes = ", ".join(own.get("nodes", [])) if word.startswith("RUNNING") else ""
    rows.append(("nodes", nodes or (theirs.nodes if theirs else "") or "none"))
    if theirs and theirs.expected_start and theirs.state == "PENDING":
        rows.append(("starts", f"{theirs.expected_start:%Y-%m-%d %H:%M} or later, as SLURM sees it now"))
    elif theirs and theirs.time_used_s is not None:
        left = f", {timedelta(seconds=theirs.time_left_s)} left" if theirs.time_left_s is not None else ""
        rows.append(("time", f"{timedelta(seconds=theirs.time_used_s)} used{left}"))
    restarts = max((theirs and theirs.restarts) or 0, own.get("restarts", 0))
    rows.append(("restarts", str(restarts)))
    rows += [("", f"{n}. {why}") for n, why in enumerate(own.get("history", []), start=1)]
    rows.append(("command", job.command))
    for run in job.run_folders:
        rows += [("run", run), ("progress", last_numbers(Folder(run, {}, STORE_S)))]
    rows.append(("logs", f"{job.folder}"))
    print(f"job {job.job_id}   {job.name}")
    for title, text in rows:
        print(f"  {title:<9} {text}")
    return 0


def last_numbers(run: Folder) -> str:
    """The last line of a run's metrics in words, or why there is none."""
    try:
        lines = (run.find("metrics.jsonl") or "").splitlines()
        done = run.find("result.json") is not None
    except (OSError, StorageError) as error:
        return f"cannot be read here: {error}"
    for line in reversed(lines):
        try:
            last = json.loads(line)
        except json.JSONDecodeError:  # it is being written
            continue
        text = f"epoch {last['epoch']:.2f}   step {last['step']:,}/{last['last_step']:,}   loss {last['loss']:.3f}"
        return f"{text}   {last['samples_per_s']:,.0f} samples/s" + ("   done" if done else "")
    return "no step yet"


def list_table(jobs: list[Job]) -> int:
    """Prints a line for each job; returns the exit code."""
    if not jobs:
        print("no jobs")
        return 0
    rows = [("JOB", "NAME", "STATE", "SUBMITTED", "COMMAND")]
    for job in jobs:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.submitted))
        rows.append((job.job_id, job.name, job.verdict()[0], when, job.command))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, [*widths, 0], strict=True)).rstrip())
    return 0


def print_logs(job: Job) -> int:
    """Prints what all nodes wrote; returns the exit code."""
    for line in new_lines(job, {}):
        print(line)
    if not job.logs():
        print(f"job {job.job_id} has written nothing yet: {job.verdict()[0]}", file=sys.stderr)
    return 0


def follow_logs(job: Job) -> int:
    """Prints what all nodes write, until the job ends; returns 0 if it ended well."""
    positions: dict[Path, int] = {}
    said = ""
    asked_at = 0.0
    while True:
        active = True
        if time.monotonic() > asked_at + 10 * FOLLOW_S:  # the scheduler is not asked as often as a file is read
            asked_at = time.monotonic()
            word, reason = job.verdict()
            active = job.is_active()
            if active and word != said and not word.startswith("RUNNING"):
                print(f"-- {word}: {reason}" if reason else f"-- {word}", file=sys.stderr, flush=True)
            said = word
        for line in new_lines(job, positions):
            print(line, flush=True)
        if not active:
            print(f"-- {word}: {reason}" if reason else f"-- {word}", file=sys.stderr)
            return 0 if word == "COMPLETED" else 1
        time.sleep(FOLLOW_S)


def new_lines(job: Job, positions: dict[Path, int]) -> Iterator[str]:
    """Whole lines behind the positions, which move on, each with the number of its node before it."""
    for rank, path in job.logs().items():
        with path.open("rb") as file:
            file.seek(positions.get(path, 0))
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        positions[path] = positions.get(path, 0) + len(whole)
        for line in whole.decode(errors="replace").splitlines():
            yield f"[{rank}] {line}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
