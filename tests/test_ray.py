"""The job on a real Ray cluster: two nodes, token authentication, killed workers, refusals, Ctrl-C."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from pirl.digits import ensure_digits
from pirl.folder import Folder
from pirl.runs import newest_checkpoint

ROOT = Path(__file__).parents[1]
LIMIT_S = 240
EPOCHS = 5
SMALL = [
    "--model.width=4",
    "--optim.epochs=5",
    "--loss.num-negatives=200",
    "--memory.init=random",
    "--checkpoint.log-every-steps=1",
    "--checkpoint.every-steps=8",
    "--evaluation.enabled=false",
]
"""60 steps of about 50 ms."""
SPREAD = ["--cluster.cpus-per-worker=2"]
"""Two workers that do not fit on one node."""


WAIT_FOR_NODES = """
import ray, time
ray.init(logging_level="ERROR")
while sum(node["Alive"] for node in ray.nodes()) < 2:
    time.sleep(0.2)
"""


@dataclass
class Cluster:
    """Addresses and environment of a running cluster."""

    gcs: str
    dashboard: str
    env: dict[str, str]
    private: Path
    """A folder that is another one on the second node."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and a second node with 2 CPUs each, in processes of their own, that ask for a token."""
    folder = tmp_path_factory.mktemp("cluster")
    scratch = Path(f"/tmp/pirl-{secrets.token_hex(3)}")  # socket paths may not be longer than 107 bytes
    private = folder / "private"
    private.mkdir()
    (folder / "token").write_text(secrets.token_hex(32))
    env = clean_environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # else a node that is told to stop waits 30 s for its work
    gcs, dashboard = (f"127.0.0.1:{port}" for port in free_ports(2))
    common = ["--block", "--num-cpus=2", "--disable-usage-stats", "--object-store-memory=100000000"]
    head = ["ray", "start", "--head", "--node-ip-address=127.0.0.1", f"--port={gcs.rpartition(':')[2]}"]
    head += [f"--dashboard-port={dashboard.rpartition(':')[2]}", f"--temp-dir={scratch}/a", *common]
    node = [
        "ray",
        "start",
        f"--address={gcs}",
        "--node-ip-address=127.0.0.1",
        f"--temp-dir={scratch}/b",
        *common,
    ]
    # The second node sees another folder in place of `private`, as a machine of its own would.
    hidden = f"mount -t tmpfs none {private} && exec " + " ".join(node)
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    starts = [head, [*unshare, "sh", "-c", hidden]]
    processes = []
    log = folder / "ray.log"
    try:
        for start in starts:
            with log.open("a") as output:
                processes.append(
                    subprocess.Popen(start, env=env, stdout=output, stderr=output, start_new_session=True, cwd=folder)
                )
            started = len(processes)
            wait_for(lambda n=started: log.read_text().count("Ray runtime started") == n, "a node did not start")
        # A node that says it has started may not be known to the head yet.
        wait = [sys.executable, "-c", WAIT_FOR_NODES]
        subprocess.run(wait, env={**env, "RAY_ADDRESS": gcs}, check=True, timeout=LIMIT_S)
        yield Cluster(gcs, f"http://{dashboard}", env, private)
    finally:
        for process in reversed(processes):
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(scratch, ignore_errors=True)


def clean_environment() -> dict[str, str]:
    """This environment without Ray's settings, and with this Python's commands first."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return env | {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "OMP_NUM_THREADS": "1"}


def free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait_for(condition: Any, failure: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, failure
        time.sleep(0.1)


def pretrain(env: dict[str, str], *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "jobs/pretrain.py", "digits", *SMALL, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def lines(run: Path) -> list[dict[str, float]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def weights(run: Path) -> dict[str, Any]:
    return load_file(Path(json.loads((run / "result.json").read_text())["checkpoint"]) / "trunk.safetensors")


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a job that was submitted as README says, on both nodes."""
    storage = tmp_path_factory.mktemp("runs")
    command = ["ray", "job", "submit", f"--address={cluster.dashboard}", "--working-dir=.", "--", "python"]
    # With loader processes, which the other runs do without: they change nothing.
    command += ["jobs/pretrain.py", "digits", *SMALL, *SPREAD, "--cluster.loader-processes=1", f"--storage={storage}"]
    deadline = time.monotonic() + LIMIT_S
    while True:
        answer = subprocess.run(command, cwd=ROOT, env=cluster.env, capture_output=True, text=True, timeout=LIMIT_S)
        # A cluster that has just started takes no jobs for some seconds.
        if "No available agent" not in answer.stderr or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert f"epoch   {EPOCHS}.00/{EPOCHS}" in answer.stdout
    return storage / "digits"


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


def test_a_killed_worker_changes_nothing(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    """SIGKILL in mid-epoch: the run goes on from its last checkpoint and ends with the same weights."""
    env = {**cluster.env, "RAY_ADDRESS": cluster.gcs}
    process = pretrain(env, *SPREAD, f"--storage={tmp_path}")
    wait_for(lambda: len(lines(tmp_path / "digits")) >= 20 or process.poll() is not None, "no progress")
    workers = train_workers(cluster)
    assert workers
    os.kill(workers[-1], signal.SIGKILL)
    code, out, err = finish(process)
    assert code == 0, out + err
    assert "going on from checkpoint_" in out
    assert [line["step"] for line in lines(tmp_path / "digits")] == list(range(1, 61))
    expected, got = weights(undisturbed), weights(tmp_path / "digits")
    assert all(bool((expected[name] == got[name]).all()) for name in expected)


def train_workers(cluster: Cluster) -> list[int]:
    """Processes of Ray Train's workers on this cluster, by its token's path."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ours = cluster.env["RAY_AUTH_TOKEN_PATH"].encode() in (process / "environ").read_bytes()
            if ours and b"RayTrainWorker" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:  # it has ended meanwhile
            continue
    return sorted(found)


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


def test_a_loss_that_is_no_number_ends_the_job_once(cluster: Cluster, tmp_path: Path) -> None:
    """Not retried, and the last good checkpoint stays."""
    env = {**cluster.env, "RAY_ADDRESS": cluster.gcs}
    code, out, err = finish(
        pretrain(
            env, f"--storage={tmp_path}", "--optim.lr=1e30", "--optim.warmup-epochs=1", "--checkpoint.every-steps=1"
        )
    )
    assert code == 1, out + err
    assert "learning rate" in err
    assert "Traceback" not in err
    assert "going on from" not in out
    assert newest_checkpoint(Folder(f"{tmp_path}/digits"))


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


def test_ctrl_c_ends_in_seconds_and_the_run_goes_on(tmp_path: Path) -> None:
    """On a Ray of its own, as on a laptop."""
    process = pretrain(clean_environment(), f"--storage={tmp_path}")
    wait_for(lambda: len(lines(tmp_path / "digits")) >= 20 or process.poll() is not None, "no progress")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert time.monotonic() - began < 30  # a stalled abort would take Ray's minutes
    assert code == 1, out + err
    assert "type the same command again" in err
    assert "Traceback" not in err
    code, out, err = finish(pretrain(clean_environment(), f"--storage={tmp_path}"))
    assert code == 0, out + err
    assert "going on from checkpoint_" in out
    assert [line["step"] for line in lines(tmp_path / "digits")] == list(range(1, 61))
