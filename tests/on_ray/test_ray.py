"""The job on a real Ray cluster: two nodes, token authentication, refusals, Ctrl-C; test_store.py kills workers."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
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
    WITHOUT_BANK,
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


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files; its path is short, as sockets lie in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def left_in(temporary: Path) -> list[str]:
    """What is left there of ours, and of multiprocessing, by name."""
    return [path.name for path in temporary.iterdir() if path.is_dir() and path.name.startswith(("pirl-", "pymp-"))]


def test_ctrl_c_on_a_terminal_ends_in_seconds_and_the_run_goes_on(tmp_path: Path, temporary: Path) -> None:
    """A covariant network on a Ray of its own, as on a laptop, where each process takes from the training.

    The terminal shows what the driver does and then the steps, which come from the worker.
    """
    env = {**clean_environment(), "TMPDIR": str(temporary)}
    command = [sys.executable, "jobs/pretrain.py", "digits_jigsaw", *WITHOUT_BANK]
    command += [f"--storage={tmp_path}", "--optim.epochs=8"]
    terminal = OnTerminal(command, columns=150, env={**env, "TEST_OF_CTRL_C": str(tmp_path)})
    reading = threading.Thread(target=terminal.read_until)
    reading.start()
    needed = {"TrainController", "SynchronizationActor", "RayTrainWorker"}

    def has_ended() -> bool:
        return terminal.process.poll() is not None

    def actors() -> set[str]:
        titles = marked(f"TEST_OF_CTRL_C={tmp_path}")
        others = {"IDLE", "DashboardAgent", "RuntimeEnvAgent"}
        return {name for title in titles for name in re.findall(r"^ray::(\w+)", title)} - others

    # The workers come last. Ray gives a process another name now and then, for a moment.
    wait_for(lambda: actors() == needed or has_ended(), "it needs others")
    assert not [title for title in marked(f"TEST_OF_CTRL_C={tmp_path}") if "log_monitor.py" in title]
    wait_for(lambda: len(lines(tmp_path / "digits_jigsaw")) >= 20 or has_ended(), "no progress")
    assert list(temporary.glob("pirl-*/session_*/logs"))  # of Ray
    interrupted = time.monotonic()
    terminal.type("\x03")
    reading.join()
    assert terminal.end() == 1, terminal.text
    assert time.monotonic() - interrupted < 60  # a stalled abort would take Ray's minutes
    assert "type the same command again" in terminal.text
    assert "Traceback" not in terminal.text
    assert left_in(temporary) == []

    began, first_step = (
        next(at for at, piece in terminal.writes if re.search(text, piece)) for text in ("0:00  ", r"step \d+/")
    )
    assert began < first_step / 5, "a sign of life before Ray, which takes seconds"
    screens = terminal.screens()
    live = [[row for row in rows if re.match(r"\d+:\d\d  ", row)] for rows in screens]
    assert max(map(len, live)) == 1
    seen = dict.fromkeys(re.sub(r"^\S+  |[\d,]+/.*", "", row).strip() for rows in live for row in rows)
    expected = ["starting Ray on this machine", "starting 2 workers", "step"]
    assert [text for text in seen if text in expected] == expected, list(seen)
    assert len(live[-1]) == 1, "what it was at stays"

    answer = subprocess.run([*command, "--no-ray"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT_S)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert re.search(r"going on from checkpoint_\d+", answer.stdout)
    assert [line["step"] for line in lines(tmp_path / "digits_jigsaw")] == list(range(1, 241))
    assert left_in(temporary) == []
