"""What is said of jobs that SLURM has forgotten or never knew; with SLURM: tests/test_slurm.py."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from clusters.job_state import enter
from jobs.watch import Job, all_jobs, find_job, last_numbers, new_lines
from pirl.config import ConfigError
from pirl.folder import Folder

METRICS = {"step": 30, "last_step": 60, "epoch": 2.5, "loss": 6.1, "samples_per_s": 1234.5}


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where SLURM has nothing to say."""
    monkeypatch.setenv("PATH", "/nowhere")


def job(folder: Path, job_id: str = "17", cluster: str = "slurm", submitted: float = 1.0) -> Job:
    folder.mkdir(exist_ok=True)
    told = {
        "name": folder.name,
        "cluster": cluster,
        "job": "jobs/pretrain.py",
        "arguments": {job_id: ["digits"]},
        "run_folders": {job_id: f"{folder}/run"},
        "submitted": submitted,
    }
    (folder / "job.json").write_text(json.dumps(told))
    return next(found for found in all_jobs(folder.parent) if found.job_id == job_id)


def test_a_job_that_slurm_has_forgotten_tells_its_end_itself(tmp_path: Path) -> None:
    known = job(tmp_path / "a")
    assert known.verdict()[0] == "UNKNOWN"
    enter(known.folder, "17", "running", nodes=["n1"])
    word, reason = known.verdict()
    assert (word, known.is_active()) == ("GONE", False)
    assert "has not written a result" in reason
    enter(known.folder, "17", "failed", "error: the loss is nan", exit_code=1)
    assert known.verdict() == ("FAILED", "error: the loss is nan")
    enter(known.folder, "17", "done", exit_code=0)
    assert known.verdict() == ("COMPLETED", "")


def test_a_local_job_lives_as_long_as_its_process(tmp_path: Path) -> None:
    known = job(tmp_path / "a", cluster="local")
    enter(known.folder, "17", "running", pid=os.getpid())
    assert known.verdict() == ("RUNNING", "")
    assert known.is_active()
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    enter(known.folder, "17", "running", pid=process.pid)
    assert known.verdict() == ("FAILED", "its process was killed")
    assert known.cancel() == "job 17 does not run"


def test_a_job_is_found_by_id_and_folder_and_the_newest_without(tmp_path: Path) -> None:
    job(tmp_path / "old-1", "9", submitted=1)
    job(tmp_path / "new-1", "10", submitted=2)
    assert find_job(tmp_path, None).job_id == "10"
    assert find_job(tmp_path, "9").folder == tmp_path / "old-1"
    assert find_job(tmp_path, "old-1").job_id == "9"
    with pytest.raises(ConfigError, match=r"no job '11' in .*; the newest are 10, 9"):
        find_job(tmp_path, "11")
    with pytest.raises(ConfigError, match="there are no jobs in"):
        find_job(tmp_path / "nowhere", None)


def test_the_last_numbers_are_those_of_the_last_whole_line(tmp_path: Path) -> None:
    run = Folder(str(tmp_path))
    assert last_numbers(run) == "no step yet"
    (tmp_path / "metrics.jsonl").write_text(json.dumps(METRICS) + '\n{"step": 31, "la')
    assert last_numbers(run) == "epoch 2.50   step 30/60   loss 6.100   1,234 samples/s"
    (tmp_path / "result.json").write_text("{}")
    assert last_numbers(run).endswith("   done")


def test_logs_of_all_nodes_come_in_whole_lines_and_once(tmp_path: Path) -> None:
    known = job(tmp_path / "a")
    (known.folder / "17_0_log.out").write_text("one\ntw")
    (known.folder / "17_10_log.out").write_bytes(b"ten\n")
    (known.folder / "170_0_log.out").write_text("of another job\n")
    positions: dict[Path, int] = {}
    assert list(new_lines(known, positions)) == ["[0] one", "[10] ten"]
    with (known.folder / "17_0_log.out").open("a") as log:
        log.write("o\n")
    assert list(new_lines(known, positions)) == ["[0] two"]
    assert list(new_lines(known, positions)) == []
