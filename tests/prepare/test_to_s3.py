"""Real images through the whole job to a real S3 server."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

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
