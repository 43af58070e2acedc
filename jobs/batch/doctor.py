"""`jobs/slurm.py doctor`: a short job on all nodes that asks what goes wrong most, and a table of what it found."""

import argparse
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from clusters.profile import Profile, read_profile
from clusters.slurm import users_variables
from clusters.slurm.bad_nodes import hosts_in
from clusters.slurm.limits import all_nodes, in_partition
from clusters.slurm.queue import run_command, slurm_job
from jobs.batch import diagnosis
from jobs.batch.places import absolute
from jobs.batch.script import freeze, next_folder, parameters_of, python_of, setup_lines
from jobs.batch.submission import TEST_ONLY_S, heard_by_sbatch, refusal
from jobs.live_line import LiveLine
from jobs.settings import local
from pirl.errors import ConfigError
from pirl.storage.folder import Folder

MINUTES = 10
"""Time limit of the job, which takes one or two."""

ASK_S = 2.0


def doctor(known: argparse.Namespace) -> int:
    """Returns 0 if all nodes are as they should be, 1 if one is odd or did not answer; raises ConfigError."""
    data = "" if known.data == "digits" else local(known.data)  # those are built in
    if not known.cluster:
        raise ConfigError("--cluster FILE is missing: whose nodes are to be looked at?")
    profile = read_profile(known.cluster)
    if profile.cluster != "slurm":
        raise ConfigError(f'{known.cluster}: cluster = "{profile.cluster}", and doctor looks at the nodes of a SLURM')
    count = known.nodes or nodes_to_ask(profile)
    asked = {"nodes": {"min": count, "max": count}, "time": MINUTES, "warning_s": 60}
    profile = Profile.model_validate(profile.model_dump() | asked)
    folder = next_folder(absolute(profile.job_folder), "doctor")
    storage, marker = Folder(profile.storage), f".doctor-{uuid.uuid4().hex}"
    if "://" not in profile.storage:
        storage = Folder(str(absolute(profile.storage)))
    os.environ |= profile.environment  # which the store may need
    try:
        storage.write(marker, "")
    except OSError as error:
        raise ConfigError(f"storage {storage} cannot be written from here: {error}") from None
    try:
        freeze(folder)
        request = {
            "storage": str(storage),
            "marker": marker,
            "data": data,
            "temp_dir": profile.temp_dir,
            "ports": profile.ports,
            "workers": profile.workers_on_node,
            "gpus": profile.gpus_per_node,
            "job": folder.name,
        }
        (folder / "request.json").write_text(json.dumps(request))
        job = send(profile, folder)
        hosts = wait_for(job, folder)
    finally:
        with suppress(OSError):  # it is not what the user must hear
            storage.remove(marker)
    return show(found_in(folder, hosts, count), profile, folder)


def nodes_to_ask(profile: Profile) -> int:
    """All nodes of the partition that are idle, which begin at once, and at least as many as the profile's jobs use."""
    idle = [node for node in in_partition(all_nodes(), profile.partition) if node.state == "idle"]
    return max(len(idle), profile.nodes.max)


def send(profile: Profile, folder: Path) -> str:
    """Hands the job over; returns its id. Raises ConfigError if SLURM does not take it."""
    from submitit.slurm.slurm import _make_sbatch_string

    code = str(folder / "code")
    setup = [*setup_lines(profile, code), f"touch {shlex.quote(str(folder / 'began'))}"]
    command = f"{python_of(profile)} -u -m clusters.node.probe {shlex.quote(str(folder))}"
    script = _make_sbatch_string(
        command=command, folder=folder, **parameters_of(profile, "doctor", setup, [], {"no-requeue": True})
    )
    for note in users_variables.notes(os.environ, script):
        print(note, file=sys.stderr)
    (folder / "script.sh").write_text(script)
    if not shutil.which("sbatch"):
        shutil.rmtree(folder)
        raise ConfigError("there is no sbatch here: type this on a login node of the cluster")
    with heard_by_sbatch(script), tempfile.TemporaryFile("w+") as file:
        file.write(script)
        file.seek(0)
        answer = run_command("sbatch", "--parsable", stdin=file, limit_s=TEST_ONLY_S)
    if answer.returncode:
        shutil.rmtree(folder)
        raise refusal(answer, profile, script)
    return answer.stdout.strip().partition(";")[0]


def wait_for(job: str, folder: Path) -> list[str]:
    """Returns the hosts of the job when it has ended; Ctrl-C takes it back."""
    live, hosts = LiveLine(sys.stderr), list[str]()
    print(f"job {job}   {folder}", file=sys.stderr)
    try:
        with live.passing("waiting for the nodes"):
            while (state := slurm_job(job)) and not state.ended:
                hosts = hosts_in(state.nodes) or hosts
                answered = len(list(folder.glob("[0-9]*.json")))
                waits = f"waiting for the nodes: {state.reason or state.state}"
                live.now(f"{answered} of {len(hosts)} nodes have answered" if state.state == "RUNNING" else waits)
                time.sleep(ASK_S)
    except KeyboardInterrupt:
        run_command("scancel", job, limit_s=TEST_ONLY_S)
        raise
    return hosts_in(state.nodes) or hosts if state else hosts


def found_in(folder: Path, hosts: list[str], count: int) -> list[dict[str, Any]]:
    """What each node has found, by rank; of one that did not answer the last line of its log."""
    found = []
    for rank in range(count):
        try:
            found.append(json.loads((folder / f"{rank}.json").read_text()))
        except (OSError, ValueError):
            host = hosts[rank] if rank < len(hosts) else f"node {rank}"
            logs = list(folder.glob(f"*_{rank}_log.out"))
            lines = [line for log in logs for line in log.read_text(errors="replace").splitlines() if line.strip()]
            found.append(
                {"host": host, "problems": [f"did not answer: {lines[-1] if lines else 'no word in its log'}"]}
            )
    return found


def show(found: list[dict[str, Any]], profile: Profile, folder: Path) -> int:
    """Prints the table, and what is odd below it; returns the exit code."""
    from rich.console import Console
    from rich.table import Table

    memory_gb = (profile.memory_gb_per_node or 10) * 2**30 / 1e9
    oddities = diagnosis.odd(found, gpus=profile.gpus_per_node, shm_gb=min(1.0, memory_gb / 10))
    console = Console(width=None if sys.stdout.isatty() else 140, markup=False, emoji=False, highlight=False)
    table = Table(box=None, header_style="bold", caption="write, read, data, send: MB/s", caption_justify="left")
    table.add_column("")
    for name in diagnosis.COLUMNS:
        table.add_column(name, justify="left" if name in ("node", "Python") else "right", no_wrap=True)
    for node, odd in zip(found, oddities, strict=True):
        table.add_row("!" if odd else "", *diagnosis.row(node), style="bold red" if odd else None)
    console.print(table)
    rates = [node["all_reduce_mb_s"] for node in found if "all_reduce_mb_s" in node]
    if rates:
        by, workers = "NCCL" if profile.gpus_per_node else "gloo", profile.workers_on_node * len(rates)
        print(f"all-reduce of {workers} workers by {by}: {min(rates):.0f} MB/s")
    for node, odd in zip(found, oddities, strict=True):
        for what in odd:
            print(f"! {node['host']}: {what}")
    odd_ones = sum(map(bool, oddities))
    print(f"{odd_ones} of {len(found)} nodes are odd" if odd_ones else f"all {len(found)} nodes are as they should be")
    if odd_ones:
        print(f"logs and measurements are in {folder}", file=sys.stderr)
    return int(odd_ones > 0)
