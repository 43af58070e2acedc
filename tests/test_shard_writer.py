import json
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pirl.shard_writer import ShardWriter


def image(row):
    return bytes([row % 256]) * (50 + row)


def write(folder, rows, **options):
    with ShardWriter(str(folder), classes=["a", "b"], seed=7, source="here", **options) as writer:
        for row in range(rows):
            writer.add(image(row), None if row % 3 == 2 else row % 3)
    return json.loads((folder / "manifest.json").read_text())


def test_any_parquet_reader_reads_the_files(tmp_path):
    manifest = write(tmp_path, 300, shard_bytes=10_000)
    files = [tmp_path / shard["path"] for shard in manifest["shards"]]
    assert [file.name for file in files] == [f"shard-{number:05d}.parquet" for number in range(len(files))]
    assert len(files) > 2
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert rows == [
        {
            "index": row,
            "image": image(row),
            "label": None if row % 3 == 2 else row % 3,
            "crc32": zlib.crc32(image(row)),
        }
        for row in range(300)
    ]


def test_the_manifest_says_where_everything_is(tmp_path):
    manifest = write(tmp_path, 300, shard_bytes=10_000)
    assert {key: manifest[key] for key in ("version", "rows", "rows_per_group", "classes", "seed", "source")} == {
        "version": 2,
        "rows": 300,
        "rows_per_group": 64,
        "classes": ["a", "b"],
        "seed": 7,
        "source": "here",
    }
    id = 0
    for shard in manifest["shards"]:
        data = (tmp_path / shard["path"]).read_bytes()
        footer = pq.read_metadata(tmp_path / shard["path"])
        assert (len(data), footer.num_rows) == (shard["bytes"], shard["rows"])
        for offset, length, rows, crc in shard["groups"]:
            span = data[offset : offset + length]
            assert zlib.crc32(span) == crc
            # The span is a Parquet file by itself.
            assert pq.read_table(pa.BufferReader(span))["index"].to_pylist() == list(range(id, id + rows))
            for row in range(id, id + rows):
                # Values lie in the file as they are, so an image is one range of bytes.
                assert image(row) in span
            id += rows
    assert id == 300


def test_row_groups_have_64_rows_and_only_the_last_of_all_fewer(tmp_path):
    manifest = write(tmp_path, 300, shard_bytes=10_000)
    rows = [group[2] for shard in manifest["shards"] for group in shard["groups"]]
    assert rows == [64, 64, 64, 64, 44]


def test_a_shard_ends_when_it_is_large_enough(tmp_path):
    sizes = [shard["bytes"] for shard in write(tmp_path, 1000, shard_bytes=100_000)["shards"]]
    # The largest group here has 64 images of 1,050 bytes.
    assert all(100_000 <= size < 100_000 + 64 * 1_050 + 5_000 for size in sizes[:-1])


def test_an_exception_leaves_no_manifest_and_no_open_file(tmp_path):
    def interrupted():
        with ShardWriter(str(tmp_path), classes=None, seed=0, source="here", shard_bytes=10_000_000) as writer:
            for row in range(200):
                writer.add(image(row), None)
            assert list(tmp_path.glob("*.tmp"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not (tmp_path / "manifest.json").exists()
    assert not list(tmp_path.glob("*.tmp"))
