"""What is said of jobs that SLURM has forgotten or never knew; with SLURM: tests/on_slurm/test_slurm.py."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from clusters.job_folder import Phase
from clusters.slurm.queue import SlurmJob
from jobs.batch.job import Job, JobStatus, all_jobs, cancel_array, find_jobs, statuses
from jobs.batch.status import last_numbers, print_status, sweep_numbers
from pirl.errors import ConfigError
from pirl.recipes import digits
from pirl.storage.folder import Folder
from tests.ray_cluster import wait_for
from tests.slurm_words import UNKNOWN_JOB, squeue_line, words_of
from tune.curve import Point
from tune.points import trials_of
from tune.rows import Row, write

METRICS = {"step": 30, "last_step": 60, "epoch": 2.5, "loss": 6.1, "samples_per_s": 1234.5}


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where SLURM has nothing to say."""
    monkeypatch.setenv("PATH", "/nowhere")


def job(folder: Path, *ids: str, cluster: str = "slurm", submitted: float = 1.0, **more: Any) -> Job:
    """The first job of a folder as `submit` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = ids or ("17",)
    told = {
        "name": folder.name,
        "cluster": cluster,
        "job": "jobs/pretrain.py",
        "arguments": {job_id: ["digits"] for job_id in ids},
        "run_folders": dict.fromkeys(ids, f"{folder}/run"),
        "submitted": submitted,
        **more,
    }
    (folder / "job.json").write_text(json.dumps(told))
    return next(found for found in all_jobs(folder.parent) if found.job_id == ids[0])


def test_a_job_that_slurm_has_forgotten_tells_its_end_itself(tmp_path: Path) -> None:
    known = job(tmp_path / "a")
    assert known.status().word == "UNKNOWN"
    known.folder.enter("running", nodes=["n1"])
    gone = known.status()
    assert (gone.word, gone.active) == ("GONE", False)
    assert "has not written a result" in gone.reason
    known.folder.enter("failed", "error: the loss is nan", exit_code=1)
    assert known.status() == JobStatus("FAILED", "error: the loss is nan")
    known.folder.enter("done", exit_code=0)
    assert known.status() == JobStatus("COMPLETED")


@pytest.mark.parametrize("before", [None, "requeue"])
def test_a_cancelled_job_is_said_to_be_when_slurm_has_forgotten_it(
    tmp_path: Path, monkeypatch, before: Phase | None
) -> None:
    """It was waiting, for the first time or again, so it could not say so itself."""
    known, other = job(tmp_path / "a", "17_0", "17_1"), job(tmp_path / "b", "18")
    for task in [*find_jobs([tmp_path], "17"), other]:
        if before:
            task.folder.enter(before, "warned of the end")
    words_of(tmp_path / "bin", monkeypatch, scancel="exit 1", scontrol=UNKNOWN_JOB, squeue=UNKNOWN_JOB)
    cancel_array(find_jobs([tmp_path], "17"))
    other.cancel()
    assert "CANCELLED" not in {known.status().word, other.status().word}, "scancel has failed"
    words_of(tmp_path / "bin", monkeypatch, scancel="exit 0", scontrol=UNKNOWN_JOB, squeue=UNKNOWN_JOB)
    cancel_array(find_jobs([tmp_path], "17"))
    for cancelled in find_jobs([tmp_path], "17"):
        assert cancelled.status() == JobStatus("CANCELLED", "by jobs/slurm.py cancel")
    assert other.status().word == ("GONE" if before else "UNKNOWN"), "it was not cancelled"
    assert other.cancel() == ""
    assert other.status().word == "CANCELLED"
    known.folder.enter("done")
    assert known.status() == JobStatus("COMPLETED"), "the end was faster"
    requeued = SlurmJob("18", "PENDING", reason="Resources")
    assert other.status_by(requeued).active, "SLURM knows better"


@pytest.mark.parametrize("before", [None, "requeue"])
def test_a_job_that_could_not_begin_has_its_reason_in_the_log(tmp_path: Path, before: Phase | None) -> None:
    """Nothing of ours has run: the Python is not there, or a set-up line has ended the script."""
    known = job(tmp_path / "a")
    if before:
        known.folder.enter(before, "warned of the end")
    theirs = SlurmJob("17", "FAILED", reason="NonZeroExitCode", exit_code=127)
    assert known.status_by(theirs).reason == "NonZeroExitCode", "there is no log"
    (known.folder.path / "17_0_log.out").write_text("/bin/bash: line 19: /no/python: No such file or directory\n")
    assert known.status_by(theirs).reason == "/bin/bash: line 19: /no/python: No such file or directory"
    known.folder.enter("failed", "error: the loss is nan")
    assert known.status_by(theirs).reason == "error: the loss is nan", "it could say so itself"


@contextmanager
def controller(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with the command line of those that submitit starts for a local job."""
    words = ["-c", "import time; time.sleep(60)", "submitit.local._local", str(folder)]
    with subprocess.Popen([sys.executable, *words]) as process:
        wait_for(lambda: Path(f"/proc/{process.pid}/cmdline").read_bytes(), "it has no command line")
        yield process
        process.kill()


def test_a_local_job_lives_as_long_as_its_process(tmp_path: Path) -> None:
    with controller(tmp_path / "a") as process:
        known = job(tmp_path / "a", str(process.pid), cluster="local")
        assert known.status() == JobStatus("PENDING", "starting", True), "it has just been submitted"
        known.folder.enter("running", pid=process.pid)
        assert known.status() == JobStatus("RUNNING", "", True)
        assert known.cancel() == ""
        process.wait(10)
    assert known.status() == JobStatus("CANCELLED", "by jobs/slurm.py cancel"), "it had no time to say so itself"
    assert known.cancel() == f"job {process.pid} does not run"
    with controller(tmp_path / "b") as process:
        known = job(tmp_path / "b", str(process.pid), cluster="local")
        known.folder.enter("running", pid=process.pid)
    assert known.status() == JobStatus("FAILED", "its process was killed")


def test_the_process_of_a_job_is_no_other_with_its_number(tmp_path: Path) -> None:
    """Numbers of processes are used again: here by one of another job, and by this one."""
    with controller(tmp_path / "b") as process:
        for pid in (process.pid, os.getpid()):
            known = job(tmp_path / "a", str(pid), cluster="local")
            assert known.status().word == "UNKNOWN"
            known.folder.enter("running", pid=pid)
            assert known.status() == JobStatus("FAILED", "its process was killed")
            assert known.cancel() == f"job {pid} does not run"
        assert process.poll() is None


@pytest.mark.parametrize("word", ["TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED"])
def test_how_a_job_ended_is_slurms_word_and_the_reason_its_own(tmp_path: Path, word: str) -> None:
    known = job(tmp_path / "a")
    theirs = SlurmJob("17", word, reason="in short")
    assert known.status_by(theirs).reason == "in short"
    known.folder.enter("cancelled", "ended by a signal", exit_code=143)
    assert known.status_by(theirs) == JobStatus(word, "ended by a signal", False, theirs)
    assert known.status_by(None) == JobStatus("CANCELLED", "ended by a signal"), "SLURM has forgotten it"


def test_many_jobs_are_one_question(tmp_path: Path, monkeypatch) -> None:
    """Only a job that SLURM does not list and that has not told its end is asked for singly."""
    for number in range(20, 60):
        job(tmp_path / f"old-{number}", str(number)).folder.enter("done")
    job(tmp_path / "told", "61").folder.enter("cancelled", "ended by a signal")
    job(tmp_path / "never-began", "62").folder.cancelled.touch()
    job(tmp_path / "again", "63").folder.enter("cancelled", "ended by a signal")
    job(tmp_path / "new", "60_5")
    job(tmp_path / "lost", "70")
    note = f"echo $0 $@ >> {tmp_path}/asked"
    lines = "\n".join(
        [squeue_line("60_[1,3-9%2]", "PENDING"), squeue_line("33", "RUNNING"), squeue_line("63", "PENDING")]
    )
    answer = f"{note}\ncase \"$*\" in *-u*) echo '{lines}';; *) {UNKNOWN_JOB};; esac"
    words_of(tmp_path / "bin", monkeypatch, squeue=answer, scontrol=f"{note}; {UNKNOWN_JOB}")
    jobs = all_jobs(tmp_path)
    found = {job.job_id: status.word for job, status in zip(jobs, statuses(jobs), strict=True)}
    assert found.pop("60_5") == "PENDING"
    assert found.pop("33") == "RUNNING", "it was requeued by hand"
    assert found.pop("63") == "PENDING", "SIGTERM was how its preemption began"
    assert [found.pop(number) for number in ("61", "62")] == ["CANCELLED", "CANCELLED"]
    assert found.pop("70") == "UNKNOWN"
    assert set(found.values()) == {"COMPLETED"}
    assert len((tmp_path / "asked").read_text().splitlines()) == 1 + 2, "of 45 jobs"


def test_a_job_is_found_by_id_and_folder_and_the_newest_without(tmp_path: Path) -> None:
    job(tmp_path / "old-1", "9", submitted=1)
    job(tmp_path / "new-1", "10", submitted=2)
    assert [job.job_id for job in find_jobs([tmp_path], None)] == ["10"]
    assert [job.folder.path for job in find_jobs([tmp_path], "9")] == [tmp_path / "old-1"]
    assert [job.job_id for job in find_jobs([tmp_path], "old-1")] == ["9"]
    with pytest.raises(ConfigError, match=r"no job '11' in .*; the newest are 10, 9"):
        find_jobs([tmp_path], "11")
    with pytest.raises(ConfigError, match="there are no jobs in"):
        find_jobs([tmp_path / "nowhere"], None)


def test_an_array_is_all_its_tasks(tmp_path: Path, capsys) -> None:
    job(tmp_path / "old-1", "9", submitted=1)
    job(tmp_path / "arr-1", "12_0", "12_2", "12_10", submitted=2)
    for name in ("12", "arr-1", None):
        assert [job.job_id for job in find_jobs([tmp_path], name)] == ["12_0", "12_2", "12_10"]
    assert [job.job_id for job in find_jobs([tmp_path], "12_2")] == ["12_2"]
    assert print_status(find_jobs([tmp_path], "12")) == 0
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.split()[:3] == ["JOB", "NAME", "STATE"]
    assert [row.split()[:3] for row in rows] == [[f"12_{n}", "arr-1", "UNKNOWN"] for n in (0, 2, 10)]


@pytest.mark.parametrize("text", ['{"name": "half', "[]", "{}", '{"arguments": {"1": []}}', "\xff", '{"arguments": 3}'])
def test_what_does_not_tell_of_a_job_is_named_and_left_out(tmp_path: Path, capsys, text: str) -> None:
    job(tmp_path / "good", "9")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/job.json").write_bytes(text.encode("latin-1"))
    assert [job.job_id for job in all_jobs(tmp_path)] == ["9"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"left out: {tmp_path}/bad/job.json")


def test_a_state_that_cannot_be_read_is_said_to_be(tmp_path: Path) -> None:
    known = job(tmp_path / "a")
    for text in ('{"phase": ', "[]", "3"):
        (known.folder.path / "17_state.json").write_text(text)
        status = known.status()
        assert (status.word, status.active) == ("UNKNOWN", False)
        assert "17_state.json" in status.reason
    known.folder.report_file.unlink()
    assert known.folder.report() == {}


def test_the_store_of_a_run_is_reached_as_its_job_reached_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "of this terminal")
    known = job(tmp_path / "a", environment={"AWS_ENDPOINT_URL": "http://store"})
    assert print_status([known]) == 0
    assert os.environ["AWS_ENDPOINT_URL"] == "http://store"


def test_a_sweep_tells_of_its_trials(tmp_path: Path, capsys) -> None:
    sweep = Folder(str(tmp_path / "sweep"))
    assert sweep_numbers(sweep) == "no trial yet"
    axes = {"optim.lr": [0.1, 0.2, 0.3], "loss.temperature": [0.1, 0.2]}
    rows = [Row(trial) for trial in trials_of(digits(), axes, seeds=1)]
    write(sweep, rows, "knn", "digits", "python tune/sweep.py")
    assert sweep_numbers(sweep) == "6 trials: 6 waiting"
    for row, state in zip(rows, ("running", "starting", "stopped", "failed", "waiting", "waiting"), strict=True):
        row.state = state
    rows[0].curve = [Point(2, 0.75, 1.0)]
    rows[2].curve = [Point(2, 0.5, 1.0)]
    write(sweep, rows, "knn", "digits", "python tune/sweep.py")
    counts = "6 trials: 1 stopped, 2 running, 2 waiting, 1 failed"
    assert sweep_numbers(sweep) == f"{counts}   best knn so far 0.7500 at epoch 2 ({rows[0].trial.name})"
    write(sweep, rows, "loss", "digits", "python tune/sweep.py")
    assert sweep_numbers(sweep) == f"{counts}   best loss so far 0.5000 at epoch 2 ({rows[2].trial.name})"
    rows[4].state, rows[4].curve = "done", [Point(9, 0.6, 1.0)]
    write(sweep, rows, "knn", "digits", "python tune/sweep.py")
    assert f"best knn so far 0.6000 at epoch 9 ({rows[4].trial.name})" in sweep_numbers(sweep), "trained to its end"

    known = job(tmp_path / "a", cluster="local", job="tune/sweep.py", run_folders={"17": str(sweep)})
    assert print_status([known]) == 0
    assert "6 trials: 1 done" in capsys.readouterr().out
    sweep.write("sweep.json", '{"trials": [')
    assert sweep_numbers(sweep).startswith("cannot be read here")


def test_the_last_numbers_are_those_of_the_last_whole_line(tmp_path: Path) -> None:
    run = Folder(str(tmp_path))
    assert last_numbers(run) == "no step yet"
    (tmp_path / "metrics.jsonl").write_text(json.dumps(METRICS) + '\n{"step": 31, "la')
    assert last_numbers(run) == "epoch 2.50   step 30/60   loss 6.100   1,234 samples/s"
    (tmp_path / "result.json").write_text("{}")
    assert last_numbers(run).endswith("   done")
