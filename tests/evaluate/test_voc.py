"""Folders of PASCAL VOC in the layout of its archives, whole and with each part broken."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pirl.errors import ConfigError, CorruptImage
from pirl.evaluate.features import extract
from pirl.evaluate.splits import why_not
from pirl.evaluate.voc.voc_folder import VocSplit, open_voc, presence_of, years_of
from pirl.loading.color import normalize
from pirl.loading.crops import resize
from pirl.loading.decode import decode
from pirl.methods.models import TAPS, Trunk, pool
from pirl.storage.folder import Folder
from tests.evaluate.voc_folder import CLASSES, write_year

CPU = torch.device("cpu")


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """With 2007, which has a test split, and 2012, which has none."""
    write_year(tmp_path / "VOCdevkit/VOC2007", {"trainval": 12, "test": 10}, seed=1)
    write_year(tmp_path / "VOCdevkit/VOC2012", {"train": 9, "val": 8}, seed=2)
    return tmp_path / "VOCdevkit"


def _open(place: Path, test: Path | None = None) -> tuple[VocSplit, VocSplit]:
    split = open_voc(Folder(str(place)), Folder(str(test)) if test else None)
    assert split.test is not None
    return split, split.test


def _names(split: VocSplit) -> set[str]:
    return {f"{year.name}/{id}" for year, id in split.images}


def test_a_year_has_trainval_and_test(devkit: Path) -> None:
    train, test = _open(devkit / "VOC2007")
    assert (train.split, test.split) == ("trainval", "test")
    assert _names(train) == {f"VOC2007/{number:06d}" for number in range(1, 13)}
    assert _names(test) == {f"VOC2007/{number:06d}" for number in range(13, 23)}
    assert train.classes == test.classes == CLASSES
    for split in (train, test):
        # The class files against what the annotations hold.
        assert np.array_equal(split.presence, presence_of(split.objects(), CLASSES))
        assert set(np.unique(split.presence)) >= {1, -1}
    assert train.uri.endswith("VOC2007 (trainval)")
    assert train.held_out() is test
    assert train.fingerprint != test.fingerprint


def test_difficult_objects_alone_are_zero() -> None:
    from pirl.evaluate.voc.annotation import VocObject

    def row(*difficult: bool) -> list[VocObject]:
        return [VocObject("bar", (0, 0, 1, 1), each) for each in difficult]

    assert presence_of([row(), row(True), row(False), row(True, False)], CLASSES).tolist() == [
        *([-1, -1], [0, -1], [1, -1], [1, -1])
    ]


def test_objects_have_boxes_from_the_outer_corner(tmp_path: Path) -> None:
    write_year(tmp_path / "VOC2007", {"trainval": 8, "test": 8})
    train, _ = _open(tmp_path)
    for id, objects in enumerate(train.objects()):
        image = decode(train.image_bytes(id)).float().mean(0)
        for each in objects:
            left, top, right, bottom = (int(side) for side in each.box)
            assert image[top:bottom, left:right].min() > 100  # bright to the last pixel; JPEG blurs a little
            assert image[top:bottom, right : right + 1].numpy().max(initial=0) < 160


def test_the_parts_above_and_below_a_year_are_found(devkit: Path) -> None:
    for place in (devkit, devkit.parent):
        years = years_of(Folder(str(place)))
        assert [year.name for year in years] == ["VOC2007", "VOC2012"]
        train, test = _open(place)
        assert len(_names(train)) == train.rows == 12 + 17
        assert {name.partition("/")[0] for name in _names(test)} == {"VOC2007"}  # 2012 has no test split
    assert years_of(Folder(str(devkit.parent / "nowhere"))) == []


def test_a_year_without_a_test_split_has_train_and_val(devkit: Path) -> None:
    year = devkit / "VOC2012"
    train, test = _open(year)
    assert (train.split, test.split) == ("train", "val")
    assert not _names(train) & _names(test)
    # The test archive of 2012 has images and their list, and neither classes nor annotations.
    (year / "ImageSets/Main/test.txt").write_text("900001\n")
    (year / "JPEGImages/900001.jpg").write_bytes(b"")
    assert _open(year)[1].split == "val"


def test_the_test_split_may_be_elsewhere(devkit: Path) -> None:
    train, test = _open(devkit / "VOC2012", devkit / "VOC2007")
    assert (train.split, train.rows, test.split, test.rows) == ("trainval", 17, "test", 10)
    train, test = _open(devkit / "VOC2007", devkit / "VOC2012")
    assert (train.split, test.split, test.rows) == ("trainval", "val", 8)
    train, test = _open(devkit / "VOC2012", devkit / "VOC2012")
    assert (train.split, test.split) == ("train", "val")


def test_classes_come_from_annotations_where_there_are_no_class_files(tmp_path: Path) -> None:
    write_year(tmp_path / "a/VOC2007", {"trainval": 12, "test": 10}, seed=1)
    write_year(tmp_path / "b/VOC2007", {"trainval": 12, "test": 10}, seed=1, class_files=False)
    for with_files, without in zip(_open(tmp_path / "a"), _open(tmp_path / "b"), strict=True):
        assert np.array_equal(with_files.presence, without.presence)
        assert with_files.fingerprint == without.fingerprint


def test_features_are_those_of_the_whole_image(devkit: Path) -> None:
    train, _ = _open(devkit / "VOC2007")
    torch.manual_seed(0)
    trunk = Trunk("resnet18", 4).eval()
    features = extract(trunk, train, 32, CPU)
    for id in range(train.rows):
        view = resize(decode(train.image_bytes(id)), 32, 32)
        with torch.inference_mode():
            one = pool(trunk.taps(normalize(view[None])))
        for name in TAPS:
            # float32: a convolution may add in another order for another batch size.
            torch.testing.assert_close(features.taps[name][id], one[name][0], rtol=1e-4, atol=1e-5)


def test_a_damaged_image_is_never_skipped(devkit: Path) -> None:
    """Its classes would be fitted to what is blank."""
    train, _ = _open(devkit / "VOC2007")
    (devkit / "VOC2007/JPEGImages/000005.jpg").write_bytes(b"no image")
    with pytest.raises(CorruptImage, match=r"VOC2007/JPEGImages/000005\.jpg"):
        extract(Trunk("resnet18", 4), train, 32, CPU, skip=True)


def test_other_protocols_are_told_of_several_classes(devkit: Path) -> None:
    assert "several classes each: use --protocol svm or detection" in (why_not(*_open(devkit)) or "")


def _edit(file: str, old: str, new: str):
    def edit(year: Path) -> None:
        text = (year / file).read_text()
        assert re.search(old, text)
        (year / file).write_text(re.sub(old, new, text, count=1))

    return edit


def _without(file: str):
    return lambda year: (year / file).unlink()


MAIN = "ImageSets/Main"

BROKEN = {
    "no image": (_without("JPEGImages/000003.jpg"), r"JPEGImages/000003\.jpg is missing, which .*trainval\.txt names"),
    "no trainval": (_without(f"{MAIN}/trainval.txt"), r"VOC2007 has no ImageSets/Main/trainval\.txt"),
    "no test": (_without(f"{MAIN}/test.txt"), r"VOC2007 has no test split .* unpack the test archive .*--test"),
    "an empty split": (_edit(f"{MAIN}/trainval.txt", r"(?s).*", ""), r"trainval\.txt names no image"),
    "no text": (
        lambda year: (year / MAIN / "trainval.txt").write_bytes(b"\xff\xfe"),
        r"Main/trainval\.txt is no text",
    ),
    "an image twice": (_edit(f"{MAIN}/trainval.txt", "000002", "000001"), r"trainval\.txt names an image twice"),
    "no class file": (_without(f"{MAIN}/bar_test.txt"), r"bar_test\.txt is missing, and other classes have"),
    "a strange sign": (_edit(f"{MAIN}/bar_test.txt", "000014 .*", "000014 2"), r"bar_test\.txt: line 2 is '000014 2'"),
    "no line": (_edit(f"{MAIN}/bar_test.txt", "000014 .*", ""), r"bar_test\.txt has no line for 000014"),
    "an empty class": (
        lambda year: (year / MAIN / "bar_test.txt").write_text(
            (year / MAIN / "bar_test.txt").read_text().replace("  1", " -1")
        ),
        r"no image of .*VOC2007 \(test\) shows a 'bar'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_named(devkit: Path, case: str) -> None:
    edit, message = BROKEN[case]
    edit(devkit / "VOC2007")
    with pytest.raises(ConfigError, match=message):
        _open(devkit / "VOC2007")


ANNOTATIONS = {
    "missing": (_without("Annotations/000004.xml"), r"000004\.xml is missing"),
    "cut": (_edit("Annotations/000004.xml", r"(?s)</annotation>.*", ""), r"000004\.xml is not XML"),
    "empty": (_edit("Annotations/000004.xml", r"(?s).*", ""), r"000004\.xml is not XML"),
    "no side": (_edit("Annotations/000004.xml", "<xmin>.*</xmin>", ""), r"000004\.xml: object 1 has no bndbox"),
    "no number": (_edit("Annotations/000004.xml", "<ymax>", "<ymax>x"), r"000004\.xml: object 1 has no bndbox"),
    "an empty box": (
        _edit("Annotations/000004.xml", "<xmax>.*</xmax>", "<xmax>0</xmax>"),
        r"000004\.xml: object 1 .* its box is empty",
    ),
    "another root": (
        _edit("Annotations/000004.xml", "(?s).*", "<html><object/></html>"),
        r"000004\.xml has a <html>, and no <annotation>",
    ),
    "a strange word": (
        _edit("Annotations/000004.xml", "<difficult>.", "<difficult>maybe"),
        r"000004\.xml: object 1 is 'maybe' difficult",
    ),
    "a box beside the image": (
        _edit("Annotations/000004.xml", "<width>.*</width>", "<width>5</width>"),
        r"000004\.xml: object 1 lies beside the image: .* the image 5 x 64",
    ),
    "another class": (
        _edit("Annotations/000004.xml", "<name>.*</name>", "<name>cat</name>"),
        r"000004\.xml has a 'cat'",
    ),
}


@pytest.mark.parametrize("case", ANNOTATIONS)
def test_a_broken_annotation_is_named(devkit: Path, case: str) -> None:
    edit, message = ANNOTATIONS[case]
    edit(devkit / "VOC2007")
    with pytest.raises(ConfigError, match=message):
        _open(devkit / "VOC2007")[0].objects()


def test_a_folder_that_is_none_is_told_what_one_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no folder of PASCAL VOC: use VOCdevkit/VOC2007 with JPEGImages"):
        _open(tmp_path)
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(ConfigError, match=r"has a folder JPEGImages and no ImageSets/Main"):
        years_of(Folder(str(tmp_path)))


def test_floats_and_no_word_on_difficulty_are_read(devkit: Path) -> None:
    """2012 has boxes such as 45.70000076293945; other tools leave `difficult` out."""
    _edit("Annotations/000004.xml", r"<xmin>(\d+)</xmin>", r"<xmin>\1.25</xmin>")(devkit / "VOC2007")
    _edit("Annotations/000004.xml", "<difficult>.</difficult>", "")(devkit / "VOC2007")
    train, _ = _open(devkit / "VOC2007")
    (each, *_) = train.objects()[[id for _, id in train.images].index("000004")]
    assert each.box[0] % 1 == 0.25
    assert not each.difficult
