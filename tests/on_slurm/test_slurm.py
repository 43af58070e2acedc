"""Jobs on a real SLURM of three hosts: submitted as README says, disturbed in all ways, the same in the end."""

import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clusters.job_folder import JobFolder
from pirl.runs.checkpoint_folder import newest_checkpoint
from pirl.storage.folder import Folder
from tests.digits import write_digits_to
from tests.ray_cluster import ROOT, SMALL, WITHOUT_BANK, lines_of, wait_for, weights_of
from tests.s3 import SECRET, moto
from tests.slurm_cluster import Slurm

STEPS = 60
SPREAD = {"nodes": 2, "cpus_per_node": 1, "memory_gb_per_node": 2, "time": 10, "warning_s": 20, "start_s": 120}
"""Two nodes with a worker each; the hosts have room for three such jobs at once."""

SHELL = {"SBATCH_NO_REQUEUE": "1", "SBATCH_TIMELIMIT": "1", "SBATCH_SIGNAL": "USR1@1", "SBATCH_JOB_NAME": "another"}
"""What a user has there for other jobs, and what would end these before their time."""

LIMIT_S = 300

STATUS_OF = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=60).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@dataclass(frozen=True)
class Submitted:
    """A job that was sent."""

    id: str
    run: Folder
    folder: Path

    @property
    def log(self) -> str:
        """What the first node wrote."""
        file = self.folder / f"{self.id}_0_log.out"
        return file.read_text() if file.exists() else ""

    @property
    def state(self) -> dict[str, Any]:
        """What the job says of itself."""
        return dict(JobFolder(self.folder, self.id).report())

    def has_gone_on(self) -> bool:
        """Whether it has made steps since it went on from a checkpoint."""
        found = re.findall(r"going on from checkpoint_(\d+)", self.log)
        return bool(found) and len(lines_of(self.run)) >= int(found[-1]) + 2

    def wait_for_phase(self, *phases: str) -> None:
        wait_for(lambda: self.state.get("phase") in phases, f"not {phases}: {self.state}\n{self.log[-2000:]}")


@dataclass(frozen=True)
class User:
    """Types commands on the login node, which is this machine."""

    slurm: Slurm
    folder: Path
    more_env: dict[str, str] = field(default_factory=dict)
    root: Path = ROOT
    """The checkout whose commands are typed."""

    @property
    def cwd(self) -> Path:
        return self.folder if self.root == ROOT else self.root

    def type(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(self.root / "jobs/slurm.py"), *words]
        # Without what torch sets when other tests use it here: SLURM takes the environment to the nodes.
        env = {name: value for name, value in self.slurm.env.items() if not name.startswith("TORCH")}
        env |= SHELL | {"XDG_STATE_HOME": str(self.folder / "state")} | self.more_env
        answer = subprocess.run(command, env=env, cwd=self.cwd, capture_output=True, text=True, timeout=LIMIT_S)
        assert not check or answer.returncode == 0, answer.stdout + answer.stderr
        return answer

    def profile(self, **changes: Any) -> Path:
        keys = {"cluster": "slurm", "storage": f"{self.folder}/runs", "job_folder": f"{self.folder}/jobs", **SPREAD}
        path = self.folder / "cluster.toml"
        path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in (keys | changes).items()))
        return path

    def submit(self, run: str, *settings: str, **profile: Any) -> Submitted:
        return self.submit_line(run, job_line(run, *settings), **profile)

    def submit_line(self, run: str, line: list[str], **profile: Any) -> Submitted:
        cluster = self.profile(**profile)
        answer = self.type(f"--cluster={cluster}", *line)
        found = re.match(r"job (\d+)   run (\S+)\n", answer.stdout)
        assert found, answer.stdout
        options = {"endpoint_url": self.more_env["AWS_ENDPOINT_URL"]} if "://" in found[2] else {}
        return Submitted(found[1], Folder(found[2], options), self.folder / "jobs" / f"{run}-1")

    def status(self, job: Submitted) -> str:
        return self.type("status", job.id, f"--job-folder={self.folder}/jobs").stdout

    def wait_for_restart(self, number: int, *jobs: Submitted) -> None:
        """Returns when jobs have been started again so many times."""
        for job in jobs:
            hastened = [0.0]

            def started(job: Submitted = job, at: list[float] = hastened) -> bool:
                assert not self._is_over(job, at), job.log[-3000:]
                return int(job.state["restarts"]) == number

            wait_for(started, f"job {job.id} does not start again", every_s=0.5)

    def wait_until_done(self, *jobs: Submitted) -> None:
        """Returns when jobs have ended well; spares those that were requeued the wait that SLURM lets pass."""
        for job in jobs:
            hastened = [0.0]
            wait_for(lambda job=job, at=hastened: self._is_over(job, at), f"job {job.id} does not end", every_s=0.5)
            assert self.slurm.state(job.id) == "COMPLETED", job.log[-3000:]

    def _is_over(self, job: Submitted, hastened: list[float]) -> bool:
        state = self.slurm.state(job.id)
        if state == "PENDING" and job.log and time.monotonic() > hastened[0] + 8:
            hastened[0] = time.monotonic()  # not again and again: each time it is 2 s from now
            command = ["scontrol", "update", f"JobId={job.id}", "StartTime=now+2"]
            subprocess.run(command, env=self.slurm.env, capture_output=True, check=False)
        return state not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


def job_line(run: str, *settings: str) -> list[str]:
    return ["--", "jobs/pretrain.py", "digits", *SMALL, "--cluster.loader-processes=0", f"--run={run}", *settings]


@pytest.fixture(scope="module")
def user(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> User:
    return User(slurm, tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def store(user: User) -> Iterator[str]:
    """The address of an S3 server that all hosts reach, with a bucket."""
    machine = user.slurm.cluster.machine
    with moto(user.folder / "s3.log", machine) as port:
        endpoint = f"http://{machine}:{port}"
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT"), timeout=60).close()
        yield endpoint


@pytest.fixture(scope="module")
def with_store(user: User, store: str) -> User:
    """What the job file checks before it is submitted is checked here, on the login node."""
    return replace(user, more_env={"AWS_ENDPOINT_URL": store})


@pytest.fixture(scope="module")
def undisturbed(with_store: User, store: str) -> Submitted:
    """A two-node run that nothing happened to, whose images and checkpoints are in a store; first its dry run."""
    uri = write_digits_to("s3://bucket/digits", {"endpoint_url": store})
    profile = {"storage": "s3://bucket/runs", "environment": {"AWS_ENDPOINT_URL": store}}
    line = job_line("undisturbed", f"--data.uri={uri}")
    dry = with_store.type(f"--cluster={with_store.profile(**profile)}", "--dry-run", *line).stdout
    assert not (with_store.folder / "jobs").exists()
    job = with_store.submit_line("undisturbed", line, **profile)
    (with_store.folder / "dry").write_text(dry)
    with_store.wait_until_done(job)
    return job


def tell_workers(job: Submitted, number: signal.Signals) -> None:
    """Sends a signal to the processes that train."""
    mark = f"PIRL_NODE={job.id}.".encode()

    def workers() -> list[int]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                is_worker = b"RayTrainWorker" in (process / "cmdline").read_bytes()
                if is_worker and mark in (process / "environ").read_bytes():
                    found.append(int(process.name))
        return found

    # Ray gives a process another name now and then, for a moment.
    deadline = time.monotonic() + LIMIT_S
    while len(found := workers()) != 2:
        assert time.monotonic() < deadline, f"{len(found)} workers: {job.log[-2000:]}"
        time.sleep(0.1)
    for pid in found:
        os.kill(pid, number)


def hold(began: Callable[[Submitted], bool], *jobs: Submitted) -> None:
    """Stops the workers of each job as soon as it has begun: else it might be done before it is disturbed."""
    waiting = list(jobs)

    def all_held() -> bool:
        for job in [job for job in waiting if began(job)]:
            tell_workers(job, signal.SIGSTOP)
            waiting.remove(job)
        return not waiting

    wait_for(all_held, f"these do not begin: {[job.log[-2000:] for job in waiting]}")
    for job in jobs:
        assert len(lines_of(job.run)) < STEPS, "it came to its end before it was held"


def has_begun(job: Submitted) -> bool:
    return len(lines_of(job.run)) >= 12


def kill_processes(user: User, job: Submitted, host: str, rank: int) -> None:
    """SIGKILL for all that a job's part on a node is, on a host that stays up; its clean-up is no part of it."""
    mark, number = f"PIRL_NODE={job.id}.{rank}", f"SLURM_JOB_ID={job.id}"
    found = []
    for process in user.slurm.cluster.processes(host):
        is_task = "submitit.core._submit" in process.command and not process.command.startswith("srun")
        with suppress(OSError):  # it has ended meanwhile
            environment = Path(f"/proc/{process.pid}/environ").read_bytes().decode(errors="replace").split("\0")
            if mark in environment or (is_task and number in environment):
                found.append(process.pid)
    assert len(found) > 3, "the task, Ray's, and the driver or a worker"
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def assert_same_end(job: Submitted, undisturbed: Submitted) -> None:
    assert [line["step"] for line in lines_of(job.run)] == list(range(1, STEPS + 1))
    expected, got = weights_of(undisturbed.run), weights_of(job.run)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_the_dry_run_is_what_slurm_got_and_nothing_is_left(user: User, undisturbed: Submitted) -> None:
    sent = user.slurm.ask("scontrol", "write", "batch_script", undisturbed.id, "-")
    assert (user.folder / "dry").read_text().strip() == sent.strip()
    user.slurm.wait_until_nothing_is_left()
    assert "COMPLETED" in user.status(undisturbed)
    assert "step 60/60" in user.status(undisturbed)
    assert (undisturbed.folder / f"{undisturbed.id}_token").stat().st_mode & 0o777 == 0o600
    assert undisturbed.folder.stat().st_mode & 0o777 == 0o700
    logs = user.type("logs", undisturbed.id, f"--job-folder={user.folder}/jobs").stdout
    assert "[0] epoch   2.00/2" in logs
    assert "\n[1] " in logs


def test_nothing_but_the_job_folder_is_shared_where_images_and_checkpoints_are_in_a_store(
    user: User, undisturbed: Submitted
) -> None:
    """Its weights are those of the runs on disks below, which are compared with them."""
    assert len(lines_of(undisturbed.run)) == STEPS
    assert not (user.folder / "runs/undisturbed").exists()
    written = [path.read_bytes() for path in undisturbed.folder.rglob("*") if path.is_file()]
    assert written
    assert not [text for text in written if SECRET.encode() in text]


def test_a_run_is_measured_and_learned_from_by_jobs_of_their_own(
    with_store: User, store: str, undisturbed: Submitted
) -> None:
    where = {"nodes": 1, "environment": {"AWS_ENDPOINT_URL": store}}
    line = ["--", "jobs/clusterfit.py", str(undisturbed.run), "--clusters=10", "--distill", "--optim.epochs=1"]
    learning = with_store.submit_line("undisturbed-distillation", [*line, "--cluster.loader-processes=0"], **where)
    line = ["--", "jobs/evaluate.py", str(undisturbed.run), "--data=digits"]
    line += ["--protocol", "knn", "health", "--knn.k", "1", "5"]
    job = with_store.submit_line("evaluation", line, **where)
    with_store.wait_until_done(job, learning)
    report = json.loads(undisturbed.run.read("evaluation/knn.json"))
    assert [each["name"] for each in report["measurements"]] == ["res5, k 1", "res5, k 5"]
    assert "res5, k 5" in job.log
    assert "bank, effective rank" in job.log
    assert "reports of health, knn\n" in with_store.status(job)
    assert json.loads(learning.run.read("result.json"))["metrics"]["step"] == 30
    assert "step 30/30" in with_store.status(learning)
    with_store.slurm.wait_until_nothing_is_left()


def test_preempted_limited_and_requeued_by_hand(user: User, undisturbed: Submitted) -> None:
    """Two jobs at once on the same hosts: one is warned each time and saves a checkpoint, the other is just ended.

    The other's ends: preemption, SIGTERM to its tasks alone as preemption with a grace time begins, a requeue by hand.
    """
    checkout = user.folder / "checkout"
    for package in ("pirl", "jobs", "clusters", "tune"):
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    warned = replace(user, root=checkout).submit("warned", partition="low", warning_s=20)
    for file in ("pirl/train.py", "clusters/node/main.py", "jobs/batch/task.py"):  # what was submitted is what runs
        (checkout / file).write_text("raise SystemExit('this is not what was submitted')\n")
    rude = user.submit("rude", partition="rude")
    hold(has_begun, warned, rude)
    assert warned.state["nodes"] == rude.state["nodes"] == ["n1", "n2"]
    high = user.slurm.submit("sleep 1", user.folder, "--partition=high", "--nodes=3", "--exclusive")
    warned.wait_for_phase("saving")
    tell_workers(warned, signal.SIGCONT)
    user.wait_for_restart(1, warned, rude)
    user.slurm.wait_for(high, "COMPLETED")

    hold(Submitted.has_gone_on, rude, warned)
    user.slurm.ask("scancel", "--signal=TERM", rude.id)
    # SLURM looks at time limits every 30 s, and limits are whole minutes; an end may be nearer.
    user.slurm.ask("scontrol", "update", f"JobId={warned.id}", "EndTime=now+60")
    warned.wait_for_phase("saving")
    tell_workers(warned, signal.SIGCONT)
    user.wait_for_restart(2, rude)
    user.slurm.ask("scontrol", "requeue", rude.id)  # before Ray is up
    user.wait_until_done(warned, rude)

    for job, restarts in ((warned, 2), (rude, 3)):
        assert_same_end(job, undisturbed)
        assert f"restarts  {restarts}" in user.status(job)
    assert rude.state["history"][1] == "ended by a signal"
    assert warned.state["history"] == ["warned of the end", "warned of the end"]
    saved = set(re.findall(r"stopped after step (\d+)", warned.log))
    assert len(saved) == 2
    assert all(f"going on from checkpoint_{int(step):09d}" in warned.log for step in saved)
    gone_on = re.findall(r"going on from checkpoint_(\d+)", rude.log)
    assert len(gone_on) == 2
    assert all(int(step) % 8 == 0 for step in gone_on)  # those that are saved every 8 steps
    user.slurm.wait_until_nothing_is_left()


def test_hosts_die(user: User, undisturbed: Submitted) -> None:
    """One job may go on with fewer nodes, and does so at once; the other goes back to the queue.

    Both lose once all processes of their head, on a host that stays up, and once a host with a worker of both, which
    dies as when its power is cut.
    """
    fewer = user.submit("fewer", nodes={"min": 1, "max": 2})
    both = user.submit("both")
    hold(has_begun, fewer, both)
    assert fewer.state["nodes"] == both.state["nodes"] == ["n1", "n2"]
    kill_processes(user, fewer, "n1", rank=0)
    user.wait_for_restart(1, fewer)
    hold(Submitted.has_gone_on, fewer)
    assert fewer.state["nodes"] == ["n1", "n2"]
    user.slurm.cluster.kill("n2", silent=True)
    user.wait_for_restart(1, both)
    hold(Submitted.has_gone_on, both)
    assert both.state["nodes"] == ["n1", "n3"]
    user.wait_until_done(fewer)
    user.slurm.boot("n2")
    kill_processes(user, both, "n1", rank=0)
    user.wait_until_done(both)

    assert_same_end(both, undisturbed)
    _, second = both.state["history"]  # the first is told by who noticed first, the job or SLURM
    assert second == "the processes of the first node were lost"
    assert fewer.state["nodes"] == ["n1"]
    assert fewer.state["history"] == ["the processes of the first node were lost"]
    assert "going on with 1 of 2 nodes" in fewer.log
    expected, got = lines_of(undisturbed.run), lines_of(fewer.run)
    assert [line["step"] for line in got] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in got[:8]] == [line["loss"] for line in expected[:8]]
    # One worker for two from step 8 or so on: the batch norm sees the whole batch, so the losses are near only (7 %).
    assert got[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=0.15)
    user.slurm.wait_until_nothing_is_left()


def test_an_array_in_which_one_fails_and_a_sweep_that_is_cancelled(user: User) -> None:
    """Each of an array with its own arguments, folder and logs, told apart by number; of methods without a bank."""
    diverges = "--method.name=supervised --optim.lr=1e30 --optim.warmup-epochs=1 --checkpoint.every-steps=1"
    (user.folder / "runs.txt").write_text(
        f"--seed=1 --method.name=covariant --pretext.permutations=20 --run=good  # a comment\n\n{diverges} --run=bad\n"
    )
    array = [f"--cluster={user.profile(nodes=1)}", "--array=runs.txt"]
    line = ["--", "jobs/pretrain.py", "digits", *WITHOUT_BANK, "--cluster.loader-processes=0"]
    assert "#SBATCH --array=0-1%2" in user.type(*array, "--dry-run", *line).stdout
    out = replace(user, more_env={"SBATCH_EXPORT": "NONE"}).type(*array, *line).stdout
    number = re.match(r"job (\d+)_0   run", out)
    assert number, out
    folder = user.folder / "jobs/good-1"
    good, bad = (
        Submitted(f"{number[1]}_{n}", Folder(f"{user.folder}/runs/{run}"), folder)
        for n, run in enumerate(("good", "bad"))
    )
    small = [word for word in WITHOUT_BANK if "epochs" not in word]
    sweep = ["--", "tune/sweep.py", "digits_rotation", *small, "--name=cancelled"]
    each = ["--optim.epochs=500", "--evaluate-every=100", "--cluster.workers=1", "--cluster.loader-processes=0"]
    cancelled = user.submit_line("cancelled", [*sweep, *each, "--set", "optim.lr", "0.01", "0.03"])

    user.wait_until_done(good)
    assert json.loads(good.run.read("config.json"))["seed"] == 1
    wait_for(lambda: user.slurm.state(bad.id) == "FAILED", "it does not fail")
    assert "FAILED: error: the loss is" in user.status(bad)
    assert "ExitCode=1:0" in user.slurm.ask("scontrol", "show", "job", bad.id)
    logs = user.type("logs", bad.id, "-f", f"--job-folder={user.folder}/jobs", check=False)
    assert logs.returncode == 1
    assert "[0] error: the loss is" in logs.stdout
    assert "going on from" not in logs.stdout  # not tried again
    assert newest_checkpoint(bad.run)  # the last good one stays
    table = user.type("list", f"--job-folder={user.folder}/jobs").stdout
    assert re.search(rf"{good.id} +good +COMPLETED", table)

    trials = [cancelled.run / f"lr-{rate}_seed-0" for rate in ("0.01", "0.03")]
    wait_for(lambda: all(lines_of(trial) for trial in trials), f"not both trials train: {cancelled.log[-2000:]}")
    shown = user.type("tunnel", cancelled.id, f"--job-folder={user.folder}/jobs").stdout
    port = cancelled.state["head"]["dashboard_port"]
    assert shown == f"ssh -N -L 8265:127.0.0.1:{port} {getpass.getuser()}@{cancelled.state['head']['host']}\n"
    ask = [sys.executable, "-c", STATUS_OF, f"http://127.0.0.1:{port}/api/version"]
    there = user.slurm.cluster.enter(cancelled.state["head"]["host"], *ask)
    assert user.slurm.ask(*there) == "401", "it wants the token, also of who came through the tunnel"
    with pytest.raises(ConnectionRefusedError):  # on the net it is not to be reached
        socket.create_connection((cancelled.state["head"]["ip"], port), timeout=10)
    user.type("cancel", cancelled.id, f"--job-folder={user.folder}/jobs")
    wait_for(lambda: user.slurm.state(cancelled.id) == "CANCELLED", "it does not end")
    user.slurm.wait_until_nothing_is_left()
    assert "CANCELLED" in user.status(cancelled)

    (user.folder / "runs.txt").write_text("--run=same\n--run=same\n")
    twice = user.type(*array, *line, check=False)
    assert twice.returncode == 2
    assert "two runs of runs.txt have the folder" in twice.stderr


def test_a_wrong_request_is_refused_before_anything_is_submitted(user: User) -> None:
    def refused(*words: str) -> str:
        answer = user.type(*words, check=False)
        assert answer.returncode == 2, answer.stdout + answer.stderr
        assert "Traceback" not in answer.stderr
        return answer.stderr

    cluster = f"--cluster={user.profile()}"
    jobs = user.slurm.ask("squeue", "--noheader", "--states=all", "--format=%i").split()
    assert "did you mean loss.num_negatives?" in refused(cluster, *job_line("x", "--loss.num-negative=3"))
    assert "--cluster FILE is missing" in refused(*job_line("x"))
    assert "is no job file: behind -- comes one of jobs/pretrain.py" in refused(cluster, "--", "train.py")
    broken = user.profile(partition="hihg")
    assert "invalid partition specified: hihg" in refused(f"--cluster={broken}", *job_line("x"))
    broken = user.profile(cpus_per_node=64)
    told = refused(f"--cluster={broken}", *job_line("x"))
    assert "Requested node configuration is not available" in told
    assert "cpus_per_node = 64, and the largest node of partition low has 4" in told
    assert "no job" in refused("status", "nobody", f"--job-folder={user.folder}/jobs")
    # SLURM forgets old jobs meanwhile, so the two lists need not be equal.
    assert set(user.slurm.ask("squeue", "--noheader", "--states=all", "--format=%i").split()) <= set(jobs)
