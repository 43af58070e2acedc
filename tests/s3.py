"""A real S3 server in a process of its own, behind the fault proxy; fixtures for the tests that need one."""

import json
import os
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem

from pirl.storage.folder import Folder
from pirl.storage.retry import DEADLINE_S
from tests.fault_proxy import Rule

START_S = 120.0
"""The server imports much: 3 s of one core, over 30 s where other work has it."""

# From here on, so that the fork server of the loader, whoever starts it, has them too.
os.environ.setdefault("AWS_ACCESS_KEY_ID", "the-key-of-the-tests")
SECRET = os.environ.setdefault("AWS_SECRET_ACCESS_KEY", f"secret-{uuid.uuid4().hex}")
os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")


@dataclass(frozen=True)
class Store:
    """A bucket, and the proxy on the way to it.

    Attributes:
        bucket: Its name; a new one for each test.
        direct: `storage_options` past the proxy.
        options: `storage_options` through the proxy.
    """

    bucket: str
    direct: dict[str, Any]
    options: dict[str, Any]

    def uri(self, *names: str) -> str:
        """The URL of something in the bucket."""
        return "/".join([f"s3://{self.bucket}", *names])

    def folder(self, *names: str, deadline_s: float = DEADLINE_S) -> Folder:
        """The bucket, or something in it, through the proxy."""
        return Folder(self.uri(*names), self.options, deadline_s)

    def past(self, *names: str) -> Folder:
        """The same past the proxy."""
        return Folder(self.uri(*names), self.direct)

    def fail(self, fault: str, times: int = 1, **rule: Any) -> None:
        """Has the proxy do something to the next requests; see `fault_proxy.Rule`."""
        self._ask("/__rule", json.dumps(vars(Rule(fault, times, **rule))).encode())

    def log(self) -> list[dict[str, Any]]:
        """The requests since the last `reset`, in order."""
        return [entry for entry in self._ask("/__log") if not entry["path"].startswith("/__")]

    def reset(self) -> None:
        """Forgets the faults and the log."""
        self._ask("/__reset", b"")

    def _ask(self, path: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(self.options["endpoint_url"] + path, body)
        with urllib.request.urlopen(request, timeout=START_S) as answer:
            return json.load(answer)


@contextmanager
def moto(log: Path, host: str = "127.0.0.1") -> Iterator[int]:
    """A server in a process of its own, that listens on an address of this machine; gives its port."""
    command = [Path(sys.executable).parent / "moto_server", "-H", host, "-p", "0"]
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
    try:
        yield _port_in(log)
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The endpoints of the server and of the proxy in front of it."""
    with moto(tmp_path_factory.mktemp("s3") / "server.log") as port:
        proxy = subprocess.Popen(
            [sys.executable, "-m", "tests.fault_proxy", str(port)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )
        try:
            assert proxy.stdout is not None
            with proxy.stdout:
                front = int(proxy.stdout.readline())
            yield f"http://127.0.0.1:{port}", f"http://127.0.0.1:{front}"
        finally:
            proxy.kill()
            proxy.wait()


@pytest.fixture
def store(s3_server: tuple[str, str]) -> Store:
    """A new bucket, with no faults on the way to it."""
    server, proxy = s3_server
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"{server}/{bucket}", method="PUT"), timeout=START_S).close()
    store = Store(bucket, {"endpoint_url": server}, {"endpoint_url": proxy})
    store.reset()
    return store


@pytest.fixture
def s3_environment(s3_server: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leads s3:// to the server, in this process and in those that it starts, with no proxy on the way."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server[0])
    S3FileSystem.clear_instance_cache()  # an instance keeps the endpoint that it was made with
    yield
    S3FileSystem.clear_instance_cache()


def _port_in(log: Path) -> int:
    """The port that the server chose, out of what it says when it listens."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        for line in log.read_text().splitlines():
            if "Running on http://" in line:
                return int(line.rpartition(":")[2].split()[0].strip("/"))
        time.sleep(0.05)
    raise TimeoutError(f"the S3 server did not start within {START_S} s: {log.read_text()}")
