import json
import pickle
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pirl.data.dataset import open_dataset
from pirl.data.writer import ShardWriter
from pirl.errors import ConfigError, CorruptImage
from pirl.storage import sealed
from pirl.storage.cache import SpanCache
from pirl.storage.folder import Folder
from pirl.storage.retry import take_count
from tests.s3 import SECRET


def image(row):
    return bytes([row % 251]) * (100 + row % 13)


def write(uri, rows=300, classes=("a", "b", "c")):
    with ShardWriter(Folder(str(uri)), classes=classes, seed=0, source="here", shard_bytes=10_000) as writer:
        for row in range(rows):
            writer.add(image(row), None if classes is None or row == 5 else row % 3)
    return str(uri)


def test_groups_hold_what_was_written(tmp_path):
    dataset = open_dataset(write(tmp_path))
    assert (dataset.rows, dataset.labels) == (300, ["a", "b", "c"])
    assert dataset.starts.tolist() == [0, 64, 128, 192, 256, 300]
    assert len(dataset.shards) == 3
    groups = [dataset.read_group(number) for number in range(5)]
    assert [i for group in groups for i in group.images] == [image(row) for row in range(300)]
    np.testing.assert_array_equal(np.concatenate([group.ids for group in groups]), np.arange(300))
    labels = np.concatenate([group.labels for group in groups])
    np.testing.assert_array_equal(labels, [-1 if row == 5 else row % 3 for row in range(300)])


def test_without_classes_there_are_no_labels(tmp_path):
    dataset = open_dataset(write(tmp_path, classes=None))
    assert dataset.labels is None
    assert dataset.read_group(0).labels is None


def test_it_reads_by_url(tmp_path):
    # fsspec's memory store stands for object storage: no local path is involved.
    uri = f"memory://{tmp_path.name}/set"
    write(uri)
    assert open_dataset(uri).read_group(4).images[0] == image(256)


def test_it_pickles_small_and_reads_afterwards(tmp_path):
    dataset = open_dataset(write(tmp_path))
    dataset.read_group(0)
    data = pickle.dumps(dataset)
    # 5 groups and 3 shards of some numbers each; the images have 32,000 bytes.
    assert len(data) < 2000
    assert pickle.loads(data).read_group(3).images == dataset.read_group(3).images


def test_a_group_needs_its_span_alone(tmp_path):
    dataset = open_dataset(write(tmp_path))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for entry in manifest["shards"]:
        shard = tmp_path / entry["path"]
        data = bytearray(len(shard.read_bytes()))
        for offset, length, *_ in entry["groups"]:
            data[offset : offset + length] = shard.read_bytes()[offset : offset + length]
        shard.write_bytes(data)
    assert dataset.read_group(3).images[0] == image(192)


def test_a_flipped_byte_names_shard_row_and_id(tmp_path):
    dataset = open_dataset(write(tmp_path))
    shard = tmp_path / "shard-00001.parquet"
    data = bytearray(shard.read_bytes())
    # Row 200 lies in the second group of the second shard, which begins with row 128.
    at = data.index(image(200), data.index(image(199), data.index(image(198))))
    data[at] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptImage, match=r"shard-00001\.parquet: row 72 \(id 200\) .*jobs/prepare\.py"):
        dataset.read_group(3)
    assert len(dataset.read_group(2).images) == 64


def test_damage_between_the_images_names_shard_and_group(tmp_path):
    dataset = open_dataset(write(tmp_path))
    shard = tmp_path / "shard-00001.parquet"
    data = bytearray(shard.read_bytes())
    offset = int(dataset.spans[3, 0])
    data[offset : offset + 8] = b"\xff" * 8
    shard.write_bytes(data)
    with pytest.raises(
        CorruptImage, match=r"shard-00001\.parquet: row group 1 (cannot be read|does not have its checksum)"
    ):
        dataset.read_group(3)


def test_damage_in_a_column_name_names_shard_and_group(tmp_path):
    dataset = open_dataset(write(tmp_path))
    shard = tmp_path / "shard-00001.parquet"
    shard.write_bytes(shard.read_bytes().replace(b"image", b"imagf"))
    with pytest.raises(CorruptImage, match=r"shard-00001\.parquet: row group 1 cannot be read"):
        dataset.read_group(3)


def test_a_shard_cut_short_is_corrupt(tmp_path):
    dataset = open_dataset(write(tmp_path))
    dataset.read_group(0)
    shard = tmp_path / "shard-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(CorruptImage, match=r"shard-00000\.parquet"):
        dataset.read_group(1)


@pytest.mark.parametrize("uri", ["nothing/here", "pyproject.toml"])
def test_no_data_set_says_what_to_type(uri):
    with pytest.raises(ConfigError, match=r"(?s)is not a data set.*python jobs/prepare\.py SOURCE DESTINATION"):
        open_dataset(uri)


GROUPS = '{"shards": [{"path": "a", "bytes": 1, "rows": 1, "groups": %s}]}'


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"version": 99}', "[" * 100_000),
        *(GROUPS % groups for groups in ("[[1, 2, 3, null]]", '{"a": 1}', "Infinity", f"[[1, 2, 3, {10**30}]]")),
    ],
    ids=lambda text: text[:90],
)
def test_another_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ConfigError, match=r"manifest\.json (cannot be read|is not a manifest of version 2)"):
        open_dataset(str(tmp_path))


def test_a_manifest_that_was_changed_is_refused(tmp_path):
    path = Path(write(tmp_path)) / "manifest.json"
    path.write_text(path.read_text().replace('"a"', '"A"'))
    with pytest.raises(ConfigError, match=r"manifest\.json does not have its checksum"):
        open_dataset(str(tmp_path))


def test_the_fingerprint_is_that_of_the_shards_as_json_has_them(tmp_path):
    folder = write(tmp_path, classes=("a", '", "shards": [', ', "crc32": 1}\n'))
    shards = json.loads((tmp_path / "manifest.json").read_text())["shards"]
    assert open_dataset(folder).fingerprint == zlib.crc32(json.dumps(shards).encode())


def test_the_held_out_split_lies_below(tmp_path):
    dataset = open_dataset(write(tmp_path / "set"))
    assert dataset.held_out() is None
    write(tmp_path / "set" / "test", rows=3)
    held_out = dataset.held_out()
    assert held_out is not None
    assert (held_out.rows, held_out.uri) == (3, str(tmp_path / "set" / "test"))


DEADLINE_S = 30.0
"""Allows each try two seconds."""


def write_to(store, make=image):
    with ShardWriter(store.past("set"), classes=None, seed=0, source="x", shard_bytes=10_000) as writer:
        for row in range(300):
            writer.add(make(row), None)
    return store.folder("set", deadline_s=DEADLINE_S)


@pytest.mark.parametrize("times", [1, 3, 8])
def test_a_byte_that_flipped_on_its_way_is_read_again(store, times):
    dataset = open_dataset(write_to(store))
    store.reset()
    store.fail("flip", times)
    take_count()
    assert dataset.read_group(1).images == [image(row) for row in range(64, 128)]
    assert [(entry["method"], entry["fault"]) for entry in store.log()] == [("GET", "flip")] * times + [("GET", "")]
    assert take_count() == times


def test_a_group_is_one_request_for_its_span(store):
    dataset = open_dataset(write_to(store))
    store.reset()
    dataset.read_group(3)
    offset, length = dataset.spans[3].tolist()
    shard = dataset.shards[dataset.shard_of(3)[0]]
    (request,) = store.log()
    assert (request["method"], request["range"]) == ("GET", f"bytes={offset}-{offset + length - 1}")
    assert request["path"] == f"/{store.bucket}/set/{shard}"


@pytest.mark.parametrize("change", ["shorter", "longer", "other images of the same size", "gone"])
def test_a_shard_that_was_overwritten_is_noticed(store, change):
    dataset = open_dataset(write_to(store))
    folder, name = store.past("set"), "shard-00001.parquet"
    data = folder.read_bytes(name)
    if change == "other images of the same size":
        manifest = folder.read("manifest.json")
        write_to(store, lambda row: b"!" * len(image(row)))
        folder.write("manifest.json", manifest)
        other = folder.read_bytes(name)
        assert len(other) == len(data)
        time.sleep(1.1)  # the store's times are in whole seconds
        folder.write(name, other)
    elif change == "gone":
        folder.remove(name)
    else:
        folder.write(name, data[:1000] if change == "shorter" else b"x" + data)
    group = dataset.load_group(2)
    assert set(group.corrupt) == set(range(64))
    said = {
        "shorter": f"has 1,000 bytes and had {len(data):,} when its manifest was written, so it was overwritten",
        "longer": f"has {len(data) + 1:,} bytes and had {len(data):,}",
        "other images of the same size": "the file was written again after its manifest",
        "gone": "the file is gone",
    }
    with pytest.raises(CorruptImage, match=rf"set/shard-00001\.parquet: .*{said[change]}.*jobs/prepare\.py"):
        dataset.read_group(2)


def test_damage_behind_a_web_server_is_told_too(store, monkeypatch):
    """Web servers tell nobody a file's time as stores do; this one is the S3 server, asked for plain objects."""
    monkeypatch.setattr(sealed, "TRIES", 2)
    store = replace(store, direct=store.direct | {"s3_additional_kwargs": {"ACL": "public-read"}})
    write_to(store)
    folder, name = store.past("set"), "shard-00001.parquet"
    folder.write(name, folder.read_bytes(name).replace(image(200), image(200)[:-1] + b"!"))
    dataset = open_dataset(Folder(f"{store.direct['endpoint_url']}/{store.bucket}/set", {}, DEADLINE_S))
    (problem,) = dataset.load_group(3).corrupt.values()
    assert "row 72 (id 200) does not have its checksum; the file is damaged" in problem


def test_damage_is_told_where_the_store_does_not_say_what_happened_to_the_file(store):
    dataset = open_dataset(write_to(store))
    dataset = replace(dataset, folder=replace(dataset.folder, deadline_s=0.3))
    store.fail("slowdown", 10_000, method="HEAD")
    began = time.monotonic()
    assert "the file is damaged" in dataset._verdict(1)
    assert time.monotonic() - began < DEADLINE_S  # and not after the 300 s of other reads


def test_damage_in_one_image_leaves_the_others(tmp_path):
    dataset = open_dataset(write(tmp_path))
    shard = tmp_path / "shard-00001.parquet"
    data = bytearray(shard.read_bytes())
    data[data.index(image(200), data.index(image(199), data.index(image(198))))] ^= 1
    shard.write_bytes(data)
    group = dataset.load_group(3)
    assert list(group.corrupt) == [200 - 192]
    assert group.images[9:] == [image(row) for row in range(201, 256)]


def test_a_cached_span_needs_no_request_and_is_checked(store, tmp_path):
    cache = SpanCache(tmp_path, 10**6)
    dataset = open_dataset(write_to(store), cache=cache)
    dataset.read_group(0)
    store.reset()
    again = pickle.loads(pickle.dumps(dataset)).read_group(0)
    assert again.images == [image(row) for row in range(64)]
    assert store.log() == []
    (kept,) = tmp_path.glob("??/*")
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    assert dataset.read_group(0).images == again.images
    assert len(store.log()) == 1
    assert kept.read_bytes() != data  # and the right one is kept instead


def test_files_on_a_disk_are_not_cached(tmp_path):
    dataset = open_dataset(write(tmp_path / "set"), cache=SpanCache(tmp_path / "cache", 10**6))
    dataset.read_group(0)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("fault", ["slowdown", "error", "reset", "truncate", "flip", "stall"])
def test_the_manifest_is_read_over_faults(store, fault):
    folder = write_to(store)
    store.fail(fault, 1 if fault == "stall" else 8, pattern="manifest")
    assert open_dataset(folder).rows == 300


def test_no_secret_is_in_a_pickle(store):
    dataset = open_dataset(write_to(store))
    dataset.read_group(0)
    assert SECRET.encode() not in pickle.dumps(dataset)


def test_a_bucket_that_is_not_there_is_said_to_be_none(store):
    with pytest.raises(ConfigError, match=r"s3://no-such-bucket-at-all/x is not a data set \(there is no such bucket"):
        open_dataset(Folder("s3://no-such-bucket-at-all/x", store.direct))
