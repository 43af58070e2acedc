"""What a person sees of submitted jobs: their state, and the last numbers of their runs and sweeps."""

import getpass
import json
import os
import sys
import time
from datetime import timedelta
from typing import Any

from clusters.job_folder import JobReport
from clusters.slurm.bad_nodes import remembered
from jobs.batch.job import Job, JobStatus, statuses
from jobs.settings import SUBMIT
from pirl.errors import ConfigError
from pirl.runs.run import reports_in
from pirl.runs.run_files import RunFile
from pirl.storage.folder import Folder

STORE_S = 20.0
"""What the numbers of a run may take to come from a store."""

UNREADABLE = (OSError, ValueError, KeyError, TypeError)
"""The store does not give a file, or it is not what was written there."""


def print_status(jobs: list[Job]) -> int:
    """Prints all that is known of a job, or a line for each of several; returns the exit code."""
    if len(jobs) > 1:
        return list_table(jobs)
    (job,) = jobs
    status, own = job.status(), job.report()
    rows = [("state", str(status)), *_place_and_time(job, status)]
    restarts = max((status.theirs and status.theirs.restarts) or 0, own.get("restarts", 0))
    rows.append(("restarts", str(restarts)))
    rows += [("", f"{n}. {why}") for n, why in enumerate(own.get("history", []), start=1)]
    rows += _nodes_left_out(job, own)
    rows.append(("command", job.command))
    os.environ |= job.environment
    of_job = {"tune/sweep.py": sweep_numbers, "jobs/evaluate.py": reports_written, "jobs/embed.py": files_written}
    numbers = of_job.get(job.command.partition(" ")[0], last_numbers)
    for run in job.run_folders:
        rows += [("run", run), ("progress", numbers(Folder(run, {}, STORE_S)))]
    rows.append(("logs", f"{job.folder.path}"))
    print(f"job {job.job_id}   {job.name}")
    for title, text in rows:
        print(f"  {title:<9} {text}")
    return 0


def tunnel(job: Job) -> int:
    """Prints how to reach the dashboard, which listens on the head node's loopback only; returns the exit code."""
    head = job.report().get("head")
    if not head or not job.status().active:
        raise ConfigError(f"job {job.job_id} has no Ray cluster now: {SUBMIT} status {job.job_id}")
    port = head["dashboard_port"]
    print(f"ssh -N -L 8265:127.0.0.1:{port} {getpass.getuser()}@{head['host']}")
    print(f"then http://localhost:8265, with the token in {job.folder.token}", file=sys.stderr)
    return 0


def list_table(jobs: list[Job]) -> int:
    """Prints a line for each job; returns the exit code."""
    if not jobs:
        print("no jobs")
        return 0
    rows = [("JOB", "NAME", "STATE", "SUBMITTED", "COMMAND")]
    for job, status in zip(jobs, statuses(jobs), strict=True):
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.submitted))
        rows.append((job.job_id, job.name, status.word, when, job.command))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, [*widths, 0], strict=True)).rstrip())
    return 0


def last_numbers(run: Folder) -> str:
    """The last line of a run's metrics in words, or why there is none."""
    try:
        reports = reports_in(run.find(RunFile.METRICS) or "")
        if not reports:
            return "no step yet"
        last, done = reports[-1], run.find(RunFile.RESULT) is not None
        text = f"epoch {last['epoch']:.2f}   step {last['step']:,}/{last['last_step']:,}   loss {last['loss']:.3f}"
        return f"{text}   {last['samples_per_s']:,.0f} samples/s" + ("   done" if done else "")
    except UNREADABLE as error:
        return f"cannot be read here: {error}"


def reports_written(folder: Folder) -> str:
    """Which protocols have told what they found."""
    try:
        names = sorted(name.removesuffix(".json") for name in folder.sizes() if name.endswith(".json"))
        return f"reports of {', '.join(names)}" if names else "no report yet"
    except UNREADABLE as error:
        return f"cannot be read here: {error}"


def files_written(folder: Folder) -> str:
    """How many files of features there are."""
    try:
        sizes = folder.sizes()
        done = "   done" if "embedding.json" in sizes else ""
        return f"{sum(name.endswith('.parquet') for name in sizes)} files{done}"
    except UNREADABLE as error:
        return f"cannot be read here: {error}"


def sweep_numbers(sweep: Folder) -> str:
    """How many trials of a sweep are how far, and the best of them, or why that is not known."""
    try:
        text = sweep.find("sweep.json")
        return _sweep_in_words(json.loads(text)) if text else "no trial yet"
    except UNREADABLE as error:
        return f"cannot be read here: {error}"


def _sweep_in_words(told: dict[str, Any]) -> str:
    trials, metric = told["trials"], told["metric"]
    states = ["running" if trial["state"] == "starting" else trial["state"] for trial in trials]
    counts = [f"{states.count(word)} {word}" for word in ("done", "stopped", "running", "waiting", "failed")]
    text = f"{len(trials)} trials: {', '.join(count for count in counts if not count.startswith('0 '))}"
    measured = [trial for trial in trials if trial["metric"] is not None]
    if not told["best"] and not measured:
        return text
    # Those that were trained to their end are compared first, as the sweep itself does.
    sign = -1 if metric == "loss" else 1
    best = told["best"] or max(measured, key=lambda trial: sign * trial["metric"])
    return f"{text}   best {metric} so far {best['metric']:.4f} at epoch {best['epoch']} ({best['name']})"


def _nodes_left_out(job: Job, own: JobReport) -> list[tuple[str, str]]:
    """Nodes that this job does not get any more, and others on which something failed lately."""
    bad = remembered(job.folder.path.parent)
    left_out = {*own.get("left_out", []), *job.left_out}
    rows = [("left out" if node.host in left_out else "bad node", str(node)) for node in bad]
    faded = left_out - {node.host for node in bad}
    return rows + [("left out", f"{host}: it failed more than a day ago, or was forgotten") for host in sorted(faded)]


def _place_and_time(job: Job, status: JobStatus) -> list[tuple[str, str]]:
    own, theirs = job.report(), status.theirs
    nodes = ", ".join(own.get("nodes", [])) if status.word.startswith("RUNNING") else ""
    rows = [("nodes", nodes or (theirs.nodes if theirs else "") or "none")]
    if theirs and theirs.expected_start and theirs.state == "PENDING":
        rows.append(("starts", f"{theirs.expected_start:%Y-%m-%d %H:%M} or later, as SLURM sees it now"))
    elif theirs and theirs.time_used_s is not None:
        left = f", {timedelta(seconds=theirs.time_left_s)} left" if theirs.time_left_s is not None else ""
        rows.append(("time", f"{timedelta(seconds=theirs.time_used_s)} used{left}"))
    return rows
