"""A job's folder: every name in it, and the report of the job itself: how far it is, and why it ended.

Rank 0 of the allocation writes the report, and after it the batch script; `jobs/slurm.py status` reads it, also when
the scheduler has forgotten the job. Imports what Python itself has only, as `clusters/slurm/requeue.py` needs it.
"""

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

Phase = Literal["starting", "running", "saving", "requeue", "done", "failed", "cancelled"]


class HeadAddress(TypedDict):
    """Where the head node of a job listens."""

    host: str
    ip: str
    membership_port: int
    gcs_port: int
    dashboard_port: int


class JobReport(TypedDict, total=False):
    """What a job says of itself."""

    phase: Phase
    reason: str
    """Of the last change of phase, in words."""
    restarts: int
    """How often the job was requeued before this attempt."""
    nodes: list[str]
    head: HeadAddress | None
    pid: int
    """Of rank 0, where there is no scheduler to ask."""
    exit_code: int
    since: float
    """When the phase began, as Unix time."""
    history: list[str]
    """Why each attempt before this one ended."""
    blamed: list[list[str]]
    """Nodes that were the cause of a failure in this attempt, each with what failed there."""
    left_out: list[str]
    """Nodes that the job is not to get any more."""


@dataclass(frozen=True)
class JobFolder:
    """The folder of a submission, and what one job of it has there: all tasks of an array share a folder.

    Attributes:
        job_id: As the scheduler names the job, `123_4` in an array; without it only `code` and `description` are.
    """

    path: Path
    job_id: str = ""

    @property
    def code(self) -> Path:
        """The project as it was when the job was submitted, which is what runs."""
        return self.path / "code"

    @property
    def description(self) -> Path:
        """What was submitted."""
        return self.path / "job.json"

    @property
    def report_file(self) -> Path:
        """What the job says of itself."""
        return self._own("state.json")

    @property
    def token(self) -> Path:
        """The token of the job's Ray, new with each attempt."""
        return self._own("token")

    @property
    def cancelled(self) -> Path:
        """Is there once the job was cancelled: it may not have begun, or not have the time to say so itself."""
        return self._own("cancelled")

    def attempt_ended(self, restarts: int) -> Path:
        """Is there once somebody has taken it on to say what becomes of the job after an attempt."""
        return self._own(f"verdict_{restarts}")

    def log(self, rank: int) -> Path:
        """What a node prints, as submitit names it; the batch script writes into that of the first."""
        return self._own(f"{rank}_log.out")

    def logs(self) -> dict[int, Path]:
        """The logs that are there, by rank."""
        names = [path.name.removeprefix(f"{self.job_id}_") for path in self.path.glob(f"{self.job_id}_*_log.out")]
        ranks = sorted(int(name) for name in (name.removesuffix("_log.out") for name in names) if name.isdigit())
        return {rank: self.log(rank) for rank in ranks}

    def report(self) -> JobReport:
        """What the job last said; empty before it starts. Raises ValueError if it is not what `enter` wrote."""
        try:
            report = json.loads(self.report_file.read_text())
        except FileNotFoundError:
            return {}
        if not isinstance(report, dict):
            raise ValueError("it holds no object")
        return cast(JobReport, report)

    def enter(self, phase: Phase, reason: str = "", **changes: Any) -> None:
        """Enters a phase, with whatever else changes. A reader never sees half of a report."""
        report = {**self.report(), "phase": phase, "reason": reason, "since": time.time(), **changes}
        partial = self.report_file.with_suffix(".partial")
        partial.write_text(json.dumps(report, indent=1) + "\n")
        os.replace(partial, self.report_file)

    def blame(self, hosts: Iterable[str], why: str) -> None:
        """Notes that something failed on nodes, beside what the report says."""
        report = self.report()
        blamed = [*report.get("blamed", []), *([host, why] for host in hosts)]
        self.enter(report.get("phase", "starting"), report.get("reason", ""), blamed=blamed)

    def write_token(self, token: str) -> None:
        """Writes the token of this attempt where only this user can read it."""
        self.token.unlink(missing_ok=True)
        with open(os.open(self.token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as output:
            output.write(token)

    def _own(self, name: str) -> Path:
        return self.path / f"{self.job_id}_{name}"


def reason_in(log: Path, start: int = 0) -> str:
    """What a job said last of an error, in the log from a byte on."""
    text = log.read_bytes()[start:].decode(errors="replace")
    lines = [line for line in text.splitlines()[-50:] if line.strip()]
    errors = [line for line in lines if line.startswith(("error:", "failed:"))]
    return (errors or lines or [""])[-1]
