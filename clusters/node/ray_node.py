"""One node's part of a job's own Ray cluster, with ports and a folder that no other job uses."""

import ctypes
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clusters.node.this_node import Resources, ThisNode
from clusters.profile import PORTS_PER_NODE
from pirl.errors import NotStarted

MANY_NODES = 10_000
"""The most that Ray's dashboard tells of at once; it tells of a hundred if it is not asked for more."""

TRIES = 3
"""How often Ray is started anew, on other ports, when it ends while it starts."""

OWN_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # no wait for others at the end
    # A run has some processes beside its workers: on a few cores Ray would warn of so many.
    "RAY_worker_maximum_startup_concurrency": str(max(16, os.cpu_count() or 1)),
}
"""Settings of a Ray that is there for one command or job only."""

SERVICES = (
    *("membership", "gcs", "dashboard", "client", "node_manager", "object_manager"),
    *("agent_http", "agent_grpc", "runtime_env", "metrics"),
)
"""What listens on the first ports of a node's hundred; Ray's workers have the others."""


FOREIGN = ("RAY_ADDRESS", "RAY_AUTH_TOKEN")
"""What a user's shell may say of another Ray."""


@dataclass(frozen=True)
class Ports:
    """The ports of a job on one node.

    Attributes:
        first: Of a hundred.
    """

    first: int

    def __getitem__(self, service: str) -> int:
        return self.first + SERVICES.index(service)

    @property
    def workers(self) -> tuple[int, int]:
        """First and last port of Ray's workers."""
        return self.first + len(SERVICES), self.first + PORTS_PER_NODE - 1

    def are_free(self, ip: str) -> bool:
        """Whether nothing listens on the ports of the services; the dashboard's is on loopback."""
        return is_free("127.0.0.1", self["dashboard"]) and all(is_free(ip, self[service]) for service in SERVICES)

    def take(self, ip: str) -> socket.socket | None:
        """Keeps other jobs off until the socket is closed; None where one was first, or something listens."""
        lock = socket.socket(socket.AF_UNIX)
        with suppress(OSError):
            lock.bind(f"\0pirl-ports-{self.first}")  # an abstract name: of this host's net, and gone with this process
            if self.are_free(ip):
                return lock
        lock.close()
        return None


@dataclass
class RayNode:
    """A running Ray node.

    Attributes:
        process: `ray start --block`, which all its processes end with.
        log: What it says.
        lock: On the ports: Ray takes seconds until it listens, and the membership listens after it.
    """

    ip: str
    ports: Ports
    process: subprocess.Popen[bytes]
    log: Path
    lock: socket.socket

    @property
    def problem(self) -> str:
        """That it has ended, and its last words; empty while it runs."""
        code = self.process.poll()
        return "" if code is None else f"Ray ended with code {code}:\n{tail(self.log)}"


def candidates(job_id: str, first: int, last: int) -> Iterator[Ports]:
    """All hundreds of ports in a range, from one on that depends on the job: two jobs seldom want the same."""
    count = (last - first + 1) // PORTS_PER_NODE
    start = int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:4], "big")
    yield from (Ports(first + (start + n) % count * PORTS_PER_NODE) for n in range(count))


def start_ray(
    node: ThisNode, environment: dict[str, str], head_address: str | None, give_up: Callable[[], bool]
) -> RayNode:
    """Starts Ray on this node and returns when it listens.

    Args:
        node: Its logs and sockets lie in this node's scratch folder.
        environment: For all of its processes.
        head_address: `ip:port` of the head node; None starts the head.
        give_up: Whether it is not wanted any more.

    Raises:
        NotStarted: No ports are free, or Ray ended or did not listen in time; with the last lines of its output.
    """
    ip, limit_s = node.ip, node.profile.start_s
    problem = "no hundred ports of the range are free"
    deadline = time.monotonic() + limit_s
    ports = candidates(node.folder.job_id, *node.profile.ports)
    taken = ((candidate, lock) for candidate in ports if (lock := candidate.take(ip)))
    for attempt, (candidate, lock) in zip(range(TRIES), taken, strict=False):
        command = ray_command(ip, candidate, node.resources, node.scratch / f"r{attempt}", head_address)
        log = node.scratch / f"start{attempt}.log"
        with log.open("wb") as output:
            process = start_process(command, environment, stdout=output)
        services = ["node_manager"] + ([] if head_address else ["gcs", "dashboard"])
        while process.poll() is None and time.monotonic() < deadline and not give_up():
            if all(listens(ip if s != "dashboard" else "127.0.0.1", candidate[s]) for s in services):
                return RayNode(ip, candidate, process, log, lock)
            time.sleep(0.1)
        state = f"ended with code {process.poll()}" if process.poll() is not None else f"was not up after {limit_s:g} s"
        problem = f"ray start {state}:\n{tail(log)}"
        print(problem, flush=True)
        end(process)
        lock.close()
        if time.monotonic() > deadline or give_up():
            break
    raise NotStarted(problem)


def ray_command(ip: str, ports: Ports, resources: Resources, folder: Path, head_address: str | None) -> list[str]:
    """The command that runs a Ray node until it is ended.

    Not without `--block`: what Ray starts would outlive the job.
    """
    role = [f"--address={head_address}"]
    if not head_address:
        role = ["--head", f"--port={ports['gcs']}", f"--ray-client-server-port={ports['client']}"]
        role += ["--dashboard-host=127.0.0.1", f"--dashboard-port={ports['dashboard']}"]
    sizes = [f"--num-cpus={resources.cpus}", f"--num-gpus={resources.gpus}"]
    store_bytes = 10**9
    if resources.memory_bytes:
        store_bytes = min(store_bytes, resources.memory_bytes // 10)
        sizes.append(f"--memory={resources.memory_bytes - store_bytes}")
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
        *role,
        f"--node-ip-address={ip}",
        f"--temp-dir={folder}",
        "--include-log-monitor=false",  # it would send all output to the driver, which shows train.log instead
        f"--object-store-memory={store_bytes}",  # training sends next to nothing through it
        *sizes,
        f"--node-manager-port={ports['node_manager']}",
        f"--object-manager-port={ports['object_manager']}",
        f"--dashboard-agent-listen-port={ports['agent_http']}",
        f"--dashboard-agent-grpc-port={ports['agent_grpc']}",
        f"--runtime-env-agent-port={ports['runtime_env']}",
        f"--metrics-export-port={ports['metrics']}",
        f"--min-worker-port={ports.workers[0]}",
        f"--max-worker-port={ports.workers[1]}",
    ]


def start_process(
    command: list[str], environment: dict[str, str], stdout: int | object = None
) -> "subprocess.Popen[bytes]":
    """Starts a process that a warning signal does not reach and that ends with this one."""
    ambient = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    return subprocess.Popen(
        command,
        env=ambient | environment,
        stdin=subprocess.DEVNULL,
        stdout=stdout,  # type: ignore[arg-type]
        stderr=subprocess.STDOUT,
        preexec_fn=_before_exec,
    )


def alive_nodes(dashboard_port: int, token: str) -> int:
    """How many nodes the head on this host knows; a node that listens may not be among them yet."""
    url = f"http://127.0.0.1:{dashboard_port}/api/v0/nodes?limit={MANY_NODES}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with _DIRECTLY.open(request, timeout=5) as answer:
            nodes = json.load(answer)["data"]["result"]["result"]
    except (OSError, ValueError, TypeError, KeyError):  # it is not up yet
        return 0
    return sum(node["state"] == "ALIVE" for node in nodes)


def end(process: "subprocess.Popen[bytes]", patience_s: float = 15) -> None:
    """Ends a process: by SIGTERM, then by SIGKILL."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def is_free(ip: str, port: int) -> bool:
    """Whether a port can be listened on."""
    try:
        socket.create_server((ip, port)).close()
    except OSError:
        return False
    return True


def listens(ip: str, port: int) -> bool:
    """Whether somebody listens on a port."""
    try:
        socket.create_connection((ip, port), timeout=1).close()
    except OSError:
        return False
    return True


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a text file."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Past the proxies that the environment of a node may name: what is asked for is on this host, and has a token."""

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _before_exec() -> None:
    # SLURM sends the warning to all processes of a job, and it would end those that do not know it.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
