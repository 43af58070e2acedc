import numpy as np
import pyarrow as pa
import pytest

from pirl.errors import ConfigError
from pirl.prepare.sources.layout import choose_splits, find_layout, first_folders, split_of
from pirl.prepare.sources.not_read import NotRead


def column(*names):
    return pa.array(names, pa.large_string())


def layout(*paths, also=(), labelled=None):
    """What is for training, for testing and without labels: row -> path below the folder of the split; what is left."""
    not_read = NotRead()
    parts = find_layout(column(*paths), labelled, also, not_read)
    rows = [part and dict(zip(part.rows.tolist(), part.paths.to_pylist(), strict=True)) for part in parts]
    return *rows, {what: left.files for what, left in not_read.left.items()}


def test_first_folders():
    assert first_folders(column("a/b/1.png", "2.png", "c/3.png")).to_pylist() == ["a", None, "c"]
    assert first_folders(column()).to_pylist() == []


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (["train", "Train", "TRAINING", "training_set", "train-images", "trainset"], "train"),
        (["Training set", "train2017", "train_01", "trainA", "train-clean-100", "train_images_2", "trainval"], "train"),
        (["test", "Testing", "test_set", "test2017", "testB", "TEST_DIR", "holdout"], "test"),
        (["val", "VALID", "validation", "eval", "dev"], "val"),
        (["unlabeled", "unlabelled", "extra"], "unlabeled"),
        (["trainer", "test_tube", "valley", "bullet_train", "", "n01440764", "trains", "valentine", "testify"], None),
    ],
)
def test_names_of_splits(names, split):
    assert {split_of(name) for name in names} == {split}


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "test"), ("Train", "Test"), ("training", "testing"), ("train", "valid"), ("TRAIN", "Validation")],
)
@pytest.mark.parametrize("above", ["", "archive/", "archive/photos/"])
def test_splits_below_any_folders(above, train, test):
    paths = [f"{above}{train}/cat/1.png", f"{above}{train}/ant/2.png", f"{above}{test}/cat/3.png"]
    assert layout(*paths) == ({0: "cat/1.png", 1: "ant/2.png"}, {2: "cat/3.png"}, None, {})


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        # No splits: `train` may be a class.
        (["train/1.png", "car/2.png"], ({0: "train/1.png", 1: "car/2.png"}, None, None, {})),
        (["test_tube/1.png", "train_track/2.png"], ({0: "test_tube/1.png", 1: "train_track/2.png"}, None, None, {})),
        (["1.png"], ({0: "1.png"}, None, None, {})),
        # Only one: that is all there is.
        (["train/cat/1.png"], ({0: "cat/1.png"}, None, None, {})),
        (["test/cat/1.png"], ({0: "cat/1.png"}, None, None, {})),
        # Folders that were packed twice, and names as in well-known data sets.
        (["training_set/training_set/cat/1.png", "test_set/test_set/cat/2.png"],
         ({0: "cat/1.png"}, {1: "cat/2.png"}, None, {})),
        (["seg_train/seg_train/sea/1.png", "seg_test/seg_test/sea/2.png", "seg_pred/seg_pred/3.png"],
         ({0: "sea/1.png"}, {1: "sea/2.png"}, None, {"folder seg_pred/": 1})),
        (["ILSVRC2012_img_train/n1/1.png", "ILSVRC2012_img_val/2.png"], ({0: "n1/1.png"}, {1: "2.png"}, None, {})),
        # What is neither is named.
        (["train/a/1.png", "test/a/2.png", "val/a/3.png", "val/a/4.png", "extra/5.png", "6.png"],
         ({0: "a/1.png"}, {1: "a/2.png"}, None,
          {"folder val/": 2, "folder extra/": 1, "images beside the folders of the splits": 1})),
        (["train/a/1.png", "unlabeled/2.png"], ({0: "a/1.png"}, None, None, {"folder unlabeled/": 1})),
        # Test images as they are handed out have no classes, and those for validation do.
        (["train/a/1.png", "val/a/2.png", "test/3.png"], ({0: "a/1.png"}, {1: "a/2.png"}, None, {"folder test/": 1})),
        (["train/1.png", "val/a/2.png", "test/3.png"], ({0: "1.png"}, {2: "3.png"}, None, {"folder val/": 1})),
        # Two folders of one split.
        (["train/a/1.png", "training/b/2.png", "test/a/3.png"],
         ({0: "a/1.png", 1: "b/2.png"}, {2: "a/3.png"}, None, {})),
        # Classes, or loose images, beside a test split.
        (["a/1.png", "b/2.png", "test/a/3.png"], ({0: "a/1.png", 1: "b/2.png"}, {2: "a/3.png"}, None, {})),
        (["1.png", "test/2.png"], ({0: "1.png"}, {1: "2.png"}, None, {})),
    ],
)  # fmt: skip
def test_layouts(paths, expected):
    assert layout(*paths) == expected
    # The order of the paths decides the order of the rows and nothing else.
    turned = layout(*paths[::-1])
    back = [part and {len(paths) - 1 - row: path for row, path in part.items()} for part in turned[:3]]
    assert (*back, turned[3]) == expected


def test_labels_that_are_not_folders_choose_the_held_out_split():
    paths = ["train/1.png", "val/2.png", "test/3.png"]
    assert layout(*paths, labelled=np.array([True, True, False]))[1] == {1: "2.png"}
    assert layout(*paths, labelled=np.array([True, True, True]))[1] == {2: "3.png"}


@pytest.mark.parametrize(
    ("paths", "also", "expected"),
    [
        (["train/a/1.png", "test/a/2.png", "unlabeled/3.png"], ["unlabeled"],
         ({0: "a/1.png"}, {1: "a/2.png"}, {2: "3.png"}, {})),
        (["x/train/a/1.png", "x/test/a/2.png", "x/val/b/3.png", "x/extra/4.png"], ["val"],
         ({0: "a/1.png"}, {1: "a/2.png"}, {2: "b/3.png"}, {"folder extra/": 1})),
        (["a/1.png", "b/2.png", "more/3.png"], ["more"], ({0: "a/1.png", 1: "b/2.png"}, None, {2: "3.png"}, {})),
        (["photos/a/1.png", "photos/b/2.png", "more/3.png"], ["more"],
         ({0: "a/1.png", 1: "b/2.png"}, None, {2: "3.png"}, {})),
        (["test/a/1.png", "unlabeled/2.png"], ["unlabeled"], ({}, {0: "a/1.png"}, {1: "2.png"}, {})),
        (["train/a/1.png", "test/a/2.png", "3.png"], ["."], ({0: "a/1.png"}, {1: "a/2.png"}, {2: "3.png"}, {})),
        (["a/1.png", "b/2.png"], ["a", "b"], ({}, None, {0: "1.png", 1: "2.png"}, {})),
    ],
)  # fmt: skip
def test_folders_that_are_taken_without_labels(paths, also, expected):
    assert layout(*paths, also=also) == expected


def test_a_folder_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"--also more: the folders of images are test, train$"):
        layout("train/a/1.png", "test/a/2.png", also=["more"])


def test_nothing_for_training_is_refused():
    with pytest.raises(ConfigError, match=r"images called test and val, and none called train: .*--test.*--also NAME"):
        layout("test/a/1.png", "val/a/2.png")
    assert choose_splits({"test", "val"}, has_others=False, has_more=True).held_out == ["test", "val"]


def test_single_images_beside_the_folder_of_the_splits():
    """A logo beside it must not make classes of the splits, nor a class of the folder."""
    inside = ["photos/train/cat/1.png", "photos/test/cat/2.png"]
    left = {"images beside the folders of the splits": 1}
    assert layout(*inside, "logo.png") == ({0: "cat/1.png"}, {1: "cat/2.png"}, None, left)
    assert layout(*[f"a/{path}" for path in inside], "a/logo.png", "b.png")[3] == {next(iter(left)): 2}


@pytest.mark.parametrize(
    "paths",
    [
        ["cat/train/1.png", "cat/test/2.png", "dog/train/3.png", "dog/test/4.png"],  # splits below the classes
        ["images/train/1.png", "images/val/2.png", "masks/train/1.png", "masks/val/2.png"],
        ["set/train/1.png", "set/val/2.png", "se/3.png"],
    ],
)
def test_splits_beside_other_images_are_refused(paths):
    """Or the images for testing would be trained on, without a word."""
    with pytest.raises(ConfigError, match=f"{paths[0].split('/')[0]}/ holds splits .train/, .*{paths[-1][:3]}"):
        layout(*paths)


def test_folders_below_classes_may_be_called_like_splits():
    paths = ["train/cat/train/1.png", "train/dog/test/2.png", "test/cat/3.png"]
    assert layout(*paths) == ({0: "cat/train/1.png", 1: "dog/test/2.png"}, {2: "cat/3.png"}, None, {})


def test_letters_with_accents_are_one_however_they_are_written():
    """As on macOS and as on Linux: nobody can tell two such classes apart."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert first_folders(column(f"{composed}/1.png", f"{decomposed}/2.png")).to_pylist() == [composed] * 2
    train, _, also, _ = layout(f"{decomposed}/1.png", "a/2.png", "b/3.png", also=[f"{composed}/"])
    assert train == {1: "a/2.png", 2: "b/3.png"}
    assert also == {0: "1.png"}


def test_what_is_left_beside_splits_is_named():
    not_read = NotRead()
    find_layout(column("train/a/1.png", "test/a/2.png", "logo.png"), None, [], not_read)
    assert not_read.left["images beside the folders of the splits"].first == "logo.png"
