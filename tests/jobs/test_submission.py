"""What is handed over runs as bash runs it, here with an srun and a Python that only tell; no SLURM, no Ray."""

import os
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest

from clusters.profile import Profile
from jobs.batch.job import find_jobs
from jobs.batch.submission import Submission, ask_slurm
from tests.ray_cluster import wait_for

TELL = 'echo "$(basename $0) PYTHONPATH=$PYTHONPATH PYTHONSAFEPATH=$PYTHONSAFEPATH WHERE=$WHERE" $* >> $TOLD'
"""A script that tells how it was started."""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the srun and the Python of a job tell of themselves; srun fails."""
    (tmp_path / "bin").mkdir()
    for name, code in (("srun", 7), ("python", 3)):
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{TELL}\necho error: {name} failed\nexit {code}\n")
        (tmp_path / "bin" / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return tmp_path / "told"


def submission(folder: Path, cluster: str = "slurm", **keys: Any) -> Submission:
    """One run, in a folder whose name bash would take for two."""
    given = {"cluster": cluster, "nodes": 1, "cpus_per_node": 1, "storage": "s3://b/runs", "python": "python"}
    profile = Profile.model_validate(given | keys)
    return Submission(profile, "a", folder / "jobs/a b", "jobs/pretrain.py", (("digits",),), ("s3://b/runs/x",))


def run(sent: Submission) -> int:
    """Runs the script as slurmd does; returns its exit code."""
    return subprocess.run(["bash"], input=sent.script(), text=True, stdout=subprocess.DEVNULL, timeout=20).returncode


def submit(sent: Submission) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # its process goes on without this one, as it should
        sent.submit()


def test_the_last_line_has_the_code_of_srun_whatever_the_set_up_has_set(tmp_path: Path, told: Path) -> None:
    sent = submission(tmp_path, setup=["set -eu", "true"])
    assert run(sent) == 3
    srun, python = told.read_text().splitlines()
    assert srun.startswith("srun ")
    assert python.endswith(f"{sent.folder}/code/clusters/slurm/requeue.py {sent.folder} 20 7")


def test_a_set_up_line_that_fails_ends_the_job_if_it_is_told_to(tmp_path: Path, told: Path) -> None:
    assert run(submission(tmp_path, setup=["set -e", "(exit 5)"])) == 5
    assert not told.exists()
    assert run(submission(tmp_path, setup=["(exit 5)"])) == 3
    assert "srun " in told.read_text()


@pytest.mark.parametrize("cluster", ["slurm", "local"])
@pytest.mark.parametrize(
    ("line", "behind"),
    [
        ("true", ":/own"),
        ("export PYTHONPATH=/live:$PYTHONPATH", ":/live:/own"),
        ("export PYTHONPATH=/live", ":/live"),
        ("unset PYTHONPATH", ""),
    ],
)
def test_the_frozen_code_comes_first_whatever_the_set_up_does(
    tmp_path: Path, told: Path, monkeypatch, cluster: str, line: str, behind: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/own")  # of the terminal, in which the arguments were checked
    sent = submission(tmp_path, cluster, setup=[line], environment={"WHERE": "x y; $HOME"})
    if cluster == "slurm":
        run(sent)
    else:
        submit(sent)
        wait_for(lambda: told.exists() and told.read_text().endswith("\n"), "it does not start")
    first = told.read_text().splitlines()[0]
    assert f" PYTHONPATH={sent.folder}/code{behind} PYTHONSAFEPATH=1 WHERE=x y; $HOME" in first


def test_a_background_job_is_known_by_its_process_while_it_is_set_up(tmp_path: Path, told: Path) -> None:
    sent = submission(tmp_path, "local", setup=[f"until [ -e {tmp_path}/go ]; do sleep 0.1; done"])
    submit(sent)
    (job,) = find_jobs([sent.folder.parent], None)
    try:
        wait_for(Path(f"/proc/{job.job_id}/cmdline").read_bytes, "it has no command line")
        assert job.status().word == "PENDING"
        assert not told.exists()
    finally:
        (tmp_path / "go").touch()
    wait_for(lambda: not job.status().active, "it does not end")
    assert told.read_text().startswith("python ")


def test_a_background_job_that_cannot_begin_says_why(tmp_path: Path, told: Path) -> None:
    sent = submission(tmp_path, "local", python="/no/python")
    submit(sent)
    (job,) = find_jobs([sent.folder.parent], None)
    wait_for(lambda: job.status().word == "FAILED", "it is not said to have failed")
    assert "/no/python: No such file or directory" in job.status().reason


@pytest.mark.parametrize("cluster", ["slurm", "local"])
def test_an_allocation_that_submits_tells_the_job_nothing_of_itself(
    tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch, cluster: str
) -> None:
    """As in a terminal of `salloc`: what SLURM said there would be taken for the new job's."""
    theirs = ("SLURM_MEM_PER_CPU", "SLURM_RESTART_COUNT", "RANK")
    users = ("SLURM_CONF", "SLURM_JWT", "SBATCH_ACCOUNT")
    for name in theirs + users:
        monkeypatch.setenv(name, "1")
    listed = f"env > {tmp_path}/env.part; mv {tmp_path}/env.part {tmp_path}/env"
    for name in ("sbatch", "python"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{listed}\necho Submitted batch job 7\n")
        (tmp_path / "bin" / name).chmod(0o700)
    for hand_over in (submit, ask_slurm) if cluster == "slurm" else (submit,):
        hand_over(submission(tmp_path, cluster))
        wait_for((tmp_path / "env").exists, "nothing was started")
        names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
        (tmp_path / "env").unlink()
        assert names.isdisjoint(theirs)
        assert names >= set(users)
    assert os.environ["SLURM_MEM_PER_CPU"] == "1", "it is hidden, not lost"


def test_the_path_of_the_profile_is_kept_too(tmp_path: Path, told: Path) -> None:
    sent = submission(tmp_path, environment={"PYTHONPATH": "/more"})
    run(sent)
    assert f" PYTHONPATH={sent.folder}/code:/more " in told.read_text()
