"""The job on a real Ray cluster: two nodes, token authentication, refusals, Ctrl-C; test_store.py kills workers."""

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pirl.data.digits import ensure_digits
from tests.ray_cluster import (
    LIMIT_S,
    ROOT,
    SMALL,
    Cluster,
    clean_environment,
    finish,
    lines,
    pretrain,
    wait_for,
    weights,
)
from tests.terminal import OnTerminal


def test_submitted_job_leaves_a_whole_run_folder(undisturbed: Path) -> None:
    result = json.loads((undisturbed / "result.json").read_text())
    assert result["metrics"]["step"] == 60
    assert [line["step"] for line in lines(undisturbed)] == list(range(1, 61))
    assert {"config.json", "train.log"} <= {path.name for path in undisturbed.iterdir()}
    assert list(undisturbed.glob("events.out.tfevents.*"))
    assert len(list(undisturbed.glob("checkpoint_0*"))) == 2  # checkpoint.keep


def test_without_the_token_nothing_is_started(cluster: Cluster) -> None:
    env = {**cluster.env, "RAY_AUTH_MODE": "disabled"}
    del env["RAY_AUTH_TOKEN_PATH"]
    command = ["ray", "job", "submit", f"--address={cluster.dashboard}", "--working-dir=.", "--", "true"]
    answer = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT_S)
    assert answer.returncode != 0
    assert "token" in (answer.stdout + answer.stderr).lower()


def test_what_the_cluster_cannot_carry_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    env = {**cluster.env, "RAY_ADDRESS": cluster.gcs}
    for arguments, message in (
        (["--cluster.workers=3", "--cluster.cpus-per-worker=2"], "--cluster.workers 2"),
        (["--cluster.gpus-per-worker=1"], "0 GPUs"),
        ([f"--storage={cluster.private}"], "is not shared"),
    ):
        code, out, err = finish(pretrain(env, f"--storage={tmp_path}", *arguments))
        assert code == 2, (arguments, out, err)
        assert message in err
        assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_torchrun_gives_the_same_weights(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    """Two processes without Ray: Ray changes nothing in what is learned."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "jobs/pretrain.py", "digits"]
    answer = subprocess.run(
        [*command, *SMALL, f"--storage={tmp_path}"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    expected, got = weights(undisturbed), weights(tmp_path / "digits")
    assert all(bool((expected[name] == got[name]).all()) for name in expected)


def test_a_corrupt_image_ends_the_job_once(cluster: Cluster, tmp_path: Path) -> None:
    """Only one worker reads it, and trying again would not help."""
    shutil.copytree(ensure_digits(), tmp_path / "data")
    shard = tmp_path / "data" / "shard-00000.parquet"
    data = bytearray(shard.read_bytes())
    data[data.rindex(b"IDAT") + 20] ^= 1  # inside the last image
    shard.write_bytes(data)
    env = {**cluster.env, "RAY_ADDRESS": cluster.gcs}
    code, out, err = finish(pretrain(env, f"--storage={tmp_path}", f"--data.uri={tmp_path / 'data'}"))
    assert code == 1, out + err
    assert "shard-00000.parquet: row 1437 (id 1437) does not have its checksum" in err
    assert "Traceback" not in err
    assert "going on from" not in out


def marked(mark: str) -> list[str]:
    """The command lines of all processes that have this in their environment, as what a marked one starts has too."""
    titles = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if mark.encode() in (process / "environ").read_bytes():
                titles.append((process / "cmdline").read_text().replace("\0", " "))
    return titles


def test_a_terminal_shows_what_the_driver_and_then_a_worker_do(tmp_path: Path) -> None:
    """On a Ray of its own; the steps come from the worker, and the last line of them stays."""
    command = [sys.executable, "jobs/pretrain.py", "digits", *SMALL, f"--storage={tmp_path}"]
    terminal = OnTerminal(command, columns=150, env=clean_environment())
    assert terminal.end() == 0, terminal.text
    began, first_step = (next(at for at, piece in terminal.writes if text in piece) for text in ("0:00  ", "step 1/"))
    assert began < first_step / 5, "a sign of life before Ray, which takes seconds"
    screens = terminal.screens()
    live = [[row for row in rows if re.match(r"\d+:\d\d  ", row)] for rows in screens]
    assert max(map(len, live)) == 1
    seen = dict.fromkeys(re.sub(r"^\S+  |[\d,]+/.*", "", row).strip() for rows in live for row in rows)
    expected = ["starting Ray on this machine", "starting 2 workers", "step"]
    assert [text for text in seen if text in expected] == expected, list(seen)
    log = (tmp_path / "digits" / "train.log").read_text().splitlines()
    assert [row for row in screens[-1] if row.startswith("epoch ")] == [log[-1]]
    assert live[-1] == []


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files; its path is short, as sockets lie in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def left_in(temporary: Path) -> list[str]:
    """What is left there of ours, and of multiprocessing, by name."""
    return [path.name for path in temporary.iterdir() if path.is_dir() and path.name.startswith(("pirl-", "pymp-"))]


def test_ctrl_c_ends_in_seconds_and_the_run_goes_on(tmp_path: Path, temporary: Path) -> None:
    """On a Ray of its own, as on a laptop, where each process takes from the training."""
    longer = [f"--storage={tmp_path}", "--optim.epochs=4"]
    clean = {**clean_environment(), "TMPDIR": str(temporary)}
    process = pretrain({**clean, "TEST_OF_CTRL_C": str(tmp_path)}, *longer)
    needed = {"TrainController", "SynchronizationActor", "RayTrainWorker"}

    def actors() -> set[str]:
        titles = marked(f"TEST_OF_CTRL_C={tmp_path}")
        others = {"IDLE", "DashboardAgent", "RuntimeEnvAgent"}
        return {name for title in titles for name in re.findall(r"^ray::(\w+)", title)} - others

    # The workers come last. Ray gives a process another name now and then, for a moment.
    wait_for(lambda: actors() == needed or process.poll() is not None, "it needs others")
    assert not [title for title in marked(f"TEST_OF_CTRL_C={tmp_path}") if "log_monitor.py" in title]
    wait_for(lambda: len(lines(tmp_path / "digits")) >= 20 or process.poll() is not None, "no progress")
    assert list(temporary.glob("pirl-*/session_*/logs"))  # of Ray
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert time.monotonic() - began < 30  # a stalled abort would take Ray's minutes
    assert code == 1, out + err
    assert "type the same command again" in err
    assert "Traceback" not in err
    assert left_in(temporary) == []
    code, out, err = finish(pretrain(clean, *longer, "--no-ray"))
    assert code == 0, out + err
    assert left_in(temporary) == []
    assert "going on from checkpoint_" in out
    assert [line["step"] for line in lines(tmp_path / "digits")] == list(range(1, 121))
