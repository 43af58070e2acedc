"""Several runs in one request, and jobs that come after others: `--array`, `retry`, `--after`."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from clusters.slurm.queue import slurm_job
from jobs.batch.job import Job, all_jobs, find_jobs, statuses
from jobs.settings import SUBMIT
from pirl.errors import ConfigError


def array_lines(given: str) -> tuple[list[list[str]], int | None]:
    """What `--array FILE` or `--array FILE%4` asks for; raises ConfigError.

    Returns:
        The arguments of each run, from a file with a line for each; and how many run at once, None for all.
    """
    path, percent, number = given.rpartition("%")
    at_once = None
    if percent and re.fullmatch(r"\d*", number) and not Path(given).exists():
        if not number or int(number) < 1:
            raise ConfigError(f"--array {given}: behind % comes how many run at once, from 1 on: --array {path}%4")
        given, at_once = path, int(number)
    try:
        text = Path(given).expanduser().read_text()
        lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"--array {given}: {error}") from None
    runs = [line for line in lines if line]
    if not runs:
        raise ConfigError(f"--array {given} has no line with arguments")
    return runs, at_once


def to_retry(tasks: list[Job]) -> list[Job]:
    """Those of a job's tasks that have ended and are not done; raises ConfigError if there are none."""
    found = list(zip(tasks, statuses(tasks), strict=True))
    failed = [task for task, status in found if not status.active and status.word != "COMPLETED"]
    if failed:
        return failed
    words = ", ".join(f"{task.job_id} {status.word}" for task, status in found)
    raise ConfigError(f"there is nothing to try again, as nothing has failed: {words}")


def after(names: Sequence[str], parents: Sequence[Path]) -> tuple[str, list[Job]]:
    """What `--after JOB` and `--after JOB:any` mean to SLURM; raises ConfigError where that cannot come.

    Returns:
        The value of --dependency, empty where all are done; and the jobs that are waited for, as far as they are ours.
    """
    parts, ours = list[str](), list[Job]()
    for given in names:
        name, colon, how = given.partition(":")
        if colon and how != "any":
            raise ConfigError(f"--after {given}: type {name} (when it is done) or {name}:any (however it ends)")
        kind = "afterany" if colon else "afterok"
        if not any(name in (job.job_id, job.array, job.folder.path.name) for job in all_jobs(*parents)):
            if not re.fullmatch(r"\d+(_\d+)?", name) or not slurm_job(name):
                find_jobs(parents, name)  # which says which jobs there are
            parts.append(f"{kind}:{name}")  # one that was not submitted here
            continue
        tasks = find_jobs(parents, name)
        waiting = [task for task, status in zip(tasks, statuses(tasks), strict=True) if status.active]
        failed = [task for task in tasks if task not in waiting and task.status().word != "COMPLETED"]
        if failed and kind == "afterok":
            raise ConfigError(
                f"--after {given}: job {failed[0].job_id} will not be done, it is {failed[0].status()}. Type "
                f"{name}:any to begin all the same, or try it again: {SUBMIT} retry {name}"
            )
        ours += tasks
        if len(waiting) == len(tasks) > 1 and name == tasks[0].array:
            parts.append(f"{kind}:{name}")
        else:
            parts += [f"{kind}:{task.job_id}" for task in waiting]
    return ",".join(parts), ours


def waits_for(jobs: Sequence[Job], words: Sequence[str], said: str) -> str:
    """The place that one of the jobs is yet to write, that words of a request name and a complaint is about, or ""."""
    places = [folder.rstrip("/") for job in jobs for folder in job.run_folders]
    for place in filter(None, places):
        named = (place, place.rpartition("/")[2])
        given = (word.partition("=")[2] if word.startswith("--") and "=" in word else word for word in words)
        complains = any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said) for name in named)
        if complains and any(_is_at(word.rstrip("/"), place) for word in given):
            return place
    return ""


def _is_at(word: str, place: str) -> bool:
    """Whether a word names a place, something in it, or the name that it has in the storage."""
    whole = word if "://" in word else str(Path(word).expanduser().resolve())
    return word == place.rpartition("/")[2] or f"{whole}/".startswith(f"{place}/")
