"""The last line of a batch script: which exit code, or back to the queue. On a real SLURM: tests/test_slurm.py."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clusters.job_state import enter, read_state

SCRIPT = Path(__file__).parents[1] / "clusters/verdict.py"


def verdict(folder: Path, code: int, restarts: int = 0, most: int = 3) -> tuple[int, bool]:
    """Runs the script as the batch script does, with an scontrol that ends it, as SLURM does, when it requeues."""
    scontrol = folder / "bin/scontrol"
    scontrol.parent.mkdir(exist_ok=True)
    scontrol.write_text(f"#!/bin/sh\necho $* >> {folder}/asked\nkill -9 $PPID\n")
    scontrol.chmod(0o755)
    env = {"PATH": f"{scontrol.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    env |= {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
    command = [sys.executable, str(SCRIPT), str(folder), str(most), str(code)]
    ended = subprocess.run(command, env=env, capture_output=True, timeout=50)
    asked = folder / "asked"
    return ended.returncode, asked.exists() and asked.read_text() == "requeue 7\n"


@pytest.mark.parametrize(
    ("state", "code", "expected"),
    [
        ({"phase": "done", "exit_code": 0}, 0, (0, False)),
        ({"phase": "failed", "exit_code": 2}, 2, (2, False)),
        ({"phase": "cancelled", "exit_code": 143}, 143, (143, False)),
        ({"phase": "requeue", "reason": "warned of the end"}, 1, (-9, True)),
        # A node of an elastic job was killed, and the run is done: what srun says of the node does not count.
        ({"phase": "done", "exit_code": 0}, 137, (0, False)),
        # The first node was killed.
        ({"phase": "running"}, 137, (-9, True)),
        (None, 137, (-9, True)),
        # Python or its packages are not there: the same would happen again.
        (None, 1, (1, False)),
    ],
)
def test_what_becomes_of_a_job(tmp_path: Path, state: dict[str, Any] | None, code: int, expected: tuple[int, bool]):
    if state:
        enter(tmp_path, "7", state.pop("phase"), restarts=0, **state)
    assert verdict(tmp_path, code) == expected


def test_the_state_of_an_earlier_attempt_decides_nothing(tmp_path: Path):
    enter(tmp_path, "7", "cancelled", "ended by a signal", restarts=0, exit_code=143)
    assert verdict(tmp_path, 137, restarts=1) == (-9, True)
    assert read_state(tmp_path, "7")["history"] == ["the processes of the first node were lost"]


def test_requeues_are_bounded_and_told(tmp_path: Path):
    enter(tmp_path, "7", "requeue", "lost n2", restarts=3, history=["lost n1"])
    assert verdict(tmp_path, 1, restarts=3, most=3) == (1, False)
    state = read_state(tmp_path, "7")
    assert state["phase"] == "failed"
    assert state["reason"] == "lost n2; the job was requeued 3 times, which is all that max_requeues allows"
    assert state["history"] == ["lost n1", "lost n2"]
