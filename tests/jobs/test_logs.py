"""What the nodes of a job print is shown once or followed; no SLURM, whose commands are scripts here."""

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.batch.job import JobStatus, statuses
from jobs.batch.logs import follow_logs, new_lines, print_logs
from tests.jobs.test_status import job
from tests.ray_cluster import wait_for
from tests.slurm_words import DOWN, UNKNOWN_JOB, scontrol_line, words_of


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where SLURM has nothing to say."""
    monkeypatch.setenv("PATH", "/nowhere")


def test_a_local_job_is_followed_from_its_first_moment_to_its_end(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr("jobs.batch.logs.ASK_S", 0.2)
    monkeypatch.setattr("jobs.batch.logs.FOLLOW_S", 0.1)
    code = (
        "import os, pathlib, time; from clusters.job_folder import JobFolder; pid = os.getpid(); time.sleep(1);"
        "folder = JobFolder(pathlib.Path(os.sys.argv[2]), str(pid)); folder.log(0).write_text('hello\\n');"
        "folder.enter('running', pid=pid); time.sleep(1); folder.enter('done')"
    )
    words = [sys.executable, "-c", code, "submitit.local._local", str(tmp_path / "a")]
    with subprocess.Popen(words, cwd=Path(__file__).parents[2]) as process:
        wait_for(lambda: Path(f"/proc/{process.pid}/cmdline").read_bytes(), "it has no command line")
        known = job(tmp_path / "a", str(process.pid), cluster="local")
        assert follow_logs(known) == 0
    out, err = capfd.readouterr()
    assert out == "[0] hello\n"
    assert err.splitlines() == ["-- PENDING: starting", "-- COMPLETED"]


def test_what_is_followed_is_judged_by_one_answer(tmp_path: Path, monkeypatch, capfd) -> None:
    """A job that ends between two answers has ended well in the second."""
    monkeypatch.setattr("jobs.batch.logs.ASK_S", 0.1)
    monkeypatch.setattr("jobs.batch.logs.FOLLOW_S", 0.1)
    known = job(tmp_path / "a")
    once = f"if mkdir {tmp_path}/asked 2> /dev/null; then echo '{scontrol_line('17', 'RUNNING')}'; exit; fi"
    words_of(tmp_path / "bin", monkeypatch, scontrol=f"{once}\necho '{scontrol_line('17', 'COMPLETED')}'")
    assert follow_logs(known) == 0
    assert capfd.readouterr().err == "-- COMPLETED\n"


def test_a_job_without_an_answer_is_active_and_followed(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr("jobs.batch.logs.ASK_S", 0.1)
    monkeypatch.setattr("jobs.batch.logs.FOLLOW_S", 0.1)
    known = job(tmp_path / "a")
    known.folder.enter("running")
    refused = "echo 'sacct: error: refused' >&2; exit 1"
    words_of(tmp_path / "bin", monkeypatch, scontrol=DOWN, squeue=DOWN, sacct=refused)
    silent = known.status()
    assert (silent.word, silent.active) == ("NO ANSWER", True)
    assert "Unable to contact slurm controller" in silent.reason
    assert silent.reason.endswith("the job last said: running")
    assert statuses([known])[0].word == "NO ANSWER"
    up = f"if mkdir {tmp_path}/asked 2> /dev/null; then {DOWN}; fi; echo '{scontrol_line('17', 'COMPLETED')}'"
    words_of(tmp_path / "bin", monkeypatch, scontrol=up)
    assert follow_logs(known) == 0
    assert [line.split(":")[0] for line in capfd.readouterr().err.splitlines()] == ["-- NO ANSWER", "-- COMPLETED"]
    words_of(tmp_path / "bin", monkeypatch, scontrol=DOWN)
    known.folder.enter("failed", "error: the loss is nan")
    assert known.status() == JobStatus("FAILED", "error: the loss is nan"), "that is certain without SLURM"


def test_logs_of_all_nodes_come_in_whole_lines_and_once(tmp_path: Path) -> None:
    known = job(tmp_path / "a")
    (known.folder.path / "17_0_log.out").write_text("one\ntw")
    (known.folder.path / "17_10_log.out").write_bytes(b"ten\n")
    (known.folder.path / "170_0_log.out").write_text("of another job\n")
    positions: dict[Path, int] = {}
    assert list(new_lines(known, positions)) == ["[0] one", "[10] ten"]
    with (known.folder.path / "17_0_log.out").open("a") as log:
        log.write("o\n")
    assert list(new_lines(known, positions)) == ["[0] two"]
    assert list(new_lines(known, positions)) == []


def test_what_a_job_said_last_is_shown_without_the_end_of_its_line(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr("jobs.batch.logs.FOLLOW_S", 0.1)
    known = job(tmp_path / "a")
    log = known.folder.path / "17_0_log.out"
    log.write_text("one\nsrun: error: Unab")
    words_of(tmp_path / "bin", monkeypatch, scontrol=f"echo '{scontrol_line('17', 'RUNNING')}'")
    assert print_logs(known) == 0
    assert capfd.readouterr().out == "[0] one\n[0] srun: error: Unab\n", "what is there"
    known.folder.enter("done")
    words_of(tmp_path / "bin", monkeypatch, scontrol=UNKNOWN_JOB)
    assert follow_logs(known) == 0
    assert capfd.readouterr().out == "[0] one\n[0] srun: error: Unab\n"
