"""Real images through the whole job to a real S3 server."""

import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import urllib.request
import uuid
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import fsspec
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pirl.data import dataset as shards

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
TAR = DATA / "imagenet_sample" / "images.tar"
CIFAR10 = DATA / "cifar10"


def prepare(*words, cwd):
    command = [sys.executable, str(ROOT / "jobs" / "prepare.py"), *map(str, words)]
    # A few seconds on an idle machine; a busy one may need many times as long.
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def rows_of(uri):
    dataset = shards.open_dataset(uri)
    groups = [dataset.read_group(number) for number in range(len(dataset.spans))]
    return [
        (bytes(image), dataset.labels[label])
        for group in groups
        for image, label in zip(group.images, group.labels, strict=True)
    ]


@pytest.fixture
def bucket(s3_environment):
    fs = fsspec.filesystem("s3")
    fs.makedirs("prepare", exist_ok=True)
    return "s3://prepare"


@pytest.mark.skipif(not TAR.exists(), reason=f"the sample of ImageNet is not in {TAR}")
def test_the_imagenet_sample_as_tar(tmp_path, bucket):
    # From the bucket as well: as it would be for a new user whose tar files lie there.
    fsspec.filesystem("s3").put(str(TAR), f"{bucket}/in/images.tar")
    done = prepare(f"{bucket}/in", f"{bucket}/imagenet", "--shard-mb", 4, "--test-fraction", 0.1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with tarfile.open(TAR) as tar:
        expected = [(tar.extractfile(member).read(), member.name.partition("/")[0]) for member in tar]
    # All 400 are good JPEGs, so their bytes are untouched.
    uri = f"{bucket}/imagenet"
    assert sorted(rows_of(uri) + rows_of(f"{uri}/test")) == sorted(expected)
    assert len(shards.open_dataset(uri).shards) > 2
    done = prepare("--inspect", uri, "--sheet", "sheet.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{uri}: 360 images of 400 classes" in done.stdout
    assert f"{uri}/test: 40 images of 400 classes" in done.stdout
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 1000


@pytest.mark.skipif(not CIFAR10.exists(), reason=f"CIFAR-10 as Parquet files is not in {CIFAR10}")
def test_cifar10_as_parquet(tmp_path, bucket):
    tables = {}
    for name in ("train", "test"):
        tables[name] = pq.ParquetFile(CIFAR10 / f"{name}.parquet").read_row_group(0).slice(0, 1000)
        pq.write_table(tables[name], tmp_path / f"{name}.parquet")
    fsspec.filesystem("s3").put(str(tmp_path / "train.parquet"), f"{bucket}/in/train.parquet")
    words = (f"{bucket}/in/train.parquet", f"{bucket}/cifar10", "--test", tmp_path / "test.parquet")
    done = prepare(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for uri, table in ((f"{bucket}/cifar10", tables["train"]), (f"{bucket}/cifar10/test", tables["test"])):
        pairs = zip(table["image"].to_pylist(), map(str, table["label"].to_pylist()), strict=True)
        assert sorted(rows_of(uri)) == sorted(pairs)
    before = fsspec.filesystem("s3").find("prepare/cifar10", detail=True)
    done = prepare(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert "add --overwrite" in done.stderr
    assert fsspec.filesystem("s3").find("prepare/cifar10", detail=True) == before


def test_a_bucket_that_is_not_there_is_named(tmp_path, bucket):
    done = prepare("digits", "s3://no-such-bucket/x", "--check", cwd=tmp_path)
    assert done.returncode == 2
    assert "DESTINATION s3://no-such-bucket/x cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_credentials_are_no_traceback(tmp_path, bucket, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    # And none in files, nor from a server of the cloud's machines.
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    done = prepare("digits", f"{bucket}/x", cwd=tmp_path)
    assert done.returncode == 2
    assert "Unable to locate credentials" in done.stderr
    assert "Traceback" not in done.stderr


ODD = [*("b c", "x#y", "50%20", "p+q", "ü", "q?x=1", "[z]", "n::m", "tab\t", "per%", "a&b", "back\\slash", "q'\"")]
"""Names that mean something in URLs, patterns, or fsspec's chains of URLs."""


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def test_of_single_bad_entries_each_is_left_out_and_named(tmp_path, s3_server, s3_environment):
    client, bucket = boto3.client("s3", endpoint_url=s3_server[0]), f"box-{uuid.uuid4().hex[:8]}"
    client.create_bucket(Bucket=bucket)
    for number, name in enumerate(ODD):
        client.put_object(Bucket=bucket, Key=f"photos/a/{name}.png", Body=png(number))
    bad = {"cold": png(90), "empty": b"", "old.png?versionId=1": png(91)}
    for name, data in bad.items():
        cold = {"StorageClass": "GLACIER"} if name == "cold" else {}
        client.put_object(Bucket=bucket, Key=f"photos/a/{name}.png", Body=data, **cold)
    for marker in ("photos/", "photos/a/"):  # as consoles make them for folders
        client.put_object(Bucket=bucket, Key=marker, Body=b"")
    done = prepare(f"s3://{bucket}/photos", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(image for image, _ in rows_of(str(tmp_path / "out"))) == sorted(map(png, range(len(ODD))))
    left_out = json.loads((tmp_path / "out" / "manifest.json").read_text())["left_out"]
    assert left_out["count"] == 3
    assert {line.partition(".png: ")[0].rpartition("/")[2] for line in left_out["first"]} == bad.keys()
    assert "restore it first" in str(left_out["first"])
    assert "versions of objects are not read" in str(left_out["first"])


def test_a_source_in_a_bucket_that_is_not_there_says_so(tmp_path, s3_environment):
    done = prepare("s3://no-such-bucket-at-all/photos", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "s3://no-such-bucket-at-all/photos does not exist, there is no such bucket (" in done.stderr


def test_an_archive_that_the_store_does_not_give_is_one_line(tmp_path, s3_server, s3_environment):
    client, bucket = boto3.client("s3", endpoint_url=s3_server[0]), f"box-{uuid.uuid4().hex[:8]}"
    client.create_bucket(Bucket=bucket)
    client.put_object(Bucket=bucket, Key="cold.tar", Body=b"x" * 10240, StorageClass="GLACIER")
    done = prepare(f"s3://{bucket}/cold.tar", "out", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert f"s3://{bucket}/cold.tar: the store refused" in done.stderr
    assert "restore it first" in done.stderr
    assert not (tmp_path / "out").exists()


def test_where_the_environment_says_so_s3_is_read_without_credentials(tmp_path, s3_server, monkeypatch):
    client, bucket = boto3.client("s3", endpoint_url=s3_server[0]), f"box-{uuid.uuid4().hex[:8]}"
    client.create_bucket(Bucket=bucket)
    for number in range(3):
        client.put_object(Bucket=bucket, Key=f"photos/a/{number}.png", Body=png(number), ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", s3_server[1])
    urllib.request.urlopen(f"{s3_server[1]}/__reset", b"").close()
    monkeypatch.setenv("FSSPEC_S3_REQUESTER_PAYS", "true")
    monkeypatch.setenv("FSSPEC_S3_ANON", "true")
    done = prepare(f"s3://{bucket}/photos", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(image for image, _ in rows_of(str(tmp_path / "out"))) == sorted(map(png, range(3)))
    with urllib.request.urlopen(f"{s3_server[1]}/__log") as answer:
        asked = [entry for entry in json.load(answer) if bucket in entry["path"]]
    assert len(asked) >= 4
    assert {(entry["payer"], entry["signed"]) for entry in asked} == {("requester", False)}
    monkeypatch.delenv("FSSPEC_S3_ANON")
    done = prepare(f"s3://{bucket}/photos", "other", cwd=tmp_path)
    assert done.returncode == 2
    assert "type FSSPEC_S3_ANON=true before the command" in done.stderr
    monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", "http://me:hidden@host")
    done = prepare(f"s3://{bucket}/photos", "other", cwd=tmp_path)
    assert done.returncode == 2
    assert "FSSPEC_S3_ENDPOINT_URL has a user name or a password" in done.stderr
    assert "hidden" not in done.stderr


@contextmanager
def web(handler):
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_a_web_server_does_not_do_is_one_line(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png(1))
    with tarfile.open(tmp_path / "large.tar", "w") as tar:
        for name, size in (("a/1.png", 2**24), ("a/2.png", 2**20)):  # more than is asked for at a time
            about = tarfile.TarInfo(name)
            about.size = size
            tar.addfile(about, io.BytesIO(b"x" * size))

    class Chunked(SimpleHTTPRequestHandler):
        def send_header(self, name, value):
            if name.lower() != "content-length":
                super().send_header(name, value)

    with web(partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as address:
        done = prepare(f"{address}/photos/", "out", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{address}/photos/ is a page of a web server" in done.stderr
        done = prepare(f"{address}/large.tar", "out", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{address}/large.tar: this web server sends the whole file and no spans of it" in done.stderr
    with web(partial(Chunked, directory=str(tmp_path))) as address:
        done = prepare(f"{address}/large.tar", "out", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{address}/large.tar: this server does not say how long the file is" in done.stderr
    assert not (tmp_path / "out").exists()
