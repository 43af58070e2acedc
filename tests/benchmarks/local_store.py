"""A bucket on this machine for the benchmarks: moto's S3 server in a process of its own, with nothing in front."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s3fs import S3FileSystem

from pirl.shard_writer import ShardWriter
from tests.s3 import moto

Options = dict[str, str]

BUCKET = "benchmark"


@contextmanager
def store(folder: Path) -> Iterator[Options]:
    """Gives the storage options that lead to the bucket; `folder` takes the server's log."""
    with moto(folder / "server.log") as port:
        options = {"endpoint_url": f"http://127.0.0.1:{port}"}
        S3FileSystem(**options).mkdir(BUCKET)
        yield options


def write_shards(uri: str, images: Iterator[bytes], shard_bytes: int, options: Options) -> None:
    """Writes a data set as jobs/prepare.py does, in the order in which the images come."""
    about = {"classes": None, "seed": 0, "source": "photographs"}
    with ShardWriter(uri, storage_options=options, shard_bytes=shard_bytes, **about) as writer:
        for image in images:
            writer.add(image, None)
