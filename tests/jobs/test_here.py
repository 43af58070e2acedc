"""The job without Ray, as a command: alone and under torchrun, done again, gone on with, diverged, refused."""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch

from jobs.live_line import LiveLine
from jobs.pretrain import main
from jobs.run.checks import check_request
from jobs.run.here import run_here
from jobs.run.on_ray import following
from jobs.run.outcome import conclude, interruption
from pirl import dist
from pirl.config import Config
from pirl.runs.checkpoint_folder import newest_checkpoint, prune_checkpoints
from pirl.runs.run import Run, write_failure
from pirl.storage.folder import Folder
from tests.runs.test_run import write_checkpoint
from tests.s3 import Store

ROOT = Path(__file__).parents[2]
LIMIT_S = 240  # for a machine that is busy with other things; a run takes 10 s
SMALL = ["--model.width=4", "--loss.num-negatives=200", "--memory.init=random"]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node"]


def pretrain(storage: Path, *arguments: str, start: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *start, "jobs/pretrain.py", "digits", *SMALL, f"--storage={storage}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)


def test_a_run_in_one_process_is_done_once_and_goes_on_under_torchrun(tmp_path: Path) -> None:
    run = tmp_path / "digits"
    first = pretrain(tmp_path, "--no-ray", "--optim.epochs=2", "--checkpoint.every-steps=10")
    assert first.returncode == 0, first.stderr
    assert "res5 linear" in first.stdout
    assert sorted(path.name for path in run.glob("checkpoint_*")) == ["checkpoint_000000020", "checkpoint_000000024"]
    reached = json.loads((run / "result.json").read_text())
    assert reached["evaluation"]["knn"]["k"] == 20

    again = pretrain(tmp_path, "--no-ray", "--optim.epochs=2")
    assert again.returncode == 0, again.stderr
    assert "was done before" in again.stdout

    longer = ["--optim.epochs=3", "--resume=must", "--evaluation.enabled=false"]
    more = pretrain(tmp_path, *longer, start=(*TORCHRUN, "2"))
    assert more.returncode == 0, more.stderr
    assert "going on from checkpoint_000000024, with 2 workers" in more.stdout
    result = json.loads((run / "result.json").read_text())
    assert result["metrics"]["step"] == 36
    assert result["evaluation"] is None  # and not that of the shorter run
    assert sorted(path.name for path in run.glob("checkpoint_*")) == ["checkpoint_000000024", "checkpoint_000000036"]


@pytest.mark.parametrize("left", [{"WORLD_SIZE": "2"}, {"RANK": "1", "LOCAL_RANK": "7", "WORLD_SIZE": "9"}])
def test_what_a_launcher_left_in_the_environment_does_not_make_one_process_wait_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: dict[str, str]
) -> None:
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    seen: list[tuple[int, torch.device]] = []

    def work(config: Config, folder: Folder, scratch: Path, publish: object, device: torch.device, **_: object) -> None:
        seen.append((dist.world_size(), device))

    monkeypatch.setattr("jobs.run.here.work", work)
    run = Run(Folder(str(tmp_path)), Config())
    check_request(run, use_ray=False)
    assert run_here(run, LiveLine(sys.stdout)) == 1  # nothing was trained
    assert seen == [(1, torch.device("cpu"))]
    assert (tmp_path / "config.json").exists()  # rank 0 wrote it


def test_from_the_command_to_backward_there_are_four_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who steps through the program with a debugger, or reads a profile, sees each for a reason."""
    seen: list[list[str]] = []

    def backward(_: torch.Tensor) -> None:
        folders = tuple(str(ROOT / folder) for folder in ("pirl", "jobs", "clusters"))
        seen.append([frame.name for frame in traceback.extract_stack() if frame.filename.startswith(folders)])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    settings = [*SMALL, "--no-ray", "--cluster.loader-processes=0", f"--storage={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["jobs/pretrain.py", "digits", *settings])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main() == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [["main", "run_here", "work", "train"]]


def test_a_run_that_diverged_goes_on_from_what_is_left_at_a_lower_rate(tmp_path: Path) -> None:
    arguments = ["--no-ray", "--optim.epochs=2", "--evaluation.enabled=false", "--checkpoint.every-steps=1"]
    diverged = pretrain(tmp_path, *arguments, "--optim.lr=1e30", "--optim.warmup-epochs=1")
    assert diverged.returncode == 1, diverged.stdout
    assert "learning rate" in diverged.stderr
    assert "same command again, with --resume must and a lower --optim.lr" in diverged.stderr
    assert "Traceback" not in diverged.stderr
    assert newest_checkpoint(Folder(f"{tmp_path}/digits")) is not None
    lower = pretrain(tmp_path, *arguments, "--optim.lr=0.01", "--resume=must")
    assert lower.returncode == 0, lower.stdout + lower.stderr


@pytest.mark.parametrize(
    ("start", "arguments", "message"),
    [
        ((*TORCHRUN, "65"), [], "--nproc-per-node 65 is more than the 64 streams"),
        ((), ["--no-ray", "--cluster.gpus-per-worker=0.5"], "needs Ray"),
        ((), ["--no-ray", "--storage=s4://bucket/runs"], "s4"),
        ((), ["--no-ray", "--storage=s3://"], "names no bucket: type s3://bucket/runs"),
        ((), ["--no-ray", "--storage=pyproject.toml"], "is a file"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, start: tuple[str, ...], arguments: list[str], message: str
) -> None:
    answer = pretrain(tmp_path, *arguments, start=start)
    assert answer.returncode == (1 if start else 2)  # torchrun answers 1 to any failure of its processes
    assert message in answer.stderr
    assert answer.stderr.count("error: ") == 1 or start
    assert not list(tmp_path.iterdir())


def test_the_first_cause_is_told_soon_when_the_store_is_down_too(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pirl.storage.folder.HURRY_S", 1.0)
    folder = Folder(store.uri("runs", "a"), store.options, deadline_s=300)
    for method in ("GET", "PUT"):
        store.fail("slowdown", 10_000, method=method)
    began = time.monotonic()
    write_failure(folder, "the loss is nan", 10)
    assert conclude(Run(folder, Config()), began, "error: the loss is nan") == 1
    assert time.monotonic() - began < 30  # and not twice the deadline
    err = capsys.readouterr().err
    assert err == "error: the loss is nan\nto go on from the last checkpoint, type the same command again\n"


def test_what_is_followed_may_be_cut_within_a_character(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "loss 5.7   τ 0.07\n".encode()
    cut = line.index("τ".encode()) + 1
    with following(Folder(str(tmp_path)), "train.log", LiveLine(sys.stdout)):
        for part in (line[:cut], line[cut:]):
            with (tmp_path / "train.log").open("ab") as file:
                file.write(part)
            time.sleep(0.7)  # it is looked at every half second
    assert capsys.readouterr().out == line.decode()


@pytest.mark.parametrize(
    ("saved", "left", "advice"),
    [
        ([10, 20, 30], "checkpoint_000000020", "to go on from checkpoint_000000020"),
        ([30], None, "to start again, as there is no checkpoint yet"),
    ],
)
def test_a_loss_that_is_no_number_right_after_a_checkpoint_takes_that_one_and_says_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], saved: list[int], left: str | None, advice: str
) -> None:
    folder = Folder(str(tmp_path))
    for step in saved:
        write_checkpoint(folder, step)
    prune_checkpoints(folder, Config().checkpoint.keep)  # no config allows fewer
    write_failure(folder, "the loss is nan", 30)
    assert conclude(Run(folder, Config()), 0.0, None) == 1
    remedy = "type the same command again, with --resume must and a lower --optim.lr or --optim.clip-norm 1"
    assert capsys.readouterr().err == f"error: the loss is nan\n{advice}, {remedy}\n"
    newest = newest_checkpoint(folder)
    assert (newest and newest.name) == left


@pytest.mark.parametrize("metrics", ["", '{"step": 10, "retries": 0, "skipped": 0}\n{"step": 20, "retr'])
def test_numbers_that_were_cut_off_are_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metrics: str
) -> None:
    (tmp_path / "metrics.jsonl").write_text(metrics)
    assert conclude(Run(Folder(str(tmp_path)), Config()), 0.0, None) == 1
    assert "the last checkpoint did not reach" in capsys.readouterr().err


def begin(storage: Folder, *arguments: str, env: dict[str, str]) -> subprocess.Popen[str]:
    """As `pretrain`, and does not wait for the end."""
    command = [sys.executable, "jobs/pretrain.py", "digits", *SMALL, f"--storage={storage}", *arguments]
    env = {**os.environ, **env}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("where", ["disk", "store"])
def test_a_run_that_is_ended_leaves_nothing_temporary_and_one_that_is_killed_until_the_next(
    tmp_path: Path, store: Store, where: str
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    folder = Folder(str(tmp_path / "runs") if where == "disk" else store.uri("runs"), store.direct)
    arguments = ["--no-ray", "--optim.epochs=50", "--checkpoint.every-steps=1", "--evaluation.enabled=false"]
    env = {"TMPDIR": str(temporary), "AWS_ENDPOINT_URL": store.direct["endpoint_url"]}

    def left() -> list[Path]:
        found = [*temporary.glob("pirl-*/**/*"), *(tmp_path / "runs" / "digits").glob(".scratch/**/*")]
        return [path for path in found if "checkpoint_" in str(path) or path.name == "train.log"]

    for number in (signal.SIGKILL, signal.SIGTERM):
        before = newest_checkpoint(folder / "digits")
        with begin(folder, *arguments, env=env) as process:
            while newest_checkpoint(folder / "digits") == before or not left():
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(number)
            out, err = process.communicate(timeout=LIMIT_S)
        if number == signal.SIGKILL:
            assert left()
    assert process.returncode == 1, out + err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not left()
    assert not [path for path in temporary.glob("pirl-*") if path.is_dir()]
    assert not (tmp_path / "runs" / "digits" / ".scratch").exists()


def test_what_a_worker_of_ray_raised_is_told_before_where() -> None:
    """A sweep has room for the first line alone."""
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    def fail() -> None:
        try:
            raise MemoryError("2 GB are not there")
        except MemoryError as error:
            failure = UserExceptionWithTraceback(error, traceback.format_exc())
        raise WorkerGroupError("rank 1", {1: failure})

    with interruption() as ended:
        fail()
    first, second, *_ = (ended.why or "").splitlines()
    assert first == "error: MemoryError: 2 GB are not there"
    assert second.startswith("Traceback")
