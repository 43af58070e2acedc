"""jobs/evaluate.py on folders of PASCAL VOC: what it writes, and what it refuses before anything is written."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jobs.evaluate import main
from pirl.methods.models import Trunk, export_state_dict
from tests.evaluate.voc_folder import write_year

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Types a command in a folder with weights and VOCdevkit; gives exit code, output and errors."""
    write_year(tmp_path / "VOCdevkit/VOC2007", {"trainval": 20, "test": 16}, seed=1)
    write_year(tmp_path / "VOCdevkit/VOC2012", {"train": 14, "val": 10}, seed=2)
    torch.manual_seed(0)
    save_file(export_state_dict(Trunk("resnet18", 4)), tmp_path / "net.safetensors")
    monkeypatch.chdir(tmp_path)

    def type_in(*words: str) -> tuple[int, str, str]:
        where = ("--out", "out", "--image-size", "32", "--features", str(tmp_path / "features"), "--no-ray")
        monkeypatch.setattr(sys, "argv", ["evaluate.py", "net.safetensors", *where, *words])
        code = main()
        return code, *capsys.readouterr()

    return type_in


TINY = ("--detection.iterations", "1", "--detection.images-per-step", "1", "--detection.short-side", "32")


def test_both_protocols_write_their_reports(typed: Typed, tmp_path: Path) -> None:
    code, shown, errors = typed(
        *("--data", "VOCdevkit", "--protocol", "svm", "detection", *TINY),
        *("--svm.taps", "res4", "res5", "--svm.costs", "0.1", "1", "--svm.low-shot", "1", "2", "--svm.draws", "2"),
    )
    assert (code, "Traceback" in errors) == (0, False)
    assert "fitted to" in shown
    assert "VOCdevkit (trainval), counted on" in shown
    assert "VOCdevkit (test)" in shown
    reports = {name: json.loads((tmp_path / f"out/{name}.json").read_text()) for name in ("svm", "detection")}
    names = [each["name"] for each in reports["svm"]["measurements"]]
    assert names[:2] == ["res4, mean AP", "res5, mean AP"]
    assert names[2:4] == ["res4, mean AP of 1 a class", "res4, mean AP of 2 a class"]
    assert reports["svm"]["settings"]["costs"] == [0.1, 1]
    assert [each["name"] for each in reports["detection"]["measurements"]] == ["AP", "AP50", "AP75"]
    assert reports["detection"]["data"]["train"]["images"] == 44
    assert not list((tmp_path / "out").glob("*.pt"))
    assert (tmp_path / "out/table.csv").read_text().count("\n") == 1 + 6 + 3


def _file(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


REFUSED = {
    "knn": (
        ("--data", "VOCdevkit", "--protocol", "knn"),
        lambda folder: None,
        r"error: knn: the images of .*VOCdevkit \(trainval\) show several classes each: use --protocol svm or detec",
    ),
    "no VOC": (
        ("--data", "digits", "--protocol", "detection"),
        lambda folder: None,
        r"error: .*digits is no folder of PASCAL VOC: use VOCdevkit/VOC2007 with JPEGImages",
    ),
    "no folder": (
        ("--data", "nowhere", "--protocol", "detection"),
        lambda folder: None,
        r"error: .*nowhere is no folder of PASCAL VOC",
    ),
    "no splits": (
        ("--data", "VOCdevkit/VOC2007", "--protocol", "svm"),
        lambda folder: shutil.rmtree(folder / "VOCdevkit/VOC2007/ImageSets"),
        r"error: .*VOC2007 has a folder JPEGImages and no ImageSets/Main",
    ),
    "broken XML": (
        ("--data", "VOCdevkit", "--protocol", "detection"),
        lambda folder: _file(folder, "VOCdevkit/VOC2007/Annotations/000030.xml", "<annotation>"),
        r"error: .*VOC2007/Annotations/000030\.xml is not XML",
    ),
    "a test split that is no VOC": (
        ("--data", "VOCdevkit", "--test", "digits", "--protocol", "svm"),
        lambda folder: None,
        r"error: .*digits is no folder of PASCAL VOC",
    ),
    "VOC for the test alone": (
        ("--data", "digits", "--test", "VOCdevkit", "--protocol", "svm"),
        lambda folder: None,
        r"error: .*digits is no folder of PASCAL VOC",
    ),
    "a strange side": (
        ("--data", "VOCdevkit", "--protocol", "detection", "--detection.short-side", "8"),
        lambda folder: None,
        r"error: --detection\.short.side",
    ),
    "a strange cost": (
        ("--data", "VOCdevkit", "--protocol", "svm", "--svm.costs", "0", "1"),
        lambda folder: None,
        r"error: --svm\.costs",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_writes_nothing(typed: Typed, tmp_path: Path, case: str) -> None:
    words, edit, message = REFUSED[case]
    edit(tmp_path)
    code, shown, errors = typed(*words)
    assert (code, shown) == (2, "")
    assert re.search(message, errors)
    assert not (tmp_path / "out").exists()


def test_a_damaged_image_fails_with_its_name(typed: Typed, tmp_path: Path) -> None:
    _file(tmp_path, "VOCdevkit/VOC2007/JPEGImages/000030.jpg", "no image")
    code, _, errors = typed("--data", "VOCdevkit", "--protocol", "svm")
    assert code == 1
    assert "failed: " in errors
    assert "VOC2007/JPEGImages/000030.jpg" in errors
    assert "Traceback" not in errors


def test_the_split_of_2012_is_said(typed: Typed) -> None:
    code, shown, _ = typed("--data", "VOCdevkit/VOC2012", "--protocol", "svm", "--svm.taps", "res5", "--no-random")
    assert code == 0
    assert "VOC2012 (train), counted on" in shown
    assert "VOC2012 (val)" in shown
