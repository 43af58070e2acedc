import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.prepare import main
from pirl import shards

ROOT = Path(__file__).resolve().parents[1]
CIFAR10 = ROOT.parent / "shared" / "data" / "cifar10"


def prepare(*words, cwd=None):
    command = [sys.executable, str(ROOT / "jobs" / "prepare.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60)


@pytest.fixture
def prepare_here(monkeypatch, capsys):
    """The same without a process of its own, which is faster."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, words)])
        try:
            code = main()
        except SystemExit as left:
            code = left.code
        return subprocess.CompletedProcess(words, code, *capsys.readouterr())

    return run


def picture(row, mode="RGB", form="PNG"):
    """An image that is unlike every other row's."""
    random = np.random.default_rng(row)
    image = Image.fromarray(random.integers(0, 255, (20, 24, 3), np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def smooth_jpeg(side, mode="RGB"):
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    colors = np.broadcast_arrays(ramp[None, :], ramp[:, None], np.uint8(90))
    file = io.BytesIO()
    Image.fromarray(np.stack(colors, 2)).convert(mode).save(file, "JPEG")
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


def rows_of(uri):
    """All rows of a data set as (image, label), in order."""
    dataset = shards.open_dataset(str(uri))
    groups = [dataset.read_group(number) for number in range(len(dataset.starts) - 1)]
    return [
        (image, None if group.labels is None else int(group.labels[at]))
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


def test_a_folder_of_class_folders(tmp_path):
    done = prepare(make_folder(tmp_path / "in"), tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "out")
    # The bytes are those of the files, the labels those of the folders, and the order is another.
    assert sorted(rows) == sorted((picture(row), row % 3) for row in range(12))
    assert [label for _, label in rows] != sorted(label for _, label in rows)
    assert shards.open_dataset(str(tmp_path / "out")).labels == ["ant", "bee", "cat"]
    assert "no test split" in done.stdout


def test_a_folder_with_splits(tmp_path, prepare_here):
    make_folder(tmp_path / "in" / "train")
    make_folder(tmp_path / "in" / "val", rows=3)
    done = prepare_here(tmp_path / "in", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "out")) == 12
    assert sorted(rows_of(tmp_path / "out" / "test")) == sorted((picture(row), row) for row in range(3))


def test_a_parquet_file(tmp_path):
    source = write_parquet(tmp_path / "in.parquet", range(200))
    done = prepare(source, tmp_path / "out")
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


def test_what_training_cannot_read_is_encoded_anew_or_left_out(tmp_path, prepare_here):
    as_it_is = [picture(0), picture(1, "L"), picture(2, "RGB", "JPEG"), picture(3, "L", "JPEG")]
    anew = [
        smooth_jpeg(100, "CMYK"),
        picture(5, "RGBA"),
        picture(6, "P"),
        picture(7, "1"),
        picture(8, "RGB", "BMP"),
    ]
    unusable = [b"no image", picture(9, "RGB", "JPEG")[:300], picture(10, "I;16"), None]
    images = [*as_it_is, *anew, *unusable]
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"image": images, "label": range(len(images))}), source)
    done = prepare_here(source, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = {label: image for image, label in rows_of(tmp_path / "out")}
    assert sorted(rows) == list(range(9))
    assert [rows[at] for at in range(4)] == as_it_is
    for at in range(4, 9):
        with Image.open(io.BytesIO(rows[at])) as new, Image.open(io.BytesIO(images[at])) as old:
            assert (new.mode, new.format) in {("RGB", "PNG"), ("L", "PNG"), ("RGB", "JPEG")}
            difference = np.asarray(new, float) - np.asarray(old.convert(new.mode), float)
            # PNG loses nothing; a JPEG of quality 95 less than one step of 255 in a smooth image.
            assert np.abs(difference).mean() <= (1 if new.format == "JPEG" else 0)
    assert "1 images (JPEG CMYK)" in done.stdout
    assert "left out: 4 images" in done.stdout
    for text in ("row 9: not an image", "row 10: ", "row 11: more than 8 bits a pixel", "row 12: no image"):
        assert f"{source} {text}" in done.stdout


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
    assert refused(prepare(source, tmp_path / "out"), "exists", "--overwrite")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before
    done = prepare_here(source, tmp_path / "out", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "out")) == 20
    # The test split of the old data set is not taken for one of the new.
    assert shards.test_uri(str(tmp_path / "out")) is None


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
        (["in.parquet", "out", "--test-fraction", "1.5"], ["--test-fraction 1.5", "use 0.1"]),
        (["in.parquet", "out", "--test-fraction", "0.001"], ["holds out 0 of 20", "use 0.1"]),
        (["digits", "out", "--test-fraction", "0.1"], ["leave out --test and --test-fraction"]),
        (["folder", "folder/out"], ["overlap", "folder apart"]),
        (["in.parquet", "in.parquet", "--overwrite"], ["in.parquet is a file"]),
        (["digits", "nonsense://out"], ["nonsense://out is not a path or URL"]),
        (["in.parquet"], ["DESTINATION", "usage:"]),
        (["in.parquet", "out", "--over"], ["--over", "usage:"]),
    ],
)  # fmt: skip
def test_a_wrong_request_says_what_to_type(tmp_path, prepare_here, monkeypatch, words, texts):
    write_parquet(tmp_path / "in.parquet", range(20))
    make_folder(tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    assert refused(prepare_here(*words), *texts)
    assert not (tmp_path / "out").exists()


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
def test_a_wrong_source_says_what_to_type(tmp_path, words, texts):
    write_parquet(tmp_path / "in.parquet", range(20))
    (tmp_path / "empty").mkdir()
    assert refused(prepare(*words, cwd=tmp_path), *texts)
    assert not (tmp_path / "out").exists()


def test_a_failing_disk_is_no_wrong_request(tmp_path, prepare_here):
    # Linux's own full disk would need a mount; a folder that turns out to be a file fails alike.
    source = write_parquet(tmp_path / "in.parquet", range(20))
    (tmp_path / "file").write_text("in the way")
    done = prepare_here(source, tmp_path / "file" / "out")
    assert done.returncode == 1
    assert "failed: " in done.stderr
    assert "Traceback" not in done.stderr


def test_stopped_halfway_it_leaves_no_data_set_and_says_how_to_go_on(tmp_path):
    # Each takes some 15 ms to check, so from the first row group on there are seconds to stop it.
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"image": [smooth_jpeg(1500)] * 500}), source)
    command = [sys.executable, str(ROOT / "jobs" / "prepare.py"), str(source), str(tmp_path / "out")]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("out/*.tmp")):
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, messages = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "type the same again with --overwrite" in messages
    assert "Traceback" not in messages
    assert os.listdir(tmp_path / "out") == []


def test_help_shows_sources_and_examples():
    done = prepare("--help")
    assert done.returncode == 0
    assert all(text in done.stdout for text in ("digits", "python jobs/prepare.py ~/photos", "--test-fraction F"))
    assert max(map(len, done.stdout.splitlines())) <= 110


@pytest.mark.skipif(not CIFAR10.exists(), reason=f"CIFAR-10 as Parquet files is not in {CIFAR10}")
def test_cifar10(tmp_path):
    for name in ("train", "test"):
        table = pq.ParquetFile(CIFAR10 / f"{name}.parquet").read_row_group(0).slice(0, 500)
        (tmp_path / "in").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "in" / f"{name}.parquet")
    done = prepare(tmp_path / "in", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    source = pq.read_table(tmp_path / "in" / "train.parquet")
    expected = sorted(zip(source["image"].to_pylist(), source["label"].to_pylist(), strict=True))
    assert sorted(rows_of(tmp_path / "out")) == expected
    assert len(rows_of(tmp_path / "out" / "test")) == 500
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["source"] == str(tmp_path / "in" / "train.parquet")
    assert "python jobs/pretrain.py cifar10 --data.uri" in done.stdout
