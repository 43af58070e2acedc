"""What runs on the nodes, in pieces: ports and the membership. As a whole: tests/on_slurm/test_slurm.py."""

import itertools
import json
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
from ray.util.state.common import DEFAULT_LIMIT, RAY_MAX_LIMIT_FROM_API_SERVER

from clusters.job_folder import JobFolder
from clusters.node import main as allocation
from clusters.node import membership
from clusters.node.membership import Membership
from clusters.node.ray_node import (
    PORTS_PER_NODE,
    SERVICES,
    Ports,
    alive_nodes,
    candidates,
    is_free,
    ray_command,
)
from clusters.node.this_node import JobFile, Resources, ThisNode
from clusters.profile import Profile
from tests.ray_cluster import free_ports


def first_node(folder: Path, profile: Profile) -> ThisNode:
    job = JobFile(("jobs/pretrain.py",), takes_settings=True)
    return ThisNode(job, profile, JobFolder(folder, "17"), 0, 1, 0, "n1", "127.0.0.1", Resources(1, 0, None))


def test_the_ports_of_jobs_are_apart_and_in_the_range():
    blocks = list(candidates("17", 20_000, 20_999))
    assert sorted(ports.first for ports in blocks) == list(range(20_000, 21_000, 100))
    for ports in blocks:
        own = [ports[service] for service in SERVICES]
        first, last = ports.workers
        assert own == sorted(set(own))
        assert own[-1] < first < last == ports.first + PORTS_PER_NODE - 1
    # Neighbours in the queue, which often start together, do not begin with the same ports.
    firsts = [next(candidates(str(job), 20_000, 32_000)).first for job in range(100)]
    assert sum(a == b for a, b in itertools.pairwise(firsts)) <= 3  # one in 120 by chance


def test_a_taken_port_makes_a_hundred_unfit():
    ports = next(ports for ports in candidates("1", 40_000, 50_000) if ports.are_free("127.0.0.1"))
    with socket.create_server(("127.0.0.1", ports["metrics"])):
        assert not is_free("127.0.0.1", ports["metrics"])
        assert not ports.are_free("127.0.0.1")
    assert ports.are_free("127.0.0.1")


def test_a_hundred_is_one_jobs_from_before_anything_listens():
    """Ray takes seconds until it listens, and jobs that wait for the same nodes start together."""
    ports = next(ports for ports in candidates("2", 40_000, 50_000) if ports.are_free("127.0.0.1"))
    take = f"from clusters.node.ray_node import Ports; print(Ports({ports.first}).take('127.0.0.1') is not None)"

    def taken_by_another() -> str:
        return subprocess.run([sys.executable, "-c", take], capture_output=True, text=True, check=True).stdout

    assert taken_by_another() == "True\n", "and given back with its process"
    lock = ports.take("127.0.0.1")
    assert lock is not None
    assert ports.are_free("127.0.0.1")
    assert taken_by_another() == "False\n"
    lock.close()
    with socket.create_server(("127.0.0.1", ports["metrics"])):
        assert ports.take("127.0.0.1") is None
    again = ports.take("127.0.0.1")
    assert again is not None, "it was not kept"
    again.close()


def test_a_membership_port_that_somebody_has_taken_meanwhile_sends_the_job_back(tmp_path: Path, monkeypatch):
    (port,) = free_ports(1)
    ray = SimpleNamespace(ports=Ports(port))
    monkeypatch.setattr(allocation, "start_ray", lambda *_: ray)
    profile = Profile.model_validate({"cluster": "slurm", "nodes": 1, "cpus_per_node": 1, "storage": "runs"})
    node = first_node(tmp_path, profile)
    monkeypatch.setattr(allocation, "NodeCleanup", lambda *_: nullcontext(SimpleNamespace(environment={})))
    with socket.create_server(("127.0.0.1", port)):
        phase, reason, _ = allocation.lead(node, None)
    assert (phase, reason.split(" (")[0]) == ("requeue", f"n1: port {port}: Address already in use")


def test_ray_gets_the_resources_of_the_allocation_and_listens_where_it_may():
    resources = Resources(cpus=6, gpus=2, memory_bytes=20 * 10**9)
    ports = Ports(21_000)
    head = ray_command("10.0.0.1", ports, resources, Path("/tmp/x"), None)
    node = ray_command("10.0.0.2", ports, resources, Path("/tmp/x"), "10.0.0.1:21001")
    for command in (head, node):
        assert {"--block", "--num-cpus=6", "--num-gpus=2", f"--memory={19 * 10**9}"} <= set(command)
        given = [int(word.partition("=")[2]) for word in command if "-port=" in word]
        assert all(21_000 <= port < 21_100 for port in given)
    assert {"--head", "--dashboard-host=127.0.0.1"} <= set(head)
    assert "--address=10.0.0.1:21001" in node


def test_nodes_come_and_are_lost_and_strangers_stay_out():
    (port,) = free_ports(1)
    with Membership("127.0.0.1", port, "right") as head:
        n1 = membership.join("127.0.0.1", port, "right", 1, "n1")
        n2 = membership.join("127.0.0.1", port, "right", 2, "n2")
        stranger = membership.join("127.0.0.1", port, "wrong", 3, "n3")
        garbage = socket.create_connection(("127.0.0.1", port))
        garbage.sendall("é 4 n4\n".encode())
        head.look()
        assert head.ready == {}
        membership.is_ready(n1)
        membership.is_ready(n2)
        head.look()
        assert head.ready == {1: "n1", 2: "n2"}
        assert membership.news(n1) == "none"
        n2.close()
        head.look()
        assert (head.ready, head.lost) == ({1: "n1"}, {2: "n2"})
    assert membership.news(n1) == "over"
    for connection in (n1, stranger, garbage):
        connection.close()


def test_a_stranger_that_says_nothing_keeps_the_head_for_some_seconds_only():
    (port,) = free_ports(1)
    with Membership("127.0.0.1", port, "right") as head:
        silent = socket.create_connection(("127.0.0.1", port))
        began = time.monotonic()
        head.look()
        assert time.monotonic() - began < 10 * membership.HELLO_S
        silent.close()


def test_a_head_that_is_killed_is_lost_and_not_over():
    (port,) = free_ports(1)
    code = (
        f"import time; from clusters.node.membership import Membership\nhead = Membership('127.0.0.1', {port}, 't')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code + "while True: head.look(); time.sleep(0.01)"])
    try:
        deadline = time.monotonic() + 30
        while is_free("127.0.0.1", port):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        connection = membership.join("127.0.0.1", port, "t", 1, "n1")
        assert membership.news(connection) == "none"
    finally:
        process.kill()
        process.wait()
    while (news := membership.news(connection)) == "none":
        assert time.monotonic() < deadline
    assert news == "lost"
    connection.close()


@pytest.mark.parametrize("towards", ["127.0.0.1"])
def test_own_address_is_the_one_on_the_way(towards: str):
    assert membership.own_ip(towards) == "127.0.0.1"


def test_sockets_fit_below_the_longest_folder():
    """Unix allows 107 bytes; Ray's own part of the path is as it was seen."""
    folder = Path("/" + "t" * 15) / "pirl-j12345678_1023-15"
    assert len(f"{folder}/r0/session_2026-11-21_15-22-31_044893_4194304/sockets/plasma_store") <= 107


def test_what_is_asked_of_the_dashboard_goes_to_no_proxy(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        (port,) = free_ports(1)
        assert alive_nodes(port, "secret") == 0
        proxy.settimeout(0.2)
        with pytest.raises(TimeoutError):
            proxy.accept()


def test_a_cluster_of_more_than_a_hundred_nodes_is_counted_in_full():
    """With a dashboard that cuts its answer as Ray's does."""

    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            limit = int(asked.get("limit", [DEFAULT_LIMIT])[0])
            assert limit <= RAY_MAX_LIMIT_FROM_API_SERVER, "it would refuse"
            nodes = [{"state": "DEAD"}, *[{"state": "ALIVE"}] * 150]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"data": {"result": {"result": nodes[:limit]}}}).encode())

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        assert alive_nodes(server.server_port, "secret") == 150
        thread.join()


def test_what_fails_on_the_first_node_is_said_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(allocation, "Signals", lambda: None)  # they are this process's, and nothing sends any
    profile = Profile.model_validate(
        {"cluster": "slurm", "nodes": 1, "cpus_per_node": 1, "storage": "runs", "temp_dir": "/no-scratch"}
    )
    with pytest.raises(FileNotFoundError):
        allocation.run(first_node(tmp_path, profile))
    report = JobFolder(tmp_path, "17").report()
    assert report["phase"] == "failed"
    assert report["reason"] == "FileNotFoundError: [Errno 2] No such file or directory: '/no-scratch/pirl-j17-0'"
