"""What `jobs/slurm.py` says to wrong commands and of broken folders; no SLURM and no Ray is started."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import slurm
from jobs.batch.script import ROOT
from pirl.errors import ConfigError
from tests.jobs.test_status import job
from tests.ray_cluster import wait_for
from tests.slurm_words import DOWN, UNKNOWN_JOB, words_of


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No SLURM, and a home without jobs."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    words_of(tmp_path / "bin", monkeypatch)


def type_(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """What a command returns and prints."""
    monkeypatch.setattr(sys, "argv", ["slurm.py", *words])
    code = slurm.main()
    return code, *capfd.readouterr()


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


def profile(folder: Path, **keys: object) -> str:
    told = {"cluster": "slurm", "nodes": 1, "cpus_per_node": 1, "storage": f"{folder}/runs"}
    keys = told | {"job_folder": f"{folder}/jobs"} | keys
    (folder / "cluster.toml").write_text("\n".join(f"{name} = {toml(value)}" for name, value in keys.items()))
    return f"--cluster={folder}/cluster.toml"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "jobs/pretrain.py digits",
            "write the job file behind --: python jobs/slurm.py --cluster FILE -- jobs/pretrain.py",
        ),
        (
            "--cluster x.toml jobs/pretrain.py digits",
            "unrecognized arguments: jobs/pretrain.py digits; write the job file",
        ),
        ("submit --cluster x.toml --seed 3", "unrecognized arguments: --seed 3; write the job file"),
        ("stauts 12", "unknown command 'stauts': use submit, status"),
        ("", "--cluster FILE is missing"),
        ("--cluster", "argument --cluster: expected one argument"),
        ("--cluster ~nobody-here/x.toml -- jobs/pretrain.py", "Could not determine home directory"),
        ("--cluster nowhere.toml -- jobs/pretrain.py", "no such file"),
        ("status --job-folder ~nobody-here/x", "~nobody-here/x: Could not determine home directory"),
        ("status --job-folder /dev/null", "there are no jobs in /dev/null"),
        ("list --cluster nowhere.toml", "no such file"),
        ("list 12", "unrecognized arguments: 12"),
        ("status 1 2", "unrecognized arguments: 2"),
        ("status", "there are no jobs in"),
        ("logs", "the following arguments are required: JOB"),
        ("cancel", "the following arguments are required: JOB"),
        ("logs 1 --folow", "unknown option --folow: did you mean --follow?"),
        ("status -- jobs/pretrain.py", "status takes no job file: write it without --"),
    ],
)
def test_a_wrong_command_is_answered_in_one_line(monkeypatch, capfd, line: str, said: str) -> None:
    code, out, err = type_(monkeypatch, capfd, *shlex.split(line))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert said in err


ELASTIC = {"nodes": {"min": 1, "max": 2}}


@pytest.mark.parametrize(
    ("keys", "line", "said"),
    [
        ({}, "jobs/pretrain.py digits --help", "--help asks for no job: type python jobs/pretrain.py digits --help"),
        ({}, "tune/sweep.py -h", "-h asks for no job: type python tune/sweep.py -h"),
        ({}, "jobs/prepare.py a b --check", "--check asks for no job: type --dry-run before --"),
        ({}, "jobs/pretrain.py --resume never", "--resume never: the job could not go on when it comes back"),
        ({}, "jobs/pretrain.py --run=x --resume=never", "choose a new --run NAME"),
        ({}, "jobs/pretrain.py --no-ray", "--no-ray: the first node would train alone"),
        (ELASTIC, "jobs/pretrain.py --cluster.workers=2", "--cluster.workers would stay the same when a node is lost"),
        (ELASTIC, "jobs/pretrain.py --cluster.workers 2", "or nodes = 2 in the profile"),
    ],
)
def test_what_a_job_cannot_have_is_refused(monkeypatch, capfd, tmp_path: Path, keys, line: str, said: str) -> None:
    monkeypatch.setattr(slurm, "check", lambda *_: f"{tmp_path}/runs/new")  # which lets all of this pass
    first, *words = shlex.split(line)
    (tmp_path / "array").write_text(shlex.join(words))
    cluster = profile(tmp_path, **keys)
    for own, behind in (([], [first, *words]), ([f"--array={tmp_path}/array"], [first])):
        code, out, err = type_(monkeypatch, capfd, cluster, "--dry-run", *own, "--", *behind)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert said in err


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({}, "jobs/pretrain.py --resume must --cluster.workers=1"),
        ({"cluster": "local"}, "jobs/pretrain.py --resume never"),  # which comes back from nowhere
        (ELASTIC, "tune/sweep.py --cluster.workers=1"),  # of a trial
    ],
)
def test_what_a_job_can_have_is_taken(monkeypatch, capfd, tmp_path: Path, keys, line: str) -> None:
    monkeypatch.setattr(slurm, "check", lambda *_: f"{tmp_path}/runs/new")
    assert type_(monkeypatch, capfd, profile(tmp_path, **keys), "--dry-run", "--", *line.split())[0] == 0


def test_broken_job_folders_are_passed_over(monkeypatch, capfd, tmp_path: Path) -> None:
    job(tmp_path / "jobs/good-1", "9")
    (tmp_path / "jobs/half-1").mkdir()
    (tmp_path / "jobs/half-1/job.json").write_text('{"name": ')
    code, out, err = type_(monkeypatch, capfd, "list", f"--job-folder={tmp_path}/jobs")
    assert code == 0
    assert out.splitlines()[1].split()[:3] == ["9", "good-1", "UNKNOWN"]
    assert f"{tmp_path}/jobs/half-1/job.json" in err


def test_a_log_that_cannot_be_read_fails_in_one_line(monkeypatch, capfd, tmp_path: Path) -> None:
    known = job(tmp_path / "jobs/a-1", "9")
    (known.folder.log(0)).mkdir()
    code, out, err = type_(monkeypatch, capfd, "logs", "9", f"--job-folder={tmp_path}/jobs")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("failed: [Errno 21] Is a directory")


def test_a_job_folder_that_cannot_be_made_is_refused(monkeypatch, capfd, tmp_path: Path) -> None:
    monkeypatch.setattr(slurm, "check", lambda *_: f"{tmp_path}/runs/new")  # it takes seconds, and is not the subject
    cluster = profile(tmp_path, cluster="local", job_folder="/dev/null/jobs")
    code, out, err = type_(monkeypatch, capfd, cluster, "--", "jobs/pretrain.py", "digits")
    assert (code, out, err) == (2, "", "error: job_folder /dev/null/jobs: Not a directory\n")


def test_a_clash_that_cannot_be_ruled_out_is_refused(monkeypatch, capfd, tmp_path: Path) -> None:
    known = job(tmp_path / "jobs/a-1", "9")
    known.folder.enter("running")
    words_of(tmp_path / "bin", monkeypatch, squeue=DOWN, scontrol=DOWN)
    command = (profile(tmp_path), "--dry-run", "--", "jobs/pretrain.py", "digits")
    monkeypatch.setattr(slurm, "check", lambda *_: f"{known.folder.path}/run")
    code, out, err = type_(monkeypatch, capfd, *command)
    assert (code, out) == (2, "")
    assert "SLURM does not answer" in err
    assert f"job 9 is working on {known.folder.path}/run" in err
    monkeypatch.setattr(slurm, "check", lambda *_: f"{tmp_path}/runs/another")
    assert type_(monkeypatch, capfd, *command)[0] == 0, "another run clashes with none, whatever SLURM would say"
    monkeypatch.setattr(slurm, "check", lambda *_: f"{known.folder.path}/run")
    words_of(tmp_path / "bin", monkeypatch, squeue=UNKNOWN_JOB, scontrol=UNKNOWN_JOB)
    assert type_(monkeypatch, capfd, *command)[0] == 0, "SLURM has forgotten it"


def test_a_dry_run_without_slurm_prints_what_this_machine_would_run(monkeypatch, capfd, tmp_path: Path) -> None:
    monkeypatch.setattr(slurm, "check", lambda *_: f"{tmp_path}/runs/new")
    cluster = profile(tmp_path, cluster="local")
    code, out, err = type_(monkeypatch, capfd, cluster, "--dry-run", "--", "jobs/pretrain.py", "digits", "--run=a b")
    assert code == 0
    assert out.startswith(f"python jobs/pretrain.py --storage={tmp_path}/runs")
    assert out.endswith("digits '--run=a b'\n")
    assert out.count("\n") == 1
    assert err == 'no script is sent: cluster = "local" runs this on Ray on this machine\n'
    assert not (tmp_path / "jobs").exists()


def test_an_array_is_cancelled_as_a_whole_or_by_task(monkeypatch, capfd, tmp_path: Path) -> None:
    job(tmp_path / "jobs/a-1", "12_0", "12_1", "12_2")
    where = f"--job-folder={tmp_path}/jobs"
    words_of(tmp_path / "bin", monkeypatch, scancel=f'echo "$@" >> {tmp_path}/asked')
    for name in ("12", "a-1"):
        expected = (0, "all 3 tasks of job 12 are being cancelled\n", "")
        assert type_(monkeypatch, capfd, "cancel", name, where) == expected
    assert type_(monkeypatch, capfd, "cancel", "12_1", where) == (0, "job 12_1 is being cancelled\n", "")
    assert (tmp_path / "asked").read_text().split() == ["12", "12", "12_1"]
    for command in ("logs", "tunnel"):
        code, out, err = type_(monkeypatch, capfd, command, "12", where)
        assert (code, out) == (2, "")
        assert err == f"error: this job has several tasks: {command} needs one of 12_0, 12_1, 12_2\n"


def test_cancel_says_why_it_cannot(monkeypatch, capfd, tmp_path: Path) -> None:
    job(tmp_path / "jobs/a-1", "12")
    words = ("cancel", "12", f"--job-folder={tmp_path}/jobs")
    assert type_(monkeypatch, capfd, *words)[::2] == (
        1,
        "failed: there is no scancel here: type this on a login node of the cluster\n",
    )
    monkeypatch.setattr("jobs.batch.job.SCANCEL_S", 0.2)
    words_of(tmp_path / "bin", monkeypatch, scancel="exec sleep 60")
    code, _, err = type_(monkeypatch, capfd, *words)
    assert (code, err) == (1, "failed: SLURM does not answer: scancel has said nothing for 0.2 s\n")


def test_an_sbatch_that_hangs_fails_in_one_line(monkeypatch, capfd, tmp_path: Path) -> None:
    monkeypatch.setattr(slurm, "check", lambda *_: f"{tmp_path}/runs/new")
    monkeypatch.setattr("jobs.batch.submission.TEST_ONLY_S", 0.2)
    words_of(tmp_path / "bin", monkeypatch, sbatch="exec sleep 60")
    code, _, err = type_(monkeypatch, capfd, profile(tmp_path), "--", "jobs/pretrain.py", "digits")
    assert (code, err) == (1, "failed: SLURM did not answer: sbatch has said nothing for 0.2 s\n")
    assert not (tmp_path / "jobs").exists()


def test_a_controller_that_is_away_has_refused_nothing(monkeypatch, capfd, tmp_path: Path) -> None:
    monkeypatch.setattr(slurm, "check", lambda *_: f"{tmp_path}/runs/new")
    failure = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
    words_of(tmp_path / "bin", monkeypatch, sbatch=f"echo '{failure}' >&2; exit 1")
    told = f"SLURM did not answer: {failure.removeprefix('sbatch: error: ')}\n"
    command = (profile(tmp_path), "--", "jobs/pretrain.py", "digits")
    assert type_(monkeypatch, capfd, *command) == (1, "", f"failed: {told}")
    code, out, err = type_(monkeypatch, capfd, "--dry-run", *command)
    assert (code, err) == (0, told)
    assert out.startswith("#!/bin/bash\n")


def test_what_sbatch_says_is_shown_whatever_it_is_written_in(monkeypatch, capfd, tmp_path: Path) -> None:
    monkeypatch.setattr(slurm, "check", lambda *_: f"{tmp_path}/runs/new")
    words_of(tmp_path / "bin", monkeypatch, sbatch=r"printf 'sbatch: error: Ung\xfcltige Partition' >&2; exit 1")
    code, _, err = type_(monkeypatch, capfd, profile(tmp_path), "--", "jobs/pretrain.py", "digits")
    assert (code, err) == (
        2,
        "error: SLURM would not take this job: error: Ung\N{REPLACEMENT CHARACTER}ltige Partition\n",
    )


@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_a_temporary_folder_that_is_not_there_is_refused(monkeypatch, capfd, tmp_path: Path, cluster: str) -> None:
    monkeypatch.setattr(slurm, "check", lambda *_: f"{tmp_path}/runs/new")
    given = profile(tmp_path, cluster=cluster, temp_dir="/no-scratch")
    code, out, err = type_(monkeypatch, capfd, given, "--", "jobs/pretrain.py", "digits")
    assert (code, out, err) == (
        2,
        "",
        "error: temp_dir /no-scratch: there is no such folder, or you may not write in it\n",
    )
    assert not (tmp_path / "jobs").exists()


def test_a_check_has_the_profiles_environment_and_an_end(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "root/jobs").mkdir(parents=True)
    script = tmp_path / "root/jobs/pretrain.py"
    script.write_text("import os\nprint('4 trials, 2 of them to be trained')\nprint('/runs/' + os.environ['WHERE'])\n")
    monkeypatch.setattr(slurm, "ROOT", tmp_path / "root")
    known = slurm.read_profile(profile(tmp_path).partition("=")[2]).model_copy(update={"environment": {"WHERE": "a"}})
    assert slurm.check(known, "jobs/pretrain.py", []) == "/runs/a", "of a sweep the folder alone"
    script.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(slurm, "CHECK_S", 0.2)
    with pytest.raises(ConfigError, match=r"jobs/pretrain.py digits --check takes longer than 0.2 s"):
        slurm.check(known, "jobs/pretrain.py", ["digits"])


def test_ctrl_c_ends_following_quietly(monkeypatch, tmp_path: Path) -> None:
    known = job(tmp_path / "jobs/a-1", "12")
    words_of(tmp_path / "bin", monkeypatch, scontrol=DOWN, squeue=DOWN)
    words = ["logs", "12", "-f", f"--job-folder={tmp_path}/jobs"]
    with (
        (tmp_path / "err").open("w") as err,
        subprocess.Popen([sys.executable, str(ROOT / "jobs/slurm.py"), *words], stderr=err, env=os.environ) as process,
    ):
        wait_for(lambda: "NO ANSWER" in (tmp_path / "err").read_text(), "it says nothing")
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert (tmp_path / "err").read_text().count("\n") == 1
    assert known.status().active
