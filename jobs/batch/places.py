"""Where jobs lie: the folder that a command names, or those that were used before."""

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path

from clusters.profile import read_profile
from jobs.batch.job import Job, find_jobs
from pirl.errors import ConfigError

DEFAULT = "~/pirl-jobs"

MOST = 20
"""Folders that are remembered."""


def absolute(folder: str) -> Path:
    """The path of a folder that a user named; raises ConfigError if it cannot be one."""
    try:
        return Path(folder).expanduser().resolve()
    except (RuntimeError, OSError) as error:  # no such user, a link to itself
        raise ConfigError(f"{folder}: {error}") from None


def job_folders(known: argparse.Namespace) -> list[Path]:
    """Where the jobs lie that a command is about: in one folder where it says so, else wherever jobs were put."""
    if known.job_folder:
        return [absolute(known.job_folder)]
    if known.cluster is not None:
        return [absolute(read_profile(known.cluster).job_folder)]
    default = absolute(DEFAULT)
    return [default, *other_folders(default)]


def other_folders(parent: Path) -> list[Path]:
    """The job folders that were used before, but for one."""
    return [folder for folder in remembered() if folder != parent]


def asked(known: argparse.Namespace) -> list[Job]:
    """The job that a command is about, or the tasks of an array; raises ConfigError if there is none of that id."""
    return find_jobs(job_folders(known), known.job)


def one_of(jobs: list[Job], command: str) -> Job:
    """The only one; raises ConfigError for an array."""
    if len(jobs) > 1:
        tasks = ", ".join(job.job_id for job in jobs)
        raise ConfigError(f"this job has several tasks: {command} needs one of {tasks}")
    return jobs[0]


def remembered() -> list[Path]:
    """The job folders that this user's jobs were put into, the latest first, as far as they are still there."""
    with suppress(OSError, RuntimeError, UnicodeDecodeError):
        folders = [Path(line) for line in _notes().read_text().splitlines() if line]
        return [folder for folder in folders if folder.is_dir()]
    return []


def remember(parent: Path) -> None:
    """Notes a job folder for later commands; says so where that cannot be done."""
    folders = [parent, *(folder for folder in remembered() if folder != parent)][:MOST]
    try:
        notes = _notes()
        notes.parent.mkdir(parents=True, exist_ok=True)
        partial = notes.with_name(f"{notes.name}.{os.getpid()}")
        partial.write_text("".join(f"{folder}\n" for folder in folders))
        partial.replace(notes)
    except (OSError, RuntimeError) as error:
        print(f"{parent} cannot be remembered ({error}): later commands need --cluster FILE", file=sys.stderr)


def _notes() -> Path:
    base = os.environ.get("XDG_STATE_HOME")  # where programs keep what is no setting and no data
    return Path(base if base and base.startswith("/") else Path.home() / ".local/state", "pirl/job_folders")
