import json

import pytest

from pirl.errors import ConfigError
from pirl.prepare.destination import UNFINISHED, check_apart, check_destination, clear, finish, start
from pirl.storage import files as storage

REQUEST = {"source": "a", "seed": 0}


@pytest.fixture(params=["local", "memory"])
def uri(request, tmp_path):
    return str(tmp_path / "set") if request.param == "local" else f"memory://{tmp_path.name}"


def put(uri, *names):
    for name in names:
        storage.write_text(storage.join(uri, name), "x")


def test_a_new_folder_is_begun_and_finished(uri):
    check_destination(uri, REQUEST, overwrite=False)
    start(uri, REQUEST, overwrite=False)
    assert json.loads(storage.read_all(storage.join(uri, UNFINISHED))) == REQUEST
    put(uri, "manifest.json")
    finish(uri)
    assert storage.files_below(uri) == ["manifest.json"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_same_request_goes_on(uri, overwrite):
    # With --overwrite too: the command that was killed had it, and the same command goes on.
    start(uri, REQUEST, overwrite)
    put(uri, "shard-00000.parquet", "shard-00001.parquet.123.tmp", "test/shard-00000.parquet", "test/manifest.json")
    check_destination(uri, REQUEST, overwrite)
    start(uri, REQUEST, overwrite)
    assert storage.files_below(uri) == [
        "shard-00000.parquet",
        "test/manifest.json",
        "test/shard-00000.parquet",
        UNFINISHED,
    ]


def test_another_request_does_not_go_on(uri):
    start(uri, REQUEST, overwrite=False)
    put(uri, "shard-00000.parquet")
    other = REQUEST | {"seed": 1}
    for check in (check_destination, start):
        with pytest.raises(ConfigError, match=r"beginning of another data set \(seed 0, now 1\).*--overwrite"):
            check(uri, other, overwrite=False)
    start(uri, other, overwrite=True)
    assert storage.files_below(uri) == [UNFINISHED]


def test_a_source_that_changed_does_not_go_on(uri):
    # What a source holds is known only when it was read, after the first check.
    start(uri, REQUEST | {"content": 1}, overwrite=False)
    check_destination(uri, REQUEST, overwrite=False)
    with pytest.raises(ConfigError, match=r"content 1, now 2"):
        start(uri, REQUEST | {"content": 2}, overwrite=False)


@pytest.mark.parametrize("files", [["manifest.json", "shard-00000.parquet"], ["shard-00000.parquet"]])
def test_a_data_set_is_replaced_on_request_alone(uri, files):
    put(uri, *files)
    with pytest.raises(ConfigError, match="exists: choose another, or add --overwrite"):
        check_destination(uri, REQUEST, overwrite=False)
    check_destination(uri, REQUEST, overwrite=True)
    start(uri, REQUEST, overwrite=True)
    assert storage.files_below(uri) == [UNFINISHED]


def test_other_files_are_never_replaced(uri):
    put(uri, "thesis.tex")
    with pytest.raises(ConfigError, match=r"other files \(thesis\.tex\)"):
        check_destination(uri, REQUEST, overwrite=True)


def test_a_data_set_looks_incomplete_as_soon_as_it_is_being_removed(uri, monkeypatch):
    put(uri, "manifest.json", "test/manifest.json", "shard-00000.parquet", UNFINISHED)
    order, remove = [], storage.remove
    monkeypatch.setattr(storage, "remove", lambda name: (order.append(name.rpartition("/")[2]), remove(name)))
    clear(uri)
    assert order == ["manifest.json", "manifest.json", UNFINISHED, "shard-00000.parquet"]


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
