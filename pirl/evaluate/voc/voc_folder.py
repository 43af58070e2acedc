"""PASCAL VOC as its archives lie on a disk or in a store: images that show several classes, and boxes around objects.

A folder of a year has `JPEGImages/ID.jpg`, `Annotations/ID.xml`, and in `ImageSets/Main` the ids of each split and, for
each class, whether the images of a split show it.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pirl.data.dataset import Dataset, RowGroup
from pirl.data.writer import fingerprint
from pirl.errors import ConfigError
from pirl.evaluate.voc.annotation import MAIN, VocObject, objects_in, xml_of
from pirl.storage.folder import Folder

YEARS = tuple(f"VOC{year}" for year in range(2005, 2013))
"""Folders in VOCdevkit."""
GROUP = 64
"""Images of a row group."""
READERS = 16
"""Small files that are read at once: a store answers each after many milliseconds."""
LAYOUT = "VOCdevkit/VOC2007 with JPEGImages, Annotations and ImageSets/Main, as the archives unpack"

In = TypeVar("In")
Out = TypeVar("Out")
Presence = NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class VocSplit(Dataset):
    """A split of one year or of several, in an order that is drawn once, so that the first images are a fair sample.

    Attributes:
        split: `trainval`, `train`, `val` or `test`.
        images: The folder of the year and the id of each image.
        classes: Names of the C classes, sorted.
        presence: int8 (rows, C): 1 where an image shows a class, -1 where it does not, 0 for difficult objects alone.
        test: The split that is counted, at the one that is fitted.
    """

    split: str = ""
    images: tuple[tuple[Folder, str], ...] = ()
    classes: tuple[str, ...] = ()
    presence: Presence = field(default_factory=lambda: np.empty((0, 0), np.int8))
    test: "VocSplit | None" = None

    @property
    def uri(self) -> str:
        """With the split."""
        return f"{self.folder.uri} ({self.split})"

    def held_out(self) -> "VocSplit | None":
        """The split that is counted."""
        return self.test

    def load_group(self, number: int) -> RowGroup:
        """Reads the images of a group; their classes are in `presence`."""
        ids = np.arange(self.starts[number], self.starts[number + 1])
        return RowGroup(ids, [self.image_bytes(int(id)) for id in ids], None)

    def image_bytes(self, id: int) -> bytes:
        """An image, encoded."""
        year, name = self.images[id]
        return year.read_bytes(_jpeg(name))

    def place(self, id: int) -> str:
        """The file of an image, for messages."""
        year, name = self.images[id]
        return f"{year}/{_jpeg(name)}"

    def objects(self) -> list[list[VocObject]]:
        """The objects in each image, in the order of the rows; raises ConfigError for a file that is broken."""
        found = _all(objects_in, self.images)
        for (year, name), objects in zip(self.images, found, strict=True):
            for each in objects:
                if each.name not in self.classes:
                    raise ConfigError(
                        f"{year}/{xml_of(name)} has a {each.name!r}, and {MAIN} the classes {', '.join(self.classes)}"
                    )
        return found


def years_of(place: Folder) -> list[Folder]:
    """The years in a VOCdevkit, in the folder around it, or the one year that is given; none if it is no VOC folder.

    Raises:
        ConfigError: It has a part of the layout, but no splits.
    """
    for folder in (place, place / "VOCdevkit"):
        years = [each for each in (folder, *(folder / year for year in YEARS)) if (each / MAIN).is_folder()]
        if years:
            return years
        for part in ("JPEGImages", "Annotations", *YEARS):
            if (folder / part).is_folder():
                raise ConfigError(f"{folder} has a folder {part} and no {MAIN}: use {LAYOUT}")
    return []


def open_voc(place: Folder, test: Folder | None = None) -> VocSplit:
    """The split to fit with, which has the one that is counted as `test`.

    They are trainval and test; where nobody published a test split with annotations, as of 2012, they are train and
    val, as val is a part of trainval.

    Args:
        place: A year, or a VOCdevkit: then all its years fit, and those that have a test split are counted.
        test: Another folder whose test split, or else val, is counted.

    Raises:
        ConfigError: What is missing or broken, by the name of the file.
    """
    years, counted = years_of(place), years_of(test or place)
    for folder, found in ((place, years), (test or place, counted)):
        if not found:
            raise ConfigError(f"{folder} is no folder of PASCAL VOC: use {LAYOUT}")
    tested = [year for year in counted if _has(year, "test")]
    if not tested and not all((year / MAIN).exists("val.txt") for year in counted):
        raise ConfigError(
            f"{test or place} has no test split (no {MAIN}/test.txt with annotations, and no val.txt): unpack the test "
            "archive into it too, or name a folder that has one with --test"
        )
    count, counted = ("test", tested) if tested else ("val", counted)
    fit = "train" if count == "val" and any(year in years for year in counted) else "trainval"
    for year in years:
        if not (year / MAIN).exists(f"{fit}.txt"):
            raise ConfigError(f"{year} has no {MAIN}/{fit}.txt: use {LAYOUT}")
    classes = sorted({name for year in years for name in _class_names(year, fit)})
    if not classes:
        raise ConfigError(f"{place} has no class: neither files {MAIN}/CLASS_{fit}.txt nor objects in Annotations")
    held_out = _split(test or place, counted, count, classes)
    return replace(_split(place, years, fit, classes), test=held_out)


def _split(place: Folder, years: Sequence[Folder], split: str, classes: Sequence[str]) -> VocSplit:
    images: list[tuple[Folder, str]] = []
    bytes_of: list[int] = []
    parts = []
    for year in years:
        ids = _ids(year, split)
        sizes = (year / "JPEGImages").sizes()
        if missing := [id for id in ids if f"{id}.jpg" not in sizes]:
            more = f", and {len(missing) - 1:,} more" if len(missing) > 1 else ""
            raise ConfigError(
                f"{year}/{_jpeg(missing[0])} is missing{more}, which {MAIN}/{split}.txt names: unpack the archive again"
            )
        images += [(year, id) for id in ids]
        bytes_of += [sizes[f"{id}.jpg"] for id in ids]
        parts.append(_presence(year, split, ids, classes))
    order = np.random.Generator(np.random.Philox(0)).permutation(len(images))
    presence = np.concatenate(parts)[order]
    for name, column in zip(classes, presence.T, strict=True):
        if not (column == 1).any():
            raise ConfigError(f"no image of {place} ({split}) shows a {name!r}, so nothing can be measured with it")
    known = json.dumps([[images[row][0].name, images[row][1], bytes_of[row]] for row in order])
    starts = np.array([*range(0, len(images), GROUP), len(images)], np.int64)
    none = np.empty(0, np.int64)  # it has no shards
    return VocSplit(
        folder=place,
        rows=len(images),
        starts=starts,
        labels=None,
        class_rows=None,
        largest=None,
        shards=[],
        shard_bytes=none,
        first_groups=none,
        spans=none.reshape(0, 2),
        checksums=none.astype(np.uint32),
        fingerprint=fingerprint(known.encode()),
        split=split,
        images=tuple(images[row] for row in order),
        classes=tuple(classes),
        presence=presence,
    )


def _has(year: Folder, split: str) -> bool:
    """Whether a split is there, with annotations: the test archive of 2012 has images alone."""
    text = _text(year, f"{split}.txt")
    return bool(text and text.split()) and year.exists(xml_of(str(text).split()[0]))


def _text(year: Folder, name: str) -> str | None:
    """A file of the splits; None if there is none."""
    try:
        return (year / MAIN).find(name)
    except UnicodeDecodeError:
        raise ConfigError(f"{year}/{MAIN}/{name} is no text: unpack the archive again") from None


def _ids(year: Folder, split: str) -> list[str]:
    ids = (_text(year, f"{split}.txt") or "").split()
    if not ids or len(set(ids)) < len(ids):
        raise ConfigError(f"{year}/{MAIN}/{split}.txt names {'an image twice' if ids else 'no image'}")
    return ids


def _class_names(year: Folder, split: str) -> list[str]:
    """Of the files of a split, or of the objects in its images where there are no such files."""
    end = f"_{split}.txt"
    names = [file.removesuffix(end) for file in (year / MAIN).sizes() if file.endswith(end)]
    if names:
        return names
    found = _all(objects_in, [(year, id) for id in _ids(year, split)])
    return [each.name for objects in found for each in objects]


def _presence(year: Folder, split: str, ids: Sequence[str], classes: Sequence[str]) -> Presence:
    """int8 (images, classes), as of `VocSplit`."""
    texts = [_text(year, f"{name}_{split}.txt") for name in classes]
    if not any(text is not None for text in texts):
        return presence_of(_all(objects_in, [(year, id) for id in ids]), classes)
    columns = []
    for name, text in zip(classes, texts, strict=True):
        file = f"{year}/{MAIN}/{name}_{split}.txt"
        if text is None:
            raise ConfigError(f"{file} is missing, and other classes have such a file")
        lines = [line.split() for line in text.splitlines() if line.strip()]
        for number, line in enumerate(lines, 1):
            if len(line) != 2 or line[1] not in ("1", "0", "-1"):
                raise ConfigError(f"{file}: line {number} is {' '.join(line)!r}, and not an id with 1, 0 or -1")
        known = {id: int(value) for id, value in lines}
        if unknown := [id for id in ids if id not in known]:
            raise ConfigError(f"{file} has no line for {unknown[0]}, which {split}.txt names")
        columns.append([known[id] for id in ids])
    return np.array(columns, np.int8).T


def presence_of(objects: Iterable[Sequence[VocObject]], classes: Sequence[str]) -> Presence:
    """int8 (images, classes) of the objects in images: 1 for one that counts, 0 for difficult ones alone, else -1."""
    rows = []
    for inside in objects:
        row = dict.fromkeys(classes, -1)
        for each in inside:
            row[each.name] = max(row.get(each.name, -1), 0 if each.difficult else 1)
        rows.append([row[name] for name in classes])
    return np.array(rows, np.int8).reshape(-1, len(classes))


def _all(read: Callable[[In], Out], given: Sequence[In]) -> list[Out]:
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(read, given))


def _jpeg(id: str) -> str:
    return f"JPEGImages/{id}.jpg"
