"""The last line of a batch script: which exit code, or back to the queue.

On a real SLURM with jobs that only sleep; with jobs that train: tests/on_slurm/test_slurm.py.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clusters.job_folder import JobFolder
from clusters.slurm import requeue as script
from clusters.slurm.queue import slurm_job
from tests.slurm_cluster import ROOT, Slurm
from tests.slurm_words import words_of

SCRIPT = ROOT / "clusters/slurm/requeue.py"

SLEEPS = """
import os, sys, time
from pathlib import Path
from clusters.job_folder import JobFolder
from clusters.node.supervise import Signals
from clusters.slurm.requeue import outlive, own_id

folder = JobFolder(Path(sys.argv[1]), own_id())
restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
signals = Signals()
if restarts:
    folder.enter("done", restarts=restarts, exit_code=0)
elif os.environ["SLURM_PROCID"] == "1":
    while not (folder.path / "head is lost").exists():
        time.sleep(0.1)
    outlive(folder.path, 3, "n1")
else:
    folder.enter("running", restarts=restarts)
    try:
        time.sleep(1000)
    except SystemExit as end:
        folder.enter("cancelled", "ended by a signal", exit_code=end.code)
        raise
"""
"""A task that does of clusters/node/main.py what the last line builds upon, and is done when it has come back."""


def sleeping(folder: Path, *srun_options: str) -> str:
    """A batch script with such a task on each node, and the last line in the end."""
    (folder / "task.py").write_text(SLEEPS)
    lines = [
        f"export PYTHONPATH={ROOT}",
        shlex.join(["srun", *srun_options, sys.executable, f"{folder}/task.py", str(folder)]),
        shlex.join([sys.executable, str(SCRIPT), str(folder), "3", "$?"]).replace("'$?'", "$?"),
    ]
    return "\n".join(lines)


def runs(slurm: Slurm, folder: Path, *jobs: str) -> None:
    for job in jobs:
        slurm.wait(
            lambda job=job: JobFolder(folder, job).report().get("phase") == "running", lambda: "the job does not start"
        )


def last_line(folder: Path, code: int, restarts: int = 0, most: int = 3, **more_env: str) -> tuple[int, str]:
    """Runs the script as the batch script does, with an scontrol that ends it, as SLURM does, when it requeues.

    Returns:
        Its exit code, and what it asked of scontrol.
    """
    scontrol = folder / "bin/scontrol"
    scontrol.parent.mkdir(exist_ok=True)
    scontrol.write_text(f"#!/bin/sh\necho $* >> {folder}/asked\nkill -9 $PPID\n")
    scontrol.chmod(0o755)
    env = {"PATH": f"{scontrol.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", **more_env}
    env |= {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
    command = [sys.executable, str(SCRIPT), str(folder), str(most), str(code)]
    ended = subprocess.run(command, env=env, capture_output=True, timeout=50)
    asked = folder / "asked"
    return ended.returncode, asked.read_text().strip() if asked.exists() else ""


BACK = (-9, "requeue incomplete 7")


@pytest.mark.parametrize(
    ("state", "code", "expected"),
    [
        ({"phase": "done", "exit_code": 0}, 0, (0, "")),
        ({"phase": "failed", "exit_code": 2}, 2, (2, "")),
        # Its tasks were ended and this script was not: not by who cancels, but by who wants its nodes.
        ({"phase": "cancelled", "exit_code": 143, "reason": "ended by a signal"}, 143, BACK),
        ({"phase": "requeue", "reason": "warned of the end"}, 1, BACK),
        # A node of an elastic job was killed, and the run is done: what srun says of the node does not count.
        ({"phase": "done", "exit_code": 0}, 137, (0, "")),
        # The first node was killed.
        ({"phase": "running"}, 137, BACK),
        (None, 137, BACK),
        # Python or its packages are not there: the same would happen again.
        (None, 1, (1, "")),
    ],
)
def test_what_becomes_of_a_job(tmp_path: Path, state: dict[str, Any] | None, code: int, expected: tuple[int, str]):
    if state:
        JobFolder(tmp_path, "7").enter(state.pop("phase"), restarts=0, **state)
    assert last_line(tmp_path, code) == expected


def test_the_state_of_an_earlier_attempt_decides_nothing(tmp_path: Path):
    JobFolder(tmp_path, "7").enter("failed", "exit code 1", restarts=0, exit_code=1)
    assert last_line(tmp_path, 137, restarts=1) == BACK
    assert JobFolder(tmp_path, "7").report()["history"] == ["the processes of the first node were lost"]


def test_requeues_are_bounded_and_told(tmp_path: Path):
    JobFolder(tmp_path, "7").enter("requeue", "lost n2", restarts=3, history=["lost n1"])
    assert last_line(tmp_path, 1, restarts=3, most=3) == (1, "")
    state = JobFolder(tmp_path, "7").report()
    assert state["phase"] == "failed"
    assert state["reason"] == "lost n2; the job was requeued 3 times, which is all that max_requeues allows"
    assert state["history"] == ["lost n1", "lost n2"]


def test_a_controller_that_is_slow_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(script, "CARRIED_OUT_S", 0.5)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    hangs_once = f"echo $* >> {tmp_path}/asked; mkdir {tmp_path}/hung || exit 1; exec sleep 60"
    words_of(tmp_path / "bin", monkeypatch, scontrol=hangs_once)
    assert script.main(tmp_path, 3, 137) == 1
    assert (tmp_path / "asked").read_text().splitlines() == ["requeue incomplete 7"] * script.TRIES
    assert JobFolder(tmp_path, "7").report()["phase"] == "requeue"


def test_a_host_that_slurm_says_nothing_of_is_not_taken_for_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(script, "CARRIED_OUT_S", 0.2)
    words_of(tmp_path / "bin", monkeypatch, scontrol="exec sleep 60")
    assert script.host_state("127.45.67.89") == "unknown", "nobody listens there"


def test_a_node_without_scontrol_says_that_it_cannot_bring_the_job_back(tmp_path: Path, monkeypatch, capsys):
    """As in a container, which has none of SLURM's commands."""
    monkeypatch.setenv("PATH", "/nowhere")
    script.outlive(tmp_path, 3, "n1")
    assert "n1 is lost, and there is no scontrol here" in capsys.readouterr().out
    assert JobFolder(tmp_path, "7").report() == {}


def test_the_last_task_of_an_array_goes_back_alone(tmp_path: Path):
    """Its number for SLURM is that of the array, by which SLURM would requeue all tasks."""
    JobFolder(tmp_path, "7_3").enter("requeue", "warned of the end", restarts=0)
    asked = last_line(tmp_path, 1, SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="3")
    assert asked == (-9, "requeue incomplete 7_3")


def test_of_an_array_the_task_comes_back_whose_steps_alone_got_sigterm(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """So preemption begins where no warning is set up."""
    monkeypatch.setenv("SLURM_CONF", str(slurm.cluster.conf))
    array = slurm.submit(sleeping(tmp_path), tmp_path, "--array=0-1", "--requeue")
    first, last = f"{array}_0", f"{array}_1"
    runs(slurm, tmp_path, first, last)
    assert slurm.ask("scontrol", "-o", "show", "job", last).startswith(f"JobId={array} "), "it has the array's number"
    slurm.ask("scancel", "--signal=TERM", last)
    slurm.start_now(last)
    slurm.wait_for(last, "COMPLETED")
    assert JobFolder(tmp_path, last).report()["history"] == ["ended by a signal"]
    other = slurm_job(first)
    assert other is not None
    assert (other.state, other.restarts) == ("RUNNING", 0)
    slurm.ask("scancel", first)
    slurm.wait_for(first, "CANCELLED")


def test_a_job_that_was_cancelled_does_not_come_back(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not even where its script has lived to ask for that."""
    monkeypatch.setenv("SLURM_CONF", str(slurm.cluster.conf))
    job = slurm.submit(f"trap '' TERM\n{sleeping(tmp_path)}", tmp_path, "--requeue")
    runs(slurm, tmp_path, job)
    slurm.ask("scancel", job)
    slurm.wait_until_nothing_is_left()
    slurm.wait_for(job, "CANCELLED")  # it is COMPLETING for a moment after its processes have gone
    assert "back to the queue: ended by a signal" in (tmp_path / f"{job}.out").read_text()
    state = slurm_job(job)
    assert state is not None
    assert (state.state, state.restarts) == ("CANCELLED", 0)


def test_a_requeued_job_does_not_get_the_node_that_failed(slurm: Slurm, tmp_path: Path):
    (tmp_path / "jobs/a-1").mkdir(parents=True)
    script = sleeping(tmp_path / "jobs/a-1", "--kill-on-bad-exit=0", "--ntasks-per-node=1")
    blames = """
if not restarts and os.environ["SLURM_PROCID"] == "0":
    folder.enter("requeue", "n1: 1 of 2 nodes came up", restarts=0, blamed=[["n2", "Ray did not start there"]])
if not restarts:
    sys.exit(1)
"""
    task = tmp_path / "jobs/a-1/task.py"
    task.write_text(task.read_text().replace("signals = Signals()\n", f"signals = Signals()\n{blames}"))
    step, last = script.rsplit("\n", 1)
    script = f"{step}\ncode=$?; trap '' TERM; {last.replace('$?', '$code')}"
    job = slurm.submit(script, tmp_path, "--nodes=2", "--requeue")
    folder = JobFolder(tmp_path / "jobs/a-1", job)
    slurm.wait(lambda: "left_out" in folder.report(), lambda: (tmp_path / f"{job}.out").read_text())
    slurm.start_now(job)
    slurm.wait_for(job, "COMPLETED")
    shown = slurm.ask("scontrol", "-o", "show", "job", job)
    assert " NodeList=n[1,3] " in shown
    assert " ExcNodeList=n2 " in shown
    assert folder.report()["left_out"] == ["n2"]


def test_a_job_that_may_lose_nodes_outlives_the_host_of_its_script(slurm: Slurm, tmp_path: Path):
    options = ("--no-kill", "--kill-on-bad-exit=0", "--wait=0", "--ntasks-per-node=1")
    script = sleeping(tmp_path, *options)
    job = slurm.submit(script, tmp_path, "--nodes=1-2", "--nodelist=n1,n2", "--no-kill", "--requeue")
    runs(slurm, tmp_path, job)
    slurm.cluster.kill("n1", silent=False)
    (tmp_path / "head is lost").touch()
    slurm.start_now(job)
    slurm.boot("n1")
    slurm.wait_for(job, "COMPLETED")
    assert JobFolder(tmp_path, job).report()["history"] == ["the processes of the first node were lost"]
    slurm.wait_until_nothing_is_left()
