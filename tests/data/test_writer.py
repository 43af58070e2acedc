import errno
import json
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pirl.data.writer import ShardWriter
from pirl.errors import StorageError
from pirl.storage.folder import Folder


def image(row):
    return bytes([row % 256]) * (50 + row)


def stop_at(folder, row, **options):
    """Writes up to a row and then no further, as after a kill."""

    def interrupted():
        with ShardWriter(Folder(str(folder)), **options) as writer:
            for at in range(row):
                writer.record = {"taken": at + 1}
                writer.add(image(at), at % 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def write(folder, rows, **options):
    with ShardWriter(Folder(str(folder)), classes=["a", "b"], seed=7, source="here", **options) as writer:
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


def test_rows_may_have_names(tmp_path):
    with ShardWriter(Folder(str(tmp_path)), classes=None, seed=7, source="here", named=True) as writer:
        for row in range(70):
            writer.add(image(row), None, None if row == 3 else f"ant/{row}.jpg")
    table = pq.read_table(tmp_path / "shard-00000.parquet")
    assert table.column_names == ["index", "image", "label", "crc32", "name"]
    assert table["name"].to_pylist() == [None if row == 3 else f"ant/{row}.jpg" for row in range(70)]
    assert table["image"].to_pylist() == [image(row) for row in range(70)]


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
        with ShardWriter(Folder(str(tmp_path)), classes=None, seed=0, source="here", shard_bytes=10_000_000) as writer:
            for row in range(200):
                writer.add(image(row), None)
            assert list(tmp_path.glob("*.tmp"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not (tmp_path / "manifest.json").exists()
    assert not list(tmp_path.glob("*.tmp"))


def lose(folder, how):
    """What a power loss or a person may do to the second shard of four; returns the shards before it."""
    first, second, *_ = sorted(folder.glob("shard-*"))
    if how == "gone":
        second.unlink()
    elif how == "empty":
        second.write_bytes(b"")
    elif how == "cut short":
        second.write_bytes(second.read_bytes()[:-100])
    elif how == "zeros":  # its footer, but for what says where that is
        data = second.read_bytes()
        second.write_bytes(data[:-500] + bytes(492) + data[-8:])
    else:  # of another program
        pq.write_table(pa.table({"image": [b"x"]}), second)
    return [first]


@pytest.mark.parametrize(
    ("row", "how"),
    [(0, ""), (1, ""), (150, ""), (299, ""), *((299, how) for how in ("gone", "empty", "cut short", "zeros", "other"))],
)
def test_another_writer_goes_on_behind_the_shards_that_are_there(tmp_path, row, how):
    options = {"classes": ["a", "b"], "seed": 0, "source": "here", "shard_bytes": 6_000, "resume": True}
    for name, stop in (("stopped", row), ("undisturbed", None)):
        if stop is not None:
            stop_at(tmp_path / name, stop, **options)
        whole = list((tmp_path / name).glob("shard-*"))
        if how and stop:
            assert len(whole) == 4
            whole = lose(tmp_path / name, how)
        written = {path: path.stat().st_mtime_ns for path in whole}
        with ShardWriter(Folder(str(tmp_path / name)), **options) as writer:
            assert writer.rows == writer.record.get("taken", 0)
            assert set((tmp_path / name).glob("shard-*")) == set(whole)
            if how and stop:
                assert writer.rows == 64
            else:
                assert writer.rows > row - 128 if stop else writer.rows == 0
            for at in range(writer.rows, 300):
                writer.record = {"taken": at + 1}
                writer.add(image(at), at % 2)
        assert {path: path.stat().st_mtime_ns for path in written} == written
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("stopped", "undisturbed")
    ]
    assert files[0] == files[1]
    manifest = json.loads(files[0]["manifest.json"])
    assert (manifest["taken"], manifest["class_rows"]) == (300, [150, 150])


@pytest.mark.parametrize("error", [StorageError("gave up"), PermissionError(errno.EACCES, "not yours")], ids=repr)
def test_a_shard_that_the_store_did_not_give_is_not_taken_for_a_damaged_one(tmp_path, monkeypatch, error):
    options = {"classes": None, "seed": 0, "source": "here", "shard_bytes": 6_000, "resume": True}
    stop_at(tmp_path, 299, **options)

    def fail(*_):
        raise error

    monkeypatch.setattr(Folder, "reading", fail)
    with pytest.raises(type(error)):
        ShardWriter(Folder(str(tmp_path)), **options)
    assert len(list(tmp_path.glob("shard-*"))) == 4


def test_a_write_that_fails_ends_the_writing(tmp_path):
    (tmp_path / "file").write_text("in the way")

    def into_a_file():
        with ShardWriter(Folder(str(tmp_path / "file" / "set")), classes=None, seed=0, source="here") as writer:
            for row in range(130):
                writer.add(image(row), None)
            pytest.fail("the second row group was taken after the first had failed")

    with pytest.raises(NotADirectoryError):
        into_a_file()
