"""SLURM's commands as scripts that say what a test wants, where a real controller would have to be taken down."""

import os
from pathlib import Path

import pytest

UNKNOWN_JOB = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
DOWN = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"


def scontrol_line(job_id: str, state: str) -> str:
    return f"JobId={job_id} JobName=pirl UserId=ada(1000) JobState={state} Reason=None Dependency=(null) Restarts=0"


def squeue_line(job_id: str, state: str) -> str:
    return f"{job_id}|{state}|0:00|10:00|N/A||None|pirl"


def words_of(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Makes the commands in a folder, and that folder the first of PATH; commands without a script are not there."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for tool in ("mkdir", "sleep", "bash"):
        (folder / tool).symlink_to(f"/bin/{tool}")
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o700)
    assert os.access("/bin/bash", os.X_OK)
    monkeypatch.setenv("PATH", str(folder))
