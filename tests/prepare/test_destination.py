import json

import pytest

from pirl.errors import ConfigError
from pirl.prepare.destination import UNFINISHED, check_apart, check_destination, clear, finish, start
from pirl.storage.folder import Folder

REQUEST = {"source": "a", "seed": 0}


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    return Folder(str(tmp_path / "set") if request.param == "local" else f"memory://{tmp_path.name}")


def put(folder, *names):
    for name in names:
        folder.write(name, "x")


def test_a_new_folder_is_begun_and_finished(folder):
    check_destination(folder, REQUEST, overwrite=False)
    start(folder, REQUEST, overwrite=False)
    assert json.loads(folder.read(UNFINISHED)) == REQUEST
    put(folder, "manifest.json")
    finish(folder)
    assert sorted(folder.sizes()) == ["manifest.json"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_same_request_goes_on(folder, overwrite):
    # With --overwrite too: the command that was killed had it, and the same command goes on.
    start(folder, REQUEST, overwrite)
    put(folder, "shard-00000.parquet", "shard-00001.parquet.123.tmp", "test/shard-00000.parquet", "test/manifest.json")
    check_destination(folder, REQUEST, overwrite)
    start(folder, REQUEST, overwrite)
    assert sorted(folder.sizes()) == [
        "shard-00000.parquet",
        "test/manifest.json",
        "test/shard-00000.parquet",
        UNFINISHED,
    ]


def test_another_request_does_not_go_on(folder):
    start(folder, REQUEST, overwrite=False)
    put(folder, "shard-00000.parquet")
    other = REQUEST | {"seed": 1}
    for check in (check_destination, start):
        with pytest.raises(ConfigError, match=r"beginning of another data set \(seed 0, now 1\).*--overwrite"):
            check(folder, other, overwrite=False)
    start(folder, other, overwrite=True)
    assert sorted(folder.sizes()) == [UNFINISHED]


def test_a_source_that_changed_does_not_go_on(folder):
    # What a source holds is known only when it was read, after the first check.
    start(folder, REQUEST | {"content": 1}, overwrite=False)
    check_destination(folder, REQUEST, overwrite=False)
    with pytest.raises(ConfigError, match=r"content 1, now 2"):
        start(folder, REQUEST | {"content": 2}, overwrite=False)


@pytest.mark.parametrize("files", [["manifest.json", "shard-00000.parquet"], ["shard-00000.parquet"]])
def test_a_data_set_is_replaced_on_request_alone(folder, files):
    put(folder, *files)
    with pytest.raises(ConfigError, match="exists: choose another, or add --overwrite"):
        check_destination(folder, REQUEST, overwrite=False)
    check_destination(folder, REQUEST, overwrite=True)
    start(folder, REQUEST, overwrite=True)
    assert sorted(folder.sizes()) == [UNFINISHED]


def test_other_files_are_never_replaced(folder):
    put(folder, "thesis.tex")
    with pytest.raises(ConfigError, match=r"other files \(thesis\.tex\)"):
        check_destination(folder, REQUEST, overwrite=True)


def test_a_data_set_looks_incomplete_as_soon_as_it_is_being_removed(folder, monkeypatch):
    put(folder, "manifest.json", "test/manifest.json", "shard-00000.parquet", UNFINISHED)
    order, remove = [], Folder.remove
    monkeypatch.setattr(Folder, "remove", lambda self, *names: (order.extend(names), remove(self, *names)))
    clear(folder)
    assert [name.rpartition("/")[2] for name in order] == [
        "manifest.json",
        "manifest.json",
        UNFINISHED,
        "shard-00000.parquet",
    ]


@pytest.mark.parametrize(
    ("destination", "source"),
    [
        ("s3://bucket/in/out", "s3://bucket/in"),
        ("/a", "/a/b"),
        ("a", "./a"),
        # The same place in another spelling.
        ("a", "file://{here}/a"),
        ("local://{here}/link", "a"),
        ("~/a", "{here}/a"),
        ("memory://a", "memory:///a"),
        ("s3a://bucket/in/", "s3://bucket/in"),
        ("memory://a", "memory://a/*.tar"),
    ],
)
def test_a_destination_in_its_source_or_around_it_is_refused(tmp_path, monkeypatch, destination, source):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(ConfigError, match="overlap"):
        check_apart(destination.format(here=tmp_path), source.format(here=tmp_path))


@pytest.mark.parametrize(
    ("destination", "source"), [("s3://bucket/out", "s3://bucket/in"), ("memory://a", "/a"), ("/a/bc", "/a/b")]
)
def test_a_destination_beside_its_source_is_taken(destination, source):
    check_apart(destination, source)
