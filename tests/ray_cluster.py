"""A real Ray cluster of two nodes that asks for a token, and the job on it; a fixture for the tests that need one."""

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
from safetensors.torch import load

from pirl.storage.folder import Folder

ROOT = Path(__file__).parents[1]
LIMIT_S = 480
SMALL = [
    "--model.width=4",
    "--data.batch-size=48",
    "--optim.epochs=2",
    "--loss.num-negatives=200",
    "--memory.init=random",
    "--checkpoint.log-every-steps=1",
    "--checkpoint.every-steps=8",
    "--evaluation.enabled=false",
]
"""60 steps of about 30 ms."""
WITHOUT_BANK = [word for word in SMALL if not word.startswith(("--loss.", "--memory."))]
"""The same of a method that has no memory bank."""
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
    scratch: Path
    """Of Ray, with its logs."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and a second node with 2 CPUs each, in processes of their own, that ask for a token."""
    folder = tmp_path_factory.mktemp("cluster")
    scratch = Path(f"/tmp/pirl-{secrets.token_hex(3)}")  # socket paths may not be longer than 107 bytes
    private = folder / "private"
    private.mkdir()
    (folder / "token").write_text(secrets.token_hex(32))
    env = clean_environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # else a node that is told to stop waits 30 s for its work
    *ports, first_agent, second_agent = free_ports(4)  # Ray's own choice for agents is one that other Rays make too
    gcs, dashboard = (f"127.0.0.1:{port}" for port in ports)
    common = ["--block", "--num-cpus=2", "--disable-usage-stats", "--object-store-memory=100000000"]
    head = ["ray", "start", "--head", "--node-ip-address=127.0.0.1", f"--port={gcs.rpartition(':')[2]}"]
    head += [f"--dashboard-port={dashboard.rpartition(':')[2]}", f"--temp-dir={scratch}/a", *common]
    head.append(f"--dashboard-agent-listen-port={first_agent}")
    node = [
        "ray",
        "start",
        f"--address={gcs}",
        "--node-ip-address=127.0.0.1",
        f"--temp-dir={scratch}/b",
        f"--dashboard-agent-listen-port={second_agent}",
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
        yield Cluster(gcs, f"http://{dashboard}", env, private, scratch)
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
    return env | {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}


def free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait_for(condition: Any, failure: str, every_s: float = 0.1) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, failure
        time.sleep(every_s)


def pretrain(env: dict[str, str], *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "jobs/pretrain.py", "digits", *SMALL, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def lines(run: Path) -> list[dict[str, float]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def lines_of(run: Folder) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run.find("metrics.jsonl") or "").splitlines()]


def weights(run: Path) -> dict[str, Any]:
    return weights_of(Folder(str(run)))


def weights_of(run: Folder) -> dict[str, Any]:
    checkpoint = json.loads(run.read("result.json"))["checkpoint"].rpartition("/")[2]
    return load((run / checkpoint).read_bytes("trunk.safetensors"))


def train_workers(cluster: Cluster) -> list[int]:
    """Processes of Ray Train's workers on this cluster."""
    return processes(cluster, b"RayTrainWorker")


def processes(cluster: Cluster, name: bytes) -> list[int]:
    """Processes on this cluster, known by its token's path, with this in their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ours = cluster.env["RAY_AUTH_TOKEN_PATH"].encode() in (process / "environ").read_bytes()
            if ours and name in (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:  # it has ended meanwhile
            continue
    return sorted(found)


def submit(cluster: Cluster, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the job as README says, on the cluster's own nodes."""
    command = ["ray", "job", "submit", f"--address={cluster.dashboard}", "--working-dir=.", "--", "python"]
    command += ["jobs/pretrain.py", "digits", *SMALL, *map(str, arguments)]
    deadline = time.monotonic() + LIMIT_S
    while True:
        answer = subprocess.run(command, cwd=ROOT, env=cluster.env, capture_output=True, text=True, timeout=LIMIT_S)
        # A cluster that has just started takes no jobs for some seconds.
        if "No available agent" not in answer.stderr or time.monotonic() > deadline:
            return answer
        time.sleep(1)


@pytest.fixture(scope="session")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a job that was submitted as README says, on both nodes."""
    storage = tmp_path_factory.mktemp("runs")
    # With loader processes, which the other runs do without: they change nothing.
    answer = submit(cluster, *SPREAD, "--cluster.loader-processes=1", f"--storage={storage}")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "epoch   2.00/2" in answer.stdout
    return storage / "digits"
