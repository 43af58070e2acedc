"""Members of tar files whose bytes are not one plain range of the file, or are those of another tar file."""

import io
import os
import subprocess
import tarfile

import numpy as np
import pytest

from pirl.errors import ConfigError
from pirl.prepare.scratch import Scratch
from pirl.prepare.sources.not_read import NotRead
from pirl.prepare.sources.source import Columns, Found
from pirl.prepare.sources.tar_source import TAR
from pirl.storage.folder import Folder


@pytest.fixture
def scratch():
    with Scratch() as scratch:
        yield scratch


@pytest.fixture
def read(scratch):
    """The images of tar files by name, the classes by name, and what is not read."""

    def run(*files):
        not_read = NotRead()
        found = Found(None, [str(file) for file in files], not_read=not_read)
        source, test = TAR.open(found, Columns(), scratch, lambda *_: None)
        assert test is None
        rows = range(len(source.labels))
        names = [source.name(row).split(": ", 1)[1] for row in rows]
        images = [scratch.read(span) for span in source.spans(np.arange(len(rows)))]
        classes = [source.classes[label] if label >= 0 else None for label in source.labels]
        return (
            dict(zip(names, images, strict=True)),
            dict(zip(names, classes, strict=True)),
            {what: left.files for what, left in not_read.left.items()},
        )

    return run


def packed(*members, form=tarfile.PAX_FORMAT):
    """A tar file's bytes; members are names, which are their contents too, (name, content), or headers."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, data = (member, member.encode()) if isinstance(member, str) else member
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return file.getvalue()


def header(name, kind, target=""):
    about = tarfile.TarInfo(name)
    about.type, about.linkname = kind, target
    return about


HOLES = b"begin" + bytes(200_000) + b"middle" + bytes(300_000) + b"end"


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        *(["--format=pax", f"--sparse-version={version}"] for version in ("0.0", "0.1", "1.0")),
    ],
    ids=["gnu", "pax 0.0", "pax 0.1", "pax 1.0"],
)
@pytest.mark.parametrize("where", ["disk", "memory"])
def test_files_with_holes_are_read_right(tmp_path, read, options, where):
    """What tar writes with -S, before and behind plain members, and a link to such a file."""
    folder = tmp_path / "set"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "1.png").write_bytes(b"plain")
    with (folder / "cat" / "2.png").open("wb") as file:
        for at in (0, 200_005, 500_011):
            file.seek(at)
            file.write(HOLES[at : at + 6])
    os.link(folder / "cat" / "2.png", folder / "cat" / "3.png")
    (folder / "cat" / "4.png").write_bytes(b"plain too")
    names = [f"cat/{number}.png" for number in (1, 2, 3, 4)]
    subprocess.run(["tar", "-S", *options, "-cf", tmp_path / "x.tar", "-C", folder, *names], check=True)
    assert (tmp_path / "x.tar").stat().st_size < 100_000  # there are holes
    path = str(tmp_path / "x.tar")
    if where == "memory":
        path = f"memory://{tmp_path.name}/x.tar"
        Folder(path).write("", (tmp_path / "x.tar").read_bytes())
    images, classes, left = read(path)
    assert images == dict(zip(names, [b"plain", HOLES, HOLES, b"plain too"], strict=True))
    assert (set(classes.values()), left) == ({"cat"}, {})


def test_a_file_that_is_nearly_all_hole_is_not_read(tmp_path, read):
    with (tmp_path / "2.png").open("wb") as file:
        file.seek(2**31)
        file.write(b"x")
    (tmp_path / "1.png").write_bytes(b"1")
    subprocess.run(["tar", "-S", "-cf", tmp_path / "x.tar", "-C", tmp_path, "1.png", "2.png"], check=True)
    images, _, left = read(tmp_path / "x.tar")
    assert (images, left) == ({"1.png": b"1"}, {"sparse files of more than 1 GB": 1})


def test_names_are_what_everybody_writes(tmp_path, read):
    names = ["/1.png", "././cat/2.png", "cat//3.png", "cat/../4.png"]
    (tmp_path / "x.tar").write_bytes(packed(*names))
    images, classes, _ = read(tmp_path / "x.tar")
    assert images == dict(zip(["1.png", "cat/2.png", "cat/3.png", "4.png"], map(str.encode, names), strict=True))
    assert classes == {"1.png": None, "cat/2.png": "cat", "cat/3.png": "cat", "4.png": None}


def test_links(tmp_path, read):
    members = [
        *("cat/1.png", ("cat/1.cls", b"cat")),
        header("hard.png", tarfile.LNKTYPE, "./cat/1.png"),
        header("later.png", tarfile.SYMTYPE, "dog/2.png"),  # before what it leads to
        header("chain.png", tarfile.SYMTYPE, "later.png"),
        header("hard.cls", tarfile.LNKTYPE, "cat/1.cls"),
        *("dog/2.png", ("dog/2.cls", b"dog")),
        header("no suffix", tarfile.LNKTYPE, "cat/1.png"),
        header("folder", tarfile.SYMTYPE, "dog"),
        header("gone.png", tarfile.SYMTYPE, "nowhere.png"),
        header("out.png", tarfile.SYMTYPE, "../cat/1.png"),
        header("a.png", tarfile.SYMTYPE, "b.png"),
        header("b.png", tarfile.SYMTYPE, "a.png"),
    ]
    (tmp_path / "x.tar").write_bytes(packed(*members))
    images, classes, left = read(tmp_path / "x.tar")
    cat, dog = ("cat/1.png", "hard.png", "no suffix"), ("dog/2.png", "later.png", "chain.png")
    assert images == dict.fromkeys(cat, b"cat/1.png") | dict.fromkeys(dog, b"dog/2.png")
    assert (classes["hard.png"], classes["dog/2.png"], classes["later.png"]) == ("cat", "dog", None)
    assert left == {"links to folders that are read already": 1, "links to no image": 4}


def test_of_files_with_one_name_the_last_is_read_and_a_link_keeps_what_it_led_to(tmp_path, read):
    members = [("1.png", b"old"), header("2.png", tarfile.LNKTYPE, "1.png"), ("./1.png", b"new")]
    (tmp_path / "x.tar").write_bytes(packed(*members))
    # As tar unpacks it.
    subprocess.run(["tar", "-xf", "x.tar"], cwd=tmp_path, check=True)
    images, _, left = read(tmp_path / "x.tar")
    assert images == {name: (tmp_path / name).read_bytes() for name in ("1.png", "2.png")}
    assert images == {"1.png": b"new", "2.png": b"old"}
    assert left == {"earlier files of the same name": 1}


def test_what_is_no_file_is_counted(tmp_path, read):
    kinds = (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)
    members = [header(f"{at}.png", kind) for at, kind in enumerate(kinds)]
    members += ["7.png", header("8.png", b"M"), header("9.png", b"Q"), header("volume", b"V"), header("a", b"5")]
    (tmp_path / "x.tar").write_bytes(packed(*members))
    images, _, left = read(tmp_path / "x.tar")
    assert images == {"7.png": b"7.png"}
    assert left == {
        "pipes, sockets and devices": 3,
        "files that begin in another volume": 1,
        "members of an unknown type": 1,
    }


def test_several_volumes_are_refused_or_read_without_what_is_in_two(tmp_path, read):
    (tmp_path / "a.png").write_bytes(b"a" * 30_000)
    (tmp_path / "b.png").write_bytes(b"b" * 3000)
    command = ["tar", "-cM", "-L", "20", "-f", "1.tar", "-f", "2.tar", "a.png", "b.png"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with pytest.raises(ConfigError, match=r"1\.tar (is cut off|cannot be read)"):
        read(tmp_path / "1.tar")
    images, _, left = read(tmp_path / "2.tar")
    assert (images, left) == ({"b.png": b"b" * 3000}, {"files that begin in another volume": 1})


def test_contents_tell_what_has_no_name(tmp_path, read):
    png = b"\x89PNG\r\n\x1a\nand so on"
    members = [("0001", png), ("2.img", png), ("README", b"text"), ("3.heic", b"x"), ("4.xyz", b"x"), ("5.zip", b"x")]
    (tmp_path / "x.tar").write_bytes(packed(*members, ("cat/._1.png", png), ("Thumbs.db", b"x"), "notes.txt"))
    images, _, left = read(tmp_path / "x.tar")
    assert images == {"0001": png, "2.img": png}
    assert left == {
        "files without a suffix": 1,
        ".heic": 1,
        ".xyz": 1,
        ".zip": 1,
        ".txt": 1,
        "images in hidden and system folders and files": 1,
    }


WNIDS = ("n01440764", "n01443537", "n01484850")


@pytest.mark.parametrize("where", ["disk", "memory"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_a_tar_of_tars_has_a_class_for_each(tmp_path, read, where, form):
    """As ImageNet is handed out."""
    inner = [(f"{wnid}.tar", packed(*(f"{wnid}_{row}.JPEG" for row in range(3)), form=form)) for wnid in WNIDS]
    path = tmp_path / "ILSVRC2012_img_train.tar" if where == "disk" else Folder(f"memory://{tmp_path.name}/x.tar")
    content = packed(*inner, ("._n01440764.tar", b"of macOS"), form=form)
    path.write_bytes(content) if where == "disk" else path.write("", content)
    images, classes, left = read(path)
    expected = {f"{wnid}.tar/{wnid}_{row}.JPEG": wnid for wnid in WNIDS for row in range(3)}
    assert classes == expected
    assert images == {name: name.split("/")[1].encode() for name in expected}
    assert left == {}


def test_tars_of_a_folder_are_its_classes(tmp_path, scratch):
    for wnid in WNIDS:
        (tmp_path / f"{wnid}.tar").write_bytes(packed("1.JPEG", "2.JPEG"))
    source, _ = TAR.open(Found(None, [f"{tmp_path}/{wnid}.tar" for wnid in WNIDS]), Columns(), scratch, lambda *_: None)
    assert (source.classes, source.labels.tolist()) == (list(WNIDS), [0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize(
    ("inner", "classes"),
    [
        # Numbered parts of a whole are no classes.
        ({"train-000.tar": ["1.png"], "train-001.tar": ["2.png"]}, [None, None]),
        ({"00000.tar": ["1.png"], "00001.tar": ["2.png"]}, [None, None]),
        # Nor are tar files with class folders in them, or with labels.
        ({"a.tar": ["cat/1.png", "dog/2.png"], "b.tar": ["cat/3.png"]}, ["cat", "dog", "cat"]),
        ({"a.tar": ["1.png", ("1.cls", b"cat")], "b.tar": ["1.png", ("1.cls", b"dog")]}, ["cat", "dog"]),
        # Nor is the only one.
        ({"data.tar": ["1.png", "2.png"]}, [None, None]),
        # But these are.
        ({"0.tar": ["a.png"], "1.tar": ["a.png"]}, ["0", "1"]),
        ({"x/cat.tar": ["a.png"], "x/dog.tar": ["a.png"]}, ["cat", "dog"]),
    ],
)
@pytest.mark.parametrize("how", ["nested", "beside each other"])
def test_which_tars_are_classes(tmp_path, read, inner, classes, how):
    files = []
    for name, members in inner.items():
        files.append(tmp_path / name)
        files[-1].parent.mkdir(exist_ok=True)
        files[-1].write_bytes(packed(*members))
    if how == "nested":
        (tmp_path / "all.tar").write_bytes(packed(*((name, packed(*members)) for name, members in inner.items())))
        files = [tmp_path / "all.tar"]
    _, found, _ = read(*files)
    if len(found) == len(classes):
        assert list(found.values()) == classes
    else:  # names that are alike in two files
        assert sorted(set(found.values()), key=str) == sorted({classes[-1]}, key=str)


def test_splits_in_a_tar_of_tars(tmp_path, scratch):
    inner = {"train.tar": ["cat/1.png", "dog/2.png"], "val.tar": ["dog/3.png"], "train-labels.txt": ["x"]}
    (tmp_path / "x.tar").write_bytes(packed(*((f"set/{name}", packed(*members)) for name, members in inner.items())))
    train, test = TAR.open(Found(None, [f"{tmp_path}/x.tar"]), Columns(), scratch, lambda *_: None)
    assert (train.classes, train.labels.tolist()) == (["cat", "dog"], [0, 1])
    assert (test.classes, test.labels.tolist()) == (["dog"], [0])


def test_a_tar_of_tars_of_tars(tmp_path, read):
    deepest = {name: packed("1.png", "2.png") for name in ("cat", "dog")}
    middle = packed(*((f"{name}.tar", data) for name, data in deepest.items()))
    (tmp_path / "x.tar").write_bytes(packed(("middle.tar", middle)))
    images, classes, _ = read(tmp_path / "x.tar")
    assert classes == {f"middle.tar/{name}.tar/{row}.png": name for name in deepest for row in (1, 2)}
    assert set(images.values()) == {b"1.png", b"2.png"}


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda data: data[:1024], r"x\.tar: n1\.tar is cut off"),
        (lambda data: b"nothing of the kind", r"x\.tar: n1\.tar cannot be read as a tar file"),
    ],
)
def test_a_damaged_tar_in_a_tar_is_refused_by_name(tmp_path, read, damage, text):
    (tmp_path / "x.tar").write_bytes(packed(("n1.tar", damage(packed("1.png", "2.png"))), "3.png"))
    with pytest.raises(ConfigError, match=text):
        read(tmp_path / "x.tar")


def test_a_compressed_file_that_is_called_tar_is_refused_with_what_to_type(tmp_path, read):
    (tmp_path / "x.tar").write_bytes(packed("1.png"))
    subprocess.run(["gzip", "x.tar"], cwd=tmp_path, check=True)
    (tmp_path / "x.tar.gz").rename(tmp_path / "x.tar")
    with pytest.raises(ConfigError, match=r"Type: gunzip -c \S+x\.tar > \S+x\.unpacked\.tar, and name"):
        read(tmp_path / "x.tar")
