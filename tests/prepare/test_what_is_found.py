"""Whole jobs on sources as people have them: what becomes of each image, and what is said of those not read."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from pirl.data import dataset as shards
from pirl.errors import ConfigError
from pirl.evaluate.splits import why_not
from pirl.prepare.inspect import describe
from pirl.prepare.write import PrepareRequest, prepare

ROOT = Path(__file__).resolve().parents[2]


def picture(name, form="PNG"):
    """An image of its own for each name."""
    pixels = np.frombuffer(name.encode().ljust(64, b".")[:64] * 3, np.uint8).reshape(8, 8, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def write_folder(root, names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(name) if name.lower().endswith((".png", ".jpg")) else b"some text")
    return str(root)


def write_tar(root, names):
    write_folder(root, names)
    with tarfile.open(f"{root}.tar", "w") as tar:
        tar.add(root, arcname="")
    return f"{root}.tar"


def write_zip(root, names):
    write_folder(root, names)
    with zipfile.ZipFile(f"{root}.zip", "w") as archive:
        for name in names:
            archive.write(root / name, name)
    return f"{root}.zip"


def write_s3(root, names):
    write_folder(root, names)
    fs, uri = fsspec.filesystem("s3"), f"s3://found/{root.parent.name}"
    fs.makedirs("found", exist_ok=True)
    for name in names:
        fs.pipe(f"{uri}/{name}", (root / name).read_bytes())
    return uri


WRITE = {"folder": write_folder, "tar": write_tar, "zip": write_zip, "s3": write_s3}


@pytest.fixture
def prepared(tmp_path):
    """Prepares a source twice, into the same bytes; the class of each image by its name, for both splits."""

    def run(source, **words):
        outs = [tmp_path / "out", tmp_path / "again"]
        for out in outs:
            if source.startswith("s3://"):  # workers have the environment of the first job of this process
                command = [sys.executable, str(ROOT / "jobs" / "prepare.py"), source, str(out)]
                subprocess.run(command, check=True, capture_output=True, timeout=120)
            else:
                prepare(PrepareRequest(source=source, destination=str(out), **words), lambda *_: None)
        files = [{p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()} for out in outs]
        assert files[0] == files[1]
        shutil.rmtree(outs[1])
        whole = shards.open_dataset(str(outs[0]))
        held_out = whole.held_out()
        return rows_of(whole), held_out and rows_of(held_out)

    return run


def rows_of(dataset):
    rows = {}
    for number in range(len(dataset.spans)):
        group = dataset.read_group(number)
        for at, image in enumerate(group.images):
            with Image.open(io.BytesIO(bytes(image))) as opened:
                name = np.asarray(opened.convert("RGB")).tobytes()[:64].decode().rstrip(".")
            label = -1 if group.labels is None else int(group.labels[at])
            assert name not in rows, "an image is there twice"
            rows[name] = dataset.labels[label] if label >= 0 else None
    return rows


def said(tmp_path):
    return [line.strip() for line in describe(str(tmp_path / "out")) if "not read" in line or "passed over" in line]


def classes(*names):
    """The class of each is the folder that it is in."""
    return {name: name.split("/")[-2] for name in names}


TRAIN = [f"archive/photos/train/{kind}/{row}.png" for kind in ("cat", "dog") for row in range(4)]
TEST = [f"archive/photos/test/{kind}/{row}.png" for kind in ("cat", "dog") for row in range(2)]
BESIDE = [
    *("archive/photos/val/cat/0.png", "archive/photos/val/dog/1.png", "archive/photos/unlabeled/1.png"),
    *("archive/labels.csv", "archive/photos/train/cat/phone.heic", "archive/photos/more.zip"),
    *("archive/photos/train/.ipynb_checkpoints/0.png", "__MACOSX/archive/photos/train/cat/._0.png"),
    *("archive/photos/train/cat/Thumbs.db", "archive/.DS_Store", "archive/photos/@eaDir/cat/0.png"),
]
NOT_READ = (
    "not read: folder val/ (2 images), 1 .heic (as {0}train/cat/phone.heic), 1 .zip (as {0}more.zip), "
    "folder unlabeled/ (1 images)"
)


@pytest.mark.parametrize("place", WRITE)
def test_the_same_tree_is_the_same_data_set_wherever_it_is(tmp_path, request, prepared, place):
    if place == "s3":
        request.getfixturevalue("s3_environment")
    train, test = prepared(WRITE[place](tmp_path / "in", TRAIN + TEST + BESIDE))
    assert (train, test) == (classes(*TRAIN), classes(*TEST))
    # As in a manifest, which holds the same.
    lines = said(tmp_path)
    assert lines == [
        NOT_READ.format("archive/photos/"),
        "passed over: 3 images in hidden and system folders and files (as __MACOSX/archive/photos/train/cat/._0.png), "
        "1 .csv (as archive/labels.csv)",
    ]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert manifest["not_read"][0] == {"what": "folder val/", "files": 2, "first": "val", "may_be_images": True}
    assert json.loads((tmp_path / "out" / "test" / "manifest.json").read_bytes())["held_out"] == "test/"


@pytest.mark.parametrize("place", ["folder", "tar"])
def test_a_folder_without_labels_is_trained_on_where_that_is_asked_for(tmp_path, prepared, place):
    source = WRITE[place](tmp_path / "in", TRAIN + TEST + BESIDE)
    train, test = prepared(source, also=("unlabeled", "val"))
    more = ["archive/photos/unlabeled/1.png", "archive/photos/val/cat/0.png", "archive/photos/val/dog/1.png"]
    assert train == classes(*TRAIN) | dict.fromkeys(more)
    assert test == classes(*TEST)
    # Evaluation takes those with a label.
    whole = shards.open_dataset(str(tmp_path / "out"))
    assert whole.class_rows == [4, 4]
    assert why_not(whole, whole.held_out()) is None
    assert "  without a class: 3" in describe(str(tmp_path / "out"))


def test_files_without_labels_are_trained_on_where_that_is_asked_for(tmp_path, prepared):
    (tmp_path / "in").mkdir()
    for name in ("train-0", "test-0", "unlabeled-0"):
        shutil.move(write_tar(tmp_path / name, [f"cat/{name}.png", f"dog/{name} 2.png"]), tmp_path / "in")
    train, test = prepared(str(tmp_path / "in"), also=["unlabeled"])
    expected = {"cat/train-0.png": "cat", "dog/train-0 2.png": "dog"}
    assert train == expected | {"cat/unlabeled-0.png": None, "dog/unlabeled-0 2.png": None}
    assert test == {"cat/test-0.png": "cat", "dog/test-0 2.png": "dog"}


def test_only_images_with_a_label_are_held_out_for_evaluation(tmp_path, prepared):
    names = [f"{kind}/{row}.png" for kind in ("ant", "bee") for row in range(5)]
    more = [f"more/{row}.png" for row in range(20)]
    train, test = prepared(write_folder(tmp_path / "in", names + more), also=["more"], test_fraction=0.2)
    assert len(test) == 2
    assert train | test == classes(*names) | dict.fromkeys(more)
    assert set(test) < set(names)


def test_strict_refuses_before_anything_is_written(tmp_path):
    source = write_folder(tmp_path / "in", TRAIN + TEST + BESIDE)
    request = PrepareRequest(source=source, destination=str(tmp_path / "out"), strict=True)
    with pytest.raises(ConfigError) as error:
        prepare(request, lambda *_: None)
    assert str(error.value).startswith(NOT_READ.format("archive/photos/") + ". Without --strict")
    assert not (tmp_path / "out").exists()


def test_strict_lets_pass_what_is_no_image(tmp_path, prepared):
    names = [*TRAIN, "labels.csv", "LICENSE", ".DS_Store", "archive/.thumbnails/1.png"]
    assert prepared(write_folder(tmp_path / "in", names), strict=True) == (classes(*TRAIN), None)


def test_kinds_that_pillow_reads_under_any_name(tmp_path, prepared):
    root = tmp_path / "in"
    write_folder(root, ["cat/1.png"])
    for name, form in {
        "2.jfif": "JPEG",
        "3.jpe": "JPEG",
        "4.avif": "AVIF",
        "5.tga": "TGA",
        "6.jp2": "JPEG2000",
    }.items():
        options = {"quality": 100} if form in ("JPEG", "AVIF") else {}
        Image.new("RGB", (20, 20), "blue").save(root / "cat" / name, form, **options)
    for name in ("no suffix", "image.1", "IMG.unknown"):
        (root / "cat" / name).write_bytes(picture(f"cat/{name}"))
    prepare(PrepareRequest(source=str(root), destination=str(tmp_path / "out")), lambda *_: None)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert manifest["found"] == {"PNG RGB": 4, "JPEG RGB": 2, "AVIF RGB": 1, "TGA RGB": 1, "JPEG2000 RGB": 1}
    assert (manifest["rows"], manifest["classes"]) == (9, ["cat"])
    assert "not_read" not in manifest


def test_keys_of_a_store_that_nobody_would_type(tmp_path, s3_environment, prepared):
    fs = fsspec.filesystem("s3")
    fs.makedirs("found", exist_ok=True)
    keys = ["/cat/1.png", "cat//2.png", "./dog/3.png", "dog/4", "dog/LICENSE"]
    for key in keys[:-1]:
        fs.call_s3("put_object", Bucket="found", Key=f"odd/{key}", Body=picture(key))
    fs.call_s3("put_object", Bucket="found", Key="odd/dog/LICENSE", Body=b"All rights reserved.")
    fs.call_s3("put_object", Bucket="found", Key="odd/dog/", Body=b"")
    train, _ = prepared("s3://found/odd")
    assert train == {key: "cat" if "cat" in key else "dog" for key in keys[:-1]}
    assert said(tmp_path) == ["passed over: 1 files without a suffix (as dog/LICENSE)"]


def test_what_waits_for_ever_leads_nowhere_or_leads_in_a_circle(tmp_path, prepared):
    names = ["cat/1.png", "dog/2.png"]
    root = write_folder(tmp_path / "in", names)
    os.mkfifo(f"{root}/cat/x.png")
    os.symlink("nowhere.png", f"{root}/cat/gone.png")
    os.symlink("..", f"{root}/cat/up")
    assert prepared(root) == (classes(*names), None)
    assert said(tmp_path) == [
        "not read: 1 links to nothing (as cat/gone.png), 1 pipes, sockets and devices (as cat/x.png)",
        "passed over: 1 links to folders that are read already (as cat/up)",
    ]


@pytest.mark.parametrize("name", ["x.tar", "x.parquet", "x"])
def test_a_pipe_as_source_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot be read: it is one of pipes, sockets and devices"):
        prepare(PrepareRequest(source=str(tmp_path / name), destination=str(tmp_path / "out")), lambda *_: None)


def test_files_of_other_systems_do_not_stand_in_the_way_of_parquet(tmp_path, prepared):
    names = ["cat/1.png", "dog/2.png"]
    prepared(write_folder(tmp_path / "in", names))
    (tmp_path / "out").rename(tmp_path / "set")
    for junk in ("._shard-00000.parquet", "._manifest.json", ".DS_Store"):
        (tmp_path / "set" / junk).write_bytes(b"\0\5\x16\7of macOS")
    assert prepared(str(tmp_path / "set")) == (classes(*names), None)


@pytest.mark.parametrize(
    ("program", "suffix", "command"),
    [("gzip", "gz", "gunzip"), ("bzip2", "bz2", "bunzip2"), ("xz", "xz", "unxz")],
)
@pytest.mark.parametrize("how", ["file", "folder", "without a suffix"])
def test_compressed_tar_files_are_refused_with_what_to_type(tmp_path, program, suffix, command, how):
    write_tar(tmp_path / "x", ["cat/1.png"])
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / ("x" if how == "without a suffix" else f"x.tar.{suffix}")
    with path.open("wb") as file:
        subprocess.run([program, "-c", f"{tmp_path}/x.tar"], stdout=file, check=True)
    source = path.parent if how == "folder" else path
    with pytest.raises(ConfigError, match=rf"x(\.tar\.{suffix})? is compressed.* Type: {command} -c "):
        prepare(PrepareRequest(source=str(source), destination=str(tmp_path / "out")), lambda *_: None)


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_an_archive_without_a_suffix_is_read(tmp_path, prepared, write):
    names = ["cat/1.png", "dog/2.png"]
    os.rename(write(tmp_path / "in", names), tmp_path / "archive")
    assert prepared(str(tmp_path / "archive")) == (classes(*names), None)


def test_links_in_a_zip_file_are_what_they_lead_to(tmp_path, prepared):
    write_folder(tmp_path / "in", ["cat/1.png"])
    (tmp_path / "in" / "cat" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "in" / "dog").mkdir()
    (tmp_path / "in" / "dog" / "2.png").symlink_to("../cat/1.png")
    subprocess.run(["zip", "-qry", "../x.zip", "."], cwd=tmp_path / "in", check=True)
    prepare(PrepareRequest(source=f"{tmp_path}/x.zip", destination=str(tmp_path / "out")), lambda *_: None)
    whole = shards.open_dataset(str(tmp_path / "out"))
    assert (whole.labels, whole.class_rows) == (["cat", "dog"], [1, 1])
    assert said(tmp_path) == ["not read: 1 links to no image (as cat/gone.png)"]


def test_nothing_that_is_read_says_what_there_is(tmp_path):
    source = write_folder(tmp_path / "in", ["1.heic", "2.heic", "notes.txt"])
    with pytest.raises(ConfigError, match=r"holds no images.*; not read: 2 \.heic \(as 1\.heic\); passed over: 1 "):
        prepare(PrepareRequest(source=source, destination=str(tmp_path / "out")), lambda *_: None)


def test_an_unfinished_data_set_of_other_folders_does_not_go_on(tmp_path):
    source = write_folder(tmp_path / "in", [*TRAIN, *TEST, "archive/photos/val/cat/0.png"])
    words = {"source": source, "destination": str(tmp_path / "out")}
    prepare(PrepareRequest(**words, also=["val"]), lambda *_: None)
    # As if it were not complete.
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / "unfinished.json").write_text(
        json.dumps(PrepareRequest(**words, also=["val"]).decides() | {"content": 1})
    )
    with pytest.raises(ConfigError, match=r"another data set \(also \['val'\], now None\)"):
        prepare(PrepareRequest(**words), lambda *_: None)
