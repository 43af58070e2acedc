"""An HTTP proxy that does to an object store's answers what networks and busy stores do, as often as it is told.

Runs in a process of its own: `python -m tests.fault_proxy UPSTREAM_PORT` prints the port that it listens on.
`POST /__rule` with a Rule as JSON adds one, `POST /__reset` forgets rules and log, `GET /__log` returns the log:
one object for each request, with `method`, `path`, `range`, `status`, the `fault` that was done to it, whether it was
`signed`, and the `payer` that it named.
"""

import asyncio
import json
import re
import sys
from dataclasses import dataclass, field

UNAVAILABLE = {
    "slowdown": (503, "SlowDown"),
    "unavailable": (503, "ServiceUnavailable"),
    "error": (500, "InternalError"),
}
FAULTS = (*UNAVAILABLE, "refused", "reset", "stall", "truncate", "flip", "latency")


@dataclass
class Rule:
    """What happens to the next `times` requests with this method whose path has this pattern in it.

    `slowdown`, `unavailable`, `error` and `refused` (403) answer so, `reset` ends the connection at once, `stall`
    sends half of the body and then nothing, `truncate` half of it and ends the connection, `flip` changes one
    bit in the middle of the body, `latency` waits for `seconds` before all goes well. The body is that of the
    answer; with `truncate` and `flip` that of the request, where it has one.
    """

    fault: str
    times: int = 1
    method: str = "GET"
    pattern: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.fault not in FAULTS:
            raise ValueError(f"fault {self.fault!r} is none of {', '.join(FAULTS)}")


@dataclass
class Request:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    head: bytes


@dataclass
class Proxy:
    """The rules that are left, and what was asked."""

    upstream: int
    rules: list[Rule] = field(default_factory=list)
    log: list[dict[str, object]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the requests of one connection."""
        try:
            while request := await read_request(reader, writer):
                if request.path.startswith("/__"):
                    writer.write(answer(200, json.dumps(self.control(request)).encode()))
                elif not await self.pass_on(request, writer):
                    break
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away
        finally:
            writer.transport.abort() if writer.transport.get_write_buffer_size() == 0 else writer.close()

    def control(self, request: Request) -> object:
        """Changes the rules, or says what was asked."""
        if request.path == "/__rule":
            self.rules.append(Rule(**json.loads(request.body)))
        elif request.path == "/__reset":
            self.rules, self.log = [], []
        return self.log

    def fault_for(self, request: Request) -> Rule | None:
        """The first rule for this request that is not used up; counts it as used."""
        for rule in self.rules:
            if rule.times > 0 and rule.method == request.method and re.search(rule.pattern, request.path):
                rule.times -= 1
                return rule
        return None

    async def pass_on(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Answers one request, in the way that the rules say; returns whether the connection goes on."""
        rule = self.fault_for(request)
        fault = rule.fault if rule else ""
        entry = {"method": request.method, "path": request.path, "range": request.headers.get("range", "")}
        signed, payer = "authorization" in request.headers, request.headers.get("x-amz-request-payer", "")
        self.log.append({**entry, "status": 0, "fault": fault, "signed": signed, "payer": payer})
        mine = self.log[-1]
        if rule and fault == "latency":
            await asyncio.sleep(rule.seconds)
        if fault == "reset":
            return False
        if fault in UNAVAILABLE or fault == "refused":
            status, code = UNAVAILABLE.get(fault, (403, "AccessDenied"))
            mine["status"] = status
            writer.write(answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()))
            return True
        if fault == "truncate" and request.body:
            await self.ask(request, request.body[: len(request.body) // 2])
            return False
        head, body = await self.ask(request, flipped(request.body) if fault == "flip" else request.body)
        mine["status"] = int(head.split(b" ", 2)[1])
        if fault in ("stall", "truncate"):
            writer.write(head + body[: len(body) // 2])
            await writer.drain()
            if fault == "stall":
                await asyncio.sleep(3600)
            return False
        writer.write(head + (flipped(body) if fault == "flip" else body))
        return True

    async def ask(self, request: Request, sent: bytes) -> tuple[bytes, bytes]:
        """Head and body of what the store answers; on a connection of its own, which its end ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        writer.write(request.head + sent)
        if len(sent) < len(request.body):
            writer.write_eof()
        data = await reader.read(-1)
        writer.close()
        head, _, body = data.partition(b"\r\n\r\n")
        kept = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        return b"\r\n".join(kept) + b"\r\n\r\n", body


def flipped(body: bytes) -> bytes:
    """A body with another bit in its middle."""
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :] if body else body


async def read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    """The next request of a connection with its body; None at its end."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = await reader.readline()
        if not line:
            return None
        head += line
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, path, _ = first.split(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    kept = [line for line in lines if not re.match("(?i)(connection|expect):", line)]
    return Request(
        method, path, headers, body, "\r\n".join([first, *kept, "Connection: close\r\n\r\n"]).encode("latin-1")
    )


def answer(status: int, body: bytes) -> bytes:
    """A response of our own."""
    return (
        f"HTTP/1.1 {status} .\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )


async def main(upstream: int) -> None:
    """Serves until the process is ended."""
    server = await asyncio.start_server(Proxy(upstream).serve, "127.0.0.1", 0, limit=2**20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
