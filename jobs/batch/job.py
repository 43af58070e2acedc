"""Jobs that were submitted: which there are, and how they stand, as SLURM says and as they say themselves."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clusters.job_report import JobState as OwnState
from clusters.job_report import read_state, reason_in, state_file
from clusters.slurm.queue import JobState, SlurmSilent, covers, job_state, jobs_of_user
from jobs.batch.submission import description
from pirl.errors import ConfigError

SCANCEL_S = 60
"""What scancel may take."""

ENDS = ("done", "failed", "cancelled")
"""Phases in which a job has told its end itself."""


@dataclass(frozen=True)
class Verdict:
    """How a job stands.

    Attributes:
        word: As SLURM would say it, also where SLURM has forgotten the job.
        reason: Why; "" where there is nothing to say.
        active: Whether it waits, runs or will run again, or nobody can rule that out.
        theirs: What SLURM says of it.
    """

    word: str
    reason: str = ""
    active: bool = False
    theirs: JobState | None = None

    def __str__(self) -> str:
        return f"{self.word}: {self.reason}" if self.reason else self.word


CANCELLED = Verdict("CANCELLED", "by jobs/slurm.py cancel")
"""Where neither the scheduler nor the job itself says more."""


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
        environment: Variables of its processes, which its store may need.
    """

    folder: Path
    job_id: str
    name: str
    cluster: str
    command: str
    run_folders: tuple[str, ...]
    submitted: float
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def array(self) -> str:
        """The id of the array that it is in, or its own."""
        return self.job_id.partition("_")[0]

    def state(self) -> OwnState:
        """What the job says of itself."""
        try:
            return read_state(self.folder, self.job_id)
        except (OSError, ValueError) as error:
            return {"reason": f"{state_file(self.folder, self.job_id)} cannot be read: {error}"}

    def verdict(self) -> Verdict:
        """How it stands; asks the scheduler."""
        if self.cluster != "slurm":
            return self._judged_alone()
        try:
            return self.judged(job_state(self.job_id))
        except SlurmSilent as silence:
            return self.judged_in_silence(silence)

    def judged(self, theirs: JobState | None) -> Verdict:
        """How it stands, after what SLURM said of it a moment ago; None if SLURM does not know it, or not any more."""
        own = self.state()  # read after SLURM was asked: of a job that has ended for SLURM it is the last word
        phase, reason = own.get("phase"), own.get("reason", "")
        if theirs and not theirs.ended:
            busy = theirs.state == "RUNNING" and phase in ("starting", "saving")
            word = f"{theirs.state} ({phase})" if busy else theirs.state
            return Verdict(word, theirs.reason or reason, True, theirs)
        if theirs and theirs.state == "FAILED" and phase not in ENDS:
            return Verdict("FAILED", self._last_words() or theirs.reason, False, theirs)
        if theirs:
            return Verdict(theirs.state, "" if theirs.state == "COMPLETED" else reason or theirs.reason, False, theirs)
        if phase in ENDS:
            return _own_end(own)
        if self.cancelled.exists():
            return CANCELLED
        # Not in the queue any more, and it could not say how it ended.
        word = "GONE" if phase else "UNKNOWN"
        return Verdict(word, reason or "SLURM does not know it, and it has not written a result")

    def judged_in_silence(self, silence: SlurmSilent) -> Verdict:
        """How it stands where SLURM does not answer. A job that was cancelled may be in the queue again."""
        own = self.state()
        if own.get("phase") in ("done", "failed"):
            return _own_end(own)
        last = own.get("phase", "nothing yet")
        return Verdict("NO ANSWER", f"SLURM does not answer ({silence}); the job last said: {last}", True)

    def logs(self) -> dict[int, Path]:
        """The log of each node, by rank; the batch script writes into that of the first."""
        found = self.folder.glob(f"{self.job_id}_*_log.out")
        numbers = {path: path.name.removeprefix(f"{self.job_id}_").split("_")[0] for path in sorted(found)}
        return {int(number): path for path, number in numbers.items() if number.isdigit()}

    def cancel(self) -> str:
        """Ends the job; returns what went wrong."""
        problem = _scancel(self.job_id) if self.cluster == "slurm" else self._end_process()
        if not problem:
            self.cancelled.touch()
        return problem

    @property
    def cancelled(self) -> Path:
        """Is there once the job was cancelled: it may not have begun, or not have the time to say so itself."""
        return self.folder / f"{self.job_id}_cancelled"

    def _last_words(self) -> str:
        """What the first node's log says of an error, where the job could not say so itself."""
        try:
            return reason_in(self.logs()[0])
        except (KeyError, OSError):
            return ""

    def _end_process(self) -> str:
        pid = next((pid for pid in (self.state().get("pid"), self._controller()) if self._runs(pid)), None)
        if pid is None:
            return f"job {self.job_id} does not run"
        try:
            os.kill(pid, signal.SIGTERM)
        except OSError as error:
            return f"process {pid} of job {self.job_id}: {error.strerror}"
        return ""

    def _judged_alone(self) -> Verdict:
        """How it stands where there is no scheduler to ask: it lives as long as its processes."""
        # Looked at before its state is read, which a job that ends writes last.
        lives = self._runs(self._controller()) or self._runs(self.state().get("pid"))
        own = self.state()
        phase, reason = own.get("phase"), own.get("reason", "")
        if phase in ENDS:
            return _own_end(own)
        if phase == "requeue":
            return Verdict("FAILED", reason)
        if lives:
            return Verdict("RUNNING", "", True) if phase else Verdict("PENDING", reason or "starting", True)
        if self.cancelled.exists():
            return CANCELLED
        if phase:
            return Verdict("FAILED", "its process was killed")
        if told := self._last_words():
            return Verdict("FAILED", told)
        return Verdict("UNKNOWN", reason or "its process is not there, and it has not written a result")

    def _controller(self) -> int | None:
        """The process that submitit watches a local job with: the job is named after it."""
        return int(self.job_id) if self.cluster == "local" and self.job_id.isdigit() else None

    def _runs(self, pid: int | None) -> bool:
        """Whether a process is there and is this job's: numbers of processes are used again."""
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return False
        if self.cluster == "debug":  # it runs in the process that submitted it
            return any(word.endswith("slurm.py") for word in words)
        return str(self.folder) in words and any("submitit" in word for word in words)


def cancel_array(tasks: list[Job]) -> str:
    """Has SLURM end all tasks of an array at once; returns what went wrong."""
    problem = _scancel(tasks[0].array)
    if not problem:
        for task in tasks:
            task.cancelled.touch()
    return problem


def _scancel(job_id: str) -> str:
    try:
        answer = subprocess.run(["scancel", job_id], capture_output=True, text=True, timeout=SCANCEL_S)
    except FileNotFoundError:
        return "there is no scancel here: type this on a login node of the cluster"
    except subprocess.TimeoutExpired:
        return f"SLURM does not answer: scancel has said nothing for {SCANCEL_S} s"
    if answer.returncode == 0:
        return ""
    return answer.stderr.strip() or f"scancel ended with code {answer.returncode}"


def verdicts(jobs: list[Job]) -> list[Verdict]:
    """How jobs stand: SLURM is asked once for all, and singly for those that it may have forgotten."""
    listed: list[JobState] = []
    silence = None
    if any(job.cluster == "slurm" for job in jobs):
        try:
            listed = jobs_of_user()
        except SlurmSilent as error:
            silence = error
    found = []
    for job in jobs:
        theirs = next((state for state in listed if covers(state.id, job.job_id)), None)
        if job.cluster != "slurm":
            found.append(job.verdict())
        elif silence:
            found.append(job.judged_in_silence(silence))
        elif theirs or job.state().get("phase") in ENDS or job.cancelled.exists():
            found.append(job.judged(theirs))
        else:
            found.append(job.verdict())
    return found


def all_jobs(parent: Path) -> list[Job]:
    """The jobs of a job folder, the newest first; what cannot be read is named on stderr and left out."""
    jobs = []
    for folder in parent.glob("*/"):
        try:
            told = description(folder)
            jobs += _jobs_of(folder, told) if told is not None else []
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            print(f"left out: {folder / 'job.json'} does not tell of a job: {error!r}", file=sys.stderr)
    return sorted(jobs, key=_newest_first)


def find_jobs(parent: Path, name: str | None) -> list[Job]:
    """The newest job, or that of an id or folder name; all tasks of an array that is not asked for by task.

    Raises:
        ConfigError: There is none.
    """
    jobs = all_jobs(parent)
    if not jobs:
        raise ConfigError(f"there are no jobs in {parent}; --cluster FILE or --job-folder says where else to look")
    meant = [job for job in jobs if name in (None, job.job_id, job.array, job.folder.name)]
    if not meant:
        known = ", ".join(job.job_id for job in jobs[:10])
        raise ConfigError(f"no job {name!r} in {parent}; the newest are {known}")
    return [job for job in meant if job.folder == meant[0].folder]


def _jobs_of(folder: Path, told: dict[str, Any]) -> list[Job]:
    return [
        Job(
            folder=folder,
            job_id=str(job_id),
            name=str(told["name"]),
            cluster=str(told["cluster"]),
            command=" ".join([told["job"], *arguments]),
            run_folders=(told["run_folders"][job_id],) if told["run_folders"][job_id] else (),
            submitted=float(told["submitted"]),
            environment={name: str(value) for name, value in told.get("environment", {}).items()},
        )
        for job_id, arguments in told["arguments"].items()
    ]


def _newest_first(job: Job) -> tuple[float, str, int, str]:
    task = job.job_id.rpartition("_")[2]
    return -job.submitted, job.array, int(task) if task.isdigit() else 0, job.job_id


def _own_end(own: OwnState) -> Verdict:
    phase = own.get("phase")
    return Verdict("COMPLETED") if phase == "done" else Verdict(str(phase).upper(), own.get("reason", ""))
