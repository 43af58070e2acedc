import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pirl.data import dataset as shards
from pirl.data.digits import ensure_digits, write_digits
from pirl.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def rows_of(uri):
    dataset = shards.open_dataset(uri)
    for number in range(len(dataset.starts) - 1):
        group = dataset.read_group(number)
        yield from zip(group.images, group.labels.tolist(), strict=True)


def pixels_of(data):
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L", (32, 32))
        return np.asarray(image)


def test_all_digits_are_there_once_with_their_labels(tmp_path):
    assert write_digits(str(tmp_path)) == (1438, 359)
    written = [*rows_of(str(tmp_path)), *rows_of(str(tmp_path / "test"))]
    pixels, labels = load_digits(return_X_y=True)
    # The label of every image is that of the digit that it looks most like: the one that it was made from.
    originals = (pixels * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8)
    enlarged = {
        Image.fromarray(o).resize((32, 32), Image.Resampling.BICUBIC).tobytes(): label
        for o, label in zip(originals, labels.tolist(), strict=True)
    }
    assert len(enlarged) == len(written) == 1797
    assert {pixels_of(data).tobytes(): label for data, label in written} == enlarged


def test_the_splits_are_shuffled_and_a_function_of_the_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_digits(str(tmp_path / name), seed)
    a, b, c = ([*rows_of(str(tmp_path / name))] for name in "abc")
    assert a == b
    assert {data for data, _ in a} != {data for data, _ in c}
    # In scikit-learn's order the digits come as 0, 1, 2, ..., 9, 0, 1, ...
    steps = np.diff([label for _, label in a]) % 10
    assert np.mean(steps == 1) < 0.2


def test_it_is_built_once_in_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = Path(ensure_digits())
    assert folder == tmp_path / "pirl" / "digits-v2"
    built = (folder / "manifest.json").stat().st_mtime_ns
    assert shards.open_dataset("digits").rows == 1438
    assert shards.open_dataset("digits").held_out().uri == str(folder / "test")
    assert (folder / "manifest.json").stat().st_mtime_ns == built


def test_processes_that_race_all_get_the_whole_data_set(tmp_path):
    command = "from pirl.data.dataset import open_dataset; print(open_dataset('digits').rows)"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    racers = [
        subprocess.Popen([sys.executable, "-c", command], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [racer.communicate(timeout=60)[0] for racer in racers] == ["1438\n"] * 2
    assert os.listdir(tmp_path / "pirl") == ["digits-v2"]


def test_a_cache_that_cannot_be_written_says_what_to_type(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="export XDG_CACHE_HOME=FOLDER"):
        ensure_digits()
