import io
import json
import tarfile

import numpy as np
import pytest
import webdataset

from pirl.errors import ConfigError
from pirl.prepare.scratch import Scratch
from pirl.prepare.sources.source import Columns, Found
from pirl.prepare.sources.tar_source import TAR
from pirl.storage.folder import Folder


@pytest.fixture
def scratch():
    with Scratch() as scratch:
        yield scratch


@pytest.fixture
def opened(scratch):
    def run(*files, label_field=None):
        return TAR.open(
            Found(None, [str(file) for file in files]), Columns(label=label_field), scratch, lambda *_: None
        )

    return run


def write(path, members, form=tarfile.PAX_FORMAT):
    """A tar file; members are (name, bytes), or names alone, which are their contents too."""
    with tarfile.open(path, "w", format=form) as tar:
        for member in members:
            name, data = (member, member.encode()) if isinstance(member, str) else member
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return path


def images(source, scratch):
    return [scratch.read(span).decode() for span in source.spans(np.arange(len(source.labels)))]


def test_class_folders(tmp_path, opened, scratch):
    path = write(tmp_path / "x.tar", ["cat/2.JPG", "ant/deep/1.png", "cat/notes.txt", "./cat/1.jpeg", "stray.png"])
    source, test = opened(path)
    assert test is None
    assert (source.classes, source.labels.tolist()) == (["ant", "cat"], [1, 0, 1, -1])
    assert images(source, scratch) == ["cat/2.JPG", "ant/deep/1.png", "./cat/1.jpeg", "stray.png"]
    assert (source.uri, source.name(1)) == (str(path), f"{path}: ant/deep/1.png")


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.LNKTYPE, "./cat/1.png"),
        (tarfile.SYMTYPE, "../cat/1.png"),
        (tarfile.SYMTYPE, "/absent.png"),
    ],
    ids=["hard", "symbolic", "to nothing"],
)
def test_a_link_is_what_it_leads_to(tmp_path, opened, scratch, kind, target):
    path = write(tmp_path / "x.tar", ["ant/2.png", "cat/1.png"])
    with tarfile.open(path, "a") as tar:
        for name, to in (("ant/link.png", target), ("cat/again.png", "ant/link.png")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = (kind, to) if to == target else (tarfile.LNKTYPE, to)
            tar.addfile(link)
    source, _ = opened(path)
    leads = [] if target == "/absent.png" else ["cat/1.png"] * 2
    assert images(source, scratch) == ["ant/2.png", "cat/1.png", *leads]
    assert source.labels.tolist() == [0, 1, 0, 1][: 2 + len(leads)]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_long_names_and_many_files(tmp_path, opened, scratch, form):
    # Names of more than 100 letters lie in headers of their own.
    names = [f"{'abc'[row % 3]}/{'x' * 150}{row}.png" for row in range(50)]
    files = [write(tmp_path / f"{at}.tar", names[at::2], form) for at in range(2)]
    source, _ = opened(*files)
    assert images(source, scratch) == names[::2] + names[1::2]
    assert [source.classes[label] for label in source.labels] == [name[0] for name in names[::2] + names[1::2]]
    assert source.uri == f"{files[0]} and 1 more"


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["photos/cat/1.png", "photos/ant/1.png"], ["ant", "cat"]),
        (["a/b/cat/1.png", "a/b/ant/1.png"], ["ant", "cat"]),
        (["photos/cat/1.png", "photos/1.png"], ["cat"]),
        (["cat/1.png", "cat/2.png"], ["cat"]),
        (["1.png", "2.png"], None),
    ],
)
def test_the_folder_that_was_packed_is_no_class(tmp_path, opened, names, classes):
    assert opened(write(tmp_path / "x.tar", names))[0].classes == classes


def test_splits_in_a_tar_file(tmp_path, opened, scratch):
    names = ["set/train/ant/1.png", "set/train/bee/1.png", "set/val/bee/2.png"]
    train, test = opened(write(tmp_path / "x.tar", names))
    assert (train.classes, train.labels.tolist(), images(train, scratch)) == (["ant", "bee"], [0, 1], names[:2])
    assert (test.classes, test.labels.tolist(), images(test, scratch)) == (["bee"], [0], names[2:])


def test_splits_of_webdataset_pairs(tmp_path, opened, scratch):
    pairs = [("d/train/1.jpg", b"x"), ("d/train/1.cls", b"2"), ("d/val/1.jpg", b"y"), ("d/val/1.cls", b"1")]
    train, test = opened(write(tmp_path / "x.tar", pairs))
    assert (train.classes, train.labels.tolist(), images(train, scratch)) == (["0", "1", "2"], [2], ["x"])
    assert (test.classes, test.labels.tolist(), images(test, scratch)) == (["0", "1"], [1], ["y"])


@pytest.mark.parametrize(
    ("pairs", "classes", "labels"),
    [
        ([("a.jpg", b"x"), ("a.cls", b"3\n"), ("b.cls", b"0"), ("b.png", b"y")], ["0", "1", "2", "3"], [3, 0]),
        ([("a.jpg", b"x"), ("a.cls", b"dog"), ("b.jpg", b"y"), ("b.cls", b"ant")], ["ant", "dog"], [1, 0]),
        ([("d/a.1.jpg", b"x"), ("d/a.json", b'{"label": 2}'), ("d/b.jpg", b"y")], ["0", "1", "2"], [2, -1]),
        ([("a.jpg", b"x"), ("a.json", b'{"label": 9}'), ("a.cls", b"1")], ["0", "1"], [1]),
        ([("a.jpg", b"x"), ("a.json", b"{broken"), ("b.jpg", b"y"), ("b.cls", b"0")], ["0"], [-1, 0]),
    ],
    ids=["numbers", "names", "json", "cls before json", "broken json"],
)
def test_webdataset_pairs(tmp_path, opened, pairs, classes, labels):
    source, _ = opened(write(tmp_path / "x.tar", pairs))
    assert (source.classes, source.labels.tolist()) == (classes, labels)


def test_the_field_of_the_json_can_be_named(tmp_path, opened):
    pairs = [("a.jpg", b"x"), ("a.json", json.dumps({"label": 1, "kind": "cat"}).encode())]
    assert opened(write(tmp_path / "x.tar", pairs), label_field="kind")[0].classes == ["cat"]


def test_what_webdataset_writes(tmp_path, opened, scratch):
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as writer:
        for row in range(10):
            writer.write({"__key__": f"{row:06}", "jpg": f"image {row}".encode(), "cls": row % 3})
    source, _ = opened(tmp_path / "x.tar")
    assert images(source, scratch) == [f"image {row}" for row in range(10)]
    assert (source.classes, source.labels.tolist()) == (["0", "1", "2"], [row % 3 for row in range(10)])


def test_far_away_files_are_copied_once(tmp_path, opened, scratch):
    names = [f"{'abc'[row % 3]}/{row}.png" for row in range(30)]
    urls = []
    for at in range(2):
        urls.append(f"memory://{tmp_path.name}/{at}.tar")
        Folder(urls[-1]).write("", write(tmp_path / f"{at}.tar", names[at::2]).read_bytes())
    source, _ = opened(*urls)
    assert images(source, scratch) == names[::2] + names[1::2]
    assert {span.uri for span in source.spans(np.arange(30))} == {None}
    assert scratch.size == sum(Folder(url).size() for url in urls)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda data: data[: len(data) // 2], "(unexpected end of data|cut off or damaged at byte)"),
        (lambda data: data[: 4 * 1024], "cut off or damaged at byte 4,096"),
        (lambda data: data[:1024] + b"\xff" * 512 + data[1536:], "cut off or damaged at byte 1,024"),
        (lambda data: b"nothing of the kind", "cannot be read as a tar file .*copy it again"),
        (lambda data: data + data, "goes on behind its end at byte 20,480"),
    ],
    ids=["in an image", "between images", "a header", "another file", "two files in one"],
)
def test_a_damaged_file_is_refused(tmp_path, opened, damage, text):
    path = write(tmp_path / "x.tar", [f"a/{row}.png" for row in range(20)])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=text):
        opened(path)


def test_no_images_are_refused(tmp_path, opened):
    with pytest.raises(ConfigError, match=r"x\.tar holds no images"):
        opened(write(tmp_path / "x.tar", ["notes.txt"]))
