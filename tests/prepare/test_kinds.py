import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pirl.errors import ConfigError
from pirl.prepare.scratch import Scratch
from pirl.prepare.sources.kinds import find_source
from pirl.prepare.sources.not_read import NotRead
from pirl.prepare.sources.source import Columns


def make(folder, *names):
    """Files that hold their own names; a Parquet file has one row with it."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"image": [name.encode()], "label": [0]}), path)
        else:
            path.write_text(name)
    return str(folder)


SCRATCH = Scratch()


@pytest.fixture(autouse=True, scope="module")
def _close():
    with SCRATCH:
        yield


def find(uri):
    return find_source(uri, Columns(), SCRATCH, lambda *_: None)


def contents(source):
    spans = [] if source is None else source.spans(np.arange(len(source.labels)))
    return [SCRATCH.read(span).decode() for span in spans] or None


def found(uri):
    return tuple(contents(source) for source in find(uri))


def test_class_folders(tmp_path):
    uri = make(tmp_path, "cat/2.JPG", "ant/deep/1.png", "cat/1.jpeg", "cat/notes.txt", "stray.png")
    source, test = find(uri)
    assert test is None
    assert source.names.to_pylist() == ["ant/deep/1.png", "cat/1.jpeg", "cat/2.JPG", "stray.png"]
    assert (source.classes, source.labels.tolist()) == (["ant", "cat"], [0, 1, 1, -1])
    assert [SCRATCH.read(span) for span in source.spans(np.array([3, 0]))] == [b"stray.png", b"ant/deep/1.png"]
    assert source.name(3) == f"{uri}/stray.png"


def test_the_digest_of_a_folder_shows_other_names_and_other_sizes(tmp_path):
    uri = make(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/1.png")
    before = [source.digest() for source in find(uri)]
    assert [source.digest() for source in find(uri)] == before
    (tmp_path / "test" / "a" / "1.png").write_text("longer than its name")
    train, test = (source.digest() for source in find(uri))
    assert (train == before[0], test == before[1]) == (True, False)
    (tmp_path / "train" / "a" / "1.png").rename(tmp_path / "train" / "a" / "3.png")
    assert find(uri)[0].digest() != before[0]


def test_a_flat_folder_has_no_classes(tmp_path):
    source, _ = find(make(tmp_path, "1.png", "2.png"))
    assert (source.classes, source.labels.tolist()) == (None, [-1, -1])


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        (["train/a/1.png", "test/a/2.png"], ["train/a/1.png"], ["test/a/2.png"]),
        (["train/a/1.png", "val/a/2.png"], ["train/a/1.png"], ["val/a/2.png"]),
        (["train/a/1.png", "val/a/2.png", "test/a/3.png"], ["train/a/1.png"], ["test/a/3.png"]),
        (["train/a/1.png"], ["train/a/1.png"], None),
        # A class of trains is no split.
        (["train/1.png", "car/2.png"], ["car/2.png", "train/1.png"], None),
        (["train.parquet", "test.parquet"], ["train.parquet"], ["test.parquet"]),
        (["d/train-0-of-1.parquet"], ["d/train-0-of-1.parquet"], None),
        (["d/train-0.parquet", "d/train-1.parquet", "d/validation-0.parquet"],
         ["d/train-0.parquet", "d/train-1.parquet"], ["d/validation-0.parquet"]),
        (["train/0.parquet", "test/0.parquet"], ["train/0.parquet"], ["test/0.parquet"]),
        # As prepare itself writes them.
        (["0.parquet", "test/0.parquet"], ["0.parquet"], ["test/0.parquet"]),
        (["train-0.parquet", "a.parquet"], ["a.parquet", "train-0.parquet"], None),
        (["b.parquet", "a.parquet", "x.png"], ["a.parquet", "b.parquet"], None),
    ],
)  # fmt: skip
def test_splits_in_a_folder(tmp_path, names, train, test):
    assert found(make(tmp_path, *names)) == (train, test)


def test_the_class_of_an_image_in_a_split_is_the_folder_below_it(tmp_path):
    train, test = find(make(tmp_path, "train/a/1.png", "train/b/1.png", "test/b/1.png"))
    assert (train.classes, train.labels.tolist()) == (["a", "b"], [0, 1])
    test = test.with_classes(train.classes)
    assert (test.classes, test.labels.tolist()) == (["a", "b"], [1])


def test_rows_without_a_class_keep_none_under_other_classes(tmp_path):
    test, _ = find(make(tmp_path, "b/1.png", "stray.png"))
    assert test.with_classes(["a", "b", "c"]).labels.tolist() == [1, -1]


def test_classes_that_training_lacks_are_refused(tmp_path):
    test, _ = find(make(tmp_path, "a/1.png", "d/1.png"))
    with pytest.raises(ConfigError, match="classes that the training images lack: d"):
        test.with_classes(["a", "b"])


def test_one_file_and_a_pattern(tmp_path):
    make(tmp_path, "train-0.parquet", "train-1.parquet", "test-0.parquet", "other.txt")
    assert found(f"{tmp_path}/test-0.parquet") == (["test-0.parquet"], None)
    assert found(f"{tmp_path}/train-*.parquet") == (["train-0.parquet", "train-1.parquet"], None)
    assert found(f"{tmp_path}/t*") == (["train-0.parquet", "train-1.parquet"], ["test-0.parquet"])


@pytest.mark.parametrize("pattern", ["train-?.parquet", "train-[01].parquet"])
def test_other_patterns(tmp_path, pattern):
    make(tmp_path, "train-0.parquet", "train-1.parquet", "test-0.parquet")
    assert found(f"{tmp_path}/{pattern}") == (["train-0.parquet", "train-1.parquet"], None)


def test_links_to_folders_are_followed_once(tmp_path):
    make(tmp_path / "elsewhere", "dog/1.png")
    make(tmp_path / "set", "cat/1.png")
    (tmp_path / "set" / "dog").symlink_to("../elsewhere/dog")
    (tmp_path / "set" / "cat" / "circle").symlink_to("..")
    source, _ = find(f"{tmp_path}/set")
    assert source.names.to_pylist() == ["cat/1.png", "dog/1.png"]
    assert source.classes == ["cat", "dog"]


def test_images_beside_a_parquet_file_are_not_left_without_a_word(tmp_path):
    make(tmp_path, "cat/1.png", "cat/2.png", "rows.parquet", "notes.txt")
    not_read = NotRead()
    find_source(str(tmp_path), Columns(), SCRATCH, lambda *_: None, not_read=not_read)
    assert not_read.left == {".png": (2, "cat/1.png", True), ".txt": (1, "notes.txt", False)}


def test_images_that_a_parquet_file_names_are_read_and_others_beside_it_are_not(tmp_path):
    make(tmp_path, "pictures/1.png", "pictures/2.png")
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "pictures/2.png"}]}), tmp_path / "rows.parquet")
    not_read = NotRead()
    train, _ = find_source(str(tmp_path), Columns(), SCRATCH, lambda *_: None, not_read=not_read)
    assert contents(train) == ["pictures/2.png"]
    assert not_read.left == {".png": (1, "pictures/1.png", True)}


def test_a_name_with_brackets_is_that_file(tmp_path):
    make(tmp_path, "[1] *.parquet", "1 x.parquet")
    assert found(f"{tmp_path}/[1] *.parquet") == (["[1] *.parquet"], None)


@pytest.mark.parametrize("name", ["absent", "notes.txt", "one.png", "empty", "*.parquet"])
def test_nothing_to_read_says_what_a_source_is(tmp_path, name):
    make(tmp_path, "notes.txt", "one.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="SOURCE is a folder of images"):
        find(f"{tmp_path}/{name}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one.png", "one.png is a single image: SOURCE is"),
        ("x.rar", "x.rar is an archive that is not read: unpack it, and name the folder"),
        ("notes.txt", "notes.txt is not read. SOURCE is"),
        ("*.tar", "[*].tar: there is no such file"),
    ],
)
def test_a_file_of_another_kind_is_told_what_it_is(tmp_path, name, message):
    make(tmp_path, "one.png", "x.rar", "notes.txt")
    with pytest.raises(ConfigError, match=message):
        find(f"{tmp_path}/{name}")


def test_short_suffixes_of_parquet_and_what_spark_writes_beside_it(tmp_path):
    make(tmp_path, "x.parquet")
    (tmp_path / "x.parquet").rename(tmp_path / "x.pq")
    for name in ("_SUCCESS", "_metadata", "_common_metadata"):
        (tmp_path / name).write_bytes((tmp_path / "x.pq").read_bytes())
    not_read = NotRead()
    train, test = find_source(str(tmp_path), Columns(), SCRATCH, lambda *_: None, (), not_read)
    assert (len(train.labels), test, not_read.left) == (1, None, {})
    assert found(f"{tmp_path}/x.pq") == (["x.parquet"], None)


def test_parquet_files_in_folders_of_plain_names_are_said_to_have_no_labels(tmp_path, capfd):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"image": [b"x"]}), tmp_path / name / "x.parquet")
    assert find(str(tmp_path))[0].classes is None
    assert "so these images have no labels; folders name them as label=cat/, not as dog/" in capfd.readouterr().err
