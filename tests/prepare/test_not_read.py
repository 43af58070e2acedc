import io
import subprocess

import pytest
from PIL import Image

from pirl.prepare.sources.not_read import (
    HEAD_BYTES,
    IMAGES,
    LISTED,
    NotRead,
    how_to_unpack,
    is_junk,
    lines,
    suffix_by_head,
    suffix_of,
    tidy,
)


@pytest.mark.parametrize("name", ["cat/1.png", "/cat/1.png", "././cat/1.png", "cat//1.png", "a/../cat/./1.png"])
def test_one_path_has_one_name(name):
    assert tidy(name) == "cat/1.png"


@pytest.mark.parametrize(
    "name",
    [
        *(".ipynb_checkpoints/1.png", "a/__MACOSX/1.png", "@eaDir/1.png", ".git/1.png", "a/.thumbnails/b/1.png"),
        *("Thumbs.db", "a/.DS_Store", "a/._1.png", "$RECYCLE.BIN/1.png", "lost+found/1.png", "#recycle/1.png"),
        *("System Volume Information/1.png", ".Trash-1000/1.png", "ehthumbs.db", "Desktop.ini", "._a.parquet"),
    ],
)
def test_junk(name):
    not_read = NotRead()
    assert is_junk(name)
    assert not not_read.is_read(name, lambda: pytest.fail("nothing of it is read"))
    assert bool(not_read.left) == name.endswith(".png")


def test_what_looks_like_junk_and_is_none():
    assert not any(map(is_junk, ["cat/1.png", "a.b/c.png", "recycle/1.png", "thumbnails/1.png", "git/1.png"]))


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        *[("a/1.PNG", ".png"), ("a.b/c", ""), ("x.TAR.gz", ".tar.gz"), ("x.tar.zst", ".tar.zst"), ("x.tgz", ".tgz")],
        *[("1.2.jpg", ".jpg"), ("labels.csv.gz", ".gz"), (".hidden", "")],
    ],
)
def test_suffixes(name, suffix):
    assert suffix_of(name) == suffix


def encoded(form, **options):
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_what_pillow_writes_is_known_by_its_beginning(form):
    """Every format with a beginning of its own, under no name or under one that nobody knows."""
    not_read = NotRead()
    head = encoded(form)[:HEAD_BYTES]
    assert not_read.is_read("a/0001", lambda: head)
    assert not_read.is_read("a/1.image", lambda: head)
    assert not_read.left == {}


def test_every_suffix_that_is_read_is_one_that_pillow_knows():
    Image.init()
    assert set(IMAGES) - {".j2k", ".jpc", ".j2c"} <= set(Image.registered_extensions())


@pytest.mark.parametrize(
    ("head", "suffix"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", ".heic"),
        (b"PK\x03\x04", ".zip"),
        (b"PAR1\x15", ".parquet"),
        (b"\x1f\x8b\x08", ".gz"),
        (b"", None),
        (b"All rights reserved.", None),
        (b"BM is how this text begins, and it is none", None),
        (b"P2P networks", None),
    ],
)
def test_other_beginnings(head, suffix):
    assert suffix_by_head(head) == suffix


def test_files_are_counted_as_what_they_are():
    not_read = NotRead()
    for name, head in {
        "b/2.heic": None,
        "a/1.HEIC": None,
        "x.zip": None,
        "labels.csv": None,
        "1.png~": None,
        "2.png.part": None,
        "raw.nef": None,
        "LICENSE": b"All rights reserved.",
        "photo": b"\0\0\0\x18ftypheic\0\0\0\0",
        "empty": b"",
    }.items():
        assert not not_read.is_read(name, lambda head=head: pytest.fail("is asked for") if head is None else head)
    assert not_read.left == {
        ".heic": (3, "a/1.HEIC", True),
        ".zip": (1, "x.zip", True),
        ".nef": (1, "raw.nef", True),
        ".csv": (1, "labels.csv", False),
        "files that look like copies or parts of others": (2, "1.png~", False),
        "files without a suffix": (1, "LICENSE", False),
    }


def test_what_is_said():
    not_read = NotRead()
    not_read.add(".zip", "x.zip", 3)
    not_read.add("folder val/", "val", 1200)
    not_read.add(".heic", "cat/1.heic", 12)
    not_read.add(".txt", "a.txt", may_be_images=False)
    assert lines(not_read.record()) == [
        "not read: folder val/ (1,200 images), 12 .heic (as cat/1.heic), 3 .zip (as x.zip)",
        "passed over: 1 .txt (as a.txt)",
    ]
    assert lines(NotRead().record()) == []


def test_the_record_does_not_hang_on_the_order_and_stays_small():
    names = [f"{number}.{number % 300}" for number in range(900)]
    records = []
    for order in (names, names[::-1]):
        not_read = NotRead()
        for name in order:
            not_read.add(suffix_of(name), name)
        records.append(not_read.record())
    assert records[0] == records[1]
    assert len(records[0]) == LISTED + 1
    assert sum(entry["files"] for entry in records[0]) == 900


@pytest.mark.parametrize(
    ("path", "suffix", "text"),
    [
        ("/a/x.tar.gz", ".tar.gz", "Type: gunzip -c /a/x.tar.gz > /a/x.tar, and name /a/x.tar as SOURCE"),
        ("x.tgz", ".tgz", "Type: gunzip -c x.tgz > x.tar, "),
        ("my x.tar.zst", ".tar.zst", "Type: unzstd -c 'my x.tar.zst' > 'my x.tar', "),
        ("x.tar.bz2", ".tar.bz2", "Type: bunzip2 -c x.tar.bz2 > x.tar, "),
        ("x.tar.xz", ".tar.xz", "Type: unxz -c x.tar.xz > x.tar, "),
        # What it is called is not what it is.
        ("x.tar", ".gz", "Type: gunzip -c x.tar > x.unpacked.tar, "),
        ("s3://bucket/x.tgz", ".tgz", "Copy it to a disk, and there type: gunzip -c x.tgz > x.tar, "),
    ],
)
def test_how_to_unpack(path, suffix, text):
    assert how_to_unpack(path, suffix).startswith(text)


def test_what_is_to_be_typed_unpacks_the_file(tmp_path):
    (tmp_path / "my x.tar").write_bytes(b"what was packed")
    subprocess.run(["gzip", "my x.tar"], cwd=tmp_path, check=True)
    command = how_to_unpack(str(tmp_path / "my x.tar.gz"), ".tar.gz").split(": ", 1)[1].split(", and name")[0]
    subprocess.run(command, shell=True, check=True)
    assert (tmp_path / "my x.tar").read_bytes() == b"what was packed"
