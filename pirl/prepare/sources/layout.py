"""What the paths of images say: which of them are for training, for testing or neither, and their classes.

The same tree says the same in a folder, in an archive and in a store. Paths are columns, not a Python object for each.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pirl.data.dataset import Ints
from pirl.errors import ConfigError
from pirl.prepare.sources.not_read import NotRead

SPLITS = {
    "train": ("train", "training", "trainval", "trn"),
    "test": ("test", "testing", "tst", "holdout"),
    "val": ("val", "valid", "validation", "eval", "evaluation", "dev"),
    "unlabeled": ("unlabeled", "unlabelled", "unsup", "extra", "pred"),
}
"""What splits are called, in any case, and perhaps with words such as `set`, a number or a letter behind it
(`training_set`, `train2017`, `testA`)."""
_WORDS = {word: split for split, words in SPLITS.items() for word in words}
_SPLIT = re.compile(
    rf"({'|'.join(sorted(_WORDS, key=len, reverse=True))})"
    r"([-_. ]?((data)?set|split|data|images?|imgs?|photos?|dir|folder|files|full|all|clean|other"
    r"|[a-d](?![a-z])|\d{1,4}))*",
    re.IGNORECASE,
)
LOOSE = "."
"""What stands for the folder of images that lie in none."""


def split_of(name: str) -> str | None:
    """The split that a folder of this name holds; None where it is called like no split."""
    match = _SPLIT.fullmatch(name)
    return _WORDS[match[1].lower()] if match else None


def split_in(name: str) -> str | None:
    """The split that the last word of a name stands for, as in `seg_train`."""
    return _WORDS.get(re.split(r"[-_. ]", name.lower())[-1])


class Part(NamedTuple):
    """Images of one purpose: their rows, and their paths without the folders above those of the classes."""

    rows: Ints
    paths: pa.Array

    def folders(self) -> pa.Array:
        """The first folder of each path."""
        return first_folders(self.paths).fill_null(LOOSE)

    def inside(self, names: Sequence[str]) -> "Part":
        """Those in folders of these names, with their paths in them."""
        rows = np.flatnonzero(_is_any_of(self.folders(), names))
        paths = pc.replace_substring_regex(self.paths.take(pa.array(rows)), "^[^/]*/", "")
        return Part(self.rows[rows], paths)

    def outside(self, names: Sequence[str]) -> "Part":
        """Those that do not lie in folders of these names."""
        rows = np.flatnonzero(~_is_any_of(self.folders(), names))
        return Part(self.rows[rows], self.paths.take(pa.array(rows)))

    def below_common(self) -> "Part":
        """With paths without the folders that all of them lie in, as long as there are folders below."""
        part = self
        while len(names := pc.unique(part.folders()).to_pylist()) == 1 and names != [LOOSE]:
            if not pc.any(pc.match_substring_regex(part.paths, "/.*/")).as_py():
                break
            part = part.inside(names)
        return part

    def below_repeats(self, names: Sequence[str]) -> "Part":
        """With paths without a folder that is called like the one that they were in, as `train/train/cat/1.png`."""
        part = self
        while len(found := pc.unique(part.folders()).to_pylist()) == 1 and found[0] in {*names} - {LOOSE}:
            part = part.inside(found)
        return part


class Layout(NamedTuple):
    """The images for training, those that are held out, and those for training that have no label."""

    train: Part
    test: Part | None = None
    also: Part | None = None


def first_folders(paths: pa.Array) -> pa.Array:
    """The first folder of each path, null where a path has none.

    Systems write letters with accents in two ways that nobody can tell apart; here they are one.
    """
    parts = pc.split_pattern(paths, "/", max_splits=1)
    folders = pc.utf8_normalize(pc.list_element(parts, 0), "NFC")
    return pc.if_else(pc.greater(pc.list_value_length(parts), 1), folders, pa.scalar(None, folders.type))


def find_layout(paths: pa.Array, labelled: NDArray[np.bool_] | None, also: Sequence[str], not_read: NotRead) -> Layout:
    """Tells the splits apart, by the first folder in which not all images lie.

    Folders beside the splits, and a second held-out split, are counted in `not_read`.

    Args:
        paths: Tidy paths of the N images.
        labelled: bool (N,), which of them have a label; None where the folders are the labels.
        also: Folders whose images are for training, without a label.

    Raises:
        ConfigError: There is no such folder, or nothing for training.
    """
    rest, added = Part(np.arange(len(paths)), paths).below_common(), None
    also = [unicodedata.normalize("NFC", name.strip("/")) for name in also]
    if also:
        there = pc.unique(rest.folders()).to_pylist()
        if missing := [name for name in also if name not in there]:
            raise ConfigError(f"--also {missing[0]}: the folders of images are {', '.join(sorted(there)[:20])}")
        rest, added = rest.outside(also), rest.inside(also)
        if not all(map(split_of, pc.unique(rest.folders()).to_pylist())):
            rest = rest.below_common()
    rest = _below_strays(rest, not_read)
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(rest.folders()).to_pylist()}
    roles = _roles(list(counts))
    splits: dict[str | None, list[str]] = {}
    for name in sorted(counts):
        splits.setdefault(roles[name], []).append(name)

    def part(split: str | None) -> Part:
        if split is None:
            return rest.outside([name for name, role in roles.items() if role])
        names = splits.get(split, [])
        return rest.inside(names).below_repeats(names)

    chosen = choose_splits(set(splits), _are_classes(splits, part), has_more=added is not None)
    if chosen is None:
        return Layout(rest, None, added)
    train, held_out = part(chosen.train), chosen.test
    if len(chosen.held_out) > 1 and not _has_labels(part(held_out), labelled) and _has_labels(train, labelled):
        held_out = next((split for split in chosen.held_out if _has_labels(part(split), labelled)), held_out)
    for name in (name for split in splits if split not in (chosen.train, held_out) for name in splits[split]):
        if name == LOOSE:
            _add_strays(part(None).paths, not_read)
        else:
            not_read.add(f"folder {name}/", name, counts[name])
    not_read.held_out = ", ".join(f"{name}/" for name in splits.get(held_out, []))
    return Layout(train, part(held_out) if held_out else None, added)


class Chosen(NamedTuple):
    """What the splits are for; None stands for what is called like no split."""

    train: str | None
    held_out: Sequence[str]

    @property
    def test(self) -> str | None:
        """The first choice to hold out."""
        return self.held_out[0] if self.held_out else None


def choose_splits(found: set[str | None], has_others: bool, has_more: bool = False) -> Chosen | None:
    """Which splits are for training and for testing; None where all that there is, is for training.

    Args:
        found: The splits that there are, None for what is called like no split.
        has_others: Whether what is called like no split stands beside the splits as their equal: a class, or a file.
        has_more: Whether there is something else for training.

    Raises:
        ConfigError: There is something to hold out, and nothing for training.
    """
    held_out = [split for split in ("test", "val") if split in found]
    if "train" in found:  # it may also be a class, beside car and bus
        return Chosen("train", held_out) if held_out or not has_others else None
    if not held_out or has_others or (len(found) == 1 and not has_more):
        return None
    if None not in found and not has_more:
        raise ConfigError(
            f"there are images called {' and '.join(sorted(map(str, found)))}, and none called train: name one folder "
            "as SOURCE and another with --test, or add --also NAME to train on those of a folder without labels"
        )
    return Chosen(None, held_out)


def _below_strays(part: Part, not_read: NotRead) -> Part:
    """The images below the folder that the splits lie in, where beside it are single images only, which are counted.

    Raises:
        ConfigError: There are splits in a folder, and other folders of images beside that: test images would be
            trained on.
    """
    splits: dict[str, dict[str, str]] = {}  # folder -> split -> the folder in it that is called so
    for path in pc.unique(pc.replace_substring_regex(part.paths, "[^/]*$", "")).to_pylist():
        above = ""
        for name in path.split("/")[:-1]:
            if (split := split_of(name)) is not None:
                splits.setdefault(above, {}).setdefault(split, name)
            above += f"{name}/"
    whole = sorted(place for place, found in splits.items() if "train" in found and {"test", "val"} & found.keys())
    if not whole or whole[0] == "":  # in alphabetical order: whatever lies in a folder comes behind it
        return part
    place = whole[0]
    is_inside = pc.starts_with(part.paths, place).to_numpy(zero_copy_only=False)
    others = part.paths.filter(pa.array(~is_inside))
    if stray := next((path for path in others.to_pylist() if not place.startswith(path[: path.rfind("/") + 1])), None):
        train, *held_out = sorted(splits[place].items(), key=lambda item: item[0] != "train")
        raise ConfigError(
            f"{place} holds splits ({train[1]}/, {held_out[0][1]}/), and there are other images beside it ({stray}): "
            "name one folder with train/ and test/ in it as SOURCE. Splits are folders above the classes, as train/cat/"
        )
    if len(others):
        _add_strays(others, not_read)
    return Part(part.rows[is_inside], pc.utf8_slice_codeunits(part.paths.filter(pa.array(is_inside)), len(place)))


def _add_strays(paths: pa.Array, not_read: NotRead) -> None:
    not_read.add("images beside the folders of the splits", min(paths.to_pylist()), len(paths))


def _roles(names: list[str]) -> dict[str, str | None]:
    """The split that each folder holds; where all have a word for one, as `seg_train` and `seg_test`, that is it."""
    words = {name: split_in(name) for name in names if name != LOOSE}
    if {"train"} < {*words.values()} and None not in words.values():
        return words | {name: None for name in names if name == LOOSE}
    return {name: split_of(name) for name in names}


def _are_classes(splits: dict[str | None, list[str]], part: Callable[[str], Part]) -> bool:
    """Whether the folders that are called like no split are classes that stand beside the splits.

    They are not where the held-out images lie in folders of the same names, and then only those are held out.
    """
    classes = set(splits.get(None, [])) - {LOOSE}
    inside = {name for split in ("test", "val") for name in pc.unique(part(split).folders()).to_pylist()}
    return bool(classes) and not (inside and inside <= classes)


def _has_labels(part: Part, labelled: NDArray[np.bool_] | None) -> bool:
    if labelled is not None:
        return bool(labelled[part.rows].any())
    return bool(pc.any(pc.match_substring(part.paths, "/")).as_py())


def _is_any_of(values: pa.Array, names: Sequence[str]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = pc.is_in(values, pa.array(names, values.type)).to_numpy(zero_copy_only=False)
    return found
