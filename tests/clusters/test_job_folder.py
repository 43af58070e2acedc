"""The names in a job's folder, which jobs that wait and folders that were written before rely on."""

import subprocess
import sys
from pathlib import Path

import pytest
from submitit.core.utils import JobPaths

from clusters.job_folder import JobFolder

ROOT = Path(__file__).parents[2]


def test_names_stay_as_they_are_and_logs_are_submitits(tmp_path: Path):
    task = JobFolder(tmp_path, "17_3")
    paths = [task.code, task.description, task.report_file, task.token, task.cancelled, task.attempt_ended(2)]
    names = ["code", "job.json", "17_3_state.json", "17_3_token", "17_3_cancelled", "17_3_verdict_2"]
    assert paths == [tmp_path / name for name in names]
    assert task.log(1) == JobPaths(tmp_path, "17_3", 1).stdout


def test_logs_are_those_of_this_job_by_rank(tmp_path: Path):
    for name in ("17_0_log.out", "17_10_log.out", "17_2_log.out", "170_1_log.out", "17_3_0_log.out", "17_x_log.out"):
        (tmp_path / name).touch()
    assert JobFolder(tmp_path, "17").logs() == {rank: tmp_path / f"17_{rank}_log.out" for rank in (0, 2, 10)}
    assert list(JobFolder(tmp_path, "17_3").logs()) == [0]


@pytest.mark.parametrize("module", ["clusters.slurm.requeue", "clusters.dev.command"])
def test_what_runs_without_the_packages_imports_none(module: str):
    """`-S` hides them, as where a batch script has no environment of its own."""
    command = [sys.executable, "-S", "-c", f"import {module}, sys; print(*sys.modules)"]
    answer = subprocess.run(command, cwd=ROOT, env={}, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert {"pydantic", "submitit", "ray"}.isdisjoint(answer.stdout.split())
