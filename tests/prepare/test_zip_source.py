import shutil
import struct
import subprocess
import zipfile

import numpy as np
import pytest

from pirl.errors import ConfigError
from pirl.prepare.scratch import Scratch
from pirl.prepare.sources.kinds import check_source, find_source
from pirl.prepare.sources.not_read import NotRead
from pirl.prepare.sources.source import Columns, Found
from pirl.prepare.sources.zip_source import ZIP
from pirl.storage.folder import Folder

PACKED = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}


@pytest.fixture
def scratch():
    with Scratch() as scratch:
        yield scratch


@pytest.fixture
def opened(scratch):
    def run(*files):
        return ZIP.open(Found(None, [str(file) for file in files]), Columns(), scratch, lambda *_: None)

    return run


@pytest.fixture(params=PACKED.values(), ids=PACKED)
def method(request):
    return request.param


def content(name):
    """As long as to be packed."""
    return f"{name} {'x' * 100}"


def write(path, names, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in names:
            archive.writestr(name, content(name))
    return path


def images(source, scratch):
    return [scratch.read(span).decode() for span in source.spans(np.arange(len(source.labels)))]


def test_class_folders(tmp_path, opened, scratch, method):
    names = ["cat/2.JPG", "ant/deep/1.png", "cat/notes.txt", "./cat/1.jpeg", "stray.png"]
    path = write(tmp_path / "x.zip", names, method)
    source, test = opened(path)
    assert test is None
    assert (source.classes, source.labels.tolist()) == (["ant", "cat"], [1, 0, 1, -1])
    assert images(source, scratch) == [content(name) for name in names if name != "cat/notes.txt"]
    assert (source.uri, source.name(1)) == (str(path), f"{path}: ant/deep/1.png")
    uri = str(path) if method == zipfile.ZIP_STORED else None
    assert {span.uri for span in source.spans(np.arange(4))} == {uri}
    assert (scratch.size > 0) == (uri is None)


def test_stored_and_packed_members_of_several_files(tmp_path, opened, scratch):
    names = [f"{'abc'[row % 3]}/{row}.png" for row in range(40)]
    for at in range(2):
        with zipfile.ZipFile(tmp_path / f"{at}.zip", "w") as archive:
            for row in range(at, 40, 2):
                archive.writestr(names[row], content(names[row]), list(PACKED.values())[row % 4 // 2])
    source, _ = opened(tmp_path / "0.zip", tmp_path / "1.zip")
    assert images(source, scratch) == [content(name) for name in names[::2] + names[1::2]]
    assert source.uri == f"{tmp_path / '0.zip'} and 1 more"
    assert opened(tmp_path / "0.zip")[0].digest() != source.digest()


def test_splits_in_a_zip_file(tmp_path, opened, scratch, method):
    names = ["set/train/ant/1.png", "set/train/bee/1.png", "set/val/bee/2.png"]
    train, test = opened(write(tmp_path / "x.zip", names, method))
    assert (train.classes, train.labels.tolist()) == (["ant", "bee"], [0, 1])
    assert (test.classes, test.labels.tolist()) == (["bee"], [0])
    assert images(train, scratch) + images(test, scratch) == [content(name) for name in names]


def test_splits_of_files_and_what_lies_beside_them(tmp_path, scratch):
    write(tmp_path / "train-0.zip", ["a/1.png"])
    write(tmp_path / "train-1.ZIP", ["b/1.png"])
    write(tmp_path / "val.zip", ["b/2.png"])
    train, test = find_source(str(tmp_path), Columns(), scratch, lambda *_: None)
    assert (images(train, scratch), images(test, scratch)) == (
        [content("a/1.png"), content("b/1.png")],
        [content("b/2.png")],
    )
    # As before there were zip files among the sources: images that lie there unpacked are what is read.
    (tmp_path / "1.png").write_text("image")
    not_read = NotRead()
    source, _ = find_source(str(tmp_path), Columns(), scratch, lambda *_: None, not_read=not_read)
    assert images(source, scratch) == ["image"]
    assert not_read.left == {".zip": (3, "train-0.zip", True)}


def test_far_away_files_are_copied_once(tmp_path, opened, scratch, method):
    names = [f"{'abc'[row % 3]}/{row}.png" for row in range(30)]
    urls = [f"memory://{tmp_path.name}/{at}.zip" for at in range(2)]
    for at, url in enumerate(urls):
        Folder(url).write("", write(tmp_path / f"{at}.zip", names[at::2], method).read_bytes())
    check_source(urls[0], Columns())
    source, _ = opened(*urls)
    assert images(source, scratch) == [content(name) for name in names[::2] + names[1::2]]
    assert {span.uri for span in source.spans(np.arange(30))} == {None}


@pytest.mark.skipif(shutil.which("zip") is None, reason="there is no zip command")
@pytest.mark.parametrize("options", [[], ["-0"], ["-9"], ["-fz"], ["-fd"]], ids=" ".join)
def test_what_the_zip_command_writes(tmp_path, opened, scratch, options):
    for name in ("train/ant/1.png", "train/bee/2.png", "test/bee/3.png", "train/notes.txt"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_text(content(name))
    subprocess.run(["zip", "-q", "-r", *options, "x.zip", "set"], cwd=tmp_path, check=True)
    train, test = opened(tmp_path / "x.zip")
    assert sorted(images(train, scratch)) == [content(f"train/{name}.png") for name in ("ant/1", "bee/2")]
    assert images(test, scratch) == [content("test/bee/3.png")]


@pytest.mark.skipif(shutil.which("zip") is None, reason="there is no zip command")
def test_a_password_says_what_to_do(tmp_path, opened):
    (tmp_path / "1.png").write_text("image")
    subprocess.run(["zip", "-q", "-P", "secret", "x.zip", "1.png"], cwd=tmp_path, check=True)
    for read in (opened, lambda path: check_source(str(path), Columns())):
        with pytest.raises(ConfigError, match=r"x\.zip: 1\.png is packed with a password, .*: unpack it and name"):
            read(tmp_path / "x.zip")


def test_another_compression_says_what_to_do(tmp_path, opened):
    with pytest.raises(ConfigError, match=r"a/1\.png is packed by method 12, which is not read: unpack it"):
        opened(write(tmp_path / "x.zip", ["a/1.png"], zipfile.ZIP_BZIP2))


@pytest.mark.parametrize("before", [0, 2**32 + 7], ids=["small", "behind 4 GB"])
def test_zip64(tmp_path, opened, scratch, before, method):
    names = [f"{'ab'[row % 2]}/{row}.png" for row in range(10)]
    with (tmp_path / "x.zip").open("wb") as file:
        file.seek(before)  # a hole, which takes no room
        with zipfile.ZipFile(file, "w", method) as archive:
            for name in names:
                with archive.open(name, "w", force_zip64=True) as member:
                    member.write(content(name).encode())
    assert images(opened(tmp_path / "x.zip")[0], scratch) == [content(name) for name in names]


@pytest.mark.parametrize(
    ("names", "found", "classes"),
    [
        (["/data/a/1.png", "/data/b/2.png"], ["/data/a/1.png", "/data/b/2.png"], ["a", "b"]),
        (["../a/1.png", "b/../b/2.png"], ["../a/1.png", "b/../b/2.png"], ["a", "b"]),
        (["a\\1.png", "b\\2.png"], ["a\\1.png", "b\\2.png"], ["a", "b"]),
        (["a/", "a/x.png/", "a/1.png"], ["a/1.png"], ["a"]),
        (["a/1.png", "a/._1.png", "__MACOSX/a/._1.png", "__MACOSX/2.png", ".cache/1.png"], ["a/1.png"], ["a"]),
    ],
    ids=["absolute", "dots", "of Windows", "folders", "hidden"],
)
def test_paths(tmp_path, opened, scratch, names, found, classes):
    source, _ = opened(write(tmp_path / "x.zip", names))
    assert images(source, scratch) == [content(name) for name in found]
    assert source.classes == classes


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_last_of_one_name_is_read(tmp_path, opened, scratch, method):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        for name, data in (("a/1.png", "old"), ("b/1.png", "other"), ("a/1.png", "new")):
            archive.writestr(name, data)
    assert images(opened(tmp_path / "x.zip")[0], scratch) == ["new", "other"]


def test_no_images_are_refused(tmp_path, opened):
    for names in (["notes.txt"], []):
        with pytest.raises(ConfigError, match=r"x\.zip holds no images"):
            opened(write(tmp_path / "x.zip", names))


@pytest.mark.parametrize("where", ["local", "behind another"])
@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda data: data[: len(data) // 2], "(cannot be read as a zip file|is cut off)"),
        (lambda data: data[:-1], "(cannot be read as a zip file|is cut off)"),
        (lambda data: data[1000:], "is cut off or damaged"),
        (lambda data: data[:20] + b"more" + data[20:], "is damaged at byte"),
        (lambda data: b"\0" * 100 + data[100:], "is damaged at byte"),
        (lambda data: b"nothing of the kind", "(cannot be read as a zip file .*copy it again|is cut off)"),
        (lambda data: b"", "(cannot be read as a zip file|is cut off)"),
    ],
    ids=["half", "a byte", "its beginning", "bytes more", "zeros", "another file", "empty"],
)
def test_a_damaged_file_is_refused(tmp_path, opened, damage, text, where, method):
    path = write(tmp_path / "x.zip", [f"a/{row}.png" for row in range(20)], method)
    path.write_bytes(damage(path.read_bytes()))
    files = [path]
    if where != "local":
        whole = write(tmp_path / "whole.zip", ["a/1.png", "b/1.png"], method)
        files = [f"memory://{tmp_path.name}/{file.name}" for file in (whole, path)]
        for file, url in zip((whole, path), files, strict=True):
            Folder(url).write("", file.read_bytes())
    with pytest.raises(ConfigError, match=rf"x\.zip {text}"):
        opened(*files)


def test_check_refuses_another_file(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigError, match=r"x\.zip cannot be read as a zip file"):
        check_source(str(tmp_path / "x.zip"), Columns())


def test_a_damaged_image_is_none(tmp_path, opened, scratch):
    path = write(tmp_path / "x.zip", ["a/1.png", "a/2.png", "a/3.png"], zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at = archive.infolist()[1].header_offset
    data[at + 30 + len("a/2.png") + 3] ^= 255
    path.write_bytes(data)
    assert images(opened(path)[0], scratch) == [content("a/1.png"), "", content("a/3.png")]


def test_names_that_are_no_text_are_refused(tmp_path, opened):
    path = write(tmp_path / "x.zip", ["a/é.png"])
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xff"))
    with pytest.raises(ConfigError, match=r"x\.zip cannot be read as a zip file \('utf-8' codec"):
        opened(path)


def test_too_little_room_says_what_to_type(tmp_path, opened):
    path = write(tmp_path / "x.zip", [f"a/{row:05}.png" for row in range(10_000)], zipfile.ZIP_DEFLATED)
    size = struct.pack("<L", len(content("a/00000.png")))
    path.write_bytes(path.read_bytes().replace(size, struct.pack("<L", 2**32 - 2)))
    with pytest.raises(ConfigError, match=r"x\.zip needs 42,949,67\d MB on a local disk .*--scratch FOLDER"):
        opened(path)
