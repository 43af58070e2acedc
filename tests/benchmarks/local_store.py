"""Stores on this machine for the benchmarks, in processes of their own: moto, and one that costs next to nothing."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s3fs import S3FileSystem

from pirl.data.writer import ShardWriter
from pirl.storage.folder import Folder
from tests.s3 import moto

Options = dict[str, object]

BUCKET = "benchmark"

RANGES = """
import socket, sys
from aiohttp import web
app = web.Application()
app.router.add_static("/", sys.argv[1])
web.run_app(app, sock=socket.socket(fileno=int(sys.argv[2])), print=None, access_log=None)
"""


@contextmanager
def store(folder: Path) -> Iterator[Options]:
    """moto's S3 server: gives the storage options that lead to the bucket; `folder` takes the server's log."""
    with moto(folder / "server.log") as port:
        options: Options = {"endpoint_url": f"http://127.0.0.1:{port}"}
        S3FileSystem(**options).mkdir(BUCKET)
        yield options


@contextmanager
def ranges_of(folder: Path) -> Iterator[Options]:
    """The files of a folder for who reads them as S3 has it, whole or a range; its folders are the buckets.

    moto would be what limits: for each range it takes the whole object into its memory.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = [sys.executable, "-c", RANGES, str(folder), str(listening.fileno())]
        server = subprocess.Popen(command, pass_fds=[listening.fileno()])
        try:
            yield {"endpoint_url": f"http://127.0.0.1:{listening.getsockname()[1]}", "anon": True}
        finally:
            server.kill()
            server.wait()


def write_shards(uri: str, images: Iterator[bytes], shard_bytes: int, options: Options | None = None) -> None:
    """Writes a data set as jobs/prepare.py does, in the order in which the images come."""
    about = {"classes": None, "seed": 0, "source": "photographs"}
    with ShardWriter(Folder(uri, options or {}), shard_bytes=shard_bytes, **about) as writer:
        for image in images:
            writer.add(image, None)
