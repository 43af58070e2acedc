"""Jobs that were submitted: which there are, and how they stand, as SLURM says and as they say themselves."""

import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clusters.job_folder import JobFolder, JobReport, reason_in
from clusters.slurm.queue import SlurmJob, covers, jobs_of_user, run_command, slurm_job
from pirl.errors import ConfigError, SlurmSilent

SCANCEL_S = 60
"""What scancel may take."""

ENDS = ("done", "failed", "cancelled")
"""Phases in which a job has told its end itself."""


@dataclass(frozen=True)
class JobStatus:
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
    theirs: SlurmJob | None = None

    def __str__(self) -> str:
        return f"{self.word}: {self.reason}" if self.reason else self.word


CANCELLED = JobStatus("CANCELLED", "by jobs/slurm.py cancel")
"""Where neither the scheduler nor the job itself says more."""


@dataclass(frozen=True)
class Job:
    """A submitted job.

    Attributes:
        folder: With its script, code and logs.
        cluster: Kind of its cluster.
        run_folders: Of its run; empty if it makes none.
        submitted: Unix time.
        environment: Variables of its processes, which its store may need.
        file: The job file, with `arguments`.
        left_out: Nodes that it was not to get from the beginning.
        profile_file: That it was submitted with; "" for jobs of earlier days.
    """

    folder: JobFolder
    name: str
    cluster: str
    command: str
    run_folders: tuple[str, ...]
    submitted: float
    environment: dict[str, str] = field(default_factory=dict)
    file: str = ""
    arguments: tuple[str, ...] = ()
    profile_file: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def job_id(self) -> str:
        """As the scheduler names it; `123_4` in an array."""
        return self.folder.job_id

    @property
    def array(self) -> str:
        """The id of the array that it is in, or its own."""
        return self.job_id.partition("_")[0]

    def report(self) -> JobReport:
        """What the job says of itself."""
        try:
            return self.folder.report()
        except (OSError, ValueError) as error:
            return {"reason": f"{self.folder.report_file} cannot be read: {error}"}

    def status(self) -> JobStatus:
        """How it stands; asks the scheduler."""
        if self.cluster != "slurm":
            return self._status_alone()
        try:
            return self.status_by(slurm_job(self.job_id))
        except SlurmSilent as silence:
            return self.status_in_silence(silence)

    def status_by(self, theirs: SlurmJob | None) -> JobStatus:
        """How it stands, after what SLURM said of it a moment ago; None if SLURM does not know it, or not any more."""
        own = self.report()  # read after SLURM was asked: of a job that has ended for SLURM it is the last word
        phase, reason = own.get("phase"), own.get("reason", "")
        if theirs and not theirs.ended:
            busy = theirs.state == "RUNNING" and phase in ("starting", "saving")
            word = f"{theirs.state} ({phase})" if busy else theirs.state
            return JobStatus(word, theirs.reason or reason, True, theirs)
        if theirs:
            told = self._last_words() if theirs.state == "FAILED" and phase not in ENDS else reason
            return JobStatus(theirs.state, "" if theirs.state == "COMPLETED" else told or theirs.reason, False, theirs)
        if phase in ENDS:
            return _own_end(own)
        if self.folder.cancelled.exists():
            return CANCELLED
        # Not in the queue any more, and it could not say how it ended.
        word = "GONE" if phase else "UNKNOWN"
        return JobStatus(word, reason or "SLURM does not know it, and it has not written a result")

    def status_in_silence(self, silence: SlurmSilent) -> JobStatus:
        """How it stands where SLURM does not answer. A job that was cancelled may be in the queue again."""
        own = self.report()
        if own.get("phase") in ("done", "failed"):
            return _own_end(own)
        last = own.get("phase", "nothing yet")
        return JobStatus("NO ANSWER", f"SLURM does not answer ({silence}); the job last said: {last}", True)

    def cancel(self) -> str:
        """Ends the job; returns what went wrong."""
        problem = _scancel(self.job_id) if self.cluster == "slurm" else self._end_process()
        if not problem:
            self.folder.cancelled.touch()
        return problem

    def _last_words(self) -> str:
        """What the first node's log says of an error, where the job could not say so itself."""
        try:
            return reason_in(self.folder.log(0))
        except OSError:
            return ""

    def _end_process(self) -> str:
        pid = next((pid for pid in (self.report().get("pid"), self._controller()) if self._runs(pid)), None)
        if pid is None:
            return f"job {self.job_id} does not run"
        try:
            os.kill(pid, signal.SIGTERM)
        except OSError as error:
            return f"process {pid} of job {self.job_id}: {error.strerror}"
        return ""

    def _status_alone(self) -> JobStatus:
        """How it stands where there is no scheduler to ask: it lives as long as its processes."""
        # Looked at before its state is read, which a job that ends writes last.
        lives = self._runs(self._controller()) or self._runs(self.report().get("pid"))
        own = self.report()
        phase, reason = own.get("phase"), own.get("reason", "")
        if phase in ENDS:
            return _own_end(own)
        if phase == "requeue":
            return JobStatus("FAILED", reason)
        if lives:
            return JobStatus("RUNNING", "", True) if phase else JobStatus("PENDING", reason or "starting", True)
        if self.folder.cancelled.exists():
            return CANCELLED
        if phase:
            return JobStatus("FAILED", "its process was killed")
        if told := self._last_words():
            return JobStatus("FAILED", told)
        return JobStatus("UNKNOWN", reason or "its process is not there, and it has not written a result")

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
        return str(self.folder.path) in words and any("submitit" in word for word in words)


def cancel_array(tasks: list[Job]) -> str:
    """Has SLURM end all tasks of an array at once; returns what went wrong."""
    problem = _scancel(tasks[0].array)
    if not problem:
        for task in tasks:
            task.folder.cancelled.touch()
    return problem


def _scancel(job_id: str) -> str:
    try:
        answer = run_command("scancel", job_id, limit_s=SCANCEL_S)
    except FileNotFoundError:
        return "there is no scancel here: type this on a login node of the cluster"
    except SlurmSilent as silence:
        return f"SLURM does not answer: {silence}"
    return answer.stderr.strip() or f"scancel ended with code {answer.returncode}" if answer.returncode else ""


def statuses(jobs: list[Job]) -> list[JobStatus]:
    """How jobs stand: SLURM is asked once for all, and singly for those that it may have forgotten."""
    listed: list[SlurmJob] = []
    silence = None
    if any(job.cluster == "slurm" for job in jobs):
        try:
            listed = jobs_of_user()
        except SlurmSilent as error:
            silence = error
    found = []
    for job in jobs:
        theirs = next((state for state in listed if covers(state.id, job.job_id)), None)
        if silence and job.cluster == "slurm":
            found.append(job.status_in_silence(silence))
        elif job.cluster == "slurm" and (theirs or job.report().get("phase") in ENDS or job.folder.cancelled.exists()):
            found.append(job.status_by(theirs))
        else:
            found.append(job.status())
    return found


def all_jobs(*parents: Path) -> list[Job]:
    """The jobs of job folders, the newest first; what cannot be read is named on stderr and left out."""
    jobs = []
    for folder in (folder for parent in parents for folder in parent.glob("*/")):
        try:
            jobs += tasks_in(folder)
        except FileNotFoundError:  # nothing was submitted from it
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            print(f"left out: {JobFolder(folder).description} does not tell of a job: {error!r}", file=sys.stderr)
    return sorted(jobs, key=_newest_first)


def find_jobs(parents: Sequence[Path], name: str | None) -> list[Job]:
    """The newest job, or that of an id or folder name; all tasks of an array that is not asked for by task.

    Raises ConfigError if there is none.
    """
    jobs, where = all_jobs(*parents), " or ".join(map(str, parents))
    if not jobs:
        raise ConfigError(f"there are no jobs in {where}; --cluster FILE or --job-folder says where else to look")
    meant = [job for job in jobs if name in (None, job.job_id, job.array, job.folder.path.name)]
    if not meant:
        known = ", ".join(job.job_id for job in jobs[:10])
        raise ConfigError(f"no job {name!r} in {where}; the newest are {known}")
    return [job for job in meant if job.folder.path == meant[0].folder.path]


def tasks_in(folder: Path) -> list[Job]:
    """The jobs of one submission, in the order of their tasks; raises OSError or ValueError and the like."""
    told = json.loads(JobFolder(folder).description.read_text())
    return [
        Job(
            folder=JobFolder(folder, str(job_id)),
            name=str(told["name"]),
            cluster=str(told["cluster"]),
            command=shlex.join([told["job"], *arguments]),
            run_folders=(told["run_folders"][job_id],) if told["run_folders"][job_id] else (),
            submitted=float(told["submitted"]),
            environment={name: str(value) for name, value in told.get("environment", {}).items()},
            file=str(told["job"]),
            arguments=tuple(map(str, arguments)),
            profile_file=str(told.get("profile", "")),
            left_out=tuple(told.get("left_out", ())),
        )
        for job_id, arguments in told["arguments"].items()
    ]


def _newest_first(job: Job) -> tuple[float, str, int, str]:
    task = job.job_id.rpartition("_")[2]
    return -job.submitted, job.array, int(task) if task.isdigit() else 0, job.job_id


def _own_end(own: JobReport) -> JobStatus:
    phase = own.get("phase")
    return JobStatus("COMPLETED") if phase == "done" else JobStatus(str(phase).upper(), own.get("reason", ""))
