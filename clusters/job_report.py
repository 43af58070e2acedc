"""What a job says of itself, in its folder: how far it is, where its head node listens, why it ended.

Rank 0 of the allocation writes it, and after it the batch script; `jobs/slurm.py status` reads it, also when the
scheduler has forgotten the job.
"""

import json
import os
import time
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

Phase = Literal["starting", "running", "saving", "requeue", "done", "failed", "cancelled"]


class Head(TypedDict):
    """Where the head node of a job listens."""

    host: str
    ip: str
    meeting_port: int
    gcs_port: int
    dashboard_port: int


class JobState(TypedDict, total=False):
    """The content of the file."""

    phase: Phase
    reason: str
    """Of the last change of phase, in words."""
    restarts: int
    """How often the job was requeued before this attempt."""
    nodes: list[str]
    head: Head | None
    pid: int
    """Of rank 0, where there is no scheduler to ask."""
    exit_code: int
    since: float
    """When the phase began, as Unix time."""
    history: list[str]
    """Why each attempt before this one ended."""


def state_file(folder: Path, job_id: str) -> Path:
    """Where the state of a job lies."""
    return folder / f"{job_id}_state.json"


def read_state(folder: Path, job_id: str) -> JobState:
    """What the job last said; empty before it starts.

    Raises:
        ValueError: The file is not one that `write_state` wrote.
    """
    try:
        state = json.loads(state_file(folder, job_id).read_text())
    except FileNotFoundError:
        return {}
    if not isinstance(state, dict):
        raise ValueError("it holds no object")
    return cast(JobState, state)


def write_state(folder: Path, job_id: str, state: JobState) -> None:
    """Replaces the state as a whole: a reader never sees half of it."""
    file = state_file(folder, job_id)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(cast(dict[str, Any], state), indent=1) + "\n")
    os.replace(partial, file)


def enter(folder: Path, job_id: str, phase: Phase, reason: str = "", **changes: Any) -> JobState:
    """Enters a phase, with whatever else changes; returns the new state."""
    state = {**read_state(folder, job_id), "phase": phase, "reason": reason, "since": time.time(), **changes}
    write_state(folder, job_id, cast(JobState, state))
    return cast(JobState, state)


def reason_in(log: Path, start: int = 0) -> str:
    """What a job said last of an error, in the log from a byte on."""
    text = log.read_bytes()[start:].decode(errors="replace")
    lines = [line for line in text.splitlines()[-50:] if line.strip()]
    errors = [line for line in lines if line.startswith(("error:", "failed:"))]
    return (errors or lines or [""])[-1]
