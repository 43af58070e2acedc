"""Several runs in one request, jobs after others, and where jobs were put: no SLURM is asked but by its words."""

import sys
from pathlib import Path

import pytest

from jobs import slurm
from jobs.batch.job import find_jobs
from jobs.batch.logs import exit_code, wait_for_end
from jobs.batch.places import remember, remembered
from jobs.batch.several import after, array_lines, to_retry, waits_for
from pirl.errors import ConfigError
from tests.jobs.test_status import job
from tests.slurm_words import UNKNOWN_JOB, scontrol_line, squeue_line, words_of


def test_an_array_may_say_how_many_run_at_once(tmp_path: Path):
    file = tmp_path / "my runs.txt"
    file.write_text("--seed 1  # a comment\n\n--seed 2 --run 'a b'\n")
    lines = [["--seed", "1"], ["--seed", "2", "--run", "a b"]]
    assert array_lines(str(file)) == (lines, None)
    assert array_lines(f"{file}%4") == (lines, 4)
    for wrong in ("%", "%0"):
        with pytest.raises(
            ConfigError, match=r"behind % comes how many run at once, from 1 on: --array .*my runs.txt%4"
        ):
            array_lines(f"{file}{wrong}")
    (tmp_path / "50%2").write_text("--seed 3\n")
    assert array_lines(str(tmp_path / "50%2")) == ([["--seed", "3"]], None), "a file of that name comes first"


def ended(folder: Path, number: str, phase: str, code: int) -> None:
    known = next(task for task in find_jobs([folder.parent], folder.name) if task.job_id == number)
    known.folder.enter(phase, "error: x" if code else "", exit_code=code)  # type: ignore[arg-type]


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch) -> Path:
    """Of an array one task is done, one has failed and one waits; another job waits."""
    parent = tmp_path / "jobs"
    job(parent / "arr-1", "12_0", "12_1", "12_2", submitted=2)
    job(parent / "b-1", "20", submitted=1)
    ended(parent / "arr-1", "12_0", "done", 0)
    ended(parent / "arr-1", "12_1", "failed", 3)
    lines = "\n".join([squeue_line("12_2", "PENDING"), squeue_line("20", "PENDING")])
    shown = f'case $4 in 12_2|20|999) echo "{scontrol_line("20", "PENDING")}";; *) {UNKNOWN_JOB};; esac'
    answer = f"case \"$*\" in *-u*) echo '{lines}';; *) {UNKNOWN_JOB};; esac"
    words_of(tmp_path / "bin", monkeypatch, squeue=answer, scontrol=shown)
    return parent


def test_the_tasks_that_failed_are_tried_again(jobs: Path):
    assert [task.job_id for task in to_retry(find_jobs([jobs], "12"))] == ["12_1"]
    with pytest.raises(ConfigError, match="nothing to try again, as nothing has failed: 20 PENDING"):
        to_retry(find_jobs([jobs], "20"))


def test_a_job_waits_for_others_as_slurm_has_it(jobs: Path):
    assert after(["20"], [jobs])[0] == "afterok:20"
    assert after(["b-1:any", "12_2"], [jobs])[0] == "afterany:20,afterok:12_2"
    assert after(["12:any"], [jobs])[0] == "afterany:12_2", "of which the others have ended"
    assert after(["12_0"], [jobs])[0] == "", "it is done"
    assert after(["999"], [jobs])[0] == "afterok:999", "somebody else's, which SLURM knows"
    with pytest.raises(ConfigError, match=r"job 12_1 will not be done, it is FAILED: error: x. Type 12:any"):
        after(["12"], [jobs])
    with pytest.raises(ConfigError, match=r"--after 20:ok: type 20 \(when it is done\) or 20:any"):
        after(["20:ok"], [jobs])
    for unknown in ("nobody", "998"):
        with pytest.raises(ConfigError, match=f"no job '{unknown}'"):
            after([unknown], [jobs])


def test_only_what_the_job_before_is_to_write_may_be_missing(jobs: Path):
    (before,) = find_jobs([jobs], "20")
    place = f"{jobs}/b-1/run"
    assert waits_for([before], ["run", "--protocol", "knn"], f"TARGET {place}: there is no checkpoint") == place
    assert waits_for([before], [f"--data.uri={place}/x"], f"data.uri {place}/x: no such folder") == place
    assert waits_for([before], ["run", "--protocol", "kmm"], "--protocol kmm: use knn") == ""
    assert waits_for([before], ["other"], f"TARGET other: nothing there, but {place}") == ""
    assert waits_for([], ["run"], "TARGET run: no checkpoint") == ""


def test_waiting_ends_with_the_exit_code_of_the_run(jobs: Path, capsys):
    done, failed, _ = find_jobs([jobs], "12")
    assert wait_for_end([done]) == 0
    assert wait_for_end([done, failed]) == 3
    assert "-- job 12_1 FAILED: error: x" in capsys.readouterr().err
    lost = job(jobs / "lost-1", "30")
    assert exit_code(lost, lost.status()) == 1


def test_job_folders_that_were_used_are_looked_into(tmp_path: Path, jobs: Path, monkeypatch, capfd):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    remember(tmp_path / "gone")
    remember(jobs)
    remember(jobs)
    assert remembered() == [jobs]
    job(tmp_path / "home/pirl-jobs/c-1", "21", submitted=0)
    monkeypatch.setattr(sys, "argv", ["slurm.py", "status"])
    assert slurm.main() == 0
    assert "12_2" in capfd.readouterr().out, "the newest, wherever it lies"
    monkeypatch.setattr(sys, "argv", ["slurm.py", "list"])
    assert slurm.main() == 0
    assert [line.split()[0] for line in capfd.readouterr().out.splitlines()[1:]] == ["12_0", "12_1", "12_2", "20", "21"]
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")
    remember(jobs)
    assert "later commands need --cluster FILE" in capfd.readouterr().err
