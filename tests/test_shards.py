import json
import pickle

import numpy as np
import pytest

from pirl import shards
from pirl.config import ConfigError
from pirl.shard_writer import ShardWriter
from pirl.shards import CorruptImage, open_dataset


def image(row):
    return bytes([row % 251]) * (100 + row % 13)


def write(uri, rows=300, classes=("a", "b", "c")):
    with ShardWriter(str(uri), classes=classes, seed=0, source="here", shard_bytes=10_000) as writer:
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
    # 5 groups and 3 shards of some numbers each; a footer alone has some 1,300 bytes.
    assert len(data) < 2000
    assert pickle.loads(data).read_group(3).images == dataset.read_group(3).images


def test_a_group_needs_its_span_alone_once_the_footer_was_read(tmp_path):
    dataset = open_dataset(write(tmp_path))
    dataset.read_group(2)
    for shard in tmp_path.glob("*.parquet"):
        # Nothing but the spans of the two groups of this shard stays readable.
        data = bytearray(len(shard.read_bytes()))
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        for entry in manifest["shards"]:
            for offset, length, _ in entry["groups"] if entry["path"] == shard.name else []:
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


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 99}'])
def test_another_manifest_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ConfigError, match=r"manifest\.json (cannot be read|is not a manifest of version 1)"):
        open_dataset(str(tmp_path))


def test_the_held_out_split_lies_below(tmp_path):
    write(tmp_path / "set")
    assert shards.test_uri(str(tmp_path / "set")) is None
    write(tmp_path / "set" / "test", rows=3)
    held_out = shards.test_uri(str(tmp_path / "set"))
    assert held_out is not None
    assert open_dataset(held_out).rows == 3
