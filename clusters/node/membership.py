"""The nodes of a job find each other, and notice when one is lost.

The head listens, and each other node keeps one connection to it. A node whose connection ends is lost; the head
ends the others by closing theirs.
"""

import contextlib
import hmac
import socket
import time
from typing import Literal, Self

from pirl.errors import NotStarted

HELLO_S = 3
HELLO_BYTES = 500
READY = b"r"
GOODBYE = b"."
SILENCE_S = 30
"""After this much silence of the other host the system takes a connection for lost: it has died or left the net."""


class Membership:
    """The head's side.

    Args:
        ip: Address that the other nodes reach.
        port: To listen on.
        token: What a node must know; strangers are turned away.

    Raises:
        NotStarted: The port was taken while Ray started.
    """

    def __init__(self, ip: str, port: int, token: str) -> None:
        try:
            self._server = socket.create_server((ip, port), backlog=128)
        except OSError as error:
            raise NotStarted(f"port {port}: {error.strerror}") from None
        self._server.setblocking(False)
        self._token = token
        self._nodes: dict[int, socket.socket] = {}
        self._names: dict[int, str] = {}
        self.ready: dict[int, str] = {}
        """Names of the nodes whose Ray is up, by rank."""
        self.lost: dict[int, str] = {}
        """Names of those that came and were lost."""

    def look(self) -> None:
        """Takes note of who came, is ready or was lost since the last call; waits for nobody but strangers."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._greet(self._server.accept()[0])
        for rank, connection in list(self._nodes.items()):
            try:
                said = connection.recv(1)
            except BlockingIOError:
                continue
            except OSError:
                said = b""
            if said == READY:
                self.ready[rank] = self._names[rank]
            else:
                connection.close()
                del self._nodes[rank]
                self.ready.pop(rank, None)
                self.lost[rank] = self._names[rank]

    def _greet(self, connection: socket.socket) -> None:
        try:
            token, rank, name = _first_line(connection).split()
            is_ours = hmac.compare_digest(token, self._token.encode())
            number = int(rank)
        except (OSError, ValueError):
            is_ours = False
        if not is_ours:
            connection.close()
            return
        keep_alive(connection)
        connection.setblocking(False)
        self._nodes[number] = connection
        self._names[number] = name.decode()
        self.lost.pop(number, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._nodes.values():
            with contextlib.suppress(OSError):
                connection.send(GOODBYE)
            connection.close()
        self._server.close()


def _first_line(connection: socket.socket) -> bytes:
    """What a newcomer says, up to the end of the line; a stranger that is slow or talks much is given up."""
    deadline = time.monotonic() + HELLO_S
    said = b""
    while not said.endswith(b"\n") and len(said) < HELLO_BYTES:
        connection.settimeout(max(deadline - time.monotonic(), 0.01))
        more = connection.recv(1)
        if not more or time.monotonic() > deadline:
            raise TimeoutError
        said += more
    return said


def join(ip: str, port: int, token: str, rank: int, name: str) -> socket.socket:
    """Tells the head that this node is there; the connection ends when the job does, or this node."""
    connection = socket.create_connection((ip, port), timeout=HELLO_S)
    connection.sendall(f"{token} {rank} {name}\n".encode())
    keep_alive(connection)
    connection.setblocking(False)
    return connection


def is_ready(connection: socket.socket) -> None:
    """Tells the head that this node's Ray is up."""
    with contextlib.suppress(OSError):  # the head is lost, which `news` says
        connection.send(READY)


def news(connection: socket.socket) -> Literal["none", "over", "lost"]:
    """What a node hears from the head: nothing, that the job is over, or that the head is lost."""
    try:
        return "over" if connection.recv(1) == GOODBYE else "lost"
    except BlockingIOError:
        return "none"
    except OSError:
        return "lost"


def keep_alive(connection: socket.socket) -> None:
    """Has the system find out whether the other host is still there."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE_S // 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENCE_S // 6)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)


def own_ip(towards: str) -> str:
    """This host's address on the way to another."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((towards, 9))  # sends nothing
        return str(probe.getsockname()[0])
