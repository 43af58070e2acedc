import io
import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.live_line import LiveLine
from jobs.prepare import ProgressPrinter
from pirl.data import dataset as shards
from pirl.loading.decode import decode
from pirl.storage.folder import Folder

ROOT = Path(__file__).resolve().parents[2]
CIFAR10 = ROOT.parent / "shared" / "data" / "cifar10"


def prepare(*words, cwd=None):
    command = [sys.executable, str(ROOT / "jobs" / "prepare.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60)


def picture(row, mode="RGB", form="PNG"):
    """An image that is unlike every other row's."""
    random = np.random.default_rng(row)
    image = Image.fromarray(random.integers(0, 255, (20, 24, 3), np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def write_parquet(path, rows=200, **columns):
    columns = {"image": [picture(row) for row in rows], "label": [row % 4 for row in rows]} | columns
    pq.write_table(pa.table(columns), path)
    return path


def make_folder(folder, rows=12):
    """Class folders `ant`, `bee` and `cat`: row r is an image of class r % 3."""
    for row in range(rows):
        path = folder / ("ant", "bee", "cat")[row % 3] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(row))
    return folder


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def rows_of(uri):
    """All rows of a data set as (image, label), in order."""
    dataset = shards.open_dataset(str(uri))
    groups = [dataset.read_group(number) for number in range(len(dataset.starts) - 1)]
    return [
        (bytes(image), None if group.labels is None else int(group.labels[at]))
        for group in groups
        for at, image in enumerate(group.images)
    ]


def refused(done, *texts):
    """The request was wrong: exit code 2, the message says so, and there is no traceback."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for text in texts:
        assert text in done.stderr, done.stderr
    return True


def test_digits(tmp_path):
    done = prepare("digits", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "out")) == 1438
    assert len(rows_of(tmp_path / "out" / "test")) == 359
    assert "out: 1,438 images of 10 classes" in done.stdout
    assert "out/test: 359 images of 10 classes" in done.stdout
    assert "python jobs/pretrain.py digits --data.uri out" in done.stdout


def test_a_folder_of_class_folders(tmp_path, prepare_here):
    done = prepare_here(make_folder(tmp_path / "in"), tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out")
    # The bytes are those of the files, the labels those of the folders, and the order is another.
    assert sorted(rows) == sorted((picture(row), row % 3) for row in range(12))
    assert [label for _, label in rows] != sorted(label for _, label in rows)
    assert shards.open_dataset(str(tmp_path / "out")).labels == ["ant", "bee", "cat"]
    assert "no test split" in done.stdout


def test_a_folder_with_splits_and_the_data_set_of_it_again(tmp_path, prepare_here):
    make_folder(tmp_path / "in" / "train")
    make_folder(tmp_path / "in" / "val", rows=3)
    for source, out in (("in", "out"), ("out", "again")):
        done = prepare_here(tmp_path / source, tmp_path / out)
        assert done.returncode == 0, done.stderr
        assert len(rows_of(tmp_path / out)) == 12
        assert sorted(rows_of(tmp_path / out / "test")) == sorted((picture(row), row) for row in range(3))
        assert shards.open_dataset(str(tmp_path / out)).labels == ["ant", "bee", "cat"]


def test_a_parquet_file(tmp_path, prepare_here):
    source = write_parquet(tmp_path / "in.parquet", range(200))
    done = prepare_here(source, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out")
    assert sorted(rows) == sorted((picture(row), row % 4) for row in range(200))
    # Sorted sources are why there is a shuffle: neighbours follow each other by chance only.
    number = {picture(row): row for row in range(200)}
    assert np.mean(np.diff([number[image] for image, _ in rows]) == 1) < 0.05


def test_a_parquet_file_and_another_for_testing(tmp_path, prepare_here):
    train = write_parquet(tmp_path / "a.parquet", range(100), kind=["cat", "ant"] * 50)
    test = write_parquet(tmp_path / "b.parquet", range(100, 110), kind=["cat"] * 10)
    done = prepare_here(train, tmp_path / "out", "--test", test, "--label-column", "kind")
    assert done.returncode == 0, done.stderr
    # `cat` is class 1 in both, though it is the only class of the test images.
    assert sorted(rows_of(tmp_path / "out" / "test")) == sorted((picture(row), 1) for row in range(100, 110))


def test_a_share_held_out(tmp_path, prepare_here):
    source = write_parquet(tmp_path / "in.parquet", range(200))
    assert prepare_here(source, tmp_path / "out", "--test-fraction", 0.1).returncode == 0
    train, test = rows_of(tmp_path / "out"), rows_of(tmp_path / "out" / "test")
    assert (len(train), len(test)) == (180, 20)
    assert sorted(train + test) == sorted((picture(row), row % 4) for row in range(200))


def test_the_seed_decides_the_order(tmp_path, prepare_here):
    source = write_parquet(tmp_path / "in.parquet", range(200))
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert prepare_here(source, tmp_path / name, "--seed", seed).returncode == 0
    a, b, c = (rows_of(tmp_path / name) for name in "abc")
    assert a == b
    assert a != c
    assert sorted(a) == sorted(c)


def test_what_was_changed_and_what_was_left_out_is_said(tmp_path, prepare_here):
    images = [picture(0), picture(1, "CMYK", "JPEG"), b"no image", picture(3, "RGB", "JPEG")[:300], None]
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"image": images, "label": range(len(images))}), source)
    done = prepare_here(source, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert sorted(label for _, label in rows_of(tmp_path / "out")) == [0, 1]
    assert "encoded anew: 1 images (JPEG CMYK)" in done.stdout
    assert "left out: 3 images" in done.stdout
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["left_out"]["count"] == 3
    for text in (f"{source} row 2: not an image", f"{source} row 3: ", f"{source} row 4: no image"):
        assert text in done.stdout
        assert any(line.startswith(text) for line in manifest["left_out"]["first"])
    assert (manifest["found"], manifest["encoded"]) == ({"PNG RGB": 1, "JPEG CMYK": 1}, {"JPEG CMYK": 1})
    assert (manifest["width"], manifest["height"]) == ([24, 24], [20, 20])


def test_strict_stops_at_a_broken_image_and_goes_on_without(tmp_path, prepare_here):
    source = write_parquet(tmp_path / "in.parquet", range(20), image=[b"broken", *map(picture, range(1, 20))])
    done = prepare_here(source, tmp_path / "out", "--strict")
    assert done.returncode == 1
    assert f"{source} row 0: not an image" in done.stderr
    assert "without --strict the same command goes on" in done.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert prepare_here(source, tmp_path / "out").returncode == 0
    assert len(rows_of(tmp_path / "out")) == 19


def test_resize(tmp_path, prepare_here):
    source = write_parquet(tmp_path / "in.parquet", range(20))
    assert prepare_here(source, tmp_path / "out", "--resize", 10).returncode == 0
    assert {Image.open(io.BytesIO(image)).size for image, _ in rows_of(tmp_path / "out")} == {(12, 10)}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["short_side"], manifest["jpeg_quality"]) == (10, 95)


@pytest.mark.parametrize("layout", ["folders", "pairs"])
def test_tar_files(tmp_path, prepare_here, layout):
    make_folder(tmp_path / "in" / "train")
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for row in range(shard, 12, 2):
                name = f"{('ant', 'bee', 'cat')[row % 3]}/{row}.png" if layout == "folders" else f"{row:06}.png"
                add(tar, name, picture(row))
                if layout == "pairs":
                    add(tar, f"{row:06}.cls", str(row % 3).encode())
    done = prepare_here(f"{tmp_path}/*.tar", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert sorted(rows_of(tmp_path / "out")) == sorted((picture(row), row % 3) for row in range(12))
    names = ["ant", "bee", "cat"] if layout == "folders" else ["0", "1", "2"]
    assert shards.open_dataset(str(tmp_path / "out")).labels == names


def test_a_zip_file(tmp_path, prepare_here):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for row in range(12):
            name = f"{'train' if row < 9 else 'test'}/{('ant', 'bee', 'cat')[row % 3]}/{row}.png"
            archive.writestr(name, picture(row), (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[row % 2])
    done = prepare_here(tmp_path / "in.zip", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert sorted(rows_of(tmp_path / "out")) == sorted((picture(row), row % 3) for row in range(9))
    assert sorted(rows_of(tmp_path / "out" / "test")) == sorted((picture(row), row % 3) for row in range(9, 12))


def test_by_url_on_both_sides(tmp_path, prepare_here):
    # fsspec's memory store lies in this process alone; that its workers see it shows that any URL is read.
    root = f"memory://{tmp_path.name}"
    for row in range(12):
        Folder(f"{root}/in").write(f"{'abc'[row % 3]}/{row}.png", picture(row))
    done = prepare_here(f"{root}/in", f"{root}/out", "--test-fraction", 0.25)
    assert done.returncode == 0, done.stderr
    rows = rows_of(f"{root}/out") + rows_of(f"{root}/out/test")
    assert sorted(rows) == sorted((picture(row), row % 3) for row in range(12))
    assert prepare_here(f"file://{make_folder(tmp_path / 'in')}", f"file://{tmp_path}/out").returncode == 0
    assert len(rows_of(tmp_path / "out")) == 12


def test_nothing_usable_is_refused_and_leaves_nothing(tmp_path, prepare_here):
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"image": [b"a", b"b"]}), source)
    done = prepare_here(source, tmp_path / "out", "--test", write_parquet(tmp_path / "test.parquet", range(3)))
    assert refused(done, "none of the 2 images can be used", "not an image")
    assert not list(tmp_path.glob("out/**/*.*"))


def test_an_existing_destination_is_refused_and_replaced_on_request(tmp_path, prepare_here):
    source = write_parquet(tmp_path / "in.parquet", range(20))
    assert prepare_here("digits", tmp_path / "out").returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert refused(prepare_here(source, tmp_path / "out"), "exists", "--overwrite")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before
    done = prepare_here(source, tmp_path / "out", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "out")) == 20
    # The test split of the old data set is not taken for one of the new.
    assert shards.open_dataset(str(tmp_path / "out")).held_out() is None


def test_other_peoples_files_are_never_replaced(tmp_path, prepare_here):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    assert refused(prepare_here("digits", tmp_path / "out", "--overwrite"), "thesis.tex", "new or empty folder")
    assert os.listdir(tmp_path / "out") == ["thesis.tex"]


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["in.parquet", "out", "--label-column", "kind"], ["no column 'kind'", "image, label"]),
        (["in.parquet", "out", "--test", "absent"], ["absent does not exist"]),
        (["folder", "out", "--test", "./folder/"], ["--test ./folder/ is SOURCE itself", "--test-fraction 0.1"]),
        (["in.parquet", "out", "--test-fraction", "1.5"], ["--test-fraction 1.5", "use 0.1"]),
        (["in.parquet", "out", "--test-fraction", "0.001"], ["holds out 0 of 20", "use 0.1"]),
        (["digits", "out", "--test-fraction", "0.1"], ["leave out --test and --test-fraction"]),
        (["folder", "folder/out"], ["overlap", "folder apart"]),
        (["in.parquet", "in.parquet", "--overwrite"], ["in.parquet is a file"]),
        (["digits", "nonsense://out"], ["nonsense://out is not a path or URL"]),
        (["in.parquet"], ["DESTINATION", "usage:"]),
        (["in.parquet", "out", "--inspect", "out"], ["--inspect URI stands alone", "usage:"]),
        (["in.parquet", "out", "--resize", "0"], ["--resize 0", "use 256"]),
        (["digits", "out", "--resize", "16"], ["leave out --resize"]),
        (["in.parquet", "out", "--scratch", "absent/folder"], ["--scratch absent/folder", "local disk"]),
        (["in.parquet", "out", "--over"], ["--over", "usage:"]),
        (["digits", "out", "--seed", "-1"], ["--seed -1", "use 0 or more"]),
        (["in.parquet", "out", "--test-fraction", "nan"], ["--test-fraction nan", "use 0.1"]),
        (["digits", "s3://"], ["DESTINATION s3:// names no bucket: type s3://bucket/photos"]),
        (["--inspect", "s3://"], ["--inspect s3:// names no bucket"]),
        (["--inspect", "digits", "--sheet", "absent/x.png"], ["--sheet absent/x.png", "in a folder that exists"]),
        (["--inspect", "digits", "--sheet", "/proc/x.png"], ["--sheet /proc cannot be written"]),
        (["--inspect", "digits", "--sheet", "folder"], ["--sheet folder: name a new file"]),
    ],
)  # fmt: skip
def test_a_wrong_request_says_what_to_type(tmp_path, prepare_here, monkeypatch, words, texts):
    write_parquet(tmp_path / "in.parquet", range(20))
    make_folder(tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    assert refused(prepare_here(*words), *texts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("check", [["--check"], []], ids=["check", "job"])
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["absent", "out"], "absent does not exist"),
        (["absent-*.tar", "out"], "absent-*.tar: there is no such file"),
        (["broken.tar", "out"], "broken.tar cannot be read as a tar file"),
        (["broken.zip", "out"], "broken.zip cannot be read as a zip file"),
        (["in.parquet", "out", "--test", "absent.parquet"], "absent.parquet does not exist"),
        (["in.parquet", "out", "--image-column", "pic"], "no column 'pic' of encoded images"),
        (["in.parquet", "out", "--label-column", "kind"], "no column 'kind': it has image, label"),
        (["in.parquet", "out", "--scratch", "/absent"], "--scratch /absent cannot be written"),
        (["in.parquet", "out", "--scratch", ""], "--scratch is empty"),
        (["in.parquet", "out", "--test", ""], "--test is empty"),
        (["", "out"], "SOURCE is empty"),
        (["in.parquet", ""], "DESTINATION is empty"),
        (["s3://", "out"], "SOURCE s3:// names no bucket"),
        (["in.parquet", "s3://"], "DESTINATION s3:// names no bucket"),
        (["s3://user:hidden@host/in", "out"], "SOURCE has a user name or a password before @"),
        (["in.parquet", "s3://user:hidden@host/out"], "DESTINATION has a user name or a password before @"),
        (["in.parquet", "http://127.0.0.1:1/out"], "DESTINATION http://127.0.0.1:1/out is on a web server"),
        (["digits", "/proc/x"], "DESTINATION /proc/x cannot be written"),
        (["in.parquet", "in.parquet/out"], "in.parquet/out"),
        (["folder", "in.parquet/out"], "DESTINATION in.parquet/out cannot be written"),
    ],
)
def test_check_refuses_what_the_job_refuses(tmp_path, prepare_here, monkeypatch, words, text, check):
    write_parquet(tmp_path / "in.parquet", range(20))
    make_folder(tmp_path / "folder")
    for name in ("broken.tar", "broken.zip"):
        (tmp_path / name).write_bytes(picture(0))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = prepare_here(*words, *check)
    assert refused(done, text)
    assert "hidden" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("source", ["digits", "folder", "in.parquet", "in.tar", "in.zip"])
def test_check_of_what_is_right_prints_the_destination_and_leaves_nothing(tmp_path, prepare_here, monkeypatch, source):
    write_parquet(tmp_path / "in.parquet", range(20))
    make_folder(tmp_path / "folder")
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        add(tar, "ant/1.png", picture(1))
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("ant/1.png", picture(1))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = prepare_here(source, "new/out", "--check")
    assert (done.returncode, done.stdout.splitlines()[-1:], done.stderr) == (0, ["new/out"], "")
    assert sorted(tmp_path.rglob("*")) == before


def test_check_opens_one_file_of_many(tmp_path, prepare_here, monkeypatch):
    (tmp_path / "in").mkdir()
    for name in "abc":
        write_parquet(tmp_path / "in" / f"{name}.parquet", range(4))
    opened, reading = [], Folder.reading
    monkeypatch.setattr(Folder, "reading", lambda file: (opened.append(str(file)), reading(file))[1])
    assert prepare_here(tmp_path / "in", tmp_path / "out", "--check").returncode == 0
    assert opened == [str(tmp_path / "in" / "a.parquet")]


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["absent", "out"], ["absent does not exist", "SOURCE is a folder of images"]),
        (["empty", "out"], ["empty holds no images", "SOURCE is a folder of images"]),
        (
            ["in.parquet", "out", "--image-column", "pic"],
            ["no column 'pic'", "use --image-column with one of"],
        ),
    ],
)
def test_a_wrong_source_says_what_to_type(tmp_path, words, texts, prepare_here):
    write_parquet(tmp_path / "in.parquet", range(20))
    (tmp_path / "empty").mkdir()
    assert refused(prepare_here(*words, cwd=tmp_path), *texts)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fails_on_the_way_is_no_wrong_request(tmp_path, prepare_here):
    # A full disk would need a mount; a limit of 4 KiB for a file, which the 12 images exceed, fails alike.
    source = make_folder(tmp_path / "in")
    job = [sys.executable, str(ROOT / "jobs" / "prepare.py"), str(source), str(tmp_path / "out")]
    command = ["bash", "-c", 'ulimit -f 4 && exec "$@"', "bash", *job]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert f"failed: [Errno 27] File too large: '{tmp_path}/out/shard-00000.parquet." in done.stderr
    assert "the same command goes on from here" in done.stderr
    assert "Traceback" not in done.stderr
    assert prepare_here(source, tmp_path / "out").returncode == 0
    assert len(rows_of(tmp_path / "out")) == 12


def test_progress_says_rate_and_time_left(monkeypatch, capsys):
    clock = iter([0, 0, 5, 20, 100])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    progress = ProgressPrinter(LiveLine(sys.stderr))
    for done in (1000, 1200, 3000, 11_000):
        progress("writing out", done, 11_000, "images")
    assert capsys.readouterr().err.splitlines() == [
        "writing out: going on after 1,000 of 11,000 images",
        "writing out: 3,000 of 11,000 images, 100/s, 0:01:20 left",
        "writing out: 11,000 of 11,000 images, 100/s",
    ]


def test_inspect(tmp_path, prepare_here, monkeypatch):
    source = write_parquet(tmp_path / "in.parquet", range(50))
    assert prepare_here(source, tmp_path / "out", "--test-fraction", 0.2).returncode == 0
    monkeypatch.chdir(tmp_path)
    done = prepare_here("--inspect", "out")
    assert done.returncode == 0, done.stderr
    assert "out: 40 images of 4 classes" in done.stdout
    assert "out/test: 10 images of 4 classes" in done.stdout
    assert "mean 0.4" in done.stdout or "mean 0.5" in done.stdout
    with Image.open("contact_sheet.png") as sheet:
        assert sheet.format == "PNG"
    assert refused(prepare_here("--inspect", "in.parquet"), "is not a data set")


def test_help_shows_sources_and_examples():
    done = prepare("--help")
    assert done.returncode == 0
    assert all(text in done.stdout for text in ("digits", "python jobs/prepare.py ~/photos", "--test-fraction F"))
    assert max(map(len, done.stdout.splitlines())) <= 110


@pytest.mark.skipif(not CIFAR10.exists(), reason=f"CIFAR-10 as Parquet files is not in {CIFAR10}")
def test_cifar10(tmp_path, prepare_here):
    for name in ("train", "test"):
        table = pq.ParquetFile(CIFAR10 / f"{name}.parquet").read_row_group(0).slice(0, 500)
        (tmp_path / "in").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "in" / f"{name}.parquet")
    done = prepare_here(tmp_path / "in", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    source = pq.read_table(tmp_path / "in" / "train.parquet")
    expected = sorted(zip(source["image"].to_pylist(), source["label"].to_pylist(), strict=True))
    assert sorted(rows_of(tmp_path / "out")) == expected
    assert len(rows_of(tmp_path / "out" / "test")) == 500
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["source"] == str(tmp_path / "in" / "train.parquet")
    assert "python jobs/pretrain.py photos --data.uri" in done.stdout


def test_rows_have_the_names_of_their_images_from_the_source_on(tmp_path, prepare_here):
    make_folder(tmp_path / "in" / "photos", rows=6)
    with tarfile.open(tmp_path / "in" / "photos.tar", "w") as tar:
        tar.add(tmp_path / "in" / "photos", "photos")
    write_parquet(tmp_path / "in" / "photos.parquet", rows=range(2))
    expected = {
        "photos": {f"{('ant', 'bee', 'cat')[row % 3]}/{row}.png" for row in range(6)},
        "photos.tar": {f"photos.tar: photos/{('ant', 'bee', 'cat')[row % 3]}/{row}.png" for row in range(6)},
        "photos*.parquet": {"photos.parquet row 0", "photos.parquet row 1"},
    }
    for number, (source, names) in enumerate(expected.items()):
        done = prepare_here(tmp_path / "in" / source, tmp_path / str(number))
        assert done.returncode == 0, done.stderr
        assert set(pq.read_table(tmp_path / str(number) / "shard-00000.parquet")["name"].to_pylist()) == names


def test_an_image_that_training_would_refuse_is_left_out_and_one_that_lacks_its_end_is_mended(tmp_path, prepare_here):
    make_folder(tmp_path / "in")
    whole = picture(99, form="JPEG")
    at = whole.index(b"\xff\x00", len(whole) // 3)
    (tmp_path / "in" / "ant" / "damaged.jpg").write_bytes(whole[: at + 1] + b"\xe1" + whole[at + 2 :])
    (tmp_path / "in" / "ant" / "endless.jpg").write_bytes(whole[:-2])
    done = prepare_here(tmp_path / "in", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "left out: 1 images that cannot be used" in done.stdout
    assert "ant/damaged.jpg: the " in done.stdout
    assert "encoded anew: 1 images (JPEG RGB, without an end marker)" in done.stdout
    assert (whole, 0) in rows_of(tmp_path / "out")
    assert all(decode(image).shape == (3, 20, 24) for image, _ in rows_of(tmp_path / "out"))


def test_a_damaged_parquet_file_is_a_wrong_request(tmp_path, prepare_here):
    path = write_parquet(tmp_path / "x.parquet", rows=range(9))
    path.write_bytes(path.read_bytes()[:-100] + bytes(92) + path.read_bytes()[-8:])
    done = prepare_here(path, tmp_path / "out")
    assert done.returncode == 2
    assert "x.parquet cannot be read as Parquet: " in done.stderr
    assert "same command" not in done.stderr
    assert not (tmp_path / "out").exists()
