"""How nodes of an allocation reach each other: ports, clocks, and the speed of the network between two."""

import os
import socket
import threading
import time
from typing import Any

from clusters.node.membership import own_ip
from clusters.node.ray_node import candidates

MEGABYTES = 32
"""That are sent to a node."""


class Listener:
    """Lets other nodes in on a port of the profile's range, tells them the time, and takes what they send."""

    def __init__(self, job: str, ports: tuple[int, int]) -> None:
        self.ip = own_ip(os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
        for block in candidates(job, *ports):
            try:
                self.server = socket.create_server((self.ip, block.first), backlog=128)
                break
            except OSError:
                continue
        else:
            raise OSError(f"no port of {ports[0]} to {ports[1]} is free")
        self.port = self.server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:  # it is closed
                return
            threading.Thread(target=self._answer, args=[connection], daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            while said := connection.recv(2**20):
                if said == b"time":
                    connection.sendall(f"{time.time():.6f}\n".encode())
                elif said.endswith(b"!"):
                    connection.sendall(b"got it")


def clock_offset_s(other: dict[str, Any]) -> float:
    """How far this clock is ahead of another node's, from the fastest of some answers."""
    answers = []
    with socket.create_connection((other["ip"], other["port"]), timeout=5) as connection:
        for _ in range(5):
            asked = time.time()
            connection.sendall(b"time")
            there = float(connection.recv(100))
            heard = time.time()
            answers.append((heard - asked, (asked + heard) / 2 - there))
    return min(answers)[1]


def send_rate(other: dict[str, Any]) -> float:
    """MB/s to another node."""
    part = bytes(2**20)
    with socket.create_connection((other["ip"], other["port"]), timeout=30) as connection:
        began = time.perf_counter()
        sent = 0
        while sent < MEGABYTES and time.perf_counter() - began < 5:  # a slow one need not send it all
            connection.sendall(part)
            sent += 1
        connection.sendall(b"!")
        connection.recv(10)
        return sent * len(part) / 1e6 / (time.perf_counter() - began)


def free_port(ip: str) -> int:
    """A port on which the workers can meet; the system chooses it."""
    with socket.create_server((ip, 0)) as server:
        return int(server.getsockname()[1])
